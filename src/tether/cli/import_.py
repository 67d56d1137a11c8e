"""Somebody else's edited or fine-tuned checkpoint as a ledger, with one edit for every weight that differs.

The ledger can be restrained, undone by weight, exported, measured with a file of facts, and looked at like any other.

$ tether import --base base --edited edited --out imported
$ tether import --base smollm2 --edited adapter --out imported --rank 64
"""

from typing import Annotated

import typer

from tether.cli.loading import load_edited, load_model, log_progress
from tether.cli.options import Answer, Device, Dtype, NewLedger
from tether.cli.tables import count
from tether.editing.imported import import_checkpoint

BASE = typer.Option(help="The unedited model: a folder, a .gguf file, a hub id or smollm2.")
EDITED = typer.Option(help="The checkpoint that anything edited, or an adapter of peft.")
RANK = typer.Option(min=1, help="Truncate every update to this rank; the error is reported.")
SKIP = typer.Option("--skip-others", help="Leave norms, biases and embeddings that differ as they are in the base.")


def import_(
    *,
    base: Annotated[str, BASE],
    edited: Annotated[str, EDITED],
    out: NewLedger,
    rank: Annotated[int | None, RANK] = None,
    skip_others: Annotated[bool, SKIP] = False,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    log_progress("tether.editing.imported")
    theirs = load_edited(edited, base, dtype=dtype, device=device)
    ours = load_model(base, dtype=dtype, device=device)
    made = import_checkpoint(ours, theirs, out, rank=rank, skip_others=skip_others)
    skipped = made.header.settings["skipped"]
    lines = [f"{event.reason}, relative error {event.record['error']:.2e}" for event in made.events]
    lines += [f"left as in the base: {', '.join(skipped)}"] if skipped else []
    lines += [f"{out}: {count(len(made.events), 'weight')} of {edited}", f"head {made.head}"]
    weights = [
        {"edit": event.edit, "weight": name, "rank": event.record["rank"], "error": event.record["error"]}
        for event, name in zip(made.events, made.header.weights, strict=True)
    ]
    return Answer({"ledger": str(out), "weights": weights, "skipped": skipped, "head": made.head}, "\n".join(lines))
