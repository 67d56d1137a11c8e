"""The edited model as an ordinary checkpoint that transformers loads without tether."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tether.errors import TetherError
from tether.export.folder import new_folder, write_card_and_manifest

if TYPE_CHECKING:
    from tether.models.editable import EditableModel


def export_merged(model: EditableModel, to: str | Path, card: str, manifest: Mapping[str, object]) -> None:
    """Write weights (safetensors, the model's dtype), config, tokenizer, README.md (`card`), tether.json (`manifest`).

    `model` carries the edits already and is not changed. `to` must not exist or be empty; it appears whole or not at
    all. Raises TetherError for an edited weight that is not finite or that is shared with another parameter.
    """
    _refuse_unsound(model)
    with new_folder(to) as folder:
        try:
            model.hf.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise TetherError(f"transformers does not save {model.id}: {reason}") from error
        write_card_and_manifest(folder, card, manifest)


def _refuse_unsound(model: EditableModel) -> None:
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
