"""MEND (Mitchell et al., 2022): a trained network turns the gradient of one fact into an edit.

The gradient of a weight W (p×q) under the loss of one fact is a sum over tokens, Σ_t δ_t x_tᵀ, of the layer's inputs x
and the gradients δ at its outputs. A network maps every pair to a pseudo pair, and

    ΔW = −α_w Σ_t δ̃_t x̃_tᵀ        (factors A = −α_w δ̃ᵀ, B = x̃: rank at most the number of tokens)

    z ← [(x − μ_x)/σ_x, (δ − μ_δ)/σ_δ];      twice:  z ← z + ReLU(s ⊙ (U V z + b) + o);      [x̃, δ̃] ← z

U, V and b are shared by weights of one shape; s, o, α, μ and σ are a weight's own. At the start U = b = o = 0 and
s = 1: the network passes its input on, and the edit is a step down the gradient of the normalised pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from tether.algebra.lowrank import LowRank
from tether.editors.base import Context, EditFailedError, EditSkippedError, Proposal, reading_a_fact
from tether.editors.settings import Hparams, Need
from tether.errors import BadSettingsError, TetherError
from tether.facts.fact import Fact
from tether.facts.tokens import encode_fact, too_long
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import head_logits, hooks
from tether.models.upper_blocks import final_hidden

_FLOOR = 1e-3  # of the mean σ: no component is divided by less, so one that hardly varied does not blow up


@dataclass(frozen=True)
class Pairs:
    """The non-zero tokens of one weight's gradient Σ_t δ_t x_tᵀ, float32, one token a row."""

    x: Float[Tensor, "t q"]
    delta: Float[Tensor, "t p"]


class MendHparams(Hparams):
    """Settings of MEND: of its network, of its training, and of an edit."""

    family: ClassVar[str] = "mend"
    needs: ClassVar[frozenset[Need]] = frozenset({"editor"})
    of_an_edit: ClassVar[frozenset[str]] = frozenset({"loss_threshold", "drop_rising"})

    layers: tuple[int, ...] = Field(min_length=1, description="the blocks whose MLP weights are edited")
    rank: int = Field(default=1920, ge=1, description="inner dimension of the network's layers, at most their width")
    last_relu: bool = Field(default=True, description="false: the second layer adds its sum as it is, also below zero")
    v_std: float = Field(default=1.0, gt=0, description="standard deviation of V at the start")
    edit_lr: float = Field(default=1e-4, description="α_w at the start")
    lr: float = Field(default=1e-6, gt=0, description="Adam's learning rate for the networks")
    lr_lr: float = Field(default=1e-4, ge=0, description="Adam's learning rate for the α_w")
    lr_end: float = Field(
        default=1.0, ge=0, le=1, description="share of both rates that they fall towards, in a line over `steps`"
    )
    c_edit: float = Field(default=0.1, ge=0, description="weight of L_e")
    c_loc: float = Field(default=1.0, ge=0, description="weight of L_loc")
    clip: float = Field(default=100.0, gt=0, description="largest norm of the gradient of an optimiser's step")
    accumulate: int = Field(default=10, ge=1, description="edits an optimiser's step")
    steps: int = Field(default=100_000, ge=1, description="edits in all")
    validate_every: int = Field(default=1000, ge=1, description="edits between two looks at the validation loss")
    patience: int = Field(default=10, ge=1, description="looks without a better validation loss before it stops")
    validation: int = Field(default=200, ge=1, description="validation edits a look reads, at most")
    statistics: int = Field(default=500, ge=1, description="edits that μ and σ are measured on before the first step")
    seed: int = Field(default=0, description="of the network's start and the order of the edits")
    frozen_blocks: bool = Field(default=True, description="false: whole forwards in training, the reference")
    loss_threshold: float = Field(default=0.05, ge=0, description="a fact with a loss below this is known already")
    drop_rising: bool = Field(default=True, description="leave out facts whose edit does not lower their loss")

    @model_validator(mode="after")
    def _looks_after_steps(self) -> MendHparams:
        if self.validate_every % self.accumulate:
            raise ValueError(f"validate_every {self.validate_every} must be a multiple of accumulate {self.accumulate}")
        return self

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """The last three blocks, as in the paper, whose other settings are the defaults."""
        return {"layers": tuple(range(max(0, model.n_layers - 3), model.n_layers))}


# --- the gradient of a fact -----------------------------------------------------------------------------------------


def mlp_weights(model: EditableModel, layers: Sequence[int]) -> list[str]:
    """The weights MEND edits: all MLP weights of these blocks."""
    return [name for layer in layers for name in model.mlp_weight_names(layer)]


def gradient_pairs(
    model: EditableModel, names: Sequence[str], loss: Callable[[], Tensor]
) -> tuple[float, dict[str, Pairs]]:
    """The loss of one forward of the model (`loss` runs it) and, by weight, the pairs of its gradient. One backward
    pass down to the lowest of the weights; no gradient of a weight is formed, nothing is changed."""
    inputs: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs[name] = args[0].detach()
        probes[name] = torch.zeros_like(output, requires_grad=True)
        return output + probes[name]

    modules = {name: model.hf.get_submodule(name.removesuffix(".weight")) for name in names}
    with torch.enable_grad(), hooks(*(m.register_forward_hook(partial(see, name)) for name, m in modules.items())):
        value = loss()
    gradients = torch.autograd.grad(value, [probes[name] for name in names])
    pairs = {}
    for name, gradient in zip(names, gradients, strict=True):
        x = inputs[name].reshape(-1, inputs[name].shape[-1]).float()
        delta = gradient.reshape(-1, gradient.shape[-1]).float()
        kept = (x != 0).any(1) & (delta != 0).any(1)
        pairs[name] = Pairs(x[kept], delta[kept])
    return value.item(), pairs


def target_nll(logits: Float[Tensor, "m vocab"], targets: Int[Tensor, " m"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the target tokens, float32."""
    return nn.functional.cross_entropy(logits.float(), targets)


# --- the network ----------------------------------------------------------------------------------------------------


class _Shared(nn.Module):
    """The network of the `n` weights of one shape (p×q)."""

    def __init__(self, p: int, q: int, n: int, hparams: MendHparams, generator: torch.Generator) -> None:
        super().__init__()
        width, inner = p + q, min(hparams.rank, p + q)
        self.split, self.last_relu = q, hparams.last_relu
        self.U = nn.Parameter(torch.zeros(2, width, inner))
        self.V = nn.Parameter(hparams.v_std * torch.randn(2, inner, width, generator=generator))
        self.b = nn.Parameter(torch.zeros(2, width))
        self.s = nn.Parameter(torch.ones(n, 2, width))
        self.o = nn.Parameter(torch.zeros(n, 2, width))

    def forward(self, z: Float[Tensor, "t d"], weight: Int[Tensor, " t"]) -> tuple[Tensor, Tensor]:
        """(x̃, δ̃) of normalised pairs; `weight` says whose each row is."""
        for k in (0, 1):
            added = self.s[weight, k] * (z @ self.V[k].mT @ self.U[k].mT + self.b[k]) + self.o[weight, k]
            # Not relu, whose gradient at 0 is 0: at the start every sum is 0, and it would stay there.
            z = z + (added.clamp(min=0) if k == 0 or self.last_relu else added)
        return z[:, : self.split], z[:, self.split :]


class Hypernetwork(nn.Module):
    """What maps the gradients of the weights named in `shapes` (name -> (p, q)) to their edits, in float32. Until
    `measure` has been called nothing is normalised (μ = 0, σ = 1)."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], hparams: MendHparams) -> None:
        super().__init__()
        self.names, self.shapes = list(shapes), dict(shapes)
        generator = torch.Generator().manual_seed(hparams.seed)
        groups: dict[tuple[int, int], list[str]] = {}
        for name, shape in shapes.items():
            groups.setdefault(shape, []).append(name)
        self.groups = list(groups.values())
        self.shared = nn.ModuleList(_Shared(*shape, len(names), hparams, generator) for shape, names in groups.items())
        self.alpha = nn.Parameter(torch.full((len(shapes),), hparams.edit_lr))
        for index, (p, q) in enumerate(shapes.values()):
            self.register_buffer(f"mean_{index}", torch.zeros(p + q))
            self.register_buffer(f"std_{index}", torch.ones(p + q))

    def forward(self, pairs: Mapping[str, Pairs]) -> dict[str, LowRank]:
        """The edit of every weight as factors A (p×t) and B (t×q), differentiable in the parameters."""
        updates, device = {}, self.alpha.device
        for names, shared in zip(self.groups, self.shared, strict=True):
            rows = []
            for name in names:
                index = self.names.index(name)
                z = torch.cat([pairs[name].x, pairs[name].delta], 1).to(device)
                rows.append((z - self.get_buffer(f"mean_{index}")) / self.get_buffer(f"std_{index}"))
            sizes = [len(each) for each in rows]
            weight = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes)).to(device)
            x, delta = shared(torch.cat(rows), weight)
            for name, its_x, its_delta in zip(names, x.split(sizes), delta.split(sizes), strict=True):
                updates[name] = LowRank(-self.alpha[self.names.index(name)] * its_delta.mT, its_x)
        return {name: updates[name] for name in self.names}

    def measure(self, examples: Iterable[Mapping[str, Pairs]]) -> None:
        """Set μ and σ of every weight to those of the pairs of all examples, merged one by one (in float64)."""
        held: dict[str, tuple[int, Any, Any]] = dict.fromkeys(self.names, (0, 0.0, 0.0))  # rows, mean, Σ deviation²
        for pairs in examples:
            for name, its in pairs.items():
                z = torch.cat([its.x, its.delta], 1).cpu().double()  # not every device has float64
                if len(z):
                    before, mean, squares = held[name]
                    n, shift, own = before + len(z), z.mean(0) - mean, (z - z.mean(0)).square().sum(0)
                    squares = squares + own + shift.square() * (before * len(z) / n)
                    held[name] = n, mean + shift * (len(z) / n), squares
        for index, (name, (n, mean, squares)) in enumerate(held.items()):
            if n < 2:
                raise TetherError(f"{name} has no gradient in the training records: give more training records")
            parts = (squares / (n - 1)).sqrt().split(self.shapes[name][::-1])
            std = torch.cat([part.clamp_min(max(_FLOOR * float(part.mean()), 1e-30)) for part in parts])
            self.get_buffer(f"mean_{index}").copy_(mean)
            self.get_buffer(f"std_{index}").copy_(std)


# --- the editor -----------------------------------------------------------------------------------------------------


class Mend:
    """Edits with a trained network: one backward pass a fact."""

    def weights(self, model: EditableModel, hparams: MendHparams) -> list[str]:
        return mlp_weights(model, hparams.layers)

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        """The network's edit for the gradient of −log P(target_new | prompt), on the model as it is now; `vectors`
        holds the keys K (t×q): the inputs x_t of every weight."""
        hparams: MendHparams = context.hparams
        if context.trained is None:
            raise BadSettingsError("mend edits with a trained network: give one (`tether train-mend` makes it)")
        network: Hypernetwork = context.trained
        with reading_a_fact():
            prompt = encode_fact(model.tokenizer, fact)
        problem = too_long(model.limit, fact.text, [prompt.ids])
        if problem:
            raise EditFailedError(problem)
        ids, start = torch.tensor([prompt.ids], device=model.device), prompt.target_start

        def loss() -> Tensor:
            hidden = final_hidden(model, ids, torch.ones_like(ids))[0, start - 1 : -1]  # logits where they are read
            return target_nll(head_logits(model, hidden), ids[0, start:])

        before, pairs = gradient_pairs(model, network.names, loss)
        record = {"loss_first": before, "steps": 1.0}
        if before < hparams.loss_threshold:
            raise EditSkippedError(f"the model already says {fact.text!r} -> {fact.target_new!r}", record)
        with torch.no_grad():
            updates = {name: update.to(model.device) for name, update in network.to(model.device)(pairs).items()}
            if not all(bool(u.A.isfinite().all() and u.B.isfinite().all()) for u in updates.values()):
                raise EditFailedError(f"{fact.text!r} -> {fact.target_new!r}: the update is not finite", record)
            with model.provisional(updates):
                record["loss_last"] = loss().item()
        if hparams.drop_rising and not record["loss_last"] < before:
            raise EditFailedError(
                f"{fact.text!r} -> {fact.target_new!r}: the loss went from {before:.3g} to {record['loss_last']:.3g}; "
                "undo some of the edits before it, or train the editor for longer",
                record,
            )
        return Proposal(updates, {f"{name}/K": its.x for name, its in pairs.items()}, record)
