"""What the edits did: efficacy, generalization and locality of all facts edited so far.

Each fact is asked by its own prompt (efficacy), its paraphrases (generalization) and its locality prompts, whose
answers must not change; the files beside this one say by which metrics.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from tether.engine import LOCAL, Engine, split
from tether.errors import BadFactError
from tether.evaluation.measurement import Measurement
from tether.evaluation.metrics.base import BYSTANDER, INSTANCE, METRICS, Asked, Item, Metric
from tether.evaluation.metrics.bystanders import bystander_items
from tether.evaluation.scores import score
from tether.evaluation.statistics.mean import Number, Record
from tether.facts.bystanders import relation_of
from tether.facts.chat import render
from tether.facts.fact import Fact
from tether.facts.prompt import Turn
from tether.models.editable import EditableModel

NumberedFacts = Sequence[tuple[int, Fact]]
Frame = Callable[[str | Turn], str]
Summary = dict[str, dict[str, Number]]  # reported name -> kind -> a mean
Baseline = Mapping[str, Mapping[Any, Any]]  # metric -> what the unedited model says to its questions


@dataclass(frozen=True)
class EditingResult:
    """`summary`: reported name -> kind -> a mean with n, stderr and prompts. `recent`: the same of the last facts
    alone, None where there are no others. `relations`: the same of the facts of every relation, where several facts
    share one and there are others; else None. `retention`: (edit, percent) for every edit's own prompt, by the first
    metric that applies to it. `records`: one an item and reported name."""

    summary: Summary
    recent: Summary | None
    relations: dict[str, Summary] | None
    retention: list[tuple[int, float]]
    records: list[Record]


def evaluate_editing(
    model: EditableModel,
    facts: NumberedFacts,
    measurement: Measurement | None = None,
    *,
    baseline: Baseline | None = None,
    frame: Frame | None = None,
    engine: Engine = LOCAL,
) -> EditingResult:
    """Measure the model as it is now on `facts`, each with its edit number. The model is unchanged. `frame` gives the
    text in which it is asked a prompt, where that is more than the prompt's own.

    `baseline`, from `measure_baseline`, says what the unedited model says. Without it, or where it lacks a prompt, that
    is measured here, on the model without the updates it carries. A model that carries none may have been edited
    before it was loaded: without a baseline the numbers that compare with the unedited model are left out. An `engine`
    with workers shares out the facts (not under a `frame`), and the records then stand in other order.
    """
    what = measurement or Measurement()
    metrics = _applying(what, model, facts)
    items = _items(model, facts, what, metrics)
    known = baseline is not None or bool(model.edited)
    unedited = {
        metric.name: _completed(metric, model, _asked(metric, items), baseline or {}, engine) if known else None
        for metric in metrics
    }
    if frame is not None or engine.parts == 1:
        measured = [_measured(what, frame, model, (items, unedited))]
    else:
        measured = list(engine.map(partial(_measured, what, None), _parts(facts, items, unedited, engine.parts), model))
    relations = _relations(facts)
    last = {edit for edit, _ in facts[-what.recent :]} if len(facts) > what.recent else set()
    summary: Summary = {}
    recent: Summary = {}
    by_relation: dict[str, Summary] = {name: {} for name in dict.fromkeys(relations.values())}
    records: list[Record] = []
    held: dict[int, float] = {}  # by the first metric that applies to an edit
    for metric in metrics:
        found = [record for part in measured for record in part[metric.name]]
        left_out = frozenset() if known else metric.against_unedited
        kinds = {name: tuple(kind for kind in its if kind not in left_out) for name, its in metric.reports.items()}
        kinds = {name: its for name, its in kinds.items() if its}
        summary |= metric.summary(found, kinds)
        recent |= metric.summary([record for record in found if record["edit"] in last], kinds) if last else {}
        groups: defaultdict[str | None, list[Record]] = defaultdict(list)
        for record in found:
            groups[relations.get(record["edit"])].append(record)
        for name, so_far in by_relation.items():
            so_far |= metric.summary(groups[name], kinds)
        records += found
        for record in found:
            if record["metric"] == metric.holds and record["kind"] == "efficacy":
                held.setdefault(record["edit"], 100 * record["value"])
    retention = [(edit, held[edit]) for edit, _ in facts if edit in held]
    return EditingResult(summary, recent or None, by_relation or None, retention, records)


_Part = tuple[Sequence[Item], Mapping[str, Mapping[Any, Any] | None]]


def _parts(
    facts: NumberedFacts, items: Sequence[Item], unedited: Mapping[str, Mapping[Any, Any] | None], parts: int
) -> list[_Part]:
    """The items of some facts at a time, and by metric what the unedited model says to their questions."""
    found: list[_Part] = []
    for some in split(facts, parts):
        edits = {edit for edit, _ in some}
        own = [item for item in items if item.edit in edits]
        known = {
            name: its and {question: its[question] for question in METRICS[name].questions(_asked(METRICS[name], own))}
            for name, its in unedited.items()
        }
        found.append((own, known))
    return found


def _measured(what: Measurement, frame: Frame | None, model: EditableModel, part: _Part) -> dict[str, list[Record]]:
    """The records of some items by metric, of the model as it is now."""
    items, unedited = part
    metrics = [METRICS[name] for name in unedited]
    asking = frame or partial(render, model.tokenizer)
    wanted = (pair for metric in metrics for item in _asked(metric, items) for pair in metric.pairs(item))
    pairs = list(dict.fromkeys(wanted))
    texts = {item.prompt: asking(item.asked) for item in items} if frame else {}
    framed = [(texts.get(prompt, prompt), answer) for prompt, answer in pairs]
    scores = dict(zip(pairs, score(model, framed, join=""), strict=True))
    generated: dict[tuple[str, int], str] = {}
    return {
        metric.name: metric.measure(
            Asked(model, _asked(metric, items), scores, unedited[metric.name], what, asking, generated)
        )
        for metric in metrics
    }


def measure_baseline(
    model: EditableModel, facts: NumberedFacts, measurement: Measurement | None = None, *, engine: Engine = LOCAL
) -> Baseline:
    """What the metrics need of the unedited model, to be measured once for many checkpoints. Updates that the model
    carries are taken off meanwhile."""
    what = measurement or Measurement()
    metrics = _applying(what, model, facts)
    items = _items(model, facts, what, metrics)
    return {metric.name: _completed(metric, model, _asked(metric, items), {}, engine) for metric in metrics}


def _applying(what: Measurement, model: EditableModel, facts: NumberedFacts) -> list[Metric]:
    own, metrics = [fact for _, fact in facts], [METRICS[name] for name in what.metrics]
    return [metric for metric in metrics if metric.missing(model, own, what) is None]


def _relations(facts: NumberedFacts) -> dict[int, str]:
    """The relation of every edit, where there are several and facts that share them; else nothing."""
    found = {edit: relation_of(fact) for edit, fact in facts}
    return found if 2 <= len(set(found.values())) <= len(found) // 2 else {}


def applying(what: Measurement, model: EditableModel, facts: Sequence[Fact]) -> tuple[str, ...]:
    """The metrics of `what` that can be measured on some of the facts. Raises BadFactError where none can."""
    missing = {name: METRICS[name].missing(model, facts, what) for name in what.metrics}
    found = tuple(name for name, why in missing.items() if why is None)
    if not found:
        raise BadFactError(next(why for why in missing.values() if why is not None))
    return found


def _items(model: EditableModel, facts: NumberedFacts, what: Measurement, metrics: Sequence[Metric]) -> list[Item]:
    items = []
    for edit, fact in facts:
        new, true = fact.target_new, fact.target_true
        asked: list[tuple[str, str | Turn, str | None, str | None]] = [("efficacy", fact.asked[0], new, true)]
        asked += [("generalization", prompt, new, true) for prompt in fact.paraphrases[: what.max_paraphrases]]
        asked += [("locality", near.prompt, near.target, new) for near in fact.locality[: what.max_locality]]
        asked += [(follows.kind, follows.prompt, follows.target, None) for follows in fact.portability]
        asked += [(INSTANCE, prompt, None, None) for prompt in fact.instances]
        for kind, prompt, answer, other in asked:
            text = render(model.tokenizer, prompt)
            wanted, unwanted = (None if one is None else fact.continuation(text, one) for one in (answer, other))
            turn = prompt if isinstance(prompt, Turn) else None
            items.append(Item(edit, fact, kind, text, wanted, unwanted, turn))
    if any(BYSTANDER in metric.asks for metric in metrics):
        items += bystander_items(model, facts, what)
    return items


def _asked(metric: Metric, items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item.kind in metric.asks]


def _completed(
    metric: Metric, model: EditableModel, items: Sequence[Item], baseline: Baseline, engine: Engine
) -> Mapping[Any, Any]:
    """The unedited model's answers to all questions of a metric: those of `baseline`, and what it lacks."""
    known = baseline.get(metric.name, {})
    missing = [question for question in metric.questions(items) if question not in known]
    if not missing:
        return known
    with model.unedited():
        parts = engine.map(partial(_answers, metric.name), split(missing, engine.parts), model)
        return {**known, **dict(chain.from_iterable(part.items() for part in parts))}


def _answers(metric: str, model: EditableModel, questions: Sequence[Any]) -> Mapping[Any, Any]:
    return METRICS[metric].answers(model, questions)
