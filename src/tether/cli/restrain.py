"""PRUNE on anybody's edited checkpoint.

$ tether restrain --base base --edited edited --out restrained --restrain log:1.2
$ tether restrain --base base --edited edited --out restrained --restrain log:auto --facts facts.jsonl
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tether.algebra import large_singular_values
from tether.cli.loading import load_model, log_progress
from tether.cli.options import Answer, Floor, parse_option
from tether.cli.tables import found_lines
from tether.constraints.base import Constraint
from tether.constraints.prune import none
from tether.evaluation.strength import AUTO, Found, find_restraint
from tether.export import restrain_checkpoint
from tether.export.checkpoint import checkpoint_restraint
from tether.export.difference import low_rank_differences
from tether.facts import Fact, read_facts


def restrain(
    base: Annotated[Path, typer.Option(help="Folder of the unedited checkpoint.")],
    edited: Annotated[Path, typer.Option(help="Folder of the edited one, whatever edited it.")],
    out: Annotated[Path, typer.Option(help="A new folder for the restrained one.")],
    restrain: Annotated[
        str, typer.Option(help="log:1.2, linear:2, rank:64, …: see `tether ls constraints`.")
    ] = "log:1.2",
    facts: Annotated[Path | None, typer.Option(help="With auto: what the checkpoint was edited for.")] = None,
    floor: Floor = 98.0,
    device: Annotated[str, typer.Option(help="Where the singular values are found.")] = "cpu",
) -> Answer:
    auto = AUTO.fullmatch(restrain) is not None
    if auto != (facts is not None):
        raise typer.BadParameter("goes with log:auto and linear:auto, which need it", param_hint="--facts")
    chosen: Constraint = none() if auto else parse_option("--restrain", checkpoint_restraint, restrain)
    document, lines = dict[str, Any](), list[str]()
    if facts is not None:
        found = _found(base, edited, restrain, read_facts(facts), floor, device)
        chosen, document = found.restraint, {"strength": found.to_dict()}
        lines.append(found_lines(document["strength"]))
    report = restrain_checkpoint(base, edited, out, chosen, device=device)
    lines += [report.table()] if report.matrices else []
    lines.append(
        f"{out}: {len(report.matrices)} matrices differ, {len(report.restrained)} restrained by {report.restraint}; "
        f"{report.equal} tensors equal, {len(report.copied)} copied as they are"
        + (f", {report.rounded} equal but for the rounding of their dtype" if report.rounded else "")
    )
    lines += [f"copied {name}: {why}" for name, why in report.copied.items()]
    return Answer({**report.to_dict(), **document}, "\n".join(lines))


def _found(base: Path, edited: Path, written: str, facts: Sequence[Fact], floor: float, device: str) -> Found:
    """The strength, from the difference of the linear weights; what else differs is left as in the base."""
    log_progress("tether.evaluation.strength")
    model = load_model(str(base), device=device)
    updates, _ = low_rank_differences(model, load_model(str(edited), device=device))
    updates = {name: update.to("cpu") for name, update in updates.items()}
    m = {name: large_singular_values.largest(model.weight(name)) for name in updates}
    return find_restraint(model, updates, m, facts, written, floor=floor)
