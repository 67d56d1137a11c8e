"""Make the edits that no longer hold anew, with all others held.

$ tether repair my-edits
"""

from typing import Annotated

import typer

from tether.cli.loading import log_progress, open_ledger
from tether.cli.options import Answer, Device, Dtype, LedgerPath, ModelOrRecorded
from tether.editing.repair import repair as run


def repair(
    ledger: LedgerPath,
    model: ModelOrRecorded = None,
    sweeps: Annotated[int, typer.Option(min=1, help="At most so many passes over what is lost.")] = 3,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    log_progress("tether.editing")
    opened, loaded = open_ledger(ledger, model, dtype, device)
    found = run(loaded, opened, sweeps=sweeps)
    lines = [f"before: {found.sweeps[0].line()}"]
    lines += [f"sweep {number}: {said.line()}" for number, said in enumerate(found.sweeps[1:], 1)]
    if found.taken_back:
        lines[-1] += " (no more than before, so its edits are undone)"
    lines += [f"restraint {found.restraint} acts on the repaired sum"] if found.restraint else []
    for one in found.left:
        near = ", ".join(f"{each.edit} {each.subject} ({each.cosine:.2f})" for each in one.near)
        lines.append(f"edit {one.lost.edit} {one.lost.prompt} -> {one.lost.target_new}: {one.why}; nearest: {near}")
    lines.append(f"head {opened.head}")
    document = {"ledger": str(ledger), **found.to_dict(), "head": opened.head}
    return Answer(document, "\n".join(lines), code=1 if any(one.lost.same_prompt is None for one in found.left) else 0)
