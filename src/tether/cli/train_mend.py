"""tether train-mend"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.app import AnatomyFile, Device, Dtype, Json, ModelName, app, err, every, load_model, numbers, show
from tether.editors.mend import TrainingProgress, train_mend
from tether.storage.atomic import check_writable


@app.command("train-mend")
def command(
    model: ModelName,
    train: Annotated[Path, typer.Option(help="Facts to train on: zsRE (MEND's), CounterFact, our JSONL.")],
    val: Annotated[Path, typer.Option(help="Other facts, which decide what is kept and when to stop.")],
    out: Annotated[Path, typer.Option(help="The trained editor to write (safetensors).")],
    steps: Annotated[int | None, typer.Option(min=1, help="Edits in all; by default the settings'.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N training records.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    settings: Annotated[Path | None, typer.Option(help="JSON file of settings over the bundled ones.")] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks whose MLP weights are edited, with commas.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
    as_json: Json = False,
) -> None:
    """Train MEND's network for a model; edit with it by `edit --method mend --editor FILE`."""
    check_writable(out)
    chosen = numbers(layers, "--layers")
    loaded = load_model(model, dtype=dtype, device=device, anatomy=anatomy)
    due = every(seconds=5)

    def prepared(done: int, total: int) -> None:
        if due() or done == total:
            err.out(f"{done}/{total} texts through the lower blocks", highlight=False)

    def progress(p: TrainingProgress) -> None:
        if p.look is None and not due():
            return
        losses = "" if p.train_edit is None else f" | train: edit {p.train_edit:.3f}, locality {p.train_loc:.4f}"
        look = "" if p.look is None else (
            f" | validation: loss {p.look.loss:.4f}, edit {p.look.edit:.3f}, locality {p.look.loc:.4f}, "
            f"said {100 * p.look.accuracy:.1f} %, kept {100 * p.look.kept:.1f} %"
        )  # fmt: skip
        left = f" | {p.eta:.0f} s left" if p.eta == p.eta else ""
        err.out(f"{p.step}/{p.steps}{losses}{look}{left}", highlight=False)

    found = train_mend(
        loaded, train, val, out, steps=steps, settings=settings, layers=chosen, train_limit=limit,
        resume=resume, progress=progress, prepared=prepared,
    )  # fmt: skip
    record = found.trained.record
    best = record.best()
    document = {
        "editor": str(out), "sha256": found.trained.sha256, **record.model_dump(mode="json", exclude={"format"}),
        "best": best.model_dump(mode="json"), "stopped_early": found.stopped_early,
        "flops": found.flops, "flops_whole": found.flops_whole, "work_ratio": found.work_ratio,
    }  # fmt: skip
    text = (
        f"{out}: step {best.step} of {record.curve[-1].step}, validation loss {best.loss:.4f} (at the start "
        f"{record.curve[0].loss:.4f}), said {100 * best.accuracy:.1f} %, kept {100 * best.kept:.1f} %\n"
        f"a step is {found.work_ratio:.2f} of the work of one through the whole model"
    )
    show(document, text, as_json)
