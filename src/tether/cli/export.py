"""Write the edited model as merged weights or as a LoRA adapter, with a model card.

$ tether export my-edits --to merged --as merged
$ tether export my-edits --to adapter --as lora --restrain log:1.2
$ tether export my-edits --to adapter --as lora --push-to my-team/facts --private
$ tether export --base smollm2 --edited checkpoint --to adapter --as lora --rank 64
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tether.cli.loading import load_model, open_ledger, restraint
from tether.cli.options import (
    Answer,
    Base,
    Device,
    Dtype,
    Edited,
    LedgerOrNone,
    ModelOrRecorded,
    Restraint,
    Upto,
    parse_option,
)
from tether.cli.tables import count
from tether.export import LoraReport, export_difference, push
from tether.export.push import check_repo

KIND = typer.Option("--as", help="merged: a folder for transformers; lora: an adapter for peft.")
NAME = typer.Option(help="What an adapter calls its base model; default: its hub id, else where it lies.")
PUSH = typer.Option("--push-to", help="Also upload the folder to this repository of the hub.", metavar="REPO")
PRIVATE = typer.Option("--private", help="With --push-to: a new repository is private.")
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
    push_to: Annotated[str | None, PUSH] = None,
    private: Annotated[bool, PRIVATE] = False,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    if (ledger is None) == (edited is None) or (edited is None) != (base is None):
        raise typer.BadParameter("give a ledger, or --base and --edited", param_hint="LEDGER")
    if push_to is not None:
        parse_option("--push-to", check_repo, push_to)
    elif private:
        raise typer.BadParameter("goes with --push-to", param_hint="--private")
    if ledger is None:
        if kind != "lora":
            raise typer.BadParameter("two checkpoints give an adapter: lora", param_hint="--as")
        first, second = (load_model(str(name), dtype=dtype, device=device) for name in (base, edited))
        found = export_difference(first, second, to, rank=rank, base_name=base_name)
        lines = [f"{to}: lora, {edited} - {base}", *_weights(found.adapter)]
        lines += [f"not in the adapter: {', '.join(found.not_held)}"] if found.not_held else []
        held: dict[str, Any] = {"adapter": asdict(found.adapter), "not_held": found.not_held}
        return _pushed(Answer({"to": str(to), "as": kind, **held}, "\n".join(lines)), to, push_to, private)
    chosen = restraint(restrain)
    opened, loaded = open_ledger(ledger, model, dtype, device)
    report = opened.export(loaded, to, as_=kind, restrain=chosen, upto=upto, rank=rank, base_name=base_name)
    lines = [f"{to}: {kind}, {count(len(opened.live(upto)), 'edit')}", *(_weights(report) if report else ())]
    document = {"to": str(to), "as": kind, "adapter": report and asdict(report)}
    return _pushed(Answer(document, "\n".join(lines)), to, push_to, private)


def _pushed(answer: Answer, folder: Path, repo: str | None, private: bool) -> Answer:
    """The answer, with where the folder went where it was to go somewhere."""
    if repo is None:
        return answer
    address = push(folder, repo, private=private)
    return Answer({**answer.document, "pushed": address}, f"{answer.text}\npushed to {address}")


def _weights(report: LoraReport) -> list[str]:
    return [
        f"{w.name}: rank {w.rank}, relative error {w.error_frobenius:.2e} (Frobenius), "
        f"{w.error_spectral:.2e} (spectral)"
        for w in report.weights
    ]
