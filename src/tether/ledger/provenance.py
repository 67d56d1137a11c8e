"""Which ledger, head and restraint an exported folder came from, and whether its files are as they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tether.export.manifest import Manifest, read_manifest
from tether.ledger.ledger import Ledger


@dataclass(frozen=True)
class Whose:
    """`manifest`: what the folder says of itself. `changed`: its files that are not as they were exported, name ->
    changed, missing or added. `later`: for each ledger asked of, by its path, how many events followed the folder's
    head; None where the folder is not of it."""

    manifest: Manifest
    changed: Mapping[str, str]
    later: Mapping[Path, int | None]


def whose(folder: str | Path, ledgers: Iterable[str | Path] = ()) -> Whose:
    """Look into an exported folder, merged or an adapter, and for its head in the journals of `ledgers`. Every file is
    read once; nothing is changed. Raises TetherError for a folder without manifest.json and BadLedgerError for a
    damaged ledger."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    head = manifest.ledger and manifest.ledger.head
    opened = [Ledger.open(path) for path in ledgers]
    return Whose(
        manifest, manifest.changed(folder), {one.path: one.events_after(head) if head else None for one in opened}
    )
