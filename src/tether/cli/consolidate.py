"""Solve all live facts again at once, on the unedited weights. The new edits stand for the old: undo them to go back.

$ tether consolidate my-edits
$ tether consolidate my-edits --strength auto
$ tether consolidate my-edits --strength 2000 --targets recorded
"""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from tether.cli.loading import log_progress, open_ledger
from tether.cli.options import Answer, Device, Dtype, Floor, LedgerPath, ModelOrRecorded
from tether.cli.tables import count, curve_table
from tether.editing.consolidate import Consolidated
from tether.editing.consolidate import consolidate as run

PANELS = {"How": ("strength", "targets", "floor")}


def consolidate(
    ledger: LedgerPath,
    model: ModelOrRecorded = None,
    strength: Annotated[
        str | None,
        typer.Option(help="λ, the weight of what the model knew; auto tries several; default: the recorded."),
    ] = None,
    targets: Annotated[
        str, typer.Option(help="renewed: optimised anew on the unedited model; recorded: as found when edited.")
    ] = "renewed",
    floor: Floor = 98.0,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    log_progress("tether.editing")
    if targets not in ("renewed", "recorded"):
        raise typer.BadParameter(f"{targets!r}: choose renewed or recorded", param_hint="--targets")
    chosen_targets: Literal["renewed", "recorded"] = "renewed" if targets == "renewed" else "recorded"
    opened, loaded = open_ledger(ledger, model, dtype, device)
    found = run(loaded, opened, strength=_strength(strength), targets=chosen_targets, floor=floor)
    return Answer(
        {"ledger": str(ledger), **found.to_dict(), "head": opened.head}, _text(str(ledger), found, opened.head)
    )


def _strength(text: str | None) -> float | Literal["auto"] | None:
    if text is None or text == "auto":
        return "auto" if text else None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: give a number above 0, or auto", param_hint="--strength") from None


def _text(ledger: str, found: Consolidated, head: str) -> str:
    lines = []
    if found.curve:
        lines.append(curve_table("λ", map(asdict, found.curve)))
    lines.append(
        f"{ledger}: edits {found.first} to {found.last} stand for {count(len(found.replaced), 'edit')}, "
        f"{'equality' if found.strength is None else f'λ {found.strength:g}'}, targets {found.targets}"
        + (f", restraint {found.restraint}" if found.restraint else "")
    )
    if found.superseded:
        names = ", ".join(map(str, found.superseded))
        lines.append(f"left out, a newer edit has the same prompt: {names}")
    if found.skipped:
        lines.append(f"said by the unedited model, and out now: {', '.join(map(str, found.skipped))}")
    if found.failed:
        lines.append(f"could not be solved again, and are out now: {', '.join(map(str, found.failed))}")
    for name, value in found.condition.items():
        lines.append(f"{name}: condition of the solve {value:.3g}")
    for one in found.close:
        lines.append(
            f"edits {one.edits[0]} ({one.subjects[0]}) and {one.edits[1]} ({one.subjects[1]}): keys nearly one, cosine "
            f"{one.cosine:.3f}"
        )
    lines += [f"before: {found.before.line()}", f"now: {found.said.line()}", f"head {head}"]
    return "\n".join(lines)
