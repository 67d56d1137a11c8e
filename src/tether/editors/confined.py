"""Confined fine-tuning: an edit found by optimisation through the whole model, held where a solve would put it.

The update of a layer is ΔW = R Gᵀ, G = (λ(C + w·E[b bᵀ]) + KKᵀ)⁻¹K: MEMIT's solve for the keys K of every prompt the
facts are edited for, a column a prompt, away from what the model knew (C) and from the same prompts about others (b).
MEMIT writes residuals for R, found for one state of one layer. Here R itself is trained: every prompt is read by the
whole model with the updates on, and

    mean NLL(o*) over the prompts + keep · KL(P_before ‖ P) on bystanders and plain text (`keep`)

is minimised over R by Adam. What the edit may touch is fixed by G, so the ledger's undo of single facts stays exact.
"""

import math
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
from tether.editors.keep import Keeper, KeepHparams, sampled_texts, seed_of
from tether.editors.prompts import encode_contexts
from tether.editors.settings import Need
from tether.errors import TetherError
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, padded
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import head_logits
from tether.models.upper_blocks import adding, final_hidden


class ConfinedHparams(KeepHparams):
    """Settings of confined fine-tuning."""

    family: ClassVar[str] = "confined"
    needs: ClassVar[frozenset[Need]] = frozenset({"moments"})

    mom2_update_weight: float = Field(gt=0, description="λ: the weight of what the model knew")
    moments_ridge: float = Field(default=0, ge=0, description="share of the mean of diag(C) added to C")
    bystanders: int = Field(default=8, ge=0, description="other subjects a prompt whose keys must not move")
    bystander_weight: float = Field(default=1, ge=0, description="weight of their E[b bᵀ] beside C")
    epochs: int = Field(ge=1, description="passes over the prompts")
    rows: int = Field(default=12, ge=1, description="prompts a step")
    lr: float = Field(gt=0, description="Adam's learning rate for R, in units of the layer's output at a key")
    weight_decay: float = Field(default=0, ge=0, description="factor of ‖R‖² beside the loss, in the same units")
    loss_threshold: float = Field(default=0.05, ge=0, description="a fact whose mean NLL is below is said already")

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        last = max(1, min(model.n_layers - 2, round(0.27 * model.n_layers)))
        return {
            "layers": tuple(range(max(0, last - 4), last + 1)),
            "mom2_update_weight": 200, "epochs": 10, "lr": 0.1, "keep": 1,
        }  # fmt: skip


@dataclass
class _Layer:
    """One edited weight: its keys and the solution for them; R = `coefficients`·`scale`, whose rows are prompts."""

    name: str
    keys: Float[Tensor, "n q"]
    solution: Solution
    scale: Float[Tensor, "n 1"]
    coefficients: Float[Tensor, "n p"]

    def update(self) -> LowRank:
        """ΔW, differentiable in the coefficients."""
        return LowRank((self.coefficients * self.scale).mT, self.solution.G.to(self.coefficients))


class Confined:
    """Edits all facts of a batch together; a column for every prompt a fact is edited for."""

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
                prompts[index] = [contexts[0] for contexts in encode_contexts(model, fact, ()).phrasings]
            except EditFailedError as error:
                outcomes[index] = error
        before = {index: _nll(model, its) for index, its in prompts.items()}
        for index, loss in before.items():
            if max(loss) < hparams.loss_threshold:
                fact = facts[index]
                known = f"the model already says {fact.text!r} -> {fact.target_new!r}"
                outcomes[index] = EditSkippedError(known, {"loss_first": max(loss)})
                del prompts[index]
        ordered = lambda: [outcomes[index] for index in range(len(facts))]  # noqa: E731
        if not prompts:
            return Batch(None, ordered())
        edited = [facts[index] for index in prompts]
        rows = [prompt for its in prompts.values() for prompt in its]
        others = keys_of(model, bystander_prompts(model, edited, hparams.bystanders), hparams.layers)
        keys = keys_of(model, rows, hparams.layers)
        layers = [self._layer(model, layer, keys[layer], others[layer], context) for layer in hparams.layers]
        steps = self._train(model, layers, rows, edited, hparams)

        updates = {layer.name: replace_factors(layer.update()) for layer in layers}
        if not all(one.isfinite().all() for update in updates.values() for one in (update.A, update.B)):
            raise EditFailedError(f"the update of {len(edited)} facts is not finite: take a smaller lr")
        with adding(model, updates):
            for index, its in prompts.items():
                after = sum(_nll(model, its)) / len(its)
                first = sum(before[index]) / len(its)
                outcomes[index] = {"loss_first": first, "loss_last": after, "steps": float(steps)}
        vectors = {f"{one.name}/K": one.keys.float() for one in layers}
        vectors |= {f"{one.name}/H": one.solution.H.float() for one in layers}
        return Batch(Proposal(updates, vectors), ordered(), [len(its) for its in prompts.values()])

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
        size = torch.zeros(len(keys), model.weight(name).shape[0], device=model.device)
        return _Layer(name, keys, solution, (1 / reach.clamp_min(1e-3))[:, None].float().to(model.device), size)

    @staticmethod
    def _train(
        model: EditableModel, layers: Sequence[_Layer], rows: Sequence[EncodedPrompt], facts: Sequence[Fact],
        hparams: ConfinedHparams,
    ) -> int:  # fmt: skip
        """Adam over all R; the number of steps. The learning rate falls to zero along half a cosine."""
        seed = seed_of(facts)
        texts = sampled_texts(model, hparams) if hparams.keep else []
        keeper = Keeper(model, facts, hparams, seed, texts=texts) if hparams.keep else None
        generator = torch.Generator().manual_seed(seed)
        parameters = [layer.coefficients.requires_grad_(True) for layer in layers]
        adam = torch.optim.Adam(parameters, lr=hparams.lr)
        each = math.ceil(len(rows) / hparams.rows)
        for step in range(hparams.epochs * each):
            if step % each == 0:
                order = torch.randperm(len(rows), generator=generator).tolist()
            batch = [rows[i] for i in order[step % each * hparams.rows :][: hparams.rows]]
            adam.param_groups[0]["lr"] = hparams.lr * (1 + math.cos(math.pi * step / (hparams.epochs * each))) / 2
            with torch.enable_grad(), adding(model, {layer.name: layer.update() for layer in layers}):
                loss = torch.stack(_losses(model, batch)).mean()
                if keeper is not None:
                    loss = loss + hparams.keep * keeper.loss(step)
                if hparams.weight_decay:
                    loss = loss + hparams.weight_decay * sum(one.square().sum() for one in parameters) / len(rows)
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            adam.step()
        for layer in layers:
            layer.coefficients = layer.coefficients.detach()
        return hparams.epochs * each


def replace_factors(update: LowRank) -> LowRank:
    """The update as plain float32 numbers."""
    return LowRank(update.A.detach().float().contiguous(), update.B.detach().float().contiguous())


def _losses(model: EditableModel, rows: Sequence[EncodedPrompt]) -> list[Float[Tensor, ""]]:
    """Mean NLL of the target's tokens of every prompt, of the model as it is now."""
    hidden = final_hidden(model, *padded([row.ids for row in rows], model.device))
    read = [one[row.target_start - 1 : len(row.ids) - 1] for one, row in zip(hidden, rows, strict=True)]
    log_p = head_logits(model, torch.cat(read)).float().log_softmax(-1)
    targets = torch.tensor([i for row in rows for i in row.ids[row.target_start :]], device=log_p.device)
    nll = -log_p.gather(1, targets[:, None])[:, 0]
    return [part.mean() for part in nll.split([len(part) for part in read])]


@torch.no_grad()
def _nll(model: EditableModel, rows: Sequence[EncodedPrompt]) -> list[float]:
    return [float(loss) for loss in _losses(model, rows)]


CONFINED = Method(
    name="confined",
    editor=Confined,
    settings=ConfinedHparams,
    paper="fine-tuning within MEMIT's solve (https://arxiv.org/abs/2210.07229)",
    summary="many facts by training through the whole model, inside the directions of one solve",
)
