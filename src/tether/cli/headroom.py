"""How much room the edits leave: directions used, and what other subjects of the same prompts get of them.

$ tether headroom my-edits
$ tether headroom my-edits more-facts.jsonl
"""

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import open_ledger, restraint
from tether.cli.options import Answer, Device, Dtype, LedgerPath, ModelOrRecorded, Restraint, Upto
from tether.cli.tables import one_line, table, with_error
from tether.editing.headroom import headroom as measure
from tether.facts import read_facts


def headroom(
    ledger: LedgerPath,
    facts: Annotated[Path | None, typer.Argument(help="Facts that are not edited yet.")] = None,
    model: ModelOrRecorded = None,
    restrain: Restraint = None,
    upto: Upto = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    wanted = read_facts(facts) if facts is not None else []
    opened, loaded = open_ledger(ledger, model, dtype, device)
    found = measure(loaded, opened, wanted, upto=upto, restrain=restraint(restrain))
    rooms = [
        [one.weight, f"{one.keys}", f"{one.rank} of {one.size}", f"{one.condition:.3g}", f"{one.used:.1f}",
         f"{one.left:.1f}", f"{one.most_left:.1f}"]
        for one in found.rooms
    ]  # fmt: skip
    head = ("weight", "keys", "rank", "condition", "% used", "% left", "most % left")
    spills = [
        [one_line(one.relation), str(one.edits), with_error(one.overlap, "–"), with_error(one.edited),
         with_error(one.bystanders, "–")]
        for one in found.relations
    ]  # fmt: skip
    parts = [
        f"{ledger}: {found.edits} live edits",
        table(head, rooms),
        f"\nwhat the sum adds to the output of {found.weight}, by relation:",
        table(("relation", "edits", "% overlap of keys", "% at the edited", "% at other subjects"), spills),
    ]
    if found.outlook:
        rows = [
            [
                one_line(one.fact.text),
                f"{one.inside:.1f}",
                f"{one.nearest} {one_line(one.subject)}",
                f"{one.cosine:.2f}",
            ]
            for one in found.outlook
        ]
        parts += ["\nnew facts:", table(("prompt", "% inside what is used", "nearest edit", "cosine"), rows)]
    return Answer({"ledger": str(ledger), **found.to_dict()}, "\n".join(parts))
