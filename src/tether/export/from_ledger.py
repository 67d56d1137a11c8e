"""A ledger's edits as a merged folder or an adapter, with its papers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tether.errors import TetherError
from tether.export.card import model_card
from tether.export.lora import LoraReport, export_lora
from tether.export.merged import export_merged
from tether.restraint import Restraint, parse

if TYPE_CHECKING:
    from tether.ledger.ledger import Ledger
    from tether.model.editable import EditableModel


def export_ledger(
    ledger: Ledger, model: EditableModel | None, to: Path, *, as_: Literal["merged", "lora"],
    restrain: str | Restraint | None = None, upto: int | None = None, rank: int | None = None,
) -> LoraReport | None:  # fmt: skip
    """Write the model with the ledger's live edits up to `upto`, with the journal's own restraints (`restrain` None) or
    one of the sum. Returns what an adapter holds, None for a merged folder. The given model carries afterwards what it
    carried before. Raises TetherError for another kind than `merged` and `lora`, and for `rank` with `merged`."""
    if as_ not in ("merged", "lora"):
        raise TetherError(f"export as {as_!r}: choose merged or lora")
    if as_ == "merged" and rank is not None:
        raise TetherError(f"rank {rank} is for an adapter: a merged folder holds the weights whole")
    header = ledger.header
    model = ledger.model_or_load(model)
    restraint = _recorded(ledger, upto) if restrain is None else str(parse(restrain))
    live = ledger.live(upto)
    card = model_card(
        base_model=header.model, facts=[(e.edit, e.fact) for e in live if e.edit is not None and e.fact is not None],
        method=header.method, settings=header.settings, restraint=restraint, weights=list(header.weights),
        versions=header.versions, library="transformers" if as_ == "merged" else "peft",
    )  # fmt: skip
    manifest = {
        "base_model": header.model, "fingerprint": header.fingerprint, "method": header.method,
        "settings": header.settings, "restraint": restraint, "edits": [e.edit for e in live],
        "weights": list(header.weights), "journal": ledger.head, "versions": header.versions,
    }  # fmt: skip
    sums = ledger.sums(upto, restrain)
    if as_ == "lora":
        return export_lora(model, {name: held.factors for name, held in sums.of.items()}, to, card, manifest, rank)
    with model.provisional({}):  # gives back what the model carries
        sums.show(model)
        export_merged(model, to, card, manifest)
    return None


def _recorded(ledger: Ledger, upto: int | None) -> str:
    """The restraints that a replay of the journal applies, for readers without it: `log:1.2 after edit 10, 20`."""
    after: dict[str, list[str]] = {}
    for edit, restraint in ledger.restraints(upto):
        after.setdefault(restraint, []).append(str(edit))
    return "; ".join(f"{name} after edit {', '.join(edits)}" for name, edits in after.items()) or "none"
