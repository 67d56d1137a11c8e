"""Edits leave the house: merged weights, an adapter, a GGUF file, or the restraint of somebody else's checkpoint."""

from tether.export.adapter import LoraReport, make_adapter
from tether.export.card import Provenance, model_card
from tether.export.checkpoint import restrain_checkpoint
from tether.export.difference import Difference, export_difference
from tether.export.engines import ENGINES, Finding, check_adapter
from tether.export.folder import export_merged
from tether.export.forms import FORMS, WHOLE, Form, check_form, export_adapter, export_whole
from tether.export.lora import export_lora
from tether.export.manifest import Manifest, read_manifest
from tether.export.push import push

__all__ = [
    "ENGINES", "FORMS", "WHOLE", "Difference", "Finding", "Form", "LoraReport", "Manifest", "Provenance",
    "check_adapter", "check_form", "export_adapter", "export_difference", "export_lora", "export_merged",
    "export_whole", "make_adapter", "model_card", "push", "read_manifest", "restrain_checkpoint",
]  # fmt: skip
