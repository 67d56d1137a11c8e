"""Writing a file whole or not at all, saying in one line why that cannot be; JSON without NaN, and its checksum."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tether.errors import TetherError


def write_atomically(path: Path, data: bytes) -> None:
    """Write, fsync, rename, fsync the folder: after a kill the file is there whole or not at all. For one process at a
    time: where several may write a file, each holds its lock."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def publish(folder: Path, to: Path) -> None:
    """Give a folder its final name, after all in it is durable: after a power cut it is there whole or not at all.
    `to` must not exist, or be an empty folder."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777  # what the process makes files with; some libraries keep theirs to the owner
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            path.chmod(mode)
            with path.open("rb+" if os.name == "nt" else "rb") as handle:
                os.fsync(handle.fileno())
    sync_folder(folder)
    if to.exists():
        to.rmdir()
    folder.rename(to)
    sync_folder(to.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable. Windows does so by itself, and opens no folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(file: Path) -> None:
    """Raise TetherError, before any work is done, where a file could not be written there."""
    folder = file.parent
    if not folder.is_dir():
        raise TetherError(f"{file}: {folder} is no folder; make it first, or name another file")
    if file.is_dir():
        raise TetherError(f"{file} is a folder: name a file")
    if not os.access(folder, os.W_OK):
        raise TetherError(f"{file}: {folder} cannot be written; name another place")


def finite(value: Any) -> Any:
    """A JSON value with NaN and infinity, which JSON does not have, as null, at any depth."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def seal(body: Mapping[str, Any]) -> str:
    """The sha256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
