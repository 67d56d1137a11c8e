"""Models that can be edited: loading, where their weights are, and the frozen-prefix forward."""

from tether.models.editable import EditableModel
from tether.models.layout import Anatomy, find_anatomy
from tether.models.load import load

__all__ = ["Anatomy", "EditableModel", "find_anatomy", "load"]
