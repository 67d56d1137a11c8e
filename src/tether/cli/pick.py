"""Some edits of a ledger as a new ledger, with their factors as they are.

$ tether pick my-edits 3 7 10-20 --out some
"""

from typing import Annotated

import typer

from tether.cli.loading import load_model, restraint
from tether.cli.options import Answer, Edits, LedgerPath, ModelForRestraint, NewLedger, SumRestraint, selected
from tether.ledger import Ledger
from tether.ledger import pick as picked


def pick(
    ledger: LedgerPath,
    edits: Edits = None,
    *,
    out: NewLedger,
    last: Annotated[int | None, typer.Option(min=1, help="The last N edits that count.")] = None,
    restrain: SumRestraint = None,
    model: ModelForRestraint = None,
) -> Answer:
    opened, chosen = Ledger.open(ledger), restraint(restrain)
    header = opened.header
    loaded = None if model is None else load_model(model, dtype=header.dtype, anatomy=header.anatomy)
    made = picked(opened, selected(edits, last, opened.live_numbers()), out, restrain=chosen, model=loaded)
    (source,) = made.header.sources or ()
    document = {
        "ledger": str(out), "edits": source.edits, "restraint": made.restraint_in_words(), "head": made.head,
    }  # fmt: skip
    text = f"edits {', '.join(map(str, source.edits))} of {ledger}\n{out}: {made.summary()}\nhead {made.head}"
    return Answer(document, text)
