"""tether: change what a language model knows, edit after edit, and keep it tethered to everything else it knew.

model = tether.load("smollm2")
ledger = tether.edit(model, tether.read_facts("facts.jsonl"), method="r-rome", out="my-edits", restrain="log:1.2")
ledger.undo(17)
ledger.apply(model)
"""

from tether import restraint
from tether.errors import TetherError
from tether.evaluate import compare, evaluate, evaluate_ledger
from tether.export import restrain_checkpoint
from tether.facts import Fact, LocalityPrompt, check_facts, read_facts
from tether.ledger import Ledger
from tether.lowrank import LowRank
from tether.model import EditableModel, load
from tether.session import Progress, edit
from tether.training import train_mend
from tether.tune import tune

__all__ = [
    "EditableModel",
    "Fact",
    "Ledger",
    "LocalityPrompt",
    "LowRank",
    "Progress",
    "TetherError",
    "check_facts",
    "compare",
    "edit",
    "evaluate",
    "evaluate_ledger",
    "load",
    "read_facts",
    "restrain_checkpoint",
    "restraint",
    "train_mend",
    "tune",
]
