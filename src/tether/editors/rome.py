"""ROME (Meng et al., 2022) and R-ROME ("Rebuilding ROME"): one fact, one layer, one rank-1 update.

Both take a key k for the subject and a value v* = v₀ + δ that makes the model say the new object, and write v* for k
with the least change to everything else, in the metric of the keys' second moment C:  u = C⁻¹k̄ / ‖C⁻¹k̄‖.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from tether.algebra.joint_solve import solve
from tether.algebra.lowrank import LowRank
from tether.editors.base import Context, EditFailedError, Method, Proposal
from tether.editors.bystanders import bystander_prompts, keys_of
from tether.editors.delta import optimise
from tether.editors.metric import Memory, remembered
from tether.editors.prompts import group_of, why_not_edited
from tether.editors.settings import LatentHparams, is_gated
from tether.editors.target_norm import TargetNorm, rescaled
from tether.errors import BadSettingsError
from tether.facts.fact import Fact
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import align, full_forward, is_residual, keeps_keys
from tether.models.upper_blocks import UpperCopy

_NEARLY_EQUAL = 1e-4  # of the mean of diag(KᵀC⁻¹K): keys of phrasings may nearly repeat


class RomeHparams(LatentHparams):
    """Settings of ROME and R-ROME."""

    family: ClassVar[str] = "rome"

    layers: tuple[int, ...] = Field(min_length=1, max_length=1, description="the one edited layer")
    mom2_update_weight: float = Field(default=200, gt=0, description="λ of a solve with `history`, which R-ROME has")
    delta_dtype: Literal["model", "bfloat16"] = Field(
        default="model", description="of the steps for δ, with a frozen prefix"
    )

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """A gated MLP is edited early and with little decay, as the paper's Llamas; a plain one in the middle third, as
        its GPT-2 XL."""
        share = 1 / 6 if is_gated(model) else 17 / 48
        return {
            **super().rule(model),
            "layers": (max(0, min(model.n_layers - 2, round(share * model.n_layers))),),
            "clamp_norm_factor": 4,
            "mom2_update_weight": 15000 if model.hidden_size >= 2048 else 200,
            "prefixes": [{"length": 5, "number": 5}, {"length": 10, "number": 5}],
        }

    def used(self) -> frozenset[str]:
        return super().used() if self.history else super().used() - {"mom2_update_weight"}


@dataclass
class Rome:
    """`rome`: ΔW = δ uᵀ/(uᵀk₀), as ROME and the paper compute it: k̄ (the mean key over contexts) in u, k₀ (the bare
    prompt's) elsewhere. `r-rome`: ΔW = (v₀ + δ − W k̄ − b) uᵀ/(uᵀk̄), k̄ everywhere.

    Of a fact with phrasings `rome` takes their prompts for more contexts: one key. `r-rome` gives each its own key,
    unless the settings want the mean, and solves for all: the update then has a column a phrasing."""

    variant: Literal["rome", "r-rome"]
    _upper: UpperCopy = field(default_factory=UpperCopy, repr=False)
    _memory: Memory = field(default_factory=Memory, repr=False)
    _norm: TargetNorm = field(default_factory=TargetNorm, repr=False)

    def weights(self, model: EditableModel, hparams: RomeHparams) -> list[str]:
        if hparams.history and self.variant == "rome":
            rule = "rome has one key in its solve and another beside its value"
            raise BadSettingsError(f"setting history true: {rule}; use r-rome")
        return [model.weight_name(layer) for layer in hparams.layers]

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        """ΔW for one fact. One full forward gives k̄, k₀, v₀ and the frozen prefix of the steps for δ."""
        hparams: RomeHparams = context.hparams
        (layer,) = hparams.layers
        name = model.weight_name(layer)

        # Contexts: the bare prompt first, then after each prefix; those of kept facts; the KL prompt last.
        group = group_of(model, fact, context)
        rows = align(group, model.device)
        run = full_forward(model, rows, layer)

        # Key and direction: over the contexts of the prompt alone where every phrasing has a key of its own.
        starts = group.starts()
        each = self.variant == "r-rome" and hparams.phrasing_keys == "each" and len(starts) > 1
        first = slice(0, starts[1] if each else group.contexts)
        keys = run.keys[first].cpu().double()
        k0, k_mean = keys[0], keys.mean(0)
        others = keys_of(model, bystander_prompts(model, [fact], hparams.bystanders), hparams.layers)
        metric = self._memory.metric(name, context, layer, others[layer])
        u = metric.solve(k_mean)
        u /= u.norm()

        # Value.
        arithmetic = self._arithmetic(model, hparams)
        values = run.values[first].cpu().double()
        # R-ROME also writes what lies between v₀ and the mean of the outputs W k + b that the forward saw: W k̄ + b.
        whole = self.variant == "r-rome"
        key, beside = (k_mean, values[0] - values.mean(0)) if whole else (k0, torch.zeros_like(values[0]))
        solution = None
        if each:  # δ for every phrasing at its own key, exactly: ΔW K = R with the least change in the same metric
            key = torch.cat([key[None], run.keys[starts[1:]].cpu().double()])
        if hparams.history:
            key = torch.atleast_2d(key)
            solution = solve(key, metric.solve(key), weight=hparams.mom2_update_weight)
        elif each:
            solution = solve(key, metric.solve(key), weight=0, equality_ridge=_NEARLY_EQUAL)
        if len(group.facts) > 1:  # what is kept needs what the update really adds, at every prompt
            seen = run.keys[:-1].cpu().double()
            reach = seen @ u / (u @ key) if solution is None else seen @ solution.G.sum(0)
            first_reach = reach if solution is None else seen @ solution.G[0]  # of what the first column adds beside δ
            shift = beside * (first_reach / reach)[:, None] if each else beside
            group = replace(group, reach=tuple(reach.tolist()), shift=shift.float())
        (found,) = optimise(model, [group], rows, run, run.values[:1], hparams, arithmetic=arithmetic)
        at = run.values[starts].cpu().double()  # v₀ of every phrasing
        norm = self._norm.of(model, hparams, of_block=False)
        deltas = rescaled(at, found.delta.cpu().double(), norm)
        record = {**replace(found, delta=deltas[0].float()).record(), "v0_norm": float(run.values[0].float().norm())}
        record |= {} if norm is None else {"target_norm": norm}
        refused = why_not_edited(fact, found, hparams, record)
        if refused is not None:
            raise refused

        # Update.
        v0, delta = at[0], deltas[0]
        residual = v0 + delta - values.mean(0) if whole else delta
        if solution is None:
            value, update = v0 + delta, LowRank((residual / (u @ key))[:, None].float(), u[None].float())
        else:
            value = (at + deltas)[: len(key)]
            R = torch.cat([residual[None], deltas[1 : len(key)]])
            update = LowRank(R.mT.float().contiguous(), solution.G.float())
        if not (torch.isfinite(update.A).all() and torch.isfinite(update.B).all()):
            raise EditFailedError(f"{fact.text!r} -> {fact.target_new!r}: the update is not finite", record)
        vectors = {f"{name}/K": key.float(), f"{name}/V": value.float()}
        if solution is not None and hparams.history:
            vectors |= {f"{name}/H": solution.H.float()}
            vectors |= remembered(model, name, key, R, context, layer)
        return Proposal({name: update.to(model.device)}, vectors, record)

    def _arithmetic(self, model: EditableModel, hparams: RomeHparams) -> EditableModel | None:
        """The model in the dtype of the steps for δ. Only blocks above the edited one are used. Where the edited block
        itself must run (before a norm, or without a frozen prefix), the model's own dtype stays."""
        (layer,) = hparams.layers
        dtype = getattr(torch, hparams.delta_dtype, model.dtype)
        frozen = hparams.frozen_prefix and is_residual(model, layer) and keeps_keys(model)
        if dtype == model.dtype or not frozen:
            return None
        return self._upper.of(model, layer, dtype)


ROME = Method(
    name="rome",
    editor=partial(Rome, "rome"),
    settings=RomeHparams,
    paper="Locating and Editing Factual Associations in GPT (https://arxiv.org/abs/2202.05262)",
    summary="one fact at a time, a rank-1 update of one MLP weight",
)
R_ROME = replace(
    ROME,
    name="r-rome",
    editor=partial(Rome, "r-rome"),
    paper="Rebuilding ROME: Resolving Model Collapse during Sequential Model Editing (https://arxiv.org/abs/2403.07175)",
    summary="ROME with one key throughout, which keeps a model whole over many edits",
)
