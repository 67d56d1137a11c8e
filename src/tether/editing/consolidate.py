"""Consolidate: all live facts of a ledger solved again at once on the unedited weights.

One by one, every solve sees a model that the earlier ones have changed, and adds to what they added. The one solve of
all facts is the ridge solution of least change; how strongly it holds what the model knew (λ) is chosen afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.joint_solve import ridge_of, solve
from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, parse
from tether.editing.loop import attempts_of
from tether.editing.prepare import recorded_moments, recorded_settings
from tether.editing.said import Said, said_now
from tether.editors import Batch, BatchEditor, Context, EditFailedError, Editor, Proposal
from tether.editors import editor as editor_of
from tether.editors.base import NoHistory
from tether.editors.memit import Memit, Targets, equality_ridge
from tether.editors.metric import cosines, of_facts, of_model
from tether.editors.prompts import group_of
from tether.errors import BadSettingsError
from tether.evaluation.strength import FLOOR, Tried, search
from tether.evaluation.strength import chosen as strongest
from tether.facts.fact import Fact
from tether.ledger import Attempt, Event, Ledger, Sums
from tether.models import EditableModel

logger = logging.getLogger(__name__)

_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the recorded λ, that `auto` tries
_CLOSE, _NAMED = 0.98, 20  # cosine in the metric of C from which keys of different subjects are named; how many


@dataclass(frozen=True)
class Close:
    """Two edits of different subjects whose keys nearly are one: their cosine in the metric of C."""

    edits: tuple[int, int]
    subjects: tuple[str, str]
    cosine: float


@dataclass(frozen=True)
class Consolidated:
    """What was done. `first`, `last`: numbers of the new edits; `replaced`: those they stand for; `superseded`: edits
    that a newer one of the same prompt overrides, not solved again; `skipped`: those that the unedited model says, and
    `failed`: those that could not be solved again, which are both out now; `strength`: λ, None where the solve is for
    equality; `restraint`: the one that acts on the new sum; `condition`: of λI + KᵀC⁻¹K by weight; `curve`: the
    strengths that `auto` tried."""

    first: int
    last: int
    replaced: tuple[int, ...]
    superseded: tuple[int, ...]
    skipped: tuple[int, ...]
    failed: tuple[int, ...]
    strength: float | None
    restraint: str | None
    targets: str
    condition: Mapping[str, float]
    close: tuple[Close, ...]
    curve: tuple[Tried, ...]
    before: Said
    said: Said

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "before": self.before.to_dict(), "said": self.said.to_dict()}


class _Problem(Protocol):
    """All facts with what each needs, ready to be solved for any λ."""

    def solve(self, strength: float) -> Batch: ...


def consolidate(
    model: EditableModel, ledger: Ledger, *, strength: float | Literal["auto"] | None = None,
    targets: Literal["renewed", "recorded"] = "renewed", floor: float = FLOOR,
) -> Consolidated:  # fmt: skip
    """Solve all live facts again at once on W₀, layer by layer with keys of the model as solved below, and let the new
    edits stand for the old ones: a batch of the ledger, which can be undone (the old ones are then taken in again). The
    restraint that acted last on the old sum acts on the new one, while any of the new edits counts.

    `strength` is λ; None the recorded one; "auto" tries several and takes the one with most facts said whose perplexity
    keeps `floor` percent of the unedited model's. `targets` "renewed" optimises what every fact needs anew, on the
    unedited model; "recorded" takes what was found when it was edited. Of several facts of one prompt the newest is
    solved for. The setting `bystanders` holds as in an edit. The model afterwards carries the ledger. Raises
    BadSettingsError for a ledger whose method keeps no keys, and for a `strength` where no λ is in the solve (EMMET).
    """
    if strength not in (None, "auto") and not float(strength or 0) > 0:
        raise BadSettingsError(f"strength {strength}: give a number above 0, or auto")
    ledger.check_model(model)
    hparams = recorded_settings(ledger.header)
    editor = editor_of(ledger.header.method)
    with ledger.writing():
        live = [(event.edit, event.fact) for event in ledger.live() if event.edit is not None and event.fact]
        other = next((event.edit for event in ledger.live() if event.fact is None), None)
        if other is not None:
            raise BadSettingsError(f"edit {other} of {ledger.path} has no fact to solve for again: undo it first")
        if not live:
            raise BadSettingsError(f"{ledger.path} has no live edit to consolidate")
        recorded = getattr(hparams, "mom2_update_weight", None)
        if recorded is None:
            raise BadSettingsError(
                f"{ledger.header.method} solves for no keys: consolidate a ledger of memit, emmet, r-rome or rome"
            )
        history = getattr(hparams, "history", False)
        if history and strength not in (None, recorded):
            rule = f"edits with history share the λ of their ledger, {recorded:g}"
            raise BadSettingsError(f"strength {strength}: {rule}; give none")
        equality = equality_ridge(editor, hparams) is not None
        if equality and strength is not None:
            rule = f"{ledger.header.method} solves for equality, and no λ is in that; give none"
            raise BadSettingsError(f"strength {strength}: {rule} (with the setting history there is one)")
        newest = {(fact.subject_key, fact.asked[0]): edit for edit, fact in live}
        kept = [(edit, fact) for edit, fact in live if newest[fact.subject_key, fact.asked[0]] == edit]
        ledger.apply(model)
        before = said_now(model, ledger)
        last = ledger.last_restraint()
        restraint = None if last is None else parse(last)
        context = Context(hparams, ledger.header.prefixes, recorded_moments(model, ledger.header), None, NoHistory())
        started = time.monotonic()
        with model.unedited():
            problem = _problem(model, ledger, editor, kept, context, targets)
            facts = [fact for _, fact in kept]
            states = _states(problem, recorded, _Restrained(model, ledger, restraint))
            curve = search(model, facts, states, floor, "λ") if strength == "auto" else ()
            chosen = strongest(curve, floor) if curve else float(recorded if strength in (None, "auto") else strength)
            batch = problem.solve(chosen)
        if batch.proposal is None:
            raise EditFailedError(f"none of {len(kept)} facts could be solved for: {batch.outcomes[0]}")
        words = f"consolidates {len(live)} edits, {'equality' if equality else f'λ {chosen:g}'}, targets {targets}"
        attempts = _attempts(kept, batch, words, (time.monotonic() - started) / len(kept))
        events = ledger.append(
            attempts, dict(batch.proposal.updates), dict(batch.proposal.vectors), replacing=[edit for edit, _ in live]
        )
        first, final = events[0].edit or 0, events[-1].edit or 0
        if restraint is not None:
            record = ledger.sums(model=model).restrain_recorded(restraint)
            ledger.append_restraint(restraint, record, "acts on the consolidated sum", only_with=(first, final))
        ledger.apply(model)
        condition, close = _condition(model, ledger, events, editor, context, chosen)
        left_out = {
            kind: tuple(int(event.record["stands_for"]) for event in events if event.kind == kind)
            for kind in ("skipped", "failed")
        }
        return Consolidated(
            first=first, last=final, replaced=tuple(edit for edit, _ in live),
            superseded=tuple(sorted({edit for edit, _ in live} - {edit for edit, _ in kept})), **left_out,
            strength=None if equality else chosen, restraint=last, targets=targets, condition=condition, close=close,
            curve=curve, before=before, said=said_now(model, ledger),
        )  # fmt: skip


def _problem(
    model: EditableModel, ledger: Ledger, editor: Editor | BatchEditor, kept: Sequence[tuple[int, Fact]],
    context: Context, targets: str,
) -> _Problem:  # fmt: skip
    facts = [fact for _, fact in kept]
    if isinstance(editor, Memit):
        if targets == "renewed":
            return _Layered(editor, model, facts, context, editor.find(model, facts, context))
        return _Layered(editor, model, facts, context, _recorded_states(model, ledger, kept, context))
    if not isinstance(editor, Editor) or len(context.hparams.layers) != 1:
        raise BadSettingsError(
            f"{ledger.header.method} cannot be consolidated: it is a matter of memit, emmet, r-rome and rome"
        )
    if targets == "renewed":
        return _renewed(editor, model, facts, context)
    return _recorded_outputs(model, ledger, kept, context)


# --- many layers: MEMIT, EMMET ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layered:
    """States z after the last layer, written by all layers from low to high."""

    editor: Memit
    model: EditableModel
    facts: Sequence[Fact]
    context: Context
    targets: Targets

    def solve(self, strength: float) -> Batch:
        hparams = self.context.hparams.model_copy(update={"mom2_update_weight": strength})
        return self.editor.write(self.model, self.facts, self.targets, replace(self.context, hparams=hparams))


def _recorded_states(
    model: EditableModel, ledger: Ledger, kept: Sequence[tuple[int, Fact]], context: Context
) -> Targets:
    """z of every fact as the ledger holds it."""
    by_edit = {event.edit: event for event in ledger.live()}
    name = model.weight_name(context.hparams.layers[-1])
    found = Targets({}, {}, {})
    for index, (edit, fact) in enumerate(kept):
        group = group_of(model, fact, context)
        values = ledger.vectors(by_edit[edit], "V")[name]
        found.groups[index] = group
        found.states[index] = values.expand(len(group.phrasings), -1)
        found.outcomes[index] = {}
    return found


# --- one layer: ROME, R-ROME -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Single:
    """Keys of one layer, none of which moves, and what each fact asks of its output beside W₀'s."""

    model: EditableModel
    facts: Sequence[Fact]
    context: Context
    keys: Sequence[Float[Tensor, "n q"] | None]
    outputs: Sequence[Float[Tensor, "n p"] | None]
    outcomes: Sequence[dict[str, float] | EditFailedError]

    def solve(self, strength: float) -> Batch:
        rows = zip(self.facts, self.keys, self.outputs, strict=True)
        given = [(fact, K, D) for fact, K, D in rows if K is not None and D is not None]
        if not given:
            return Batch(None, self.outcomes)
        K, D = (torch.cat(rows) for rows in ([K for _, K, _ in given], [D for *_, D in given]))
        (layer,) = self.context.hparams.layers
        name = self.model.weight_name(layer)
        X = of_facts(self.model, [fact for fact, *_ in given], self.context)[layer].solve(K)
        solution = solve(K, X, weight=strength)
        update = LowRank(D.mT.float().contiguous(), solution.G.float())
        vectors = {"K": K, "H": solution.H, "X": X / strength, "D": D}
        named = {f"{name}/{kind}": value.float() for kind, value in vectors.items()}
        return Batch(Proposal({name: update}, named), self.outcomes, [len(K) for _, K, _ in given])


@dataclass(frozen=True)
class _OfSubject(NoHistory):
    """The facts of one subject that are solved for already."""

    facts: tuple[Fact, ...] = ()

    def of_subject(self, fact: Fact) -> tuple[Fact, ...]:
        return self.facts


def _renewed(editor: Editor, model: EditableModel, facts: Sequence[Fact], context: Context) -> _Single:
    """Every fact edited by itself on W₀; those of one subject one after another, since their keys are nearly one."""
    (layer,) = context.hparams.layers
    name = model.weight_name(layer)
    context = replace(context, hparams=context.hparams.model_copy(update={"history": False}))
    keys: list[Tensor | None] = [None] * len(facts)
    outputs: list[Tensor | None] = [None] * len(facts)
    outcomes: list[dict[str, float] | EditFailedError] = [{}] * len(facts)
    together: dict[str, list[int]] = {}
    for index, fact in enumerate(facts):
        together.setdefault(fact.subject_key, []).append(index)
    for indices in together.values():
        done: dict[int, Tensor] = {}
        held = LowRank.zeros(*model.weight(name).shape).to(model.device)
        for index in indices:
            earlier = tuple(facts[one] for one in done)
            try:
                with model.provisional({name: held}):
                    found = editor.propose(model, facts[index], replace(context, history=_OfSubject(earlier)))
            except EditFailedError as error:
                outcomes[index] = error
                continue
            held = held + found.updates[name]
            keys[index] = done[index] = torch.atleast_2d(found.vectors[f"{name}/K"]).cpu().double()
            outcomes[index] = dict(found.record)
        for index in done:
            outputs[index] = _output(done[index], held)
    return _Single(model, facts, context, keys, outputs, outcomes)


def _recorded_outputs(
    model: EditableModel, ledger: Ledger, kept: Sequence[tuple[int, Fact]], context: Context
) -> _Single:
    """What the ledger's sum answered at the keys of every edit, right after it; of a solve with history its target."""
    (layer,) = context.hparams.layers
    name = model.weight_name(layer)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    asked: list[int] = []  # edits whose target is not kept
    for event in ledger.live():
        keys, targets = ledger.vectors(event, "K")[name], ledger.vectors(event, "D")
        found[event.edit or 0] = keys.double(), targets.get(name, keys[:0]).double()
        asked += [] if name in targets else [event.edit or 0]
    for events, sums in ledger.replay(model).solves() if asked else ():
        for event in events:
            if event.edit in asked:
                K, _ = found[event.edit]
                found[event.edit] = K, _output(K, sums.of[name].factors)
    keys_of_all, outputs = zip(*(found[edit] for edit, _ in kept), strict=True)
    return _Single(model, [fact for _, fact in kept], context, keys_of_all, outputs, [{}] * len(kept))


def _output(keys: Float[Tensor, "n q"], update: LowRank) -> Float[Tensor, "n p"]:
    """ΔW k of every key, float64 on the CPU."""
    return keys @ update.B.cpu().double().mT @ update.A.cpu().double().mT


# --- how strong ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Restrained:
    """What the model carries of updates once the ledger's restraint acts on them."""

    model: EditableModel
    ledger: Ledger
    restraint: Constraint | None

    def of(self, updates: Mapping[str, LowRank]) -> dict[str, LowRank]:
        if self.restraint is None:
            return dict(updates)
        sums = Sums(self.ledger.replay(self.model).inputs)
        sums.add({name: update.to("cpu") for name, update in updates.items()})
        sums.restrain(self.restraint)
        return {name: held.factors.to(self.model.device) for name, held in sums.of.items()}


def _states(problem: _Problem, recorded: float, held: _Restrained) -> Iterator[tuple[float, Mapping[str, LowRank]]]:
    """Every strength that is tried, with what it is solved to."""
    for factor in _FACTORS:
        batch = problem.solve(recorded * factor)
        if batch.proposal is None:
            return
        yield recorded * factor, held.of(batch.proposal.updates)


def _attempts(kept: Sequence[tuple[int, Fact]], batch: Batch, words: str, seconds: float) -> list[Attempt]:
    found = attempts_of([fact for _, fact in kept], batch, {"seconds": seconds})
    return [
        replace(one, record={**one.record, "stands_for": edit}, reason=one.reason or words)
        for (edit, _), one in zip(kept, found, strict=True)
    ]


# --- how well it could be solved -------------------------------------------------------------------------------------


def _condition(
    model: EditableModel, ledger: Ledger, events: Sequence[Event], editor: Editor | BatchEditor, context: Context,
    strength: float,
) -> tuple[dict[str, float], tuple[Close, ...]]:  # fmt: skip
    """The condition number of λI + KᵀC⁻¹K by weight, and the edits of different subjects whose keys nearly are one."""
    condition: dict[str, float] = {}
    close: dict[tuple[int, int], Close] = {}
    edits = [event for event in events if event.kind == "edit" and event.fact is not None]
    rows = [event for event in edits for _ in range(event.columns or 1)]
    tensors = ledger.tensors(edits[0])
    share = equality_ridge(editor, context.hparams)
    with model.unedited():
        metrics = of_facts(model, [event.fact for event in edits if event.fact is not None], context)
    for layer, metric in metrics.items():
        name = model.weight_name(layer)
        K = torch.atleast_2d(tensors[f"{name}/K"]).double()
        gram = K @ metric.solve(K).mT
        gram = (gram + gram.mT) / 2
        values = torch.linalg.eigvalsh(gram) + ridge_of(gram, weight=strength, equality_ridge=share)
        condition[name] = float(values[-1] / values[0])
        X = of_model(context, layer).solve(K)
        near = cosines(K, X, K, X).triu(1)
        for i, j in (near > _CLOSE).nonzero().tolist():
            one, other = rows[i], rows[j]
            if one.fact and other.fact and one.fact.subject_key != other.fact.subject_key:
                pair = one.edit or 0, other.edit or 0
                found = Close(pair, (one.fact.subject, other.fact.subject), float(near[i, j]))
                close[pair] = max(found, close.get(pair, found), key=lambda each: each.cosine)
    return condition, tuple(sorted(close.values(), key=lambda each: -each.cosine)[:_NAMED])
