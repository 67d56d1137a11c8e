"""A method and a constraint in a package of their own: all that is needed to add them to tether.

The method writes the direction of the target's first token for the key of the subject, without any optimisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, read_number
from tether.editors.base import Context, Method, Proposal
from tether.editors.settings import Hparams
from tether.facts.fact import Fact
from tether.facts.tokens import encode
from tether.models.editable import EditableModel


class ToyHparams(Hparams):
    """Settings of the method: the layer, and how long the written value is."""

    family: ClassVar[str] = "toy"
    strength: float = Field(default=0.5, gt=0)

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        return {"layers": (model.n_layers // 2,)}


class Toy:
    """ΔW = strength · t kᵀ / (t's and k's lengths): t the output embedding of the target's first token, k the key."""

    def weights(self, model: EditableModel, hparams: ToyHparams) -> list[str]:
        return [model.weight_name(layer) for layer in hparams.layers]

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        hparams: ToyHparams = context.hparams
        encoded = encode(model.tokenizer, fact.prompt, fact.subject, target=fact.target_new)
        keys: list[torch.Tensor] = []
        hook = model.projection(hparams.layers[0]).register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0]))
        try:
            with torch.no_grad():
                model.hf(torch.tensor([encoded.ids[: encoded.target_start]], device=model.device))
        finally:
            hook.remove()
        key = keys[0][0, encoded.subject_last].float()
        target = model.hf.get_output_embeddings().weight[encoded.ids[encoded.target_start]].detach().float()
        name = model.weight_name(hparams.layers[0])
        update = LowRank(hparams.strength * (target / target.norm())[:, None], (key / key.norm())[None])
        return Proposal({name: update}, {f"{name}/K": key.cpu()})


METHOD = Method(
    name="toy",
    editor=Toy,
    settings=ToyHparams,
    paper="none: an example",
    summary="Writes the direction of the target's first token for the subject's key",
)


@dataclass(frozen=True)
class Half(Constraint):
    """Halves the sum of the updates `times` times. Written `half:2`."""

    name: ClassVar[str] = "half"
    times: float

    @classmethod
    def read(cls, parameter: str) -> Half:
        return cls(read_number("half", parameter, "half:2"))

    def apply(self, update: LowRank, state: None) -> tuple[LowRank, None]:
        return LowRank(update.A * 0.5**self.times, update.B), None

    def __str__(self) -> str:
        return f"half:{self.times:g}"
