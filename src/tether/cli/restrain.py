"""PRUNE on anybody's edited checkpoint.

$ tether restrain --base base --edited edited --out restrained --restrain log:1.2
"""

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.options import Answer, parse_option
from tether.export import restrain_checkpoint
from tether.export.checkpoint import checkpoint_restraint


def restrain(
    base: Annotated[Path, typer.Option(help="Folder of the unedited checkpoint.")],
    edited: Annotated[Path, typer.Option(help="Folder of the edited one, whatever edited it.")],
    out: Annotated[Path, typer.Option(help="A new folder for the restrained one.")],
    restrain: Annotated[
        str, typer.Option(help="log:1.2, linear:2, rank:64, …: see `tether ls constraints`.")
    ] = "log:1.2",
    device: Annotated[str, typer.Option(help="Where the singular values are found.")] = "cpu",
) -> Answer:
    chosen = parse_option("--restrain", checkpoint_restraint, restrain)
    report = restrain_checkpoint(base, edited, out, chosen, device=device)
    lines = [report.table()] if report.matrices else []
    lines.append(
        f"{out}: {len(report.matrices)} matrices differ, {len(report.restrained)} restrained by {report.restraint}; "
        f"{report.equal} tensors equal, {len(report.copied)} copied as they are"
        + (f", {report.rounded} equal but for the rounding of their dtype" if report.rounded else "")
    )
    lines += [f"copied {name}: {why}" for name, why in report.copied.items()]
    return Answer(report.to_dict(), "\n".join(lines))
