"""An edited model as a merged folder (an ordinary checkpoint for transformers) or as an adapter, with its papers."""

from collections.abc import Mapping
from pathlib import Path

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError, TetherError
from tether.export.card import Provenance, model_card
from tether.export.folder import new_folder, write_card_and_manifest
from tether.export.lora import LoraReport, export_lora
from tether.models.editable import EditableModel

KINDS = ("merged", "lora")


def check_kind(as_: str, rank: int | None) -> None:
    """Raise BadSettingsError for another kind than those of KINDS, and for `rank` with `merged`."""
    if as_ not in KINDS:
        raise BadSettingsError(f"export as {as_!r}: choose merged or lora")
    if as_ == "merged" and rank is not None:
        raise BadSettingsError(f"rank {rank} is for an adapter: a merged folder holds the weights whole")


def export_updates(
    model: EditableModel, updates: Mapping[str, LowRank], to: Path, about: Provenance, *, as_: str,
    rank: int | None = None, base_name: str | None = None,
) -> LoraReport | None:  # fmt: skip
    """Write the model with `updates` by weight name. A merged folder holds the weights that the model carries now, so
    apply the updates first. Returns what an adapter holds, None for a merged folder. Changes nothing."""
    check_kind(as_, rank)
    if as_ == "lora":
        return export_lora(
            model, dict(updates), to, model_card(about, library="peft"), about.manifest(), rank, base_name=base_name
        )
    export_merged(model, to, model_card(about), about.manifest())
    return None


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
