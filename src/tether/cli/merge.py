"""Two ledgers of one model, method and settings as one new ledger: the updates are summed, no edit is computed anew.

A fact of both with one answer is taken once. A fact to which they give two answers is named and refused, unless
--prefer says whose answer is taken.

$ tether merge mine theirs --out both
$ tether merge mine theirs --out both --prefer b --restrain log:1.2
"""

from typing import Annotated, Literal

import typer

from tether.cli.loading import load_model, restraint
from tether.cli.options import Answer, LedgerPath, ModelForRestraint, NewLedger, SumRestraint
from tether.cli.tables import count
from tether.ledger import Ledger, difference
from tether.ledger import merge as merged

PREFER = typer.Option(help="Whose answer is taken to facts that both answer differently.")


def merge(
    a: LedgerPath,
    b: LedgerPath,
    *,
    out: NewLedger,
    prefer: Annotated[Literal["a", "b"] | None, PREFER] = None,
    restrain: SumRestraint = None,
    model: ModelForRestraint = None,
) -> Answer:
    first, second = Ledger.open(a), Ledger.open(b)
    header, chosen = first.header, restraint(restrain)
    loaded = None if model is None else load_model(model, dtype=header.dtype, anatomy=header.anatomy)
    made = merged(first, second, out, prefer=prefer, restrain=chosen, model=loaded)
    found, sources = difference(first, second), made.header.sources or ()
    counts = [f"{len(of.edits)} of {path}" for path, of in zip((a, b), sources, strict=True)]
    counts += [f"{len(found.same)} in both taken once"] if found.same else []
    counts += [f"{count(len(found.other), 'conflict')} taken from {prefer}"] if found.other else []
    lines = [f"{', '.join(counts)}; the updates are summed, no edit was computed anew", f"{out}: {made.summary()}"]
    document = {
        "ledger": str(out), "edits": {str(path): of.edits for path, of in zip(("a", "b"), sources, strict=True)},
        "same": [[one.edit, other.edit] for one, other in found.same],
        "conflicts": [[one.edit, other.edit] for one, other in found.other], "prefer": prefer,
        "restraint": made.restraint_in_words(), "how": made.header.origin, "head": made.head,
    }  # fmt: skip
    return Answer(document, "\n".join([*lines, f"head {made.head}"]))
