"""Train MEND's network for a model; edit with it by `edit --method mend --editor FILE`.

$ tether train-mend --model smollm2 --train zsre-train.json --val zsre-val.json --out mend.safetensors
"""

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import load_model
from tether.cli.options import AnatomyFile, Answer, Device, Dtype, ModelName, at_most_every, numbers, say
from tether.editors import mend
from tether.storage.atomic import check_writable


def train_mend(
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
) -> Answer:
    check_writable(out)
    chosen = numbers(layers, "--layers")
    loaded = load_model(model, dtype=dtype, device=device, anatomy=anatomy)
    due = at_most_every(seconds=5)

    def prepared(done: int, total: int) -> None:
        if due() or done == total:
            say(f"{done}/{total} texts through the lower blocks")

    def progress(at: mend.TrainingProgress) -> None:
        if at.look is not None or due():
            say(_line(at))

    found = mend.train_mend(
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
    return Answer(document, text)


def _line(at: mend.TrainingProgress) -> str:
    parts = [f"{at.step}/{at.steps}"]
    if at.train_edit is not None:
        parts.append(f"train: edit {at.train_edit:.3f}, locality {at.train_loc:.4f}")
    if at.look is not None:
        parts.append(
            f"validation: loss {at.look.loss:.4f}, edit {at.look.edit:.3f}, locality {at.look.loc:.4f}, "
            f"said {100 * at.look.accuracy:.1f} %, kept {100 * at.look.kept:.1f} %"
        )
    if at.eta == at.eta:  # not a number before the first step
        parts.append(f"{at.eta:.0f} s left")
    return " | ".join(parts)
