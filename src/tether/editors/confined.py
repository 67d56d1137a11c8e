"""Confined fine-tuning: an edit found by optimisation through the whole model, held where a solve would put it.

The update of a layer is ΔW = R Gᵀ, G = (λ(C + w·E[b bᵀ]) + KKᵀ)⁻¹K: MEMIT's solve for the keys K of every prompt the
facts are edited for, a column a prompt, away from what the model knew (C) and from the same prompts about others (b).
MEMIT writes residuals for R, found for one state of one layer. Here R itself is trained: every prompt is read by the
whole model with the updates on, and

    mean NLL(o*) over the prompts + keep · KL(P_before ‖ P) on bystanders and plain text (`keep`)

is minimised over R by Adam. What the edit may touch is fixed by G, so the ledger's undo of single facts stays exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tether.algebra.joint_solve import solve
from tether.algebra.lowrank import LowRank
from tether.editors.base import Context, EditFailedError, Method
from tether.editors.bystanders import bystander_prompts, keys_of
from tether.editors.metric import Metric, equally
from tether.editors.settings import Need
from tether.editors.training import Trainable, TrainingEditor, TrainingHparams
from tether.errors import TetherError
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt
from tether.models.editable import EditableModel


class ConfinedHparams(TrainingHparams):
    """Settings of confined fine-tuning. `lr` is in units of a layer's output at a key."""

    family: ClassVar[str] = "confined"
    needs: ClassVar[frozenset[Need]] = frozenset({"moments"})

    mom2_update_weight: float = Field(gt=0, description="λ: the weight of what the model knew")
    moments_ridge: float = Field(default=0, ge=0, description="share of the mean of diag(C) added to C")
    bystanders: int = Field(default=8, ge=0, description="other subjects a prompt whose keys must not move")
    bystander_weight: float = Field(default=1, ge=0, description="weight of their E[b bᵀ] beside C")

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """Five layers in the first third."""
        last = max(1, min(model.n_layers - 2, round(0.27 * model.n_layers)))
        return {
            "layers": tuple(range(max(0, last - 4), last + 1)),
            "mom2_update_weight": 200, "lr": 0.1, "epochs": 10, "rows": 12, "decay": "cosine", "keep": 1,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Layer:
    """One edited weight. R is `coefficients`·`scale`, whose rows are prompts; `G` is float32, where the model is."""

    name: str
    keys: Float[Tensor, "n q"]
    H: Float[Tensor, "n n"]
    G: Float[Tensor, "n q"]
    scale: Float[Tensor, "n 1"]
    coefficients: Float[Tensor, "n p"]

    def update(self) -> LowRank:
        """ΔW, differentiable in the coefficients."""
        return LowRank((self.coefficients * self.scale).mT, self.G)

    def forward(self, before: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What the projection gives with ΔW on top."""
        update, output = self.update(), before(x)
        return output + (x.float() @ update.B.mT @ update.A.mT).to(output.dtype)


class Confined(TrainingEditor):
    """Edits all facts of a batch together; a column for every prompt a fact is edited for."""

    def trainable(
        self, model: EditableModel, facts: Sequence[Fact], rows: Sequence[EncodedPrompt], context: Context, seed: int
    ) -> Trainable:
        """R of every layer, from 0. Raises EditFailedError where the keys leave no solution."""
        hparams: ConfinedHparams = context.hparams
        others = keys_of(model, bystander_prompts(model, facts, hparams.bystanders), hparams.layers)
        keys = keys_of(model, rows, hparams.layers)
        layers = [_layer(model, layer, keys[layer], others[layer], context) for layer in hparams.layers]
        modules = {one: model.hf.get_submodule(one.name.removesuffix(".weight")) for one in layers}
        vectors = {f"{one.name}/K": one.keys.float() for one in layers}
        vectors |= {f"{one.name}/H": one.H.float() for one in layers}
        return Trainable(
            [one.coefficients for one in layers],
            {module: partial(one.forward, module.forward) for one, module in modules.items()},
            lambda: {one.name: _plain(one.update()) for one in layers},
            vectors,
        )


def _layer(
    model: EditableModel, layer: int, keys: Float[Tensor, "n q"], others: Float[Tensor, "m q"], context: Context
) -> _Layer:
    """G and H for the keys of every prompt, and R = 0."""
    hparams: ConfinedHparams = context.hparams
    metric = Metric(context.moments[layer], equally(others, hparams.bystander_weight), hparams.moments_ridge)
    try:
        solution = solve(keys, metric.solve(keys), weight=hparams.mom2_update_weight)
    except TetherError as error:
        raise EditFailedError(str(error)) from None
    reach = (keys * solution.G).sum(1)  # how much of a column's output its own key sees
    name = model.weight_name(layer)
    zero = torch.zeros(len(keys), model.weight(name).shape[0], device=model.device, requires_grad=True)
    scale = (1 / reach.clamp_min(1e-3))[:, None].float().to(model.device)
    return _Layer(name, keys, solution.H, solution.G.float().to(model.device), scale, zero)


def _plain(update: LowRank) -> LowRank:
    """Without what a gradient needs."""
    return LowRank(update.A.detach().contiguous(), update.B.detach().contiguous())


CONFINED = Method(
    name="confined",
    editor=Confined,
    settings=ConfinedHparams,
    paper="fine-tuning within MEMIT's solve (https://arxiv.org/abs/2210.07229)",
    summary="many facts by training through the whole model, inside the directions of one solve",
)
