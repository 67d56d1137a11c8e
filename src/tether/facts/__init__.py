"""Facts: reading them, finding their subjects among tokens, checking them."""

from tether.facts.check import FactCheck
from tether.facts.fact import Fact, LocalityPrompt
from tether.facts.formats import BadRecord, read_facts, read_training_facts, scan_facts
from tether.facts.tokens import EncodedPrompt, encode, locate

__all__ = [
    "BadRecord",
    "EncodedPrompt",
    "Fact",
    "FactCheck",
    "LocalityPrompt",
    "encode",
    "locate",
    "read_facts",
    "read_training_facts",
    "scan_facts",
]
