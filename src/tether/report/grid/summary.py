"""The first screen of a grid's report: what was edited, what the models now say, what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tether.experiment.results import StoredGrid
from tether.report.curves import Curves, at, last_shared, restraint_name, short, span, under
from tether.report.drawing import BLUE, GREEN, GREY, RED
from tether.report.grid.findings import CLAIMS, Finding
from tether.report.grid.series import Editor
from tether.report.page import Bar, First, Stretch, bars

_MOST = 4  # editors that a figure shows


def summary(grid: StoredGrid, editors: Sequence[Editor], found: Sequence[Finding]) -> list[First]:
    """The three cards."""
    return [
        _edited(grid, editors, found),
        _compared(
            "What the model now says", editors, lambda e: e.measured(e.kinds[0]) if e.kinds else {},
            "The new answer is given to {} of the edited prompts", "Measured after the most edits that all bars have.",
        ),
        _compared(
            "What it cost", editors, lambda e: e.kept(), "{} of the general abilities are left",
            "The mean over abilities of the score's share of the unedited model's.",
        ),
    ]  # fmt: skip


def _edited(grid: StoredGrid, editors: Sequence[Editor], found: Sequence[Finding]) -> First:
    """Edits by editor, and how many findings each shows."""
    most = {e.name: max(stored.run.edits for stored in e.runs) for e in editors}
    top, all_findings = max(most.values(), default=1), len(CLAIMS)
    seen = Counter(f.editor for f in found if f.verdict == "seen")
    groups = {
        name: [
            Bar("edits", [Stretch(0.0, edits / top, BLUE)], str(edits)),
            Bar("findings seen", [Stretch(0.0, seen[name] / all_findings, GREEN)], f"{seen[name]} of {all_findings}"),
        ]
        for name, edits in [*most.items()][:_MOST]
    }
    models = ", ".join(dict.fromkeys(Path(stored.run.model).name for stored in grid.runs))
    runs = f"{len(grid.runs)} run{'' if len(grid.runs) == 1 else 's'}"
    headline = f"Up to {top} edits of {models} in {runs}" if most else "Nothing was edited"
    sentence = "Of each editor the longest run, and how many findings of the paper its data show." if most else ""
    return First("What was edited", headline, bars(groups, headline), sentence)


def _compared(asked: str, editors: Sequence[Editor], of: Callable[[Editor], Curves], words: str, about: str) -> First:
    """A measure in percent of every editor: unedited, without a restraint, and under PRUNE where it was measured."""
    groups: dict[str, list[Bar]] = {}
    ends: dict[str, list[float]] = {}
    for editor in editors:
        curves = {name: curve for name, curve in of(editor).items() if name in ("none", editor.prune)}
        edits = last_shared(*curves.values())
        lines = []
        for name, edited, colour in (("none", 0, GREY), ("none", edits, RED), (editor.prune or "", edits, BLUE)):
            point = at(curves.get(name, []), edited)
            if point is not None and edits is not None:
                label = restraint_name(name) if edited else "unedited"
                lines.append(
                    Bar(
                        label,
                        [Stretch(0.0, min(max(point.value, 0.0), 100.0) / 100, colour)],
                        short(point.value, "percent"),
                    )
                )
                if edited:
                    ends.setdefault(name, []).append(point.value)
        if lines:
            groups[f"{editor.name}, {edits} edits"] = lines
    if not groups:
        return First(asked, "Not measured", bars({}, asked), "")
    spans = {under(name): span(values, "percent") for name, values in ends.items()}
    (which, first), *others = spans.items()
    headline = ", ".join([f"{words.format(first)} {which}", *(f"{span} {name}" for name, span in others)])
    shown = dict([*groups.items()][:_MOST])
    more = f" {len(groups) - len(shown)} more editors are below." if len(groups) > len(shown) else ""
    return First(asked, headline, bars(shown, asked), about + more)
