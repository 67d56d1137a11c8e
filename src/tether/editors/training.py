"""What `ft`, `lora` and `confined` share: gradient steps on every prompt that the facts of a batch are edited for.

Breadth first: an epoch passes over the prompts of all facts, in mini-batches of a new order. A step's loss is the mean
over its prompts of NLL(o*)/|o*|, plus the keep term (`tether.editors.keep`). The model's weights are never written:
while it trains, the forwards of the trained modules are replaced by ones that read the trained numbers.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tether.algebra.lowrank import LowRank
from tether.editors.base import Batch, Context, EditFailedError, EditSkippedError, Proposal, reading_a_fact
from tether.editors.keep import Keeper, KeepHparams, KeptTexts, seed_of
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, encode_asked, padded, too_long
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import head_logits, replaced_forward
from tether.models.upper_blocks import final_hidden

_CHUNK = 32  # prompts of a forward without gradient


class TrainingHparams(KeepHparams, ABC):
    """Settings of the methods that train on the facts themselves."""

    lr: float = Field(gt=0, description="AdamW's learning rate")
    epochs: int = Field(ge=1, description="passes over the prompts of all facts, at most")
    rows: int = Field(ge=1, description="prompts a step")
    decay: Literal["none", "cosine"] = Field(default="none", description="of the learning rate, to 0 at the last step")
    weight_decay: float = Field(default=0, ge=0, description="AdamW's, of the numbers that are trained")
    loss_threshold: float = Field(default=0.02, ge=0, description="stop after an epoch with a mean loss below this")


@dataclass(frozen=True)
class Trainable:
    """What a method trains: `parameters` (float32 leaves), the forward of every module that they stand in for, and
    what they come to as updates (p×q, float32, without gradient).

    Where the facts can be undone one by one, `vectors` hold the keys and H of every weight, and each fact has a column
    for every prompt it is edited for. None: the facts share the update.
    """

    parameters: Sequence[Tensor]
    forwards: Mapping[nn.Module, Callable[..., Any]]
    updates: Callable[[], dict[str, LowRank]]
    vectors: dict[str, Tensor] | None = None


class TrainingEditor(ABC):
    """An editor that trains on a batch of facts."""

    def __init__(self) -> None:
        self._texts = KeptTexts()

    @abstractmethod
    def trainable(
        self, model: EditableModel, facts: Sequence[Fact], rows: Sequence[EncodedPrompt], context: Context, seed: int
    ) -> Trainable:
        """What is trained for `facts` and all their prompts, at its start. Changes nothing of the model."""

    def weights(self, model: EditableModel, hparams: TrainingHparams) -> list[str]:
        return [model.weight_name(layer) for layer in hparams.layers]

    def propose_batch(self, model: EditableModel, facts: Sequence[Fact], context: Context) -> Batch:
        """One update of every weight for all facts together. A fact whose text fails is left out. A fact that the model
        says already is trained with the others; where all are, all are skipped. Raises EditFailedError where the loss
        does not fall, or is not finite."""
        hparams: TrainingHparams = context.hparams
        outcomes: dict[int, dict[str, float] | EditFailedError] = {}
        prompts: dict[int, list[EncodedPrompt]] = {}
        for index, fact in enumerate(facts):
            try:
                prompts[index] = encoded_prompts(model, fact)
            except EditFailedError as error:
                outcomes[index] = error
        ordered = range(len(facts))
        if not prompts:
            return Batch(None, [outcomes[index] for index in ordered])
        first = losses_of(model, prompts)
        if all(loss < hparams.loss_threshold for loss in first.values()):
            for index, loss in first.items():
                said = f"{facts[index].text!r} -> {facts[index].target_new!r}"
                outcomes[index] = EditSkippedError(f"the model already says {said}", {"loss_first": loss})
            return Batch(None, [outcomes[index] for index in ordered])

        # Everything random follows from the facts and the settings.
        edited = [facts[index] for index in prompts]
        seed = seed_of(edited)
        keeper = Keeper(model, edited, hparams, seed, texts=self._texts.of(model, hparams)) if hparams.keep else None
        rows = [prompt for each in prompts.values() for prompt in each]
        trainable = self.trainable(model, edited, rows, context, seed)
        with torch.enable_grad(), ExitStack() as stack:
            for module, forward in trainable.forwards.items():
                stack.enter_context(replaced_forward(module, forward))
            record = train(model, rows, trainable.parameters, hparams, seed, keeper)
            last = losses_of(model, prompts)
        before, after = sum(first.values()) / len(first), sum(last.values()) / len(last)
        if not after < before:
            what = f"the mean loss of {len(first)} facts went from {before:.3g} to {after:.3g}"
            raise EditFailedError(f"{what}; try a smaller lr", record)
        for index in prompts:
            outcomes[index] = {"loss_first": first[index], "loss_last": last[index]}
        found = [outcomes[index] for index in ordered]
        if trainable.vectors is None:
            return Batch(Proposal(trainable.updates(), record=record), found, whole=True)
        columns = [len(each) for each in prompts.values()]
        return Batch(Proposal(trainable.updates(), trainable.vectors, record), found, columns)


def train(
    model: EditableModel, rows: Sequence[EncodedPrompt], parameters: Sequence[Tensor], hparams: TrainingHparams,
    seed: int, keeper: Keeper | None = None,
) -> dict[str, float]:  # fmt: skip
    """AdamW on `parameters`, which it changes, by the loss of the model as it is now. Returns the number of steps, and
    of the last epoch the mean KL of the keep term. Raises EditFailedError for a loss that is not finite."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=hparams.lr, weight_decay=hparams.weight_decay)
    steps, step = hparams.epochs * math.ceil(len(rows) / hparams.rows), 0
    record: dict[str, float] = {}
    for _ in range(hparams.epochs):
        losses, kept = [], []
        for chosen in torch.randperm(len(rows), generator=generator).split(hparams.rows):
            each = target_nll(model, [rows[i] for i in chosen.tolist()])
            loss = each.mean()
            losses += each.tolist()
            if keeper is not None:
                kl = keeper.loss(step).to(loss.device)
                loss = loss + hparams.keep * kl
                kept.append(kl.item())
            if not bool(loss.isfinite()):
                raise EditFailedError(f"the loss is not finite after {step} steps; try a smaller lr", record)
            if hparams.decay == "cosine":
                optimizer.param_groups[0]["lr"] = hparams.lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        record = {"steps": float(step)} | ({"keep_kl": sum(kept) / len(kept)} if kept else {})
        if sum(losses) / len(losses) < hparams.loss_threshold:
            break
    return record


def encoded_prompts(model: EditableModel, fact: Fact) -> list[EncodedPrompt]:
    """Every prompt the fact is edited for, with its target. Raises EditFailedError where one of them has no tokens for
    its subject or target, or is too long for the model."""
    with reading_a_fact():
        found = encode_asked(model.tokenizer, fact)
    problem = too_long(model.limit, fact.text, [prompt.ids for prompt in found])
    if problem:
        raise EditFailedError(problem)
    return found


def target_nll(model: EditableModel, prompts: Sequence[EncodedPrompt]) -> Float[Tensor, " n"]:
    """NLL(o*)/|o*| of every prompt by the model as it is now, float32. Logits are made for target tokens alone."""
    ids, mask = padded([prompt.ids for prompt in prompts], model.device)
    hidden = final_hidden(model, ids, mask)
    read = [row[one.target_start - 1 : len(one.ids) - 1] for row, one in zip(hidden, prompts, strict=True)]
    logits = head_logits(model, torch.cat(read)).float()
    targets = torch.tensor([token for one in prompts for token in one.ids[one.target_start :]], device=logits.device)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.stack([part.mean() for part in losses.split([len(part) for part in read])])


def twin(module: nn.Module) -> nn.Module:
    """A module of the same class that shares the module's tensors and none of its hooks, to be wrapped or changed."""
    found = copy.copy(module)
    nn.Module.__init__(found)
    found._parameters.update(module._parameters)
    found._buffers.update(module._buffers)
    found.__dict__.pop("forward", None)
    return found.train(module.training)


def losses_of(model: EditableModel, prompts: Mapping[int, Sequence[EncodedPrompt]]) -> dict[int, float]:
    """The mean loss over the prompts of every fact."""
    rows = [prompt for each in prompts.values() for prompt in each]
    losses: list[float] = []
    with torch.no_grad():
        for start in range(0, len(rows), _CHUNK):
            losses += target_nll(model, rows[start : start + _CHUNK]).tolist()
    values = iter(losses)
    return {index: sum(next(values) for _ in each) / len(each) for index, each in prompts.items()}
