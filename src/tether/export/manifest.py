"""manifest.json of an exported folder: the ledger, head and restraint it came from, its facts, the sha256 of its files.

{"tether": version, "ledger": {"head": sha256, "name": folder} | null, "restraint": text, "upto": number | null,
 "base": {"model": name, "sha256": fingerprint of the edited weights before the edits, "checkpoint": of all,
 "model_type": text, "layers": number}, "facts": [{"edit": 3, …}, …], "adapter"?: what it holds,
 "files": {name: sha256}}, and what else the export says of itself.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tether.errors import TetherError, pydantic_line
from tether.storage.atomic import finite
from tether.storage.versions import versions

MANIFEST = "manifest.json"


class LedgerMark(BaseModel, frozen=True):
    """A ledger as it was: the sha256 of its journal's last line, and what its folder was called."""

    head: str
    name: str


class BaseMark(BaseModel, frozen=True):
    """The unedited model: its name, the sha256 of the edited weights before the edits and of the whole checkpoint, what
    its configuration calls its kind and how many blocks it has ("" and None where not known)."""

    model: str
    sha256: str = ""
    checkpoint: str = ""
    model_type: str = ""
    layers: int | None = None


class Manifest(BaseModel):
    """What manifest.json says; further keys are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    tether: str
    ledger: LedgerMark | None = None
    restraint: str
    upto: int | None = None
    base: BaseMark
    facts: tuple[dict[str, Any], ...] = ()
    files: dict[str, str]

    def changed(self, folder: Path) -> dict[str, str]:
        """The files of `folder` that are not as they were exported: name -> changed, missing or added."""
        now = file_hashes(folder)
        words = {name: "missing" if name not in now else "changed" for name in self.files}
        found = {name: word for name, word in words.items() if now.get(name) != self.files[name]}
        return {**found, **{name: "added" for name in now if name not in self.files}}


def write_manifest(folder: Path, about: Mapping[str, object]) -> None:
    """Write manifest.json into a folder that holds everything else already: `about`, tether's version, and the files'
    sha256."""
    whole = {"tether": versions()["tether"], **about, "files": file_hashes(folder)}
    text = json.dumps(finite(whole), indent=2, ensure_ascii=False, default=str)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of an exported folder. Raises TetherError for a folder without a readable one."""
    file = Path(folder) / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError:
        raise TetherError(f"{folder} has no {MANIFEST}: name a folder that `tether export` wrote") from None
    except ValidationError as error:
        raise TetherError(f"{file} is no manifest of tether ({pydantic_line(error)}): export again") from None


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder` by its name there, less the manifest itself and hidden ones."""
    hashes = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and str(name) != MANIFEST and not any(part.startswith(".") for part in name.parts):
            with file.open("rb") as handle:
                hashes[name.as_posix()] = hashlib.file_digest(handle, "sha256").hexdigest()
    return hashes
