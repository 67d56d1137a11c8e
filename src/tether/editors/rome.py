"""ROME (Meng et al., 2022) and R-ROME ("Rebuilding ROME"): one fact, one layer, one rank-1 update.

Both take a key k for the subject and a value v* = v₀ + δ that makes the model say the new object, and write v* for k
with the least change to everything else, in the metric of the keys' second moment C:  u = C⁻¹k̄ / ‖C⁻¹k̄‖.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch

from tether.algebra.lowrank import LowRank
from tether.editors.base import Context, EditFailedError, Proposal
from tether.editors.delta import optimise
from tether.editors.prompts import encode_contexts, failure
from tether.editors.settings import RomeHparams
from tether.facts.fact import Fact
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import align, full_forward, projection_adds


@dataclass
class Rome:
    """`rebuilt` false: ΔW = δ uᵀ/(uᵀk₀), as ROME and the paper compute it: k̄ (the mean key over contexts) in u, k₀ (the
    bare prompt's) elsewhere. `rebuilt` true: ΔW = (v₀ + δ − W k̄ − b) uᵀ/(uᵀk̄), k̄ everywhere."""

    rebuilt: bool
    _copies: dict[torch.dtype, EditableModel] = field(default_factory=dict, repr=False)

    def weights(self, model: EditableModel, hparams: RomeHparams) -> list[str]:
        return [model.weight_name(layer) for layer in hparams.layers]

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        """ΔW for one fact. One full forward gives k̄, k₀, v₀ and the frozen prefix of the steps for δ."""
        hparams: RomeHparams = context.hparams
        (layer,) = hparams.layers
        name = model.weight_name(layer)

        # Contexts: the bare prompt first, then behind each prefix; the KL prompt last.
        prompts = encode_contexts(model, fact, context.prefixes)
        rows = align(prompts, model.device)
        run = full_forward(model, rows, layer)

        # Key and direction.
        keys = run.keys[:-1].cpu().double()
        k0, k_mean = keys[0], keys.mean(0)
        u = context.moments[layer].solve(k_mean, ridge=hparams.moments_ridge)
        u /= u.norm()

        # Value.
        (latent,) = optimise(
            model, [prompts], rows, run, run.values[:1], hparams, arithmetic=self._arithmetic(model, hparams)
        )
        record = {
            "loss_first": latent.losses[0], "loss_last": latent.losses[-1], "steps": float(len(latent.losses)),
            "delta_norm": float(latent.delta.norm()), "v0_norm": float(run.values[0].float().norm()),
        }  # fmt: skip
        refused = failure(fact, latent, hparams, record)
        if refused is not None:
            raise refused

        # Update.
        v0, delta = run.values[0].cpu().double(), latent.delta.cpu().double()
        if self.rebuilt:
            # Every W k̄ + b is the mean of the outputs W k + b that the forward saw.
            residual, key = v0 + delta - run.values[:-1].cpu().double().mean(0), k_mean
        else:
            residual, key = delta, k0
        factor = u @ key
        update = LowRank((residual / factor)[:, None].float(), u[None].float())
        if not (torch.isfinite(update.A).all() and torch.isfinite(update.B).all()):
            raise EditFailedError(f"{fact.text!r} -> {fact.target_new!r}: the update is not finite", record)
        vectors = {f"{name}/K": key.float(), f"{name}/V": (v0 + delta).float()}
        return Proposal({name: update.to(model.device)}, vectors, record)

    def _arithmetic(self, model: EditableModel, hparams: RomeHparams) -> EditableModel | None:
        """The model in the dtype of the steps for δ. Only blocks above the edited one are used, which never change;
        where the edited block itself must run (behind a norm, and without a frozen prefix), the model's own dtype
        stays."""
        dtype = getattr(torch, hparams.delta_dtype, model.dtype)
        if dtype == model.dtype or not hparams.frozen_prefix or not projection_adds(model, hparams.layers[0]):
            return None
        if dtype not in self._copies:
            hf = copy.deepcopy(model.hf).to(dtype)
            self._copies[dtype] = EditableModel(hf, model.tokenizer, id=model.id, anatomy=model.anatomy)
        return self._copies[dtype]
