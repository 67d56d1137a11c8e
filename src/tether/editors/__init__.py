"""Methods of editing, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tether.editors.base import Batch, BatchEditor, Context, EditFailedError, Editor, EditSkippedError, Proposal
from tether.editors.memit import Memit
from tether.editors.mend.network import Mend
from tether.editors.rome import Rome
from tether.errors import TetherError

EDITORS: Mapping[str, Callable[[], Editor | BatchEditor]] = MappingProxyType({
    "rome": lambda: Rome(rebuilt=False),
    "r-rome": lambda: Rome(rebuilt=True),
    "memit": lambda: Memit(equality=False),
    "emmet": lambda: Memit(equality=True),
    "mend": lambda: Mend(),
})  # fmt: skip


def editor(name: str) -> Editor | BatchEditor:
    """A new editor of a registered method."""
    if name not in EDITORS:
        raise TetherError(f"{name!r} is no method: choose one of {', '.join(EDITORS)}")
    return EDITORS[name]()


__all__ = [
    "EDITORS", "Batch", "BatchEditor", "Context", "EditFailedError", "EditSkippedError", "Editor", "Proposal", "editor",
]  # fmt: skip
