"""tether bound"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tether.cli.app import Device, Dtype, Json, LedgerPath, ModelOrRecorded, app, numbers, open_ledger, restraints, show


@app.command("bound")
def command(
    ledger: LedgerPath,
    model: ModelOrRecorded = None,
    at: Annotated[str | None, typer.Option(help="Numbers of edits, with commas; default: eight up to all.")] = None,
    restrain: Annotated[str | None, typer.Option(help="Restraints, with commas; default: as recorded.")] = None,
    keys: Annotated[int | None, typer.Option(min=1, help="At most this many keys; default: of all live edits.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """How far the edits move the keys of the edited weights, and how far they can: the paper's perturbation bound."""
    from tether.analyses.bound import bound_rows

    chosen, counts = restraints(restrain), numbers(at, "--at")
    opened, loaded = open_ledger(ledger, model, dtype, device)
    rows = [row for restraint in chosen for row in bound_rows(opened, loaded, at=counts, restrain=restraint, keys=keys)]
    lines = [
        f"{'':60s}‖x̃ − x‖/‖x‖: medians and largest",
        "edits  of    restraint    ‖E‖/‖A‖  κ        κ̂        γ        "
        "others   edited   largest  bound    by κ/γ    weight",
    ]
    for row in rows:
        errors = " ".join(f"{'-' if part is None else f'{part.median:.3g}':<8s}" for part in (row.others, row.edited))
        largest = max(part.max for part in (row.others, row.edited) if part is not None)
        from_kappa = "-" if row.bound_from_kappa is None else f"{row.bound_from_kappa:.3g}"
        lines.append(
            f"{row.edits:<6d} {row.of:<5s} {row.restraint:<12s} {row.update_norm / row.norm:<8.3g} {row.kappa:<8.2f} "
            f"{row.kappa_hat:<8.2f} {row.gamma:<8.3g} {errors} {largest:<8.3g} {row.bound:<8.3g} {from_kappa:<9s} "
            f"{row.weight}"
        )
    show([dataclasses.asdict(row) for row in rows], "\n".join(lines), as_json)
