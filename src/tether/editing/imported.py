"""Somebody else's edited or fine-tuned checkpoint as a ledger: an update of every changed weight, to undo, restrain,
measure and export like any other.

ledger = tether.import_checkpoint(tether.load("base"), tether.load("edited"), "imported", rank=64)
"""

import logging
import time
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
    started, source = time.monotonic(), without_place(edited.id)
    updates, others = low_rank_differences(base, edited)
    updates = {name: update for name, update in updates.items() if update.rank}
    if others and not skip_others:
        names = f"{', '.join(others[:5])}{' …' if others[5:] else ''}"
        raise WrongModelError(
            f"{len(others)} parameters that are no weight of a linear layer differ ({names}), which a ledger cannot "
            "hold: leave them as in the base by --skip-others (skip_others=True)"
        )
    if not updates:
        raise WrongModelError(f"{edited.id} has the linear weights of {base.id}: there is nothing to import")
    seconds = (time.monotonic() - started) / len(updates)
    weights, attempts = {}, {}
    for name, update in updates.items():
        weights[name] = WeightRecord(shape=update.shape, sigma_max=large_singular_values.largest(base.weight(name)))
        updates[name] = kept = update if rank is None or rank >= update.rank else update.truncate(rank)
        record = {"rank": kept.rank, "error": _error(base, edited, name, kept), "norm": kept.norm(), "seconds": seconds}
        attempts[name] = Attempt("edit", None, record, f"{name} of {source}, rank {kept.rank}")
        logger.info("%s: rank %d, relative error %.2e", name, kept.rank, record["error"])
    settings: dict[str, Any] = {"edited": source, "rank": rank, "skipped": others}
    header = Header(
        created=now(), model=base.id, fingerprint=base.fingerprint(list(weights)),
        dtype=str(base.dtype).removeprefix("torch."), weights=weights,
        method=IMPORT, settings=settings, settings_origin="the import", prefixes=(), moments={}, corpus={}, seed=0,
        threads=torch.get_num_threads(), restrain="none", every=None, anatomy=told_anatomy(base), joint="rule",
        checkpoint=base.fingerprint(), origin=f"import: the difference of {source} to the model",
        versions=versions(),
    )  # fmt: skip
    with new_folder(out) as folder:
        ledger = Ledger.create(folder, header)
        with ledger.writing():
            for name, attempt in attempts.items():
                ledger.append([attempt], {name: updates[name]}, {})
    return Ledger.open(out)


def _error(base: EditableModel, edited: EditableModel, name: str, kept: LowRank) -> float:
    """‖D − kept‖_F / ‖D‖_F for D = B − A."""
    D = edited.weight(name).float() - base.weight(name).float()
    left = D.cpu() - kept.to("cpu").to_dense()
    return float(left.norm(dtype=torch.float64)) / float(D.norm(dtype=torch.float64))
