"""Write the edited model as merged weights or as a LoRA adapter, with a model card.

$ tether export my-edits --to merged --as merged
$ tether export my-edits --to adapter --as lora --restrain log:1.2
$ tether export --base smollm2 --edited checkpoint --to adapter --as lora --rank 64
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from tether.cli.loading import load_model, open_ledger, restraint
from tether.cli.options import Answer, Base, Device, Dtype, Edited, LedgerOrNone, ModelOrRecorded, Restraint, Upto
from tether.cli.tables import count
from tether.export import LoraReport, export_difference

KIND = typer.Option("--as", help="merged: a folder for transformers; lora: an adapter for peft.")
NAME = typer.Option(help="What an adapter calls its base model; default: its hub id, else where it lies.")
RANK = typer.Option(min=1, help="Truncate an adapter to this rank; the error is reported.")


def export(
    *,
    ledger: LedgerOrNone = None,
    base: Base = None,
    edited: Edited = None,
    to: Annotated[Path, typer.Option(help="A new or empty folder.")],
    kind: Annotated[Literal["merged", "lora"], KIND],
    model: ModelOrRecorded = None,
    restrain: Restraint = None,
    upto: Upto = None,
    rank: Annotated[int | None, RANK] = None,
    base_name: Annotated[str | None, NAME] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    if (ledger is None) == (edited is None) or (edited is None) != (base is None):
        raise typer.BadParameter("give a ledger, or --base and --edited", param_hint="LEDGER")
    if ledger is None:
        if kind != "lora":
            raise typer.BadParameter("two checkpoints give an adapter: lora", param_hint="--as")
        first, second = (load_model(str(name), dtype=dtype, device=device) for name in (base, edited))
        found = export_difference(first, second, to, rank=rank, base_name=base_name)
        lines = [f"{to}: lora, {edited} - {base}", *_weights(found.adapter)]
        lines += [f"not in the adapter: {', '.join(found.not_held)}"] if found.not_held else []
        document = {"to": str(to), "as": kind, "adapter": asdict(found.adapter), "not_held": found.not_held}
        return Answer(document, "\n".join(lines))
    chosen = restraint(restrain)
    opened, loaded = open_ledger(ledger, model, dtype, device)
    report = opened.export(loaded, to, as_=kind, restrain=chosen, upto=upto, rank=rank, base_name=base_name)
    lines = [f"{to}: {kind}, {count(len(opened.live(upto)), 'edit')}", *(_weights(report) if report else ())]
    return Answer({"to": str(to), "as": kind, "adapter": report and asdict(report)}, "\n".join(lines))


def _weights(report: LoraReport) -> list[str]:
    return [
        f"{w.name}: rank {w.rank}, relative error {w.error_frobenius:.2e} (Frobenius), "
        f"{w.error_spectral:.2e} (spectral)"
        for w in report.weights
    ]
