"""Edit facts into a model, one after another, into a ledger.

The facts are a file, standard input, or one fact given by --subject, --prompt and --target.

$ tether edit facts.jsonl --model smollm2 --out my-edits --restrain log:1.2
$ tether edit --subject 'Eiffel Tower' --prompt 'The {} is in' --target Rome --model smollm2 --out my-edits
$ tether edit facts.jsonl --model smollm2 --out my-edits --resume
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from tether.cli.loading import load_model, log_progress
from tether.cli.options import (
    AnatomyFile,
    Device,
    Dtype,
    Json,
    ModelName,
    numbers,
    parse_option,
    print_result,
    printable,
    say,
)
from tether.constraints.base import parse
from tether.editing.plan import DEFAULT_METHOD, OnAlarm, Schedule, plan_and_schedule
from tether.editing.run import Progress
from tether.editing.run import edit as edit_facts
from tether.editors import editor as editor_of
from tether.errors import BadFactError, pydantic_line
from tether.facts import Fact, read_facts
from tether.ledger import Event, Ledger

DEFAULTS = Schedule()
PANELS = {
    "One fact": ("subject", "prompt", "target", "target_true"),
    "Method": ("method", "settings", "layers", "corpus", "editor", "seed", "batch_size"),
    "Restraint and guard": (
        "restrain", "every", "health", "on_alarm", "guard", "guard_every", "guard_data",
    ),
}  # fmt: skip


def edit(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="The ledger: a new folder, or one to append to.")],
    facts: Annotated[
        str | None,
        typer.Argument(help="Facts: our JSONL, CounterFact, zsRE, ConceptEdit; - for our JSONL on standard input."),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="What the fact is about.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The text before the answer, {} for the subject.")] = None,
    target: Annotated[str | None, typer.Option(help="The new answer.")] = None,
    target_true: Annotated[str | None, typer.Option(help="The old answer, for evaluate.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N facts.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Without the first N facts.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted list.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first failed edit.")] = False,
    method: Annotated[
        str | None, typer.Option(help="See `tether ls methods`; default: the ledger's, r-rome in a new one.")
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="JSON file of settings over the bundled ones.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to edit, with commas.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Text file for the moments, or 'self' (the default).")] = None,
    editor: Annotated[Path | None, typer.Option(help="Trained editor, as train-mend writes it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampled prefixes; default 0.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Facts edited in one solve, by memit and emmet.")
    ] = DEFAULTS.batch_size,
    restrain: Annotated[
        str | None, typer.Option(help="none, log:1.2, linear:2, …: see `tether ls constraints`.")
    ] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Restrain after every K edits, not once at the end.")] = None,
    health: Annotated[
        int, typer.Option(min=0, help="Read the health of every K-th edit; 0: of none.")
    ] = DEFAULTS.health,
    on_alarm: Annotated[
        OnAlarm,
        typer.Option(
            help="What becomes of an edit whose health is an alarm: it goes in with a warning, is left out, or ends "
            "the run."
        ),
    ] = DEFAULTS.on_alarm,
    guard: Annotated[
        str | None, typer.Option(help="Stop what costs too much: perplexity:1.05, or a task and a share, nli:0.9.")
    ] = None,
    guard_every: Annotated[
        int, typer.Option(min=1, help="The guard looks after every K edits, and the last.")
    ] = DEFAULTS.guard_every,
    guard_data: Annotated[str | None, typer.Option(help="The guard's data, as evaluate --abilities-data.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
    as_json: Json = False,
) -> None:
    one = {"subject": subject, "prompt": prompt, "target_new": target, "target_true": target_true}
    listed = _listed(facts, one, None if limit is None else skip + limit)[skip:]
    if method is not None:
        parse_option("--method", editor_of, method)
    restraint = None if restrain is None else parse_option("--restrain", parse, restrain)
    log_progress("tether.editing.prepare")
    existing = Ledger.open(out) if (out / "ledger.json").exists() else None
    before = 0 if existing is None else len(existing.events)
    layout: Mapping[str, str] | str | None = anatomy
    if existing is not None:
        dtype, layout = dtype or existing.header.dtype, anatomy or existing.header.anatomy
        if resume:
            torch.set_num_threads(existing.header.threads)
    chosen = DEFAULT_METHOD if existing is None and method is None else method
    plan, schedule = plan_and_schedule(None, None, {
        "method": chosen, "settings": settings, "layers": numbers(layers, "--layers"), "corpus": corpus, "seed": seed,
        "editor": editor, "restraint": restraint, "every": every, "batch_size": batch_size, "guard": guard,
        "guard_every": guard_every, "guard_data": guard_data, "health": health, "on_alarm": on_alarm,
    })  # fmt: skip
    loaded = load_model(model, dtype=dtype, device=device, anatomy=layout)
    if chosen != method:
        say(f"method {chosen} (the default)")
    with _Told(len(listed)) as progress:
        ledger = edit_facts(
            loaded, listed, out=out, plan=plan, schedule=schedule, resume=resume, strict=strict, progress=progress
        )
    every_kind = ("edit", "failed", "skipped", "restrain", "undo", "redo", "guard")
    kinds = {kind: sum(event.kind == kind for event in ledger.events) for kind in every_kind}
    rows = ledger.spectrum(loaded)
    document = {
        "ledger": str(out), "model": ledger.header.model, "method": ledger.header.method,
        "corpus": ledger.header.corpus, "events": kinds, "live": len(ledger.live()),
        "failed": [{"edit": e.edit, "subject": e.fact.subject, "reason": e.reason}
                   for e in ledger.events if e.kind == "failed" and e.fact],
        "spectrum": {row.weight: {"sigma_max": row.extremes.sigma_max, "sigma_min": row.extremes.sigma_min,
                     "kappa": row.extremes.kappa, "update_sigma_max": row.extremes.update_sigma_max, "m": row.m}
                     for row in rows},
        "head": ledger.head,
    }  # fmt: skip
    lines = [
        f"{out}: {kinds['edit']} edits, {kinds['failed']} failed, {kinds['skipped']} skipped, "
        f"{kinds['restrain']} restraints"
    ]
    for row in rows:
        found = row.extremes
        lines.append(
            f"{row.weight}: κ {found.kappa:.2f}, σ̂_max of the update {found.update_sigma_max:.2f}, m {row.m:.2f}"
        )
    print_result(document, "\n".join([*lines, f"head {ledger.head}"]), as_json)
    _fail_where_nothing_was_edited(ledger.events[before:])


def _listed(facts: str | None, one: dict[str, str | None], limit: int | None) -> list[Fact]:
    """The facts of the one source that is named. Raises TetherError for a bad fact."""
    given = {key: text for key, text in one.items() if text is not None}
    if (facts is None) != bool(given):
        raise typer.BadParameter(
            "give a file of facts, - for standard input, or one fact by --subject, --prompt and --target; exactly one "
            "of them",
            param_hint="FACTS",
        )
    if facts is None:
        missing = [f"--{key.removesuffix('_new')}" for key in ("subject", "prompt", "target_new") if key not in given]
        if missing:
            raise typer.BadParameter("one fact needs --subject, --prompt and --target", param_hint=missing[0])
        return [_fact(given, "the fact")]
    if facts != "-":
        return read_facts(facts, limit)
    listed = []
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            listed.append(_fact(line, f"standard input, line {number}"))
        if len(listed) == limit:
            break
    if not listed:
        raise BadFactError("standard input holds no fact: write a JSON object a line: subject, prompt, target_new")
    return listed


def _fact(given: dict[str, str] | str, where: str) -> Fact:
    try:
        return Fact.model_validate(json.loads(given) if isinstance(given, str) else given)
    except ValidationError as error:
        raise BadFactError(f"{where}: {pydantic_line(error)}") from None
    except json.JSONDecodeError as error:
        raise BadFactError(f"{where}: no JSON object ({error.msg})") from None


def _fail_where_nothing_was_edited(events: Sequence[Event]) -> None:
    """Exit 1 where facts failed in this run and none was edited."""
    failed = [event for event in events if event.kind == "failed"]
    if failed and not any(event.kind == "edit" for event in events):
        say(f"tether: no fact was edited: {len(failed)} failed, the first because: {failed[0].reason}")
        raise typer.Exit(1)


class _Told:
    """Progress on stderr: a bar on a terminal, else a line a fact."""

    def __init__(self, total: int) -> None:
        console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        note = TextColumn("{task.fields[note]}", markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), note)
        self._bar = Bar(*columns, console=console, transient=False, disable=not console.is_terminal)
        self._task = self._bar.add_task("editing", total=total, note="")

    def __enter__(self) -> _Told:
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    def __call__(self, at: Progress) -> None:
        fact = at.event.fact
        parts = [at.event.kind if fact is None else f"{at.event.kind} {fact.subject} -> {fact.target_new}"]
        parts += [] if at.reading is None else [at.reading.line()]
        note = printable(" | ".join([*parts, f"{at.eta:.0f} s left"]))
        self._bar.update(self._task, completed=at.done, note=note)
        if self._bar.disable:
            say(f"{at.done}/{at.total} {note}")
