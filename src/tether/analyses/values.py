"""Figure 5 of the paper: what a fact's key is mapped to when it is edited, and what is left of that after all edits."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tether.analyses.points import ValuePoint, Values, When
from tether.constraints.base import AS_RECORDED, Constraint, label_of
from tether.errors import TetherError
from tether.facts.chat import template
from tether.facts.fact import Fact
from tether.facts.tokens import encode
from tether.ledger import Ledger
from tether.models import EditableModel
from tether.models.frozen_prefix import align, keys_and_states

logger = logging.getLogger(__name__)

_FACTS = 100  # the first ones, which later edits put at the greatest risk
_ROWS = 16  # prompts a forward

Vectors = NDArray[np.float64]


def values(model: EditableModel, ledger: Ledger, restraints: Sequence[Constraint | None]) -> Values | None:
    """The values of the first hundred live edits: the output of the MLP's projection of the last edited block at the
    subject's last token of the bare prompt, in the plane of their first two principal components, all states together.

    "edited" is of the model as it was right after the fact's own solve, restraints in between included. Every value is
    read off a forward. None where there is no live edit, or a value is not finite. The model is left carrying some of
    these states.
    """
    blocks = [f"{model.anatomy.blocks}.{layer}." for layer in range(model.n_layers)]
    layer = max(i for i, block in enumerate(blocks) if any(name.startswith(block) for name in ledger.header.weights))
    numbered: list[tuple[int, Fact]] = []
    found: list[Vectors] = []
    for events, sums in ledger.replay(model).solves():
        own = [(event.edit, event.fact) for event in events if event.edit is not None and event.fact is not None]
        own = own[: _FACTS - len(numbered)]
        sums.show(model)
        found.append(_outputs(model, layer, [fact for _, fact in own]))
        numbered += own
        if len(numbered) == _FACTS:
            break
    if not numbered:
        return None
    facts = [fact for _, fact in numbered]
    edited = np.concatenate(found)
    after: dict[str, Vectors] = {}
    for restraint in restraints:
        ledger.sums(restrain=restraint, model=model).show(model)
        after[label_of(restraint)] = _outputs(model, layer, facts)
    if not all(np.isfinite(one).all() for one in (edited, *after.values())):
        logger.warning("no values: those of %s are not finite", model.weight_name(layer))
        return None
    own_label = AS_RECORDED if AS_RECORDED in after else "none"
    states: list[tuple[When, str, Vectors]] = [("edited", own_label, edited)]
    states += [("end" if label == "none" else "restrained", label, one) for label, one in after.items()]
    plane, explained = _plane(np.concatenate([one for *_, one in states]))
    points = [
        ValuePoint(edit=edit, when=when, restraint=label, x=float(x), y=float(y))
        for (when, label, _), part in zip(states, np.split(plane, len(states)), strict=True)
        for (edit, _), (x, y) in zip(numbered, part, strict=True)
    ]
    size = np.linalg.norm(edited, axis=1).mean()
    shift = {label: float(np.linalg.norm(one - edited, axis=1).mean() / size) for label, one in after.items()}
    return Values(weight=model.weight_name(layer), points=points, explained=explained, shift=shift)


def _outputs(model: EditableModel, layer: int, facts: Sequence[Fact]) -> Vectors:
    """W k + b of every fact (n×p), of the model as it is now, as its own projection computes it."""
    projection = model.projection(layer)
    found = []
    for first in range(0, len(facts), _ROWS):
        chunk = facts[first : first + _ROWS]
        rows = align(
            [encode(model.tokenizer, template(model.tokenizer, fact.prompt), fact.subject) for fact in chunk],
            model.device,
        )
        keys, _ = keys_and_states(model, rows, layer, layer)
        with torch.no_grad():
            found.append(projection(keys).cpu().double().numpy())
    return np.concatenate(found)


def _plane(points: Vectors) -> tuple[Vectors, tuple[float, float]]:
    """The first two principal components of the rows, centred, and the share of the variance in each."""
    try:
        from sklearn.decomposition import PCA
    except ImportError:
        raise TetherError(
            "the values are drawn by scikit-learn, which is not installed: pip install 'tether[grid]'"
        ) from None
    if not points.var(axis=0).any() or min(points.shape) < 2:
        return np.zeros((len(points), 2)), (0.0, 0.0)
    found = PCA(n_components=2, svd_solver="full").fit(points)
    first, second = found.explained_variance_ratio_
    return found.transform(points), (float(first), float(second))
