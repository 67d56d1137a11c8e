"""Models that can be edited: loading, where their weights are, and the frozen-prefix forward."""

from tether.model.anatomy import Anatomy, find_anatomy
from tether.model.editable import EditableModel
from tether.model.load import load

__all__ = ["Anatomy", "EditableModel", "find_anatomy", "load"]
