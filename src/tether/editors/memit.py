"""MEMIT (Meng et al., 2023) and EMMET: many facts in one solve, spread over several layers.

For every fact i a state z_i = h_i + δ_i of the last edited layer L makes the model say its new object. Then, for the
edited layers ascending, each with the model as edited so far:

    R = (Z − H^L) / (edited layers left),      ΔW = R Kᵀ (λC + KKᵀ)⁻¹

With the setting `null_space` the solve is AlphaEdit's (https://arxiv.org/abs/2410.02355): with P the projector on the
directions that keys hardly take (`tether.algebra.null_space`) and b = λ · mean(diag C),

    ΔWᵀ = (P K Kᵀ + bI)⁻¹ P K Rᵀ

EMMET asks for ΔW K = R exactly, with the least change in the metric of C: the same solve with λ → 0 (`joint_solve`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tether.algebra.joint_solve import solve
from tether.algebra.lowrank import LowRank
from tether.editors.base import Batch, Context, EditFailedError, Method, Proposal
from tether.editors.bystanders import bystander_prompts, keys_of
from tether.editors.delta import Group, OptimisedDelta, merged, optimise, rows_of, within_memory
from tether.editors.metric import Memory, of_model, remembered
from tether.editors.prompts import group_of, why_not_edited
from tether.editors.settings import LatentHparams, is_gated
from tether.editors.target_norm import TargetNorm, rescaled
from tether.engine import split
from tether.errors import TetherError, WrongModelError
from tether.facts.fact import Fact
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import Ascending, align, full_forward, is_residual

_ROWS = 16  # phrasings a forward for keys: no gradient, so small batches keep memory low at no cost


class MemitHparams(LatentHparams):
    """Settings of MEMIT and EMMET."""

    family: ClassVar[str] = "memit"
    resources: ClassVar[frozenset[str]] = frozenset({"memory_gb"})

    layers: tuple[int, ...] = Field(min_length=1, description="the edited layers, ascending; δ is added after the last")
    mom2_update_weight: float = Field(gt=0, description="λ: the weight of what the model knew")
    equality_ridge: float = Field(default=1e-6, ge=0, description="EMMET: share of the mean of diag(KᵀC⁻¹K)")
    null_space: float | None = Field(
        default=None, gt=0, description="AlphaEdit: solve where eigenvalues of C are below this share of their mean"
    )
    memory_gb: float = Field(default=0.5, gt=0, description="what the steps for δ of a micro-batch may keep")

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """Five layers around ROME's, the decay and clamp of the paper's models of the same kind of MLP."""
        gated = is_gated(model)
        last = min(max(0, model.n_layers - 2), round((8 / 32 if gated else 17 / 48) * model.n_layers))
        return {
            **super().rule(model),
            "layers": tuple(range(max(0, last - 4), last + 1)),
            "clamp_norm_factor": 4 if gated else 0.75,
            "mom2_update_weight": 15000 if model.hidden_size >= 2048 else 200,
            "prefixes": [{"length": 10, "number": 5}],
        }


@dataclass(frozen=True)
class Targets:
    """What facts are solved for, by their place in a list: the prompts of each, the states z = h + δ that it needs
    after the last layer (a row a phrasing, float32 on the CPU) where it has any, and how they were found."""

    groups: dict[int, Group]
    states: dict[int, Float[Tensor, "n p"]]
    outcomes: dict[int, dict[str, float] | EditFailedError]


@dataclass
class Memit:
    """`equality` false: MEMIT, whose λ weighs old against new. True: EMMET, ΔW K = R."""

    equality: bool
    _memory: Memory = field(default_factory=Memory, repr=False)
    _norm: TargetNorm = field(default_factory=TargetNorm, repr=False)

    def weights(self, model: EditableModel, hparams: MemitHparams) -> list[str]:
        for layer in hparams.layers:
            if not is_residual(model, layer):
                raise WrongModelError(
                    f"layer {layer}: a norm stands between the MLP's projection and the residual stream, so no key "
                    "can be given MEMIT's residual; use rome or r-rome for this model"
                )
        return [model.weight_name(layer) for layer in hparams.layers]

    def propose_batch(self, model: EditableModel, facts: Sequence[Fact], context: Context) -> Batch:
        """ΔW of every layer for all facts, `vectors` holding the keys K (n×q), H (n×n, for an undo within the batch)
        and, for the last layer, the targets Z (n×p)."""
        return self.write(model, facts, self.find(model, facts, context), context)

    def find(self, model: EditableModel, facts: Sequence[Fact], context: Context) -> Targets:
        """z of every fact, optimised on the model as it is, the facts shared out by the context's engine. Changes
        nothing."""
        hparams: MemitHparams = context.hparams
        found = Targets({}, {}, {})
        for index, fact in enumerate(facts):
            try:
                found.groups[index] = group_of(model, fact, context)
            except EditFailedError as error:
                found.outcomes[index] = error
        if not found.groups:
            return found
        norm = self._norm.of(model, hparams, of_block=True)
        kept = any(len(group.facts) > group.edited for group in found.groups.values())
        lean = Context(hparams, moments={at: context.moments[at] for at in hparams.layers[-1:] if kept})
        together: dict[Any, list[int]] = {}  # facts of one subject share a δ
        for index in found.groups:
            apart = hparams.same_subject == "apart"
            together.setdefault(index if apart else facts[index].subject_key, []).append(index)
        members = [[(index, found.groups[index]) for index in each] for each in together.values()]
        parts = split(members, context.engine.parts)
        for part in context.engine.map(partial(_optimised, lean, norm), parts, model):
            for index, z, delta in part:
                record = {**delta.record(), "v0_norm": float((z[0] - delta.delta).norm())}
                record |= {} if norm is None else {"target_norm": norm}
                refused = why_not_edited(facts[index], delta, hparams, record)
                found.outcomes[index] = refused or record
                if refused is None:
                    found.states[index] = z
        return found

    def write(self, model: EditableModel, facts: Sequence[Fact], targets: Targets, context: Context) -> Batch:
        """The batch of facts whose targets are known: ΔW of every layer, solved on the model as it is. Raises
        EditFailedError where they cannot be solved together."""
        hparams: MemitHparams = context.hparams
        edited = sorted(targets.states)
        ordered = [targets.outcomes[index] for index in range(len(facts))]
        if not edited:
            return Batch(None, ordered)
        Z = torch.cat([targets.states[index] for index in edited]).double()

        # The layers in ascending order, each seeing those below edited.
        kept = [targets.groups[index] for index in edited]
        updates: dict[str, LowRank] = {}
        vectors: dict[str, Tensor] = {}
        columns = [len(group.phrasings) for group in kept]
        prompts = bystander_prompts(model, [facts[index] for index in edited], hparams.bystanders)
        others = keys_of(model, prompts, hparams.layers)  # of the model before the batch
        phrasings = _Phrasings(model, kept, hparams)
        for position, layer in enumerate(hparams.layers):
            name = model.weight_name(layer)
            with model.provisional(updates):
                K, H_last = phrasings.keys_and_states(layer)
            R = (Z - H_last) / (len(hparams.layers) - position)
            if hparams.phrasing_keys == "mean":
                K, R = (torch.stack([part.mean(0) for part in one.split(columns)]) for one in (K, R))
            metric = self._memory.metric(name, context, layer, others[layer])
            X = metric.solve(K)
            try:
                solution = solve(K, X, weight=hparams.mom2_update_weight, equality_ridge=equality_ridge(self, hparams))
            except TetherError as error:
                raise EditFailedError(str(error)) from None
            update = LowRank(R.mT.float().contiguous(), solution.G.float())
            if not (torch.isfinite(update.A).all() and torch.isfinite(update.B).all()):
                raise EditFailedError(f"the update of {len(edited)} facts at layer {layer} is not finite")
            updates[name] = update.to(model.device)
            vectors |= {f"{name}/K": K.float(), f"{name}/H": solution.H.float()}
            if hparams.history:
                vectors |= remembered(model, name, K, R, context, layer)
        if hparams.phrasing_keys == "mean":
            Z, columns = torch.stack([part.mean(0) for part in Z.split(columns)]), [1] * len(columns)
        vectors[f"{name}/V"] = Z.float()
        return Batch(Proposal(updates, vectors), ordered, columns)


class _Phrasings:
    """The phrasings of a batch, read again at every edited layer, in ascending order."""

    def __init__(self, model: EditableModel, groups: Sequence[Group], hparams: MemitHparams) -> None:
        phrasings = [contexts for group in groups for contexts in group.phrasings]
        self._kinds = [1, *(kind.number for kind in hparams.prefixes if kind.number)]
        self._last = hparams.layers[-1]
        self._chunks = []
        for start in range(0, len(phrasings), _ROWS):
            chunk = phrasings[start : start + _ROWS]
            rows = align([prompt for contexts in chunk for prompt in contexts], model.device)
            self._chunks.append((rows_of(chunk), Ascending(model, rows, frozen=hparams.frozen_prefix)))

    def keys_and_states(self, layer: int) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n p"]]:
        """Keys of one layer, one a phrasing, and the bare prompts' states after the last layer; float64 on the CPU. Of
        a phrasing behind prefixes: the mean over the kinds of context (the bare prompt, and each length of prefix) of
        the mean within the kind."""
        keys, states = [], []
        for spans, ascending in self._chunks:
            k = ascending.keys(layer).cpu().double()
            states.append(ascending.states(self._last, torch.tensor([first for first, _ in spans])).cpu().double())
            for first, stop in spans:
                of_kinds = k[first:stop].split(self._kinds if stop - first > 1 else [1])
                keys.append(torch.stack([of_kind.mean(0) for of_kind in of_kinds]).mean(0))
        return torch.stack(keys), torch.cat(states)


def _optimised(
    context: Context, norm: float | None, model: EditableModel, members: Sequence[Sequence[tuple[int, Group]]]
) -> list[tuple[int, Tensor, OptimisedDelta]]:
    """(fact, z = h + δ of every phrasing, how δ was found), tensors on the CPU, in micro-batches. `members` are the
    facts of every δ, with their prompts."""
    hparams: MemitHparams = context.hparams
    layer = hparams.layers[-1]
    groups = [merged([group for _, group in each]) for each in members]
    found = []
    for batch in within_memory(model, groups, layer, hparams, hparams.memory_gb):
        chosen = [groups[i] for i in batch]
        rows = align([prompt for group in chosen for prompt in group], model.device)
        run = full_forward(model, rows, layer)
        firsts = [first for first, _ in rows_of(chosen)]
        chosen = [_reached(group, run.keys[first:], context) for group, first in zip(chosen, firsts, strict=True)]
        optimised = optimise(model, chosen, rows, run, run.hidden[firsts, 0], hparams)
        for i, group, first, one in zip(batch, chosen, firsts, optimised, strict=True):
            starts = iter(group.starts())
            for index, own in members[i]:
                bare = [first + start for start in islice(starts, len(own.phrasings))]
                deltas = rescaled(run.values[bare].float(), one.delta, norm)
                delta = one.delta if norm is None else deltas[0]
                z = (run.hidden[bare, 0].float() + deltas).cpu()
                found.append((index, z, replace(one, delta=delta.cpu())))
    return found


def _reached(group: Group, keys: Float[Tensor, "n q"], context: Context) -> Group:
    """The group with how far the solve for its facts reaches the kept ones, in the metric of the moments."""
    if len(group.facts) == group.edited:
        return group
    keys = keys.cpu().double()
    key = keys[group.starts()].mean(0)
    u = of_model(context, context.hparams.layers[-1]).solve(key)
    reach = keys[group.contexts : len(group) - 1] @ u / (u @ key)
    return replace(group, reach=(*[1.0] * group.contexts, *reach.tolist()))


def equality_ridge(editor: object, hparams: Any) -> float | None:
    """The share of the mean of diag(KᵀC⁻¹K) that the solves of an editor take for λ: EMMET's, for equality. None where
    λ is that of the settings."""
    return hparams.equality_ridge if isinstance(editor, Memit) and editor.equality and not hparams.history else None


MEMIT = Method(
    name="memit",
    editor=partial(Memit, equality=False),
    settings=MemitHparams,
    paper="Mass-Editing Memory in a Transformer (https://arxiv.org/abs/2210.07229)",
    summary="many facts in one solve, spread over several layers",
)
EMMET = replace(
    MEMIT,
    name="emmet",
    editor=partial(Memit, equality=True),
    paper="A Unified Framework for Model Editing (https://arxiv.org/abs/2403.14236)",
    summary="MEMIT's solve with equality for the new facts, as ROME's",
)
