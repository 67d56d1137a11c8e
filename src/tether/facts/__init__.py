"""Facts: reading them, finding their subjects among tokens, checking them."""

from tether.facts.check import FactCheck
from tether.facts.fact import Fact, LocalityPrompt
from tether.facts.formats import FORMATS, BadRecord, Format, read_facts, read_training_facts, scan_facts
from tether.facts.tokens import EncodedPrompt, encode, locate

__all__ = [
    "FORMATS",
    "BadRecord",
    "EncodedPrompt",
    "Fact",
    "FactCheck",
    "Format",
    "LocalityPrompt",
    "encode",
    "locate",
    "read_facts",
    "read_training_facts",
    "scan_facts",
]
