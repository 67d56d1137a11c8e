"""What makes one checkpoint another, as an adapter: the low-rank differences of their weights.

export_difference(base, edited, "adapter", rank=64)
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tether.algebra import large_singular_values
from tether.algebra.lowrank import LowRank
from tether.errors import WrongModelError
from tether.export.adapter import LoraReport
from tether.export.card import Provenance
from tether.export.forms import export_adapter
from tether.models.editable import EditableModel
from tether.storage.versions import versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """The adapter, and the parameters that differ and that no adapter of linear layers can hold."""

    adapter: LoraReport
    not_held: tuple[str, ...]


def export_difference(
    base: EditableModel,
    edited: EditableModel,
    to: str | Path,
    *,
    form: str = "lora",
    rank: int | None = None,
    adapter_dtype: str | None = None,
    base_name: str | None = None,
) -> Difference:
    """Write an adapter for `base`, in one of the forms that hold factors, that gives the weights of `edited`, to the
    rounding of their dtype.

    Of every linear weight that differs, its `low_rank_differences`, at most the `rank` largest singular values. Biases,
    norms and embeddings that differ are named and left out. Neither model is changed; `to` must not exist or be empty.
    Raises WrongModelError for two models of other parameters, and as `export_adapter`.
    """
    updates, left = low_rank_differences(base, edited)
    if left:
        logger.warning(
            "%d parameters such as %s differ and are in no adapter: export merged for all", len(left), left[0]
        )
    changed = [name for name, update in updates.items() if update.rank]
    about = Provenance(
        base.id, f"the difference of {edited.id} to it", {}, "none", [], changed, versions(), layers=base.n_layers,
        checkpoint=base.fingerprint(), model_type=base.hf.config.get_text_config().model_type,
    )  # fmt: skip
    report = export_adapter(form, base, updates, to, about, rank=rank, adapter_dtype=adapter_dtype, base_name=base_name)
    return Difference(report, tuple(left))


def low_rank_differences(base: EditableModel, edited: EditableModel) -> tuple[dict[str, LowRank], list[str]]:
    """B − A by name for every weight of a linear layer that differs, out×in, and the names of the other parameters that
    differ. The factors, float32, keep the singular values above what rounding alone makes (the dtype's precision times
    the norm of a random matrix of such entries). Raises WrongModelError for two models of other parameters."""
    ours, theirs = dict(base.hf.named_parameters()), dict(edited.hf.named_parameters())
    shapes = {name: tuple(one.shape) for name, one in ours.items()}
    if shapes != {name: tuple(one.shape) for name, one in theirs.items()}:
        raise WrongModelError(
            f"{base.id} and {edited.id} do not have the same parameters: name a checkpoint and its base"
        )
    updates: dict[str, LowRank] = {}
    left = []
    for name in ours:
        if torch.equal(ours[name].to(theirs[name]), theirs[name]):
            continue
        module = base.hf.get_submodule(name.rpartition(".")[0])
        if name.endswith(".weight") and (isinstance(module, nn.Linear) or base.is_transposed(name)):
            updates[name] = _difference(base.weight(name), edited.weight(name))
            logger.info("%s: rank %d", name, updates[name].rank)
        else:
            left.append(name)
    return updates, left


def _difference(W: Tensor, edited: Tensor) -> LowRank:
    """B − A as factors in float32, less what the rounding of the coarser dtype makes."""
    precision = max(torch.finfo(one.dtype).eps for one in (W, edited))
    p, q = W.shape
    size = max(float(one.float().pow(2).mean().sqrt()) for one in (W, edited))
    floor = precision * size * (math.sqrt(p) + math.sqrt(q))
    D = edited.float() - W.float()
    if not floor or not D.any():
        return LowRank.zeros(p, q)
    u, s, vh, _ = large_singular_values.above(D, floor)
    return LowRank((u * s).float(), vh.float())
