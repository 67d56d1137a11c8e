"""Write the edited model as merged weights or as a LoRA adapter, with a model card.

$ tether export my-edits --to merged --as merged
$ tether export my-edits --to adapter --as lora --restrain log:1.2
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from tether.cli.loading import open_ledger
from tether.cli.options import Answer, Device, Dtype, LedgerPath, ModelOrRecorded, parse_option
from tether.constraints.base import parse

KIND = typer.Option("--as", help="merged: a folder for transformers; lora: an adapter for peft.")
RANK = typer.Option(min=1, help="Truncate an adapter to this rank; the error is reported.")


def export(
    ledger: LedgerPath,
    to: Annotated[Path, typer.Option(help="A new or empty folder.")],
    kind: Annotated[Literal["merged", "lora"], KIND],
    model: ModelOrRecorded = None,
    restrain: Annotated[str | None, typer.Option(help="A restraint of the sum; default: as recorded.")] = None,
    upto: Annotated[int | None, typer.Option(min=0, help="Only the edits numbered up to N.")] = None,
    rank: Annotated[int | None, RANK] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    chosen = None if restrain is None else parse_option("--restrain", parse, restrain)
    opened, loaded = open_ledger(ledger, model, dtype, device)
    report = opened.export(loaded, to, as_=kind, restrain=chosen, upto=upto, rank=rank)
    lines = [f"{to}: {kind}, {len(opened.live(upto))} edits"]
    for w in () if report is None else report.weights:
        errors = f"{w.error_frobenius:.2e} (Frobenius), {w.error_spectral:.2e} (spectral)"
        lines.append(f"{w.name}: rank {w.rank}, relative error {errors}")
    return Answer({"to": str(to), "as": kind, "adapter": report and asdict(report)}, "\n".join(lines))
