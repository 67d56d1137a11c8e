"""Write the edited model as merged weights or as a LoRA adapter, with a model card.

$ tether export my-edits --to merged --as merged
$ tether export my-edits --to adapter --as lora --restrain log:1.2
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import open_ledger
from tether.cli.options import Device, Dtype, Json, LedgerPath, ModelOrRecorded, parse_option, print_result
from tether.constraints.base import parse


class Kind(StrEnum):
    """What is written."""

    merged = "merged"
    lora = "lora"


def export(
    ledger: LedgerPath,
    to: Annotated[Path, typer.Option(help="A new or empty folder.")],
    kind: Annotated[Kind, typer.Option("--as", help="merged: a folder for transformers; lora: an adapter for peft.")],
    model: ModelOrRecorded = None,
    restrain: Annotated[str | None, typer.Option(help="A restraint of the sum; default: as recorded.")] = None,
    upto: Annotated[int | None, typer.Option(min=0, help="Only the edits numbered up to N.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Truncate an adapter to this rank; the error is reported.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    chosen = None if restrain is None else parse_option("--restrain", parse, restrain)
    opened, loaded = open_ledger(ledger, model, dtype, device)
    report = opened.export(loaded, to, as_=kind.value, restrain=chosen, upto=upto, rank=rank)
    lines = [f"{to}: {kind.value}, {len(opened.live(upto))} edits"]
    if report is not None:
        lines += [
            f"{w.name}: rank {w.rank}, relative error {w.error_frobenius:.2e} (Frobenius), "
            f"{w.error_spectral:.2e} (spectral)"
            for w in report.weights
        ]
    document = {"to": str(to), "as": kind.value, "adapter": None if report is None else dataclasses.asdict(report)}
    print_result(document, "\n".join(lines), as_json)
