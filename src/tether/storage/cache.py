"""The folder for what can be made again: converted models, moments, measured abilities."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock

from tether.storage.atomic import publish


def cache_dir() -> Path:
    """`TETHER_CACHE`, else `tether` in the user's cache folder (`XDG_CACHE_HOME`, `~/.cache`). Need not exist yet."""
    own = os.environ.get("TETHER_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tether"


def locked(path: Path) -> AbstractContextManager[object]:
    """Hold the lock of `path` (the file `<path>.lock`) inside the block, waiting for it; a kill releases it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f"{path.name}.lock"))


def built_folder(path: Path, build: Callable[[Path], None]) -> Path:
    """`path`, made by `build(empty folder)` where it does not exist yet: whole or not at all.

    Of several processes one builds and the others wait for it; what a killed one left is thrown away by the next.
    """
    if path.is_dir():
        return path
    with locked(path):
        if path.is_dir():
            return path
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            publish(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path
