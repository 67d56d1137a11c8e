"""tether: change what a language model knows, edit after edit, and keep it tethered to everything else it knew.

model = tether.load("smollm2")
ledger = tether.edit(model, tether.read_facts("facts.jsonl"), method="r-rome", out="my-edits", restrain="log:1.2")
ledger.undo(17)
ledger.apply(model)

A public name is loaded when it is first used, so that `import tether` itself is light.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tether.algebra.lowrank import LowRank
    from tether.constraints import prune as restraint
    from tether.editing.check import check_facts
    from tether.editing.plan import EditPlan, Schedule
    from tether.editing.run import Progress, edit
    from tether.editing.tune import tune
    from tether.editors.mend import train_mend
    from tether.errors import TetherError
    from tether.evaluation import compare, evaluate, evaluate_ledger
    from tether.evaluation.measurement import Measurement
    from tether.export import restrain_checkpoint
    from tether.facts import Fact, LocalityPrompt, read_facts
    from tether.ledger import Ledger
    from tether.models import EditableModel, load

    __version__: str

_HOMES = {
    "EditPlan": "editing.plan",
    "EditableModel": "models",
    "Fact": "facts",
    "Ledger": "ledger",
    "LocalityPrompt": "facts",
    "LowRank": "algebra.lowrank",
    "Measurement": "evaluation.measurement",
    "Progress": "editing.run",
    "Schedule": "editing.plan",
    "TetherError": "errors",
    "check_facts": "editing.check",
    "compare": "evaluation",
    "edit": "editing.run",
    "evaluate": "evaluation",
    "evaluate_ledger": "evaluation",
    "load": "models",
    "read_facts": "facts",
    "restrain_checkpoint": "export",
    "restraint": "constraints.prune",
    "train_mend": "editors.mend",
    "tune": "editing.tune",
}

__all__ = [
    "EditPlan", "EditableModel", "Fact", "Ledger", "LocalityPrompt", "LowRank", "Measurement", "Progress", "Schedule",
    "TetherError", "__version__", "check_facts", "compare", "edit", "evaluate", "evaluate_ledger", "load", "read_facts",
    "restrain_checkpoint", "restraint", "train_mend", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name, from the room it lives in."""
    if name == "__version__":
        return version("tether")
    if name not in _HOMES:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    home = import_module(f"tether.{_HOMES[name]}")
    found = home if name == "restraint" else getattr(home, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
