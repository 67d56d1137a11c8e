"""Plain fine-tuning of MLP output projections: the baseline that any other editor is measured against.

The recipe is that of LocFT-BF ("Fine-tuning Done Right in Model Editing"): one matrix in the upper middle of the model,
AdamW, breadth first over mini-batches of all facts.

    ΔW = W_after − W_before        (as I·ΔW: AdamW divides every number by its own scale, so ΔW has full rank)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tether.algebra.lowrank import LowRank
from tether.editors.base import Context, Method
from tether.editors.training import Trainable, TrainingEditor, TrainingHparams, twin
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt
from tether.models.editable import EditableModel


class FtHparams(TrainingHparams):
    """Settings of `ft`."""

    family: ClassVar[str] = "ft"

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """LocFT-BF's for a model of 32 layers and a key of 14,336 numbers: layer 22, lr 5e-4, 25 passes, 100 rows a
        step. A step of AdamW moves every number by about lr, so a shorter key takes a larger one."""
        layer = min(model.n_layers - 1, round(22 / 32 * model.n_layers))
        q = model.weight(model.weight_name(layer)).shape[1]
        return {"layers": (layer,), "lr": min(5e-3, 5e-4 * 14336 / q), "epochs": 25, "rows": 100}


class Ft(TrainingEditor):
    """Trains the weights themselves, in float32; the forward reads them in the model's dtype, as the ledger writes
    them."""

    def trainable(
        self, model: EditableModel, facts: Sequence[Fact], rows: Sequence[EncodedPrompt], context: Context, seed: int
    ) -> Trainable:
        starts: dict[str, Tensor] = {}
        trained: dict[str, Tensor] = {}
        forwards = {}
        for name in self.weights(model, context.hparams):
            carried, original = model.update(name), model.original(name)
            starts[name] = original if carried is None else original + carried.to(original)
            trained[name] = starts[name].clone().requires_grad_(True)
            module = model.hf.get_submodule(name.removesuffix(".weight"))
            seen = trained[name].mT if model.is_transposed(name) else trained[name]
            forwards[module] = partial(_with_weight, twin(module), seen, model.dtype)
        return Trainable(
            list(trained.values()),
            forwards,
            lambda: {name: _whole(trained[name].detach() - start) for name, start in starts.items()},
        )


def _with_weight(module: nn.Module, weight: Tensor, dtype: torch.dtype, x: Tensor) -> Tensor:
    """The forward of a module (a twin) with this weight in place of its own."""
    module.__dict__["weight"] = weight.to(dtype)
    return module.forward(x)


def _whole(delta: Tensor) -> LowRank:
    """A p×q matrix as I·ΔW or ΔW·I, exactly."""
    p, q = delta.shape
    eye = torch.eye(min(p, q), dtype=delta.dtype, device=delta.device)
    return LowRank(eye, delta) if p <= q else LowRank(delta, eye)


FT = Method(
    name="ft",
    editor=Ft,
    settings=FtHparams,
    paper="Fine-tuning Done Right in Model Editing (https://arxiv.org/abs/2509.22072)",
    summary="fine-tuning of one MLP weight by gradient steps, the plain baseline",
)
