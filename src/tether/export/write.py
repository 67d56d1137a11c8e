"""An edited model as a merged folder or as an adapter, with its papers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError
from tether.export.card import Provenance, model_card
from tether.export.lora import LoraReport, export_lora
from tether.export.merged import export_merged
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
    rank: int | None = None,
) -> LoraReport | None:  # fmt: skip
    """Write the model with `updates` by weight name. A merged folder holds the weights that the model carries now, so
    apply the updates first. Returns what an adapter holds, None for a merged folder. Changes nothing."""
    check_kind(as_, rank)
    if as_ == "lora":
        return export_lora(model, dict(updates), to, model_card(about, library="peft"), about.manifest(), rank)
    export_merged(model, to, model_card(about), about.manifest())
    return None
