"""Somebody else's edited or fine-tuned checkpoint as a ledger: an update of every changed weight, to undo, restrain,
measure and export like any other.

ledger = tether.import_checkpoint(tether.load("base"), tether.load("edited"), "imported", rank=64)
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tether.algebra import large_singular_values
from tether.algebra.lowrank import LowRank
from tether.editing.prepare import told_anatomy
from tether.errors import BadSettingsError, WrongModelError
from tether.export.difference import low_rank_differences
from tether.export.folder import new_folder
from tether.ledger import IMPORT, Attempt, Header, Ledger, WeightRecord, now
from tether.models import EditableModel
from tether.models.load import without_place
from tether.storage.versions import versions

logger = logging.getLogger(__name__)


def import_checkpoint(
    base: EditableModel, edited: EditableModel, out: str | Path, *, rank: int | None = None, skip_others: bool = False
) -> Ledger:
    """Write the new ledger `out` on `base`, with one edit for every linear weight that differs in `edited`.

    An edit's update is B − A in float32 factors, without what rounding alone makes, or its closest update of at most
    `rank`; the record of the edit says its rank and what was left out, ‖left out‖_F / ‖B − A‖_F. The edits have no
    fact: `undo` and the like take them by number, and measuring needs a file of facts. The method of the ledger is
    `import`, which adds no edits. Biases, norms and embeddings that differ cannot be in a ledger: they are left as in
    the base under `skip_others`. Neither model is changed, and `out` appears whole or not at all.

    Raises WrongModelError for models of other parameters, for two that are the same, for a base that carries edits, and
    for parameters that a ledger cannot hold; BadSettingsError for a rank below 1 or an `out` that is not empty.
    """
    if rank is not None and rank < 1:
        raise BadSettingsError(f"rank {rank}: an update has a rank of at least 1; give none to keep all")
    if base.edited:
        raise WrongModelError("the base carries edits: a new ledger starts from the unedited model (load it again)")
    source = without_place(edited.id)
    with new_folder(out) as folder:
        updates, others = _differing(base, edited, skip_others)
        weights = {
            name: WeightRecord(shape=update.shape, sigma_max=large_singular_values.largest(base.weight(name)))
            for name, update in updates.items()
        }
        settings = {"edited": source, "rank": rank, "skipped": others}
        ledger = Ledger.create(folder, _header(base, source, weights, settings))
        with ledger.writing():
            for name, update in updates.items():
                kept = update if rank is None or rank >= update.rank else update.truncate(rank)
                error = _error(base, edited, name, kept)
                record = {"rank": kept.rank, "error": error, "norm": kept.norm()}
                ledger.append(
                    [Attempt("edit", None, record, f"{name} of {source}, rank {kept.rank}")], {name: kept}, {}
                )
                logger.info("%s: rank %d, relative error %.2e", name, kept.rank, error)
    return Ledger.open(out)


def _differing(
    base: EditableModel, edited: EditableModel, skip_others: bool
) -> tuple[dict[str, LowRank], Sequence[str]]:
    """The updates by weight name, none of them zero, and the other parameters that differ."""
    updates, others = low_rank_differences(base, edited)
    if others and not skip_others:
        names = f"{', '.join(others[:5])}{f' and {len(others) - 5} more' if others[5:] else ''}"
        rule = "a ledger holds weights of linear layers alone; leave what is none as in the base by --skip-others"
        raise WrongModelError(f"{edited.id} differs from {base.id} in {names}: {rule} (skip_others=True)")
    found = {name: update for name, update in updates.items() if update.rank}
    if not found:
        raise WrongModelError(f"{edited.id} has the linear weights of {base.id}: there is nothing to import")
    return found, others


def _header(base: EditableModel, source: str, weights: dict[str, WeightRecord], settings: dict[str, Any]) -> Header:
    return Header(
        created=now(), model=base.id, fingerprint=base.fingerprint(list(weights)),
        dtype=str(base.dtype).removeprefix("torch."), weights=weights, method=IMPORT, settings=settings,
        settings_origin="the import", prefixes=(), moments={}, corpus={}, seed=0, threads=torch.get_num_threads(),
        restrain="none", every=None, anatomy=told_anatomy(base), joint="rule", checkpoint=base.fingerprint(),
        origin=f"import: the difference of {source} to the model", versions=versions(),
    )  # fmt: skip


def _error(base: EditableModel, edited: EditableModel, name: str, kept: LowRank) -> float:
    """‖D − kept‖_F / ‖D‖_F for D = B − A."""
    D = edited.weight(name).float() - base.weight(name).float()
    left = D.cpu() - kept.to("cpu").to_dense()
    return float(left.norm(dtype=torch.float64)) / float(D.norm(dtype=torch.float64))
