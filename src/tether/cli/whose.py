"""Which ledger a merged folder or an adapter came from, by its manifest.json; whether its files are as exported.

With --ledger, whether the folder's head stands in that ledger's journal. The exit code is 1 where a file changed, or
where none of the ledgers named is the one.

$ tether whose merged
$ tether whose merged --ledger my-edits --ledger theirs
"""

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.options import Answer
from tether.cli.tables import count
from tether.ledger import whose as find

FOLDER = typer.Argument(help="A folder that `tether export` wrote.")
LEDGERS = typer.Option(help="A ledger that it may have come from; as often as there are.")


def whose(
    folder: Annotated[Path, FOLDER],
    ledger: Annotated[list[Path] | None, LEDGERS] = None,
) -> Answer:
    found = find(folder, ledger or ())
    said, of = found.manifest, found.manifest.ledger
    where = "no ledger" if of is None else f"ledger {of.name} at head {of.head[:12]}"
    until = "" if said.upto is None else f" up to edit {said.upto}"
    facts = f"{count(len(said.facts), 'fact')}{until}, restraint {said.restraint}"
    lines = [f"{folder}: {where}; {facts}; base {said.base.model}; tether {said.tether}"]
    for word in ("changed", "missing", "added"):
        names = [name for name, state in found.changed.items() if state == word]
        lines += [f"{word} since: {', '.join(names)}"] if names else []
    if not found.changed:
        lines.append(f"{count(len(said.files), 'file')}, all as they were exported")
    for path, later in found.later.items():
        lines.append(f"{path}: " + ("not of this ledger" if later is None else f"this ledger, {_later(later)}"))
    ours = not found.later or any(later is not None for later in found.later.values())
    document = {
        "folder": str(folder), "manifest": said.model_dump(mode="json"), "changed": found.changed,
        "ledgers": {str(path): later for path, later in found.later.items()},
    }  # fmt: skip
    return Answer(document, "\n".join(lines), 0 if ours and not found.changed else 1)


def _later(events: int) -> str:
    return f"{count(events, 'event')} later" if events else "as it is now"
