"""Edit facts into a model, one after another, into a ledger.

The facts are a file, standard input, or one fact given by --subject, --prompt and --target.

$ tether edit facts.jsonl --model smollm2 --out my-edits --restrain log:1.2
$ tether edit --subject 'Eiffel Tower' --prompt 'The {} is in' --target Rome --model smollm2 --out my-edits
$ tether edit facts.jsonl --model smollm2 --out my-edits --resume
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from tether.cli.loading import engine_of, load_model, log_progress
from tether.cli.options import (
    AnatomyFile,
    Answer,
    Device,
    Dtype,
    EngineName,
    Floor,
    ModelName,
    Workers,
    numbers,
    parse_option,
    printable,
    say,
)  # fmt: skip
from tether.cli.tables import count, found_lines
from tether.constraints.base import parse
from tether.editing.plan import DEFAULT_METHOD, OnAlarm, Schedule, plan_and_schedule
from tether.editing.run import Progress
from tether.editing.run import edit as edit_facts
from tether.editing.said import Said, said_now
from tether.editors import editor as editor_of
from tether.errors import BadFactError, pydantic_line
from tether.evaluation.strength import AUTO, find_restraint_of, restrain_by
from tether.facts import BadRecord, Fact, scan_facts
from tether.facts.phrasings import with_phrasings
from tether.ledger import Event, Ledger
from tether.models import EditableModel

DEFAULTS = Schedule()
PANELS = {
    "One fact": ("subject", "prompt", "target", "target_true", "phrasing", "question"),
    "Method": ("method", "settings", "layers", "corpus", "editor", "seed", "batch_size"),
    "Restraint and guard": ("restrain", "floor", "every", "health", "on_alarm", "guard", "guard_every", "guard_data"),
}
FACTS = typer.Argument(help="Facts: our JSONL, CSV, or a published format (`tether ls formats`); - for standard input.")
METHOD = typer.Option(help=f"See `tether ls methods`; default: the ledger's, {DEFAULT_METHOD} in a new one.")
BATCH = typer.Option(min=1, help="Facts edited together, by methods that can (`tether ls methods`).")
PHRASE = typer.Option("--phrase", help="Make phrasings for facts without: in the chat, as Question and Answer.")
RESTRAIN = typer.Option(help="none, log:1.2, linear:2, log:auto, …: see `tether ls constraints`.")
HEALTH = typer.Option(min=0, help="Read the health of every K-th edit, and of every disabling one; 0: of none.")
ALARM = typer.Option(
    help="What becomes of an edit whose health is an alarm: it goes in with a warning (warn, the default in Python), "
    "is left out as failed (skip), or ends the run (stop)."
)
GUARD = typer.Option(help="Stop what costs too much: perplexity:1.05, or a task and a share, nli:0.9.")
VERIFY = typer.Option(min=1, help="Ask all facts after every K edits which are still said.")
OTHERS = typer.Option(
    min=0,
    help="Ask so many other subjects of some facts too, at the end and with --verify-every.",
)
LOOKS = typer.Option(min=1, help="The guard looks after every K edits, and the last.")


def edit(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="The ledger: a new folder, or one to append to.")],
    facts: Annotated[str | None, FACTS] = None,
    subject: Annotated[str | None, typer.Option(help="What the fact is about.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The text before the answer, {} for the subject.")] = None,
    target: Annotated[str | None, typer.Option(help="The new answer.")] = None,
    target_true: Annotated[str | None, typer.Option(help="The old answer, for evaluate.")] = None,
    phrasing: Annotated[list[str] | None, typer.Option(help="Other words before the answer; may be repeated.")] = None,
    question: Annotated[list[str] | None, typer.Option(help="The same asked in a chat; may be repeated.")] = None,
    phrase: Annotated[bool, PHRASE] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N records.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Without the first N records.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out records that are no facts.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted list.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first failed edit.")] = False,
    method: Annotated[str | None, METHOD] = None,
    settings: Annotated[Path | None, typer.Option(help="JSON file of settings over the bundled ones.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to edit, with commas.")] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Text file for the moments, self (default) or self:TOKENS.")
    ] = None,
    editor: Annotated[Path | None, typer.Option(help="Trained editor, as train-mend writes it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampled prefixes; default 0.")] = None,
    batch_size: Annotated[int, BATCH] = DEFAULTS.batch_size,
    restrain: Annotated[str | None, RESTRAIN] = None,
    floor: Floor = 98.0,
    every: Annotated[int | None, typer.Option(min=1, help="Restrain after every K edits, not once at the end.")] = None,
    health: Annotated[int, HEALTH] = DEFAULTS.health,
    on_alarm: Annotated[OnAlarm, ALARM] = "skip",
    verify_every: Annotated[int | None, VERIFY] = None,
    bystanders: Annotated[int, OTHERS] = DEFAULTS.bystanders,
    guard: Annotated[str | None, GUARD] = None,
    guard_every: Annotated[int, LOOKS] = DEFAULTS.guard_every,
    guard_data: Annotated[str | None, typer.Option(help="The guard's data, as evaluate --abilities-data.")] = None,
    engine: EngineName = "local",
    workers: Workers = None,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
) -> Answer:
    one: dict[str, Any] = {
        "subject": subject, "prompt": prompt, "target_new": target, "target_true": target_true,
        "phrasings": [*(phrasing or ()), *({"user": text} for text in question or ())] or None,
    }  # fmt: skip
    listed, bad = _listed(facts, one, limit, skip, skip_bad=skip_bad)
    if method is not None:
        parse_option("--method", editor_of, method)
    auto = restrain if restrain is not None and AUTO.fullmatch(restrain) else None
    if auto and every is not None:
        raise typer.BadParameter("auto finds a strength once, at the end: write a number", param_hint="--every")
    restraint = None if restrain is None else parse_option("--restrain", parse, "none" if auto else restrain)
    using = engine_of(engine, workers, device)
    log_progress("tether.editing.prepare", "tether.editors.corpus")
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
        "guard_every": guard_every, "guard_data": guard_data, "health": health,
        "on_alarm": on_alarm if health else "warn", "verify_every": verify_every,
        "bystanders": bystanders,
    })  # fmt: skip
    loaded = load_model(model, dtype=dtype, device=device, anatomy=layout)
    if phrase:
        listed = [with_phrasings(loaded.tokenizer, fact) for fact in listed]
    if chosen != method:
        say(f"method {chosen} (the default)")
    verified: list[Said] = []
    with using as spread, _bar(len(listed), verified) as progress:
        ledger = edit_facts(
            loaded, listed, out=out, plan=plan, schedule=schedule, resume=resume, strict=strict, progress=progress,
            engine=spread,
        )  # fmt: skip
    found = None
    if auto and ledger.since_restraint:
        log_progress("tether.evaluation.strength")
        found = find_restraint_of(ledger, loaded, auto, floor=floor, recorded=True)
        restrain_by(ledger, loaded, found)
    answer = _answer(ledger, loaded, bad, verified, bystanders)
    if found is not None:
        document = {**answer.document, "strength": found.to_dict()}
        answer = Answer(document, f"{found_lines(document['strength'])}\n{answer.text}")
    new = [event for event in ledger.events[before:] if event.kind in ("edit", "failed")]
    if new and all(event.kind == "failed" for event in new):
        say(f"tether: no fact was edited: {len(new)} failed, the first because: {new[0].reason}")
        return answer._replace(code=1)
    return answer


def _answer(ledger: Ledger, model: EditableModel, bad: list[str], verified: list[Said], bystanders: int) -> Answer:
    """What the whole ledger holds, records left out as bad, the singular values of its weights, and which facts are
    said now, and were on the way."""
    said, rows = said_now(model, ledger, bystanders=bystanders), ledger.spectrum(model)
    kinds = dict.fromkeys(get_args(Event.model_fields["kind"].annotation), 0)
    kinds |= Counter(event.kind for event in ledger.events)
    document = {
        "ledger": str(ledger.path), "model": ledger.header.model, "method": ledger.header.method,
        "corpus": ledger.header.corpus, "events": kinds, "live": len(ledger.live()),
        "failed": [{"edit": e.edit, "subject": e.fact.subject, "reason": e.reason}
                   for e in ledger.events if e.kind == "failed" and e.fact],
        "bad_records": bad, "said": said.to_dict(), "verified": [one.to_dict() for one in verified],
        "spectrum": {row.weight: {**row.extremes.to_dict(), "m": row.m} for row in rows},
        "head": ledger.head,
    }  # fmt: skip
    counts = [count(kinds["edit"], "edit"), f"{kinds['failed']} failed", f"{kinds['skipped']} skipped"]
    counts.append(count(kinds["restrain"], "restraint"))
    counts += [f"{kinds[kind]} {kind}" for kind in ("undo", "redo", "guard") if kinds[kind]]
    counts += [f"{count(len(bad), 'bad record')} left out"] if bad else []
    lines = [f"{ledger.path}: {', '.join(counts)}"]
    for row in rows:
        kappa, top = row.extremes.kappa, row.extremes.update_sigma_max
        lines.append(f"{row.weight}: κ {kappa:.2f}, σ̂_max of the update {top:.2f}, m {row.m:.2f}")
    return Answer(document, "\n".join([*lines, f"head {ledger.head}", said.line()]))


def _listed(
    facts: str | None, one: Mapping[str, Any], limit: int | None, skip: int, *, skip_bad: bool
) -> tuple[list[Fact], list[str]]:
    """The facts of the one source that is named, and the records left out. Raises BadFactError for a bad one that is
    not to be left out."""
    given = {key: value for key, value in one.items() if value is not None}
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
        try:
            return [Fact.model_validate(given)], []
        except ValidationError as error:
            raise typer.BadParameter(pydantic_line(error), param_hint="the fact") from None
    source = sys.stdin if facts == "-" else facts
    scan = scan_facts(source, limit, skip=skip)
    bad = [str(record) for record in scan if isinstance(record, BadRecord)]
    if bad and not skip_bad:
        raise BadFactError(bad[0] + (f"; {len(bad) - 1} more are bad, see `tether check`" if bad[1:] else ""))
    for line in bad:
        say(f"bad record left out: {line}")
    for found in scan.formats.values():
        if found.unused:
            say(f"{facts}: not used by {found.format.name}: {', '.join(found.unused)}")
    listed = [record for record in scan if isinstance(record, Fact)]
    if not listed:
        what = "standard input" if facts == "-" else facts
        raise BadFactError(f"{what} holds no fact: write one JSON object a line with subject, prompt and target_new")
    return listed, bad


def progress_line(at: Progress) -> str:
    """What became of a fact, its health, the time left."""
    fact = at.event.fact
    parts = [at.event.kind if fact is None else f"{at.event.kind} {fact.subject} -> {fact.target_new}"]
    parts += [] if at.reading is None else [at.reading.line()]
    parts += [] if at.said is None else [at.said.line()]
    return " | ".join([*parts, f"{at.eta:.0f} s left"])


@contextmanager
def _bar(total: int, verified: list[Said]) -> Iterator[Callable[[Progress], None]]:
    """Progress on stderr: a bar on a terminal, else a line a fact. What is verified on the way is also kept."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), note)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("editing", total=total, note="")

        def tell(at: Progress) -> None:
            bar.update(task, completed=at.done, note=printable(progress_line(at)))
            if at.said is not None:
                verified.append(at.said)
            if bar.disable:
                say(f"{at.done}/{at.total} {progress_line(at)}")

        yield tell
