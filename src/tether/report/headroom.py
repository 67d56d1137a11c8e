"""What a report says of the headroom that a run read on its way."""

from __future__ import annotations

from collections.abc import Sequence

from tether.ledger import Event
from tether.report.curves import Point
from tether.report.drawing import GREY, Style, curve_chart
from tether.report.page import Section, figures, n, note, plain, table

_CURVE = "used (journal)"


def headroom_section(events: Sequence[Event]) -> list[Section]:
    """How much of a weight the edits used as they grew; nothing where it was not read."""
    read = [(event.edit or 0, event.record["headroom"]) for event in events if event.record.get("headroom")]
    if not read:
        return []
    points = [Point(edit, found["used"], None) for edit, found in read]
    chart = curve_chart(
        "headroom", "degrees of freedom that the edits use", {"of a weight": {_CURVE: points}}, {_CURVE: Style(GREY)},
        {"of a weight": "percent"},
    )  # fmt: skip
    edit, last = read[-1]
    lines = [[n(edit), last["weight"], n(last["keys"]), n(last["size"]), n(plain(last["used"], ".1f")),
              n(plain(last["left"], ".1f"))]]  # fmt: skip
    about = (
        "Of the weight with the least room: percent of its degrees of freedom that one solve of all its keys uses, and "
        "the mean percent of a target that such a solve leaves unwritten. Other subjects of a relation suffer earlier: "
        "tether headroom measures that."
    )
    head = ["at edit", "weight", "keys", "degrees of freedom", "% used", "% unwritten"]
    return [Section("headroom", "Headroom", [figures(chart, beside=table(head, lines, name="Headroom")), note(about)])]
