"""tether spectrum"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tether.cli.app import Device, Dtype, Json, LedgerPath, ModelOrRecorded, app, numbers, open_ledger, restraints, show


@app.command("spectrum")
def command(
    ledger: LedgerPath,
    model: ModelOrRecorded = None,
    at: Annotated[str | None, typer.Option(help="Numbers of edits, with commas; default: all.")] = None,
    restrain: Annotated[str | None, typer.Option(help="Restraints, with commas; default: as recorded.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Singular values and condition number of the edited weights."""
    chosen, counts = restraints(restrain), numbers(at, "--at")
    opened, loaded = open_ledger(ledger, model, dtype, device)
    rows = [row for restraint in chosen for row in opened.spectrum(loaded, at=counts, restrain=restraint)]
    document = [{**dataclasses.asdict(row), "kappa": row.extremes.kappa} for row in rows]
    lines = ["edits  restraint    κ        σ_max    σ_min    σ̂_max    m        rounding weight"]
    lines += [
        f"{row.edits:<6d} {row.restraint:<12s} {row.extremes.kappa:<8.2f} {row.extremes.sigma_max:<8.3f} "
        f"{row.extremes.sigma_min:<8.4f} {row.extremes.update_sigma_max:<8.3f} {row.m:<8.3f} "
        f"{'–' if row.rounding is None else format(row.rounding, '.1e'):<8s} {row.weight}"
        for row in rows
    ]
    show(document, "\n".join(lines), as_json)
