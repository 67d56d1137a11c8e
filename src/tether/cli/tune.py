"""Propose settings for a model from a small probe set, and say how sure they are.

$ tether tune --model smollm2 --facts facts.jsonl --out settings.json
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import load_model
from tether.cli.options import AnatomyFile, Answer, Device, Dtype, ModelName, parse_option, say
from tether.editing import tune as tuning
from tether.editing.plan import DEFAULT_METHOD
from tether.editors import editor as editor_of
from tether.errors import BadSettingsError
from tether.facts import read_facts
from tether.storage.atomic import check_writable

OUT = typer.Option(help="The settings file to write, for `edit --settings`; a new one.")


def tune(
    model: ModelName,
    facts: Annotated[Path, typer.Option(help="Probe facts, in any format that `edit` reads.")],
    out: Annotated[Path, OUT] = Path("settings.json"),
    method: Annotated[str, typer.Option(help="A method: see `tether ls methods`.")] = DEFAULT_METHOD,
    settings: Annotated[Path | None, typer.Option(help="JSON file of settings to start from.")] = None,
    vary: Annotated[str, typer.Option(help="The settings to try, with commas.")] = ",".join(tuning.VARIED),
    corpus: Annotated[
        str | None, typer.Option(help="Text file for the moments, self (default) or self:TOKENS.")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="At most N probe facts.")] = 12,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts edited at once; default all, or 1.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampled prefixes and text.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
) -> Answer:
    parse_option("--method", editor_of, method)
    check_writable(out)
    if out.exists():
        raise BadSettingsError(f"{out} exists: name another file for the settings, or remove it")
    listed = read_facts(facts, limit)
    loaded = load_model(model, dtype=dtype, device=device, anatomy=anatomy)
    found = tuning.tune(
        loaded, listed, method=method, settings=settings, vary=vary.split(","), corpus=corpus,
        batch_size=batch_size, seed=seed, progress=lambda trial: say(f"{_line(trial)} | {trial.seconds:.0f} s"),
    )  # fmt: skip
    tuning.write_settings(found, out)
    lines = [*map(_line, found.trials), *found.verdicts, f"settings: {out}"]
    return Answer({**asdict(found), "file": str(out)}, "\n".join(lines))


def _line(trial: tuning.Trial) -> str:
    scores = {"efficacy": trial.efficacy, "generalization": trial.generalization, "locality": trial.locality}
    parts = [f"{name} {value:.1f}" for name, value in scores.items() if value is not None]
    parts.append(f"perplexity × {trial.perplexity_ratio:.3f}")
    return f"{trial.what}: score {trial.score:.1f} ({', '.join(parts)})"
