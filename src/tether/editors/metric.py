"""The metric of a solve: what a key costs that the update must not answer to.

C of the layer, a ridge on its diagonal, the keys of bystanders, and, with `history`, those of the edits made before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.precision import double
from tether.editors.base import Context, EditFailedError
from tether.editors.bystanders import bystander_prompts, keys_of
from tether.editors.moments import Moments
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

_PENDING = 128  # keys of history beside the matrix; more are put into it, by one Cholesky factorisation


@dataclass(frozen=True)
class Metric:
    """C + ridge·mean(diag C)·I + Σ b bᵀ over `keys` (n×q, float64 on the CPU, each times the root of its weight). With
    `null_space`, a threshold, C is its mean diagonal on its null space, and infinite elsewhere."""

    moments: Moments
    keys: Float[Tensor, "n q"]
    ridge: float
    null_space: float | None = None

    def solve(self, k: Float[Tensor, "*m q"]) -> Float[Tensor, "*m q"]:
        """Its inverse times one key or each of many, float64, by Woodbury."""
        x = self._alone(k)
        if not len(self.keys):
            return x
        if not self.keys.isfinite().all():
            raise EditFailedError(f"{len(self.keys)} keys to keep are not all finite: the model is damaged")
        if len(self.keys) > self.keys.shape[1] and self.null_space is None:
            return self.whole.solve(k)
        solved, factor = self._solved
        inner = x.reshape(-1, x.shape[-1]) @ self.keys.mT
        return x - (torch.cholesky_solve(inner.mT, factor).mT @ solved).reshape(x.shape)

    def _alone(self, k: Float[Tensor, "*m q"]) -> Float[Tensor, "*m q"]:
        """The same without the keys."""
        if self.null_space is None:
            return self.moments.solve(k, ridge=self.ridge)
        return self.moments.project(k, threshold=self.null_space)

    @cached_property
    def whole(self) -> Moments:
        """The metric as one matrix: for more keys than they have numbers, and to go on from."""
        dense = self.moments.C + self.keys.mT @ self.keys
        dense.diagonal().add_(self.ridge * self.moments.C.diagonal().mean())
        return replace(self.moments, C=dense)

    @cached_property
    def _solved(self) -> tuple[Tensor, Tensor]:
        """C⁻¹B as rows, and the Cholesky factor of I + BᵀC⁻¹B."""
        solved = self._alone(self.keys)
        gram = self.keys @ solved.mT
        gram = (gram + gram.mT) / 2
        gram.diagonal().add_(1)
        return solved, torch.linalg.cholesky(gram)


def of_model(context: Context, layer: int) -> Metric:
    """What the model knew, alone."""
    moments, hparams = context.moments[layer], context.hparams
    return Metric(moments, moments.C[:0], hparams.moments_ridge, getattr(hparams, "null_space", None))


def of_facts(model: EditableModel, facts: Sequence[Fact], context: Context) -> dict[int, Metric]:
    """Of one solve for these facts, by layer: what the model knew, and the keys of their bystanders. Of the model as it
    is now, which is not changed."""
    hparams = context.hparams
    others = keys_of(model, bystander_prompts(model, facts, hparams.bystanders), hparams.layers)
    return {
        layer: replace(of_model(context, layer), keys=equally(keys, hparams.bystander_weight))
        for layer, keys in others.items()
    }


def cosines(
    k: Float[Tensor, "m q"], x: Float[Tensor, "m q"], K: Float[Tensor, "n q"], X: Float[Tensor, "n q"]
) -> Float[Tensor, "m n"]:
    """kᵀC⁻¹k' / √(kᵀC⁻¹k · k'ᵀC⁻¹k') of every key k with every key k' of K, where x = C⁻¹k and X = C⁻¹K, as rows."""
    sizes = (k * x).sum(1, keepdim=True) * (K * X).sum(1)
    return k @ X.mT / sizes.clamp_min(0).sqrt().clamp_min(torch.finfo(sizes.dtype).tiny)


def equally(keys: Float[Tensor, "n q"], weight: float) -> Float[Tensor, "n q"]:
    """Keys for a metric that together count as weight·E[b bᵀ]; none where the weight is 0."""
    return keys * (weight / len(keys)) ** 0.5 if len(keys) and weight else keys[:0]


@dataclass
class Memory:
    """The keys of a ledger's live edits in the metric of the next solve, for an editor to keep between its solves.

    New keys stand beside the matrix until there are many, then they are put into it; so a solve costs the same at edit
    2,000 as at edit 2. Not with `null_space`, where C has no matrix to put them into: there all n keys stand beside it,
    an n×n system a solve. After an undo or a redo the matrix is made anew.
    """

    _folded: dict[str, tuple[Sequence[int], Metric]] = field(default_factory=dict)

    def metric(self, weight: str, context: Context, layer: int, bystanders: Float[Tensor, "n q"]) -> Metric:
        """Of a weight: C + ridge·mean(diag C)·I, and the keys of `bystanders` as one mean; with the setting `history`
        C + ridge·mean(diag C)·I + K_pK_pᵀ/λ instead, over the keys K_p of the live edits."""
        hparams, start = context.hparams, of_model(context, layer)
        if not hparams.history:
            return replace(start, keys=equally(bystanders, hparams.bystander_weight))
        rows = context.history.rows(weight)
        done, base = self._folded.get(weight, ((), start))
        if rows[: len(done)] != done:
            done, base = (), start
        if len(rows) > len(done):
            keys = context.history.keys(weight)[len(done) :].double() / hparams.mom2_update_weight**0.5
            base = replace(base, keys=keys)
            if len(keys) > _PENDING and base.null_space is None:
                base = Metric(base.whole, keys[:0], 0.0)
                self._folded[weight] = rows, base
        return base


def remembered(
    model: EditableModel, weight: str, K: Float[Tensor, "n q"], R: Float[Tensor, "n p"], context: Context, layer: int
) -> dict[str, Tensor]:
    """What the ledger keeps of a solve with history: "<weight>/X" = (λC + βI)⁻¹K (n×q) and "<weight>/D" = V − W₀K
    (n×p), from which the solves of any live edits follow (`tether.algebra.ridge`)."""
    update = model.update(weight)
    X = of_model(context, layer).solve(K) / context.hparams.mom2_update_weight
    D = R
    if update is not None:
        carried = double(update)
        D = R + (K.to(carried.device) @ carried.mT).cpu()
    return {f"{weight}/X": X.float(), f"{weight}/D": D.float()}
