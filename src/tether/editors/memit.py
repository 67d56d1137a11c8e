"""MEMIT (Meng et al., 2023) and EMMET: many facts in one solve, spread over several layers.

For every fact i a state z_i = h_i + δ_i of the last edited layer L makes the model say its new object. Then, for the
edited layers ascending, each with the model as edited so far:

    R = (Z − H^L) / (edited layers left),      ΔW = R Kᵀ (λC + KKᵀ)⁻¹

EMMET asks for ΔW K = R exactly, with the least change in the metric of C: the same solve with λ → 0 (`jointsolve`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.joint_solve import solve
from tether.algebra.lowrank import LowRank
from tether.editors.base import Batch, Context, EditFailedError, Proposal
from tether.editors.delta import Group, Latent, optimise, rows_of, within_memory
from tether.editors.prompts import encode_contexts, failure
from tether.editors.settings import MemitHparams
from tether.errors import BadFactError, TetherError
from tether.facts.fact import Fact
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import align, full_forward, keys_and_states, projection_adds


@dataclass
class Memit:
    """`equality` false: MEMIT, whose λ weighs old against new. True: EMMET, ΔW K = R."""

    equality: bool

    def weights(self, model: EditableModel, hparams: MemitHparams) -> list[str]:
        for layer in hparams.layers:
            if not projection_adds(model, layer):
                raise TetherError(
                    f"layer {layer}: a norm stands between the MLP's projection and the residual stream, so no key "
                    "can be given MEMIT's residual; use rome or r-rome for this model"
                )
        return [model.weight_name(layer) for layer in hparams.layers]

    def propose_batch(self, model: EditableModel, facts: Sequence[Fact], context: Context) -> Batch:
        """ΔW of every layer for all facts, `vectors` holding the keys K (n×q), H (n×n, for an undo within the batch)
        and, for the last layer, the targets Z (n×p)."""
        hparams: MemitHparams = context.hparams
        outcomes: dict[int, dict[str, float] | EditFailedError] = {}
        groups: dict[int, Group] = {}
        for index, fact in enumerate(facts):
            try:
                groups[index] = encode_contexts(model, fact, context.prefixes)
            except EditFailedError as error:
                outcomes[index] = error
            except BadFactError as error:
                outcomes[index] = EditFailedError(str(error))

        # z of every fact, against the model before the batch.
        targets: dict[int, Tensor] = {}
        for index, z, latent in self._targets(model, groups, hparams):
            record = _record(latent, z)
            refused = failure(facts[index], latent, hparams, record)
            outcomes[index] = refused or record
            if refused is None:
                targets[index] = z
        edited = sorted(targets)
        ordered = [outcomes[index] for index in range(len(facts))]
        if not edited:
            return Batch(None, ordered)
        Z = torch.stack([targets[index] for index in edited]).double()

        # The layers in ascending order, each seeing those below edited.
        kept = [groups[index] for index in edited]
        updates: dict[str, LowRank] = {}
        vectors: dict[str, Tensor] = {}
        for position, layer in enumerate(hparams.layers):
            name = model.weight_name(layer)
            with model.provisional(updates):
                K, H_last = self._keys(model, kept, layer, hparams)
            R = (Z - H_last) / (len(hparams.layers) - position)
            solution = solve(
                K, context.moments[layer].solve(K, ridge=hparams.moments_ridge), weight=hparams.mom2_update_weight,
                equality_ridge=hparams.equality_ridge if self.equality else None,
            )  # fmt: skip
            update = LowRank(R.mT.float().contiguous(), solution.G.float())
            if not (torch.isfinite(update.A).all() and torch.isfinite(update.B).all()):
                raise EditFailedError(f"the update of {len(edited)} facts at layer {layer} is not finite")
            updates[name] = update.to(model.device)
            vectors |= {f"{name}/K": K.float(), f"{name}/H": solution.H.float()}
        vectors[f"{name}/V"] = Z.float()
        return Batch(Proposal(updates, vectors), ordered)

    def _targets(
        self, model: EditableModel, groups: dict[int, Group], hparams: MemitHparams
    ) -> list[tuple[int, Tensor, Latent]]:
        """(fact, z = h + δ on the CPU, how δ was found), in micro-batches."""
        if not groups:
            return []
        found = []
        layer, indices, members = hparams.layers[-1], list(groups), list(groups.values())
        for batch in within_memory(model, members, layer, hparams, hparams.memory_gb):
            chosen = [members[i] for i in batch]
            rows = align([prompt for group in chosen for prompt in group], model.device)
            run = full_forward(model, rows, layer)
            h = run.hidden[[first for first, _ in rows_of(chosen)], 0]  # the bare prompts'
            for i, start, latent in zip(batch, h, optimise(model, chosen, rows, run, h, hparams), strict=True):
                found.append((indices[i], (start.float() + latent.delta).cpu(), latent))
        return found

    @staticmethod
    def _keys(
        model: EditableModel, groups: Sequence[Group], layer: int, hparams: MemitHparams
    ) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n p"]]:
        """Keys of one layer, a mean over the kinds of context (the bare prompt, and each length of prefix) of the mean
        within the kind, and the bare prompts' states behind the last layer; float64 on the CPU."""
        keys, states = [], []
        last = hparams.layers[-1]
        kinds = [1, *(kind.number for kind in hparams.prefixes if kind.number)]
        for start in range(0, len(groups), _ROWS):
            chunk = [group[:-1] for group in groups[start : start + _ROWS]]
            rows = align([prompt for group in chunk for prompt in group], model.device)
            k, h = (found.cpu() for found in keys_and_states(model, rows, layer, last))
            for first, stop in rows_of(chunk):
                of_kinds = k[first:stop].double().split(kinds)
                keys.append(torch.stack([of_kind.mean(0) for of_kind in of_kinds]).mean(0))
                states.append(h[first].double())
        return torch.stack(keys), torch.stack(states)


_ROWS = 16  # facts a forward for keys: no gradient, so small batches keep memory low at no cost


def _record(latent: Latent, z: Tensor) -> dict[str, float]:
    return {
        "loss_first": latent.losses[0], "loss_last": latent.losses[-1], "steps": float(len(latent.losses)),
        "delta_norm": float(latent.delta.norm()), "v0_norm": float((z - latent.delta.cpu()).norm()),
    }  # fmt: skip
