"""Edits leave the house: merged weights, a LoRA adapter, or the restraint of somebody else's checkpoint."""

from tether.export.card import Provenance, model_card
from tether.export.checkpoint import restrain_checkpoint
from tether.export.difference import Difference, export_difference
from tether.export.folder import export_merged
from tether.export.lora import LoraReport, export_lora

__all__ = [
    "Difference", "LoraReport", "Provenance", "export_difference", "export_lora", "export_merged", "model_card",
    "restrain_checkpoint",
]  # fmt: skip
