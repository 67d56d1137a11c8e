"""A sum of edits as the factors of an adapter, which it already is: ΔW = B·A. Each form of adapter is made of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError, TetherError
from tether.export.loss import Loss, measure
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

logger = logging.getLogger(__name__)

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM allots room for, so that a server is set to one


@dataclass(frozen=True)
class LoraWeight:
    """One adapted weight: its rank in the adapter without the zeros, ‖dropped part‖/‖update‖ in both norms, and
    `cast_error`, ‖cast factors' product − product‖_F, beside the Frobenius norm of the smallest edit of that weight
    (None where the edits are not known)."""

    name: str
    rank: int
    error_frobenius: float
    error_spectral: float
    cast_error: float = 0.0
    smallest_edit: float | None = None


@dataclass(frozen=True)
class LoraReport:
    """What the adapter holds, and the weights left out because their update is zero. `rank` is the one rank in the
    file, `dtype` that of its factors, `loss` what was measured where something was dropped or cast."""

    weights: tuple[LoraWeight, ...]
    left_out: tuple[str, ...]
    rank: int = 0
    dtype: str = "float32"
    loss: Loss | None = None


@dataclass(frozen=True)
class Adapter:
    """The factors by module path, all of one rank: A is out×r and B r×in, in the dtype they are stored in, on the CPU.
    The scale of every module is 1."""

    factors: Mapping[str, LowRank]
    report: LoraReport

    def details(self) -> dict[str, str]:
        """Sections of the model card."""
        report = self.report
        lines = [f"Rank {report.rank} for every weight, scale 1, {report.dtype}."]
        lines += [weight_line(weight) for weight in report.weights if weight.error_frobenius or weight.cast_error]
        if report.loss is None:
            return {"Adapter": "\n\n".join(lines)}
        return {"Adapter": "\n\n".join(lines), "Measurements": report.loss.line()}


def make_adapter(
    model: EditableModel,
    updates: Mapping[str, LowRank],
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    served: bool = True,
    facts: Sequence[Fact] = (),
    smallest: Mapping[str, float] | None = None,
) -> Adapter:
    """An adapter of `updates` (weight name -> out×in update) for the unedited `model`, which is not changed.

    Each update is compressed to its numerical rank in float64, in which nothing is lost that float32 factors hold, or
    to at most `rank` where that is less. All weights have one rank, the largest, filled with zeros; `served`: raised to
    one of RANKS. Where something was dropped, or cast to a smaller `dtype`, the report says how much, and what that
    does to the answers to `facts`. `smallest` is the norm of the smallest edit by weight name.

    Raises BadSettingsError for a rank below 1, TetherError for an update that is zero everywhere, not finite or of no
    linear layer, and with `served` for one of a rank above all RANKS, where no `rank` is given.
    """
    if rank is not None and rank < 1:
        raise BadSettingsError(f"rank {rank}: an adapter has a rank of at least 1; give none to keep all")
    parts: dict[str, LowRank] = {}
    weights: list[LoraWeight] = []
    for name, update in updates.items():
        if not (model.is_transposed(name) or isinstance(model.hf.get_submodule(module_of(name)), nn.Linear)):
            raise TetherError(f"{name} is no weight of a linear layer: no adapter can hold its update; export merged")
        if update.shape != tuple(model.weight(name).shape):
            raise ValueError(f"update {update.shape} does not fit {name}, which is {tuple(model.weight(name).shape)}")
        weight, kept = _compressed(name, update, rank)
        if weight.rank:
            parts[module_of(name)] = kept
            weights.append(replace(weight, smallest_edit=(smallest or {}).get(name)))
    if not weights:
        raise TetherError("every update is zero: there is nothing to put in an adapter; apply edits first")
    r = _one_rank(max(weights, key=lambda weight: weight.rank), rank, served)
    factors = {module: _cast(module, one, dtype) for module, one in parts.items()}
    if dtype != torch.float32:
        weights = [replace(w, cast_error=_apart(factors[module_of(w.name)], parts[module_of(w.name)])) for w in weights]
    loss = None
    if facts and any(weight.error_frobenius or weight.cast_error for weight in weights):
        loss = measure(model, updates, {f"{module}.weight": one for module, one in factors.items()}, facts)
    left_out = tuple(name for name in updates if module_of(name) not in parts)
    report = LoraReport(tuple(weights), left_out, r, str(dtype).removeprefix("torch."), loss)
    return Adapter({module: _filled(one, r) for module, one in factors.items()}, report)


def module_of(weight: str) -> str:
    """The path of the module that has a weight."""
    return weight.removesuffix(".weight")


def weight_line(weight: LoraWeight) -> str:
    """What the adapter holds of one weight, as a person reads it."""
    line = (
        f"{weight.name}: rank {weight.rank}, relative error {weight.error_frobenius:.2e} (Frobenius), "
        f"{weight.error_spectral:.2e} (spectral)"
    )
    if weight.cast_error:
        smallest = "" if weight.smallest_edit is None else f", beside a smallest edit of {weight.smallest_edit:.2e}"
        line += f", error of the cast {weight.cast_error:.2e}{smallest}"
    return line


def _one_rank(largest: LoraWeight, rank: int | None, served: bool) -> int:
    if not served:
        return largest.rank
    if largest.rank <= RANKS[-1]:
        return next(step for step in RANKS if step >= largest.rank)
    what = f"{largest.name} has an update of rank {largest.rank}, and servers take adapters of rank {RANKS[-1]} at most"
    if rank is None:
        raise TetherError(
            f"{what}: truncate it (--rank {RANKS[-1]}; what that loses is measured), or export merged weights, which "
            "lose nothing"
        )
    logger.warning("%s: peft and llama.cpp alone load this one", what)
    return largest.rank


def _compressed(name: str, update: LowRank, rank: int | None) -> tuple[LoraWeight, LowRank]:
    update = update.to("cpu", torch.float32)
    if not bool(update.A.isfinite().all() and update.B.isfinite().all()):
        raise TetherError(f"the update of {name} is not finite: undo the last edits or restrain them, then export")
    factors = update.truncate(rtol=torch.finfo(torch.float64).eps * max(update.shape))
    whole = factors.rank
    if rank is not None and rank < whole:
        factors = update.truncate(rank)
    s, k = update.singular_values(), factors.rank
    if k == whole:
        return LoraWeight(name, k, 0.0, 0.0), factors
    return LoraWeight(name, k, float(s[k:].norm() / s.norm()), float(s[k] / s[0])), factors


def _cast(module: str, factors: LowRank, dtype: torch.dtype) -> LowRank:
    found = factors.to(dtype=dtype)
    if not bool(found.A.isfinite().all() and found.B.isfinite().all()):
        raise TetherError(f"the update of {module} does not fit into {dtype}: store it in float32")
    return found


def _apart(cast: LowRank, factors: LowRank) -> float:
    """‖cast − factors‖_F."""
    return float(LowRank.sum([cast.to(dtype=torch.float64), -factors.to(dtype=torch.float64)]).singular_values().norm())


def _filled(factors: LowRank, r: int) -> LowRank:
    """The same product in r columns."""
    missing = r - factors.rank
    return LowRank(_padded(factors.A, (0, missing)), _padded(factors.B, (0, 0, 0, missing)))


def _padded(tensor: Tensor, by: tuple[int, ...]) -> Tensor:
    return pad(tensor, by).contiguous()
