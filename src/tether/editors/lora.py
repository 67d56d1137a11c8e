"""LoRA (Hu et al., 2022): gradient steps on a low-rank adapter of every MLP output projection, made by peft.

    ΔW = (α/r) B A,      A (r×q) uniform within ±1/√q, B (p×r) = 0 at the start

peft puts its layers in the place of a model's modules, and freezes the others. Here it gets twins of the projections,
which share their weights, and the model's forwards call its layers: the model itself is never rebuilt, so there is
nothing to take back after an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tether.algebra.lowrank import LowRank
from tether.editors.base import Context, Method
from tether.editors.training import Trainable, TrainingEditor, TrainingHparams, twin
from tether.errors import MissingExtraError
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt
from tether.models.editable import EditableModel


class LoraHparams(TrainingHparams):
    """Settings of `lora`."""

    family: ClassVar[str] = "lora"

    rank: int = Field(default=16, ge=1, description="r, the rank of every adapter")
    alpha: float = Field(default=32, gt=0, description="the update is alpha/rank times the product")

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """Every layer, as adapters are usually trained."""
        return {"layers": tuple(range(model.n_layers)), "lr": 1e-3, "epochs": 10, "rows": 16}


class Lora(TrainingEditor):
    """Trains the factors of the adapters, in float32 also in a model of another dtype."""

    def weights(self, model: EditableModel, hparams: TrainingHparams) -> list[str]:
        """Raises MissingExtraError without peft."""
        _peft()
        return super().weights(model, hparams)

    def trainable(
        self, model: EditableModel, facts: Sequence[Fact], rows: Sequence[EncodedPrompt], context: Context, seed: int
    ) -> Trainable:
        hparams: LoraHparams = context.hparams
        names = self.weights(model, hparams)
        modules = {str(place): model.hf.get_submodule(name.removesuffix(".weight")) for place, name in enumerate(names)}
        config = _peft().LoraConfig(
            r=hparams.rank, lora_alpha=hparams.alpha, lora_dropout=0.0, target_modules=list(modules),
            fan_in_fan_out=model.is_transposed(names[0]),
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            twins = nn.ModuleDict({place: twin(module) for place, module in modules.items()})
            adapted = _peft().inject_adapter_in_model(config, twins)
        layers = [adapted[place] for place in modules]
        generator = torch.Generator().manual_seed(seed)
        factors: dict[str, tuple[Tensor, Tensor, float]] = {}
        for name, layer in zip(names, layers, strict=True):
            first, second = (one["default"].float().weight for one in (layer.lora_A, layer.lora_B))
            with torch.no_grad():
                drawn = torch.rand(first.shape, generator=generator)
                first.copy_((2 * drawn - 1) / first.shape[1] ** 0.5)
            factors[name] = first, second, layer.scaling["default"]
        return Trainable(
            [factor for first, second, _ in factors.values() for factor in (first, second)],
            {module: layer.forward for module, layer in zip(modules.values(), layers, strict=True)},
            lambda: {name: LowRank(b.detach() * s, a.detach().clone()) for name, (a, b, s) in factors.items()},
        )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError('lora trains with peft: install it with pip install "tether[lora]"') from error
    return peft


LORA = Method(
    name="lora",
    editor=Lora,
    settings=LoraHparams,
    paper="LoRA: Low-Rank Adaptation of Large Language Models (https://arxiv.org/abs/2106.09685)",
    summary="a low-rank adapter of every MLP weight by gradient steps, as most people would do it",
)
