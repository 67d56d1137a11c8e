"""Edits leave the house: merged weights, a LoRA adapter, or the restraint of somebody else's checkpoint."""

from tether.export.card import Provenance as Provenance
from tether.export.card import model_card as model_card
from tether.export.checkpoint import restrain_checkpoint as restrain_checkpoint
from tether.export.difference import Difference as Difference
from tether.export.difference import export_difference as export_difference
from tether.export.lora import LoraReport as LoraReport
from tether.export.lora import export_lora as export_lora
from tether.export.write import check_kind as check_kind
from tether.export.write import export_merged as export_merged
from tether.export.write import export_updates as export_updates
