"""Edits leave the house: merged weights, a LoRA adapter, or the restraint of somebody else's checkpoint."""

from __future__ import annotations

from tether.export.card import Provenance, model_card
from tether.export.checkpoint import CheckpointReport, MatrixReport, restrain_checkpoint
from tether.export.lora import LoraReport, LoraWeight, export_lora
from tether.export.merged import export_merged
from tether.export.write import check_kind, export_updates

__all__ = [
    "CheckpointReport",
    "LoraReport",
    "LoraWeight",
    "MatrixReport",
    "Provenance",
    "check_kind",
    "export_lora",
    "export_merged",
    "export_updates",
    "model_card",
    "restrain_checkpoint",
]
