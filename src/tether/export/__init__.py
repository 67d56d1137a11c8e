"""Edits leave the house: merged weights, a LoRA adapter, or the restraint of somebody else's checkpoint."""

from __future__ import annotations

from tether.export.card import misuse, model_card
from tether.export.checkpoint import CheckpointReport, MatrixReport, restrain_checkpoint
from tether.export.from_ledger import export_ledger
from tether.export.lora import LoraReport, LoraWeight, export_lora
from tether.export.merged import export_merged

__all__ = [
    "CheckpointReport",
    "LoraReport",
    "LoraWeight",
    "MatrixReport",
    "export_ledger",
    "export_lora",
    "export_merged",
    "misuse",
    "model_card",
    "restrain_checkpoint",
]
