"""tether edit"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from tether.cli.app import (
    AnatomyFile,
    Device,
    Dtype,
    Json,
    ModelName,
    app,
    err,
    load_model,
    numbers,
    show,
    tell_progress,
    understood,
)
from tether.constraints.base import parse
from tether.editing.run import Progress, edit
from tether.editors import editor as editor_of
from tether.facts import read_facts
from tether.ledger import Ledger


@app.command("edit")
def command(
    facts: Annotated[Path, typer.Argument(help="Facts: our JSONL, CounterFact, zsRE, ConceptEdit.")],
    model: ModelName,
    out: Annotated[Path, typer.Option(help="The ledger: a new folder, or one to append to.")],
    method: Annotated[
        str | None, typer.Option(help="rome, r-rome, memit, emmet, mend; default rome, or the ledger's.")
    ] = None,
    restrain: Annotated[str | None, typer.Option(help="none, log:1.2, log:e, linear:2.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Restrain after every K edits, not once at the end.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Facts edited in one solve, by memit and emmet.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N facts.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave away the first N facts.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Of the sampled prefixes; default 0.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted list.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first failed edit.")] = False,
    corpus: Annotated[str | None, typer.Option(help="Text file for the moments, or 'self' (the default).")] = None,
    settings: Annotated[Path | None, typer.Option(help="JSON file of settings over the bundled ones.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to edit, with commas.")] = None,
    editor: Annotated[Path | None, typer.Option(help="Trained editor (mend), as train-mend writes it.")] = None,
    guard: Annotated[
        str | None, typer.Option(help="Stop what costs too much: perplexity:1.05, or a task and a share, nli:0.9.")
    ] = None,
    guard_every: Annotated[int, typer.Option(min=1, help="The guard looks after every K edits, and the last.")] = 10,
    guard_data: Annotated[str | None, typer.Option(help="The guard's data, as evaluate --abilities-data.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
    as_json: Json = False,
) -> None:
    """Edit facts into a model, one after another, into a ledger."""
    listed = read_facts(facts, None if limit is None else skip + limit)[skip:]
    chosen = numbers(layers, "--layers")
    if method is not None:
        understood("--method", editor_of, method)
    restraint = None if restrain is None else understood("--restrain", parse, restrain)
    tell_progress("tether.editing.prepare")
    layout: str | dict[str, str] | None = anatomy
    if (out / "ledger.json").exists():
        header = Ledger.open(out).header
        dtype, layout = dtype or header.dtype, anatomy or header.anatomy
        if resume:
            torch.set_num_threads(header.threads)
    loaded = load_model(model, dtype=dtype, device=device, anatomy=layout)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bar(*columns, console=err, transient=False, disable=not err.is_terminal) as bar:
        task = bar.add_task("editing", total=len(listed), note="")

        def progress(p: Progress) -> None:
            what = "" if p.event.fact is None else f"{p.event.fact.subject} -> {p.event.fact.target_new}"
            health = "" if p.reading is None else f" | {p.reading.line()}"
            note = f"{p.event.kind} {what}{health} | {p.eta:.0f} s left"
            bar.update(task, completed=p.done, note=note)
            if not err.is_terminal:
                err.out(f"{p.done}/{p.total} {note}", highlight=False)

        ledger = edit(
            loaded, listed, out=out, method=method, restrain=restraint, every=every, batch_size=batch_size, seed=seed,
            resume=resume, strict=strict, corpus=corpus, settings=settings, layers=chosen, editor=editor, guard=guard,
            guard_every=guard_every, guard_data=guard_data, progress=progress,
        )  # fmt: skip
    every_kind = ("edit", "failed", "skipped", "restrain", "undo", "guard")
    kinds = {kind: sum(e.kind == kind for e in ledger.events) for kind in every_kind}
    rows = ledger.spectrum(loaded)
    document = {
        "ledger": str(out), "model": ledger.header.model, "method": ledger.header.method,
        "corpus": ledger.header.corpus, "events": kinds, "live": len(ledger.live()),
        "failed": [{"edit": e.edit, "subject": e.fact.subject, "reason": e.reason}
                   for e in ledger.events if e.kind == "failed" and e.fact],
        "spectrum": {row.weight: {"sigma_max": row.extremes.sigma_max, "sigma_min": row.extremes.sigma_min,
                     "kappa": row.extremes.kappa, "update_sigma_max": row.extremes.update_sigma_max, "m": row.m}
                     for row in rows},
    }  # fmt: skip
    text = (
        f"{out}: {kinds['edit']} edits, {kinds['failed']} failed, {kinds['skipped']} skipped, "
        f"{kinds['restrain']} restraints"
    )
    for row in rows:
        found = row.extremes
        text += f"\n{row.weight}: κ {found.kappa:.2f}, σ̂_max of the update {found.update_sigma_max:.2f}, m {row.m:.2f}"
    show(document, text, as_json)
