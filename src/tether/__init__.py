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
    from tether.analyses.ask import ask
    from tether.constraints import prune as restraint
    from tether.editing.check import check_facts
    from tether.editing.consolidate import consolidate
    from tether.editing.headroom import headroom
    from tether.editing.imported import import_checkpoint
    from tether.editing.plan import EditPlan, Schedule
    from tether.editing.repair import repair
    from tether.editing.run import Progress, edit
    from tether.editing.tune import tune
    from tether.editors.mend import train_mend
    from tether.errors import TetherError
    from tether.evaluation import Measurement, compare, evaluate, evaluate_ledger
    from tether.evaluation.knowledge import make_tests, read_tests, run_tests
    from tether.export import push, restrain_checkpoint
    from tether.facts import Fact, LocalityPrompt, read_facts
    from tether.ledger import Ledger, difference, merge, pick, whose
    from tether.models import EditableModel, load

    __version__: str

_ROOMS = {
    "algebra.lowrank": ("LowRank",),
    "analyses.ask": ("ask",),
    "constraints.prune": ("restraint",),  # the whole module
    "editing.check": ("check_facts",),
    "editing.consolidate": ("consolidate",),
    "editing.headroom": ("headroom",),
    "editing.imported": ("import_checkpoint",),
    "editing.plan": ("EditPlan", "Schedule"),
    "editing.repair": ("repair",),
    "editing.run": ("Progress", "edit"),
    "editing.tune": ("tune",),
    "editors.mend": ("train_mend",),
    "errors": ("TetherError",),
    "evaluation": ("Measurement", "compare", "evaluate", "evaluate_ledger"),
    "evaluation.knowledge": ("make_tests", "read_tests", "run_tests"),
    "export": ("push", "restrain_checkpoint"),
    "facts": ("Fact", "LocalityPrompt", "read_facts"),
    "ledger": ("Ledger", "difference", "merge", "pick", "whose"),
    "models": ("EditableModel", "load"),
}

__all__ = [
    "EditPlan", "EditableModel", "Fact", "Ledger", "LocalityPrompt", "LowRank", "Measurement", "Progress", "Schedule",
    "TetherError", "__version__", "ask", "check_facts", "compare", "consolidate", "difference", "edit", "evaluate",
    "evaluate_ledger", "headroom", "import_checkpoint", "load", "make_tests", "merge", "pick", "push", "read_facts",
    "read_tests", "repair", "restrain_checkpoint", "restraint", "run_tests", "train_mend", "tune", "whose",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name, from the room it lives in."""
    if name == "__version__":
        return version("tether")
    room = next((room for room, names in _ROOMS.items() if name in names), None)
    if room is None:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    home = import_module(f"tether.{room}")
    globals()[name] = home if name == "restraint" else getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
