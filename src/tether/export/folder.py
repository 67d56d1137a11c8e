"""A folder that appears whole or not at all, what every export writes into it, and the merged export itself."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tether.errors import BadSettingsError, TetherError
from tether.export.manifest import write_manifest
from tether.models.editable import EditableModel
from tether.storage.atomic import publish

CARD = "README.md"


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
            f"{to} exists and is not an empty folder: nothing is overwritten; give another destination"
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
    """README.md, and manifest.json with the hashes of all files: when everything else is written."""
    (folder / CARD).write_text(card, encoding="utf-8")
    write_manifest(folder, manifest)


def export_merged(model: EditableModel, to: str | Path, card: str, manifest: Mapping[str, object]) -> None:
    """Write weights (safetensors, the model's dtype), config, tokenizer, README.md (`card`) and manifest.json.

    `model` carries the edits already and is not changed. `to` must not exist or be empty; it appears whole or not at
    all. Raises TetherError for an edited weight that is not finite or that is shared with another parameter.
    """
    refuse_unsound(model)
    with new_folder(to) as folder:
        try:
            model.hf.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise TetherError(f"transformers does not save {model.id}: {reason}") from error
        write_card_and_manifest(folder, card, manifest)


def refuse_unsound(model: EditableModel) -> None:
    """Raise TetherError for an edited weight that is not finite or that is shared with another parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.hf.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name in model.edited:
        shared = [other for other in names[id(model.hf.get_parameter(name))] if other != name]
        if shared:
            raise TetherError(
                f"{name} is tied to {shared[0]}: an edit would change both; edit a weight of its own, such as an MLP's"
            )
        if not bool(model.weight(name).isfinite().all()):
            raise TetherError(f"{name} is not finite after the edits: undo the last ones or restrain them, then export")
