"""tether tune"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tether.cli.app import AnatomyFile, Device, Dtype, Json, ModelName, app, err, load_model, show, understood
from tether.editing.tune import Trial, tune, write_settings
from tether.editors import editor as editor_of
from tether.facts import read_facts
from tether.storage.atomic import check_writable


@app.command("tune")
def command(
    model: ModelName,
    facts: Annotated[Path, typer.Option(help="Probe facts, in any format that `edit` reads.")],
    out: Annotated[Path, typer.Option(help="The settings file to write, for `edit --settings`.")] = Path(
        "settings.json"
    ),
    method: Annotated[str, typer.Option(help="rome, r-rome, memit, emmet.")] = "rome",
    corpus: Annotated[str | None, typer.Option(help="Text file for the moments, or 'self' (the default).")] = None,
    limit: Annotated[int, typer.Option(min=2, help="At most N probe facts.")] = 12,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts edited at once; default all, or 1.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampled prefixes and text.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
    as_json: Json = False,
) -> None:
    """Propose settings for a model from a small probe set, and say how sure they are."""
    check_writable(out)
    understood("--method", editor_of, method)
    listed = read_facts(facts, limit)
    loaded = load_model(model, dtype=dtype, device=device, anatomy=anatomy)

    def progress(trial: Trial) -> None:
        err.out(f"{_line(trial)} | {trial.seconds:.0f} s", highlight=False)

    found = tune(loaded, listed, method=method, corpus=corpus, batch_size=batch_size, seed=seed, progress=progress)
    write_settings(found, out)
    lines = [_line(trial) for trial in found.trials] + list(found.verdicts) + [f"settings: {out}"]
    show({**asdict(found), "file": str(out)}, "\n".join(lines), as_json)


def _line(trial: Trial) -> str:
    parts = [
        f"{name} {value:.1f}" for name, value in
        (("efficacy", trial.efficacy), ("generalization", trial.generalization), ("locality", trial.locality))
        if value is not None
    ]  # fmt: skip
    return f"{trial.what}: score {trial.score:.1f} ({', '.join(parts)}, perplexity × {trial.perplexity_ratio:.3f})"
