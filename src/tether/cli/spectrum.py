"""Singular values and condition number of the edited weights.

$ tether spectrum my-edits --at 0,10,100 --restrain none,log:1.2
"""

from dataclasses import asdict
from typing import Annotated

import typer

from tether.cli.loading import open_ledger, restraints
from tether.cli.options import Answer, Device, Dtype, LedgerPath, ModelOrRecorded, numbers
from tether.cli.tables import number, table


def spectrum(
    ledger: LedgerPath,
    model: ModelOrRecorded = None,
    at: Annotated[str | None, typer.Option(help="Numbers of edits, with commas; default: all.")] = None,
    restrain: Annotated[str | None, typer.Option(help="Restraints, with commas; default: as recorded.")] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    chosen, counts = restraints(restrain), numbers(at, "--at")
    opened, loaded = open_ledger(ledger, model, dtype, device)
    rows = [row for restraint in chosen for row in opened.spectrum(loaded, at=counts, restrain=restraint)]
    cells = [
        [
            str(row.edits), row.restraint, f"{row.extremes.kappa:.2f}", f"{row.extremes.sigma_max:.3f}",
            f"{row.extremes.sigma_min:.4f}", f"{row.extremes.update_sigma_max:.3f}", f"{row.m:.3f}",
            number(row.rounding, ".1e", "–"), row.weight,
        ]
        for row in rows
    ]  # fmt: skip
    head = ("edits", "restraint", "κ", "σ_max", "σ_min", "σ̂_max", "m", "rounding", "weight")
    return Answer([asdict(row) | {"kappa": row.extremes.kappa} for row in rows], table(head, cells))
