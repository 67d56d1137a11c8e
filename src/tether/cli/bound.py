"""How far the edits move the keys of the edited weights, and how far they can: the paper's perturbation bound.

$ tether bound my-edits --at 10,50 --restrain none,log:1.2
"""

from dataclasses import asdict
from typing import Annotated

import typer

from tether.analyses.bound import Errors, bound_rows
from tether.cli.loading import open_ledger, restraints
from tether.cli.options import Answer, Device, Dtype, LedgerPath, ModelOrRecorded, numbers
from tether.cli.tables import number, table

_HEAD = (
    "edits", "of", "restraint", "‖E‖/‖A‖", "κ", "κ̂", "γ", "others' median", "edited's median", "largest", "bound",
    "bound by κ/γ", "weight",
)  # fmt: skip


def bound(
    ledger: LedgerPath,
    model: ModelOrRecorded = None,
    at: Annotated[str | None, typer.Option(help="Numbers of edits, with commas; default: eight up to all.")] = None,
    restrain: Annotated[str | None, typer.Option(help="Restraints, with commas; default: as recorded.")] = None,
    keys: Annotated[int | None, typer.Option(min=1, help="At most this many keys; default: of all live edits.")] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    chosen, counts = restraints(restrain), numbers(at, "--at")
    opened, loaded = open_ledger(ledger, model, dtype, device)
    rows = [row for restraint in chosen for row in bound_rows(opened, loaded, at=counts, restrain=restraint, keys=keys)]
    cells = [
        [
            str(row.edits), row.of, row.restraint, f"{row.update_norm / row.norm:.3g}", f"{row.kappa:.2f}",
            f"{row.kappa_hat:.2f}", f"{row.gamma:.3g}", _median(row.others),
            _median(row.edited), f"{row.errors.max:.3g}", f"{row.bound:.3g}",
            number(row.bound_from_kappa, ".3g", "-"), row.weight,
        ]
        for row in rows
    ]  # fmt: skip
    text = f"{table(_HEAD, cells)}\nmedians and largest: of ‖x̃ − x‖/‖x‖ over the keys"
    return Answer([asdict(row) for row in rows], text)


def _median(errors: Errors | None) -> str:
    return "-" if errors is None else f"{errors.median:.3g}"
