"""A folder that appears whole or not at all, and what every export writes into it."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tether.errors import BadSettingsError, TetherError
from tether.storage.atomic import publish

CARD, MANIFEST = "README.md", "tether.json"


@contextmanager
def new_folder(to: str | Path) -> Iterator[Path]:
    """A temporary sibling of `to` to write into. It becomes `to` when the block ends, durably; an error or Ctrl-C
    deletes it.

    Raises BadSettingsError, before anything is written, where `to` is a file or a folder with something in it, and
    TetherError for any file that the disk refuses inside the block.
    """
    to = Path(to).absolute()
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise BadSettingsError(
            f"{to} exists and is not an empty folder: exports never overwrite; give another destination"
        )
    temporary = to.with_name(f".{to.name}.{uuid4().hex[:8]}.partial")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary, to)
    except OSError as error:
        raise TetherError(f"{to} could not be made: {error}; choose another place or free this one") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_card_and_manifest(folder: Path, card: str, manifest: Mapping[str, object]) -> None:
    """README.md and tether.json."""
    (folder / CARD).write_text(card, encoding="utf-8")
    text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
