"""Methods of editing, by name."""

from tether.editors.base import (
    Batch,
    BatchEditor,
    Context,
    EditFailedError,
    Editor,
    EditSkippedError,
    History,
    Method,
    NoHistory,
    Proposal,
    Trained,
)
from tether.editors.registry import EDITORS, editor

__all__ = [
    "EDITORS",
    "Batch",
    "BatchEditor",
    "Context",
    "EditFailedError",
    "EditSkippedError",
    "Editor",
    "History",
    "Method",
    "NoHistory",
    "Proposal",
    "Trained",
    "editor",
]
