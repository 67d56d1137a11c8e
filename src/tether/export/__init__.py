"""Edits leave the house: merged weights, a LoRA adapter, or the restraint of somebody else's checkpoint."""

from tether.export.card import Provenance, model_card
from tether.export.checkpoint import restrain_checkpoint
from tether.export.difference import Difference, export_difference
from tether.export.folder import export_merged
from tether.export.lora import LoraReport, export_lora
from tether.export.manifest import Manifest, read_manifest
from tether.export.push import push

__all__ = [
    "Difference", "LoraReport", "Manifest", "Provenance", "export_difference", "export_lora", "export_merged",
    "model_card", "push", "read_manifest", "restrain_checkpoint",
]  # fmt: skip
