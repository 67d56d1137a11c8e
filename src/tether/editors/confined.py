"""Confined fine-tuning: an edit found by optimisation through the whole model, held where a solve would put it.

The update of a layer is ΔW = R Gᵀ, G = (λ(C + w·E[b bᵀ]) + KKᵀ)⁻¹K: MEMIT's solve for the keys K of every prompt the
facts are edited for, a column a prompt, away from what the model knew (C) and from the same prompts about others (b).
MEMIT writes residuals for R, found for one state of one layer. Here R itself is trained: every prompt is read by the
whole model with the updates on, and

    mean NLL(o*) over the prompts + keep · KL(P_before ‖ P) on bystanders and plain text (`keep`)

is minimised over R by Adam. What the edit may touch is fixed by G, so the ledger's undo of single facts stays exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tether.algebra.joint_solve import Solution, solve
from tether.algebra.lowrank import LowRank
from tether.editors.base import Batch, Context, EditFailedError, EditSkippedError, Method, Proposal
from tether.editors.bystanders import Metric, bystander_prompts, keys_of
from tether.editors.keep import Keeper, KeptTexts, seed_of
from tether.editors.settings import Need
from tether.editors.training import TrainingHparams, encoded_prompts, losses_of, train
from tether.errors import TetherError
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt
from tether.models.editable import EditableModel
from tether.models.upper_blocks import adding


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


@dataclass
class _Layer:
    """One edited weight: its keys and the solution for them, with G in float32 where the model is; R =
    `coefficients`·`scale`, whose rows are prompts."""

    name: str
    keys: Float[Tensor, "n q"]
    solution: Solution
    scale: Float[Tensor, "n 1"]
    coefficients: Float[Tensor, "n p"]
    G: Float[Tensor, "n q"]

    def update(self) -> LowRank:
        """ΔW, differentiable in the coefficients."""
        return LowRank((self.coefficients * self.scale).mT, self.G)


class Confined:
    """Edits all facts of a batch together; a column for every prompt a fact is edited for."""

    def __init__(self) -> None:
        self._texts = KeptTexts()

    def weights(self, model: EditableModel, hparams: ConfinedHparams) -> list[str]:
        return [model.weight_name(layer) for layer in hparams.layers]

    def propose_batch(self, model: EditableModel, facts: Sequence[Fact], context: Context) -> Batch:
        """ΔW of every layer for all facts; `vectors` hold the keys K (n×q) and H (n×n, for an undo within the
        batch)."""
        hparams: ConfinedHparams = context.hparams
        outcomes: dict[int, dict[str, float] | EditFailedError] = {}
        prompts: dict[int, list[EncodedPrompt]] = {}
        for index, fact in enumerate(facts):
            try:
                prompts[index] = encoded_prompts(model, fact)
            except EditFailedError as error:
                outcomes[index] = error
        first = losses_of(model, prompts)
        for index, loss in first.items():
            if loss < hparams.loss_threshold:
                said = f"{facts[index].text!r} -> {facts[index].target_new!r}"
                outcomes[index] = EditSkippedError(f"the model already says {said}", {"loss_first": loss})
                del prompts[index]
        ordered = range(len(facts))
        if not prompts:
            return Batch(None, [outcomes[index] for index in ordered])

        edited = [facts[index] for index in prompts]
        rows = [prompt for its in prompts.values() for prompt in its]
        others = keys_of(model, bystander_prompts(model, edited, hparams.bystanders), hparams.layers)
        keys = keys_of(model, rows, hparams.layers)
        layers = [self._layer(model, layer, keys[layer], others[layer], context) for layer in hparams.layers]
        seed = seed_of(edited)
        keeper = Keeper(model, edited, hparams, seed, texts=self._texts.of(model, hparams)) if hparams.keep else None
        with torch.enable_grad(), adding(model, {layer.name: layer.update for layer in layers}):
            record = train(model, rows, [layer.coefficients for layer in layers], hparams, seed, keeper)
            last = losses_of(model, prompts)
        before, after = (sum(one[index] for index in prompts) / len(prompts) for one in (first, last))
        if not after < before:
            what = f"the mean loss of {len(prompts)} facts went from {before:.3g} to {after:.3g}"
            raise EditFailedError(f"{what}; try a smaller lr", record)
        for index in prompts:
            outcomes[index] = {"loss_first": first[index], "loss_last": last[index]}
        updates = {layer.name: _plain(layer.update()) for layer in layers}
        vectors = {f"{one.name}/K": one.keys.float() for one in layers}
        vectors |= {f"{one.name}/H": one.solution.H.float() for one in layers}
        columns = [len(its) for its in prompts.values()]
        return Batch(Proposal(updates, vectors, record), [outcomes[index] for index in ordered], columns)

    @staticmethod
    def _layer(
        model: EditableModel, layer: int, keys: Float[Tensor, "n q"], others: Float[Tensor, "m q"], context: Context
    ) -> _Layer:
        """G and H for the keys of every prompt, and R = 0."""
        hparams: ConfinedHparams = context.hparams
        metric = Metric(context.moments[layer], others, hparams.bystander_weight, hparams.moments_ridge)
        try:
            solution = solve(keys, metric.solve(keys), weight=hparams.mom2_update_weight)
        except TetherError as error:
            raise EditFailedError(str(error)) from None
        reach = (keys * solution.G).sum(1)  # how much of a column's output its own key sees
        name = model.weight_name(layer)
        zero = torch.zeros(len(keys), model.weight(name).shape[0], device=model.device, requires_grad=True)
        scale = (1 / reach.clamp_min(1e-3))[:, None].float().to(model.device)
        return _Layer(name, keys, solution, scale, zero, solution.G.float().to(model.device))


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
