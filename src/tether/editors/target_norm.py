"""Norm-Anchor Scaling ("Norm Anchors Make Model Edits Last", https://arxiv.org/abs/2602.02543).

Edited weights give larger values, and larger values make larger updates: over many edits the norms grow without end.
NAS breaks the loop. Every v* = v₀ + δ, an output of the edited projection, is scaled to one norm a that the unedited
model has: v* ← a · v*/‖v*‖.

a is a number of yours, or that of a pilot: the mean ‖v*‖ of the facts that come with tether, found on the unedited
model from bare prompts, less the largest 5 %. (The authors' pilot is 1,000 facts of CounterFact. Their code also gives
up an edit whose ‖v*‖ is above 2a, which the abstract does not say; here it is scaled as well.)
"""

import logging
from collections.abc import Iterator
from importlib import resources
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from tether.editors.base import EditFailedError
from tether.editors.delta import Group, optimise, rows_of, within_memory
from tether.editors.prompts import encode_contexts
from tether.editors.settings import LatentHparams
from tether.errors import BadSettingsError
from tether.facts import read_facts
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import align, full_forward

logger = logging.getLogger(__name__)

_DROPPED = 0.05  # of the pilot, the largest
_MEMORY_GB = 0.5


class TargetNorm:
    """The norm a of a model and settings; a pilot runs once."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[EditableModel, tuple[LatentHparams, float]] = WeakKeyDictionary()

    def of(self, model: EditableModel, hparams: LatentHparams, *, of_block: bool) -> float | None:
        """None where the settings leave v* alone. `of_block` as of `pilot_norms`. The model is not changed. Raises
        BadSettingsError where the model can read no fact of the pilot."""
        if hparams.target_norm != "nas":
            return hparams.target_norm
        known = self._of.get(model)
        if known is None or known[0] != hparams:
            norms = sorted(pilot_norms(model, hparams, of_block=of_block))
            kept = norms[: len(norms) - int(_DROPPED * len(norms))]
            if not kept:
                raise BadSettingsError("target_norm nas: the model reads no fact of the pilot; write a number")
            known = self._of[model] = hparams, sum(kept) / len(kept)
            logger.info("target norm %.4g, of a pilot of %d facts", known[1], len(norms))
        return known[1]


def rescaled(values: Float[Tensor, "n p"], delta: Float[Tensor, " p"], norm: float | None) -> Float[Tensor, "n p"]:
    """What to add to every value, so that value + δ points as before and has the norm (None: δ itself)."""
    if norm is None:
        return delta.expand(len(values), -1)
    targets = values + delta
    return targets * (norm / targets.norm(dim=1, keepdim=True)) - values


def pilot_norms(model: EditableModel, hparams: LatentHparams, *, of_block: bool) -> Iterator[float]:
    """‖v₀ + δ‖ of the facts that come with tether, on the unedited model, at the last edited layer. `of_block`: δ is
    searched from the block's output on (MEMIT), not from the projection's (ROME)."""
    layer, groups = hparams.layers[-1], list[Group]()
    with resources.as_file(resources.files("tether") / "data" / "demo_facts.jsonl") as file:
        facts = read_facts(file)
    for fact in facts:
        try:
            groups.append(encode_contexts(model, fact.model_copy(update={"phrasings": ()}), ()))
        except EditFailedError:
            continue
    with model.unedited():
        for batch in within_memory(model, groups, layer, hparams, _MEMORY_GB) if groups else ():
            chosen = [groups[index] for index in batch]
            rows = align([prompt for group in chosen for prompt in group], model.device)
            run, firsts = full_forward(model, rows, layer), [first for first, _ in rows_of(chosen)]
            start = run.hidden[firsts, 0] if of_block else run.values[firsts]
            found = optimise(model, chosen, rows, run, start, hparams)
            deltas = torch.stack([one.delta for one in found])
            yield from (run.values[firsts].float() + deltas).norm(dim=1).tolist()
