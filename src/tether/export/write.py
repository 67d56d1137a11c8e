"""An edited model as a merged folder or as an adapter, with its papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError
from tether.export.card import model_card
from tether.export.lora import LoraReport, export_lora
from tether.export.merged import export_merged
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

KINDS = ("merged", "lora")


@dataclass(frozen=True)
class Provenance:
    """Where exported edits come from: what the model card and the manifest say. `facts` are (edit number, fact) of the
    edits that count; `restraint` is its written form; `head` the hash of the journal's last line."""

    base_model: str
    fingerprint: str
    method: str
    settings: Mapping[str, Any]
    restraint: str
    facts: Sequence[tuple[int, Fact]]
    weights: Sequence[str]
    head: str
    versions: Mapping[str, str]

    def manifest(self) -> dict[str, Any]:
        return {
            "base_model": self.base_model, "fingerprint": self.fingerprint, "method": self.method,
            "settings": dict(self.settings), "restraint": self.restraint, "edits": [edit for edit, _ in self.facts],
            "weights": list(self.weights), "journal": self.head, "versions": dict(self.versions),
        }  # fmt: skip

    def card(self, library: str) -> str:
        return model_card(
            base_model=self.base_model, facts=list(self.facts), method=self.method, settings=dict(self.settings),
            restraint=self.restraint, weights=list(self.weights), versions=dict(self.versions), library=library,
        )  # fmt: skip


def check_kind(as_: str, rank: int | None) -> None:
    """Raise BadSettingsError for another kind than those of KINDS, and for `rank` with `merged`."""
    if as_ not in KINDS:
        raise BadSettingsError(f"export as {as_!r}: choose merged or lora")
    if as_ == "merged" and rank is not None:
        raise BadSettingsError(f"rank {rank} is for an adapter: a merged folder holds the weights whole")


def export_updates(
    model: EditableModel, updates: Mapping[str, LowRank], to: Path, about: Provenance, *, as_: str,
    rank: int | None = None,
) -> LoraReport | None:  # fmt: skip
    """Write the model with `updates` by weight name. A merged folder holds the weights that the model carries now, so
    apply the updates first. Returns what an adapter holds, None for a merged folder. Changes nothing."""
    check_kind(as_, rank)
    if as_ == "lora":
        return export_lora(model, dict(updates), to, about.card("peft"), about.manifest(), rank)
    export_merged(model, to, about.card("transformers"), about.manifest())
    return None
