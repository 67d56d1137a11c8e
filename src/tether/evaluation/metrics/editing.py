"""What the edits did: efficacy, generalization and locality of all facts edited so far.

Each fact is asked by its own prompt (efficacy), its paraphrases (generalization) and its locality prompts, whose
answers must not change. The metrics, by what they compare:

- `compare`: P(target_new) > P(target_true), and on a locality prompt P(its answer) > P(target_new); P is the
  length-normalised teacher-forced likelihood of the words after a space.
- `match_tokens`, `match_all`: the share of target tokens that are the argmax, teacher-forced, and whether all are; on a
  locality prompt of its answer's tokens. `locality_unchanged`: of the argmax tokens, those that are the unedited
  model's on the same text; where a locality prompt has no answer, the one token next to it.
- `generate`: the greedy continuation contains the target, as whole words and whatever its case, before its first
  sentence ends (by . ! ? before a space or the end, or by a line's end; leading blanks do not count).
- `instance_change`: see `tether.evaluation.metrics.instances`; of the facts that have instance prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tether.errors import TetherError
from tether.evaluation.metrics.instances import INSTANCE_CHANGE, Answers, instance_answers, instance_change
from tether.evaluation.scores import Score, greedy, score
from tether.evaluation.statistics.mean import Measure, Record, measure
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

METRICS = ("compare", "match", "generate", INSTANCE_CHANGE)
KINDS = ("efficacy", "generalization", "locality")
_GENERATED_TOKENS = 20  # at least; a longer target is given room

Pair = tuple[str, str]
Argmax = Mapping[Pair, tuple[int, ...]]  # (prompt, continuation) -> the unedited model's argmax ids


@dataclass(frozen=True)
class Baseline:
    """What the unedited model says: on locality prompts, and to instance prompts."""

    argmax: Argmax
    answers: Answers


@dataclass(frozen=True)
class EditingResult:
    """`summary`: metric -> kind (efficacy, …; of instance_change before, after, change) -> value, n, stderr, prompts.
    `retention`: (edit, percent)
    for every edit's own prompt, by `compare` where it applies, else `match_all`, else `generate`. `records`: one an
    item and metric, `value` from 0 to 1 (instance_change: −1 to 1)."""

    summary: dict[str, dict[str, Measure]]
    retention: list[tuple[int, float]]
    records: list[Record]


@dataclass(frozen=True)
class _Item:
    """A prompt of a fact: `answer` is what it should be answered with, `other` what it should not."""

    edit: int
    fact: Fact
    kind: str
    prompt: str
    answer: str | None
    other: str | None

    @property
    def pairs(self) -> list[Pair]:
        return [(self.prompt, text) for text in (self.answer, self.other) if text is not None]

    @property
    def stable(self) -> Pair:
        """The text on which a locality prompt's argmax is held against the unedited model's."""
        return self.prompt, self.answer or self.fact.target_new

    def record(self, metric: str, value: float, kind: str | None = None, **more: object) -> Record:
        return {
            "edit": self.edit,
            "fact": self.fact.id,
            "metric": metric,
            "kind": kind or self.kind,
            "prompt": self.prompt,
            "target": self.answer,
            "value": float(value),
            **more,
        }


def evaluate_editing(
    model: EditableModel,
    facts: Sequence[tuple[int, Fact]],
    *,
    baseline: Baseline | None = None,
    metrics: Sequence[str] = METRICS,
    max_paraphrases: int | None = None,
    max_locality: int | None = None,
) -> EditingResult:
    """Measure the model as it is now on `facts`, each with its edit number.

    `metrics` from METRICS; the limits take the first prompts of every fact. `baseline`, from `measure_baseline`, saves
    the unedited model's forwards; without it, or where it lacks a prompt, they are made here. The model is unchanged.
    All teacher-forced metrics share the forwards of one `score` call.
    """
    check_metrics(metrics)
    items = _items(facts, max_paraphrases, max_locality)
    records: list[Record] = []
    if "compare" in metrics or "match" in metrics:
        pairs = list(dict.fromkeys(pair for item in items for pair in item.pairs))
        scores = dict(zip(pairs, score(model, pairs), strict=True))
        if "compare" in metrics:
            records += _compare(items, scores)
        if "match" in metrics:
            records += _match(items, scores) + _unchanged(items, scores, _complete(model, items, scores, baseline))
    if "generate" in metrics:
        records += _generate(model, items)
    names = [name for name in ("compare", "match_tokens", "match_all", "generate") if name.split("_")[0] in metrics]
    summary = {name: _summary(name, records) for name in names}
    if INSTANCE_CHANGE in metrics:
        after = instance_answers(model, facts)
        summary[INSTANCE_CHANGE], changes = instance_change(
            facts, _answers_before(model, facts, after, baseline), after
        )
        records += changes
    return EditingResult(summary, _retention(facts, records), records)


def measure_baseline(
    model: EditableModel,
    facts: Sequence[tuple[int, Fact]],
    *,
    metrics: Sequence[str] = METRICS,
    max_locality: int | None = None,
) -> Baseline:
    """What `metrics` need of the unedited model, to be measured once for many checkpoints: its argmax on the locality
    prompts of `facts`, its answers to their instance prompts."""
    check_metrics(metrics)
    items = _items(facts, 0, max_locality) if "match" in metrics else []
    argmax = _unedited(model, [item.stable for item in items if item.kind == "locality"])
    return Baseline(argmax, _unedited_answers(model, facts) if INSTANCE_CHANGE in metrics else {})


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise TetherError unless `metrics` are some of METRICS."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise TetherError(f"{', '.join(unknown) or 'nothing'} is no editing metric: choose from {', '.join(METRICS)}")


def applying(metrics: Sequence[str], facts: Iterable[Fact]) -> tuple[str, ...]:
    """`metrics` without instance_change where no fact has instance prompts. Raises TetherError where none is left."""
    has_instances = any(fact.instances for fact in facts)
    found = tuple(name for name in metrics if name != INSTANCE_CHANGE or has_instances)
    if metrics and not found:
        raise TetherError(
            "instance_change needs instance prompts, and no fact has any: name facts with `instances`, such as "
            "ConceptEdit's, or another metric"
        )
    return found


def _items(facts: Sequence[tuple[int, Fact]], max_paraphrases: int | None, max_locality: int | None) -> list[_Item]:
    items = []
    for edit, fact in facts:
        items.append(_Item(edit, fact, "efficacy", fact.text, fact.target_new, fact.target_true))
        for prompt in fact.paraphrases[:max_paraphrases]:
            items.append(_Item(edit, fact, "generalization", prompt, fact.target_new, fact.target_true))
        for near in fact.locality[:max_locality]:
            items.append(_Item(edit, fact, "locality", near.prompt, near.target, fact.target_new))
    return items


def _compare(items: Sequence[_Item], scores: Mapping[Pair, Score]) -> list[Record]:
    records = []
    for item in items:
        if item.answer is not None and item.other is not None:
            answer, other = (scores[pair].mean for pair in item.pairs)
            records.append(
                item.record("compare", answer > other, log_likelihood=answer, against=item.other, other=other)
            )
    return records


def _match(items: Sequence[_Item], scores: Mapping[Pair, Score]) -> list[Record]:
    records = []
    for item in items:
        if item.answer is not None:
            correct = scores[item.prompt, item.answer].argmax_correct
            records.append(item.record("match_tokens", sum(correct) / len(correct), n_tokens=len(correct)))
            records.append(item.record("match_all", all(correct)))
    return records


def _unchanged(items: Sequence[_Item], scores: Mapping[Pair, Score], baseline: Argmax) -> list[Record]:
    records = []
    for item in items:
        if item.kind == "locality":
            read = None if item.answer is not None else 1
            now, before = scores[item.stable].argmax_ids[:read], baseline[item.stable][:read]
            same = [a == b for a, b in zip(now, before, strict=True)]
            kind = "locality_unchanged"
            records.append(item.record("match_tokens", sum(same) / len(same), kind, n_tokens=len(same)))
            records.append(item.record("match_all", all(same), kind))
    return records


def _complete(
    model: EditableModel, items: Sequence[_Item], scores: Mapping[Pair, Score], baseline: Baseline | None
) -> Argmax:
    """The argmax of `baseline` with whatever it lacks for `items`."""
    wanted = dict.fromkeys(item.stable for item in items if item.kind == "locality")
    if not model.edited:
        return {pair: scores[pair].argmax_ids for pair in wanted}
    known = baseline.argmax if baseline else {}
    missing = [pair for pair in wanted if pair not in known]
    return {**known, **_unedited(model, missing)} if missing else known


def _unedited(model: EditableModel, pairs: Sequence[Pair]) -> dict[Pair, tuple[int, ...]]:
    with model.unedited():
        return {pair: found.argmax_ids for pair, found in zip(pairs, score(model, pairs), strict=True)}


def _answers_before(
    model: EditableModel, facts: Sequence[tuple[int, Fact]], after: Answers, baseline: Baseline | None
) -> Answers:
    if not model.edited:
        return after
    known = baseline.answers if baseline else {}
    missing = [(edit, fact) for edit, fact in facts if not known.keys() >= set(fact.instances)]
    return {**known, **_unedited_answers(model, missing)} if missing else known


def _unedited_answers(model: EditableModel, facts: Sequence[tuple[int, Fact]]) -> Answers:
    with model.unedited():
        return instance_answers(model, facts)


def _generate(model: EditableModel, items: Sequence[_Item]) -> list[Record]:
    asked = [item for item in items if item.answer is not None]
    if not asked:
        return []
    answers = list(dict.fromkeys(f" {item.answer}" for item in asked))
    longest = max(len(ids) for ids in model.tokenizer(answers, add_special_tokens=False)["input_ids"])
    texts = greedy(model, [item.prompt for item in asked], max(_GENERATED_TOKENS, longest + 4))
    return [
        item.record("generate", says(text, item.answer or ""), continuation=text)
        for item, text in zip(asked, texts, strict=True)
    ]


def says(continuation: str, target: str) -> bool:
    """Whether a continuation contains the target, as whole words, whatever the case, before its first sentence ends.

    A sentence ends with . ! or ? before white space or the end of the text, and with a line. Blanks and line ends
    before the first word do not count, and what the target itself contains ("St. Petersburg") ends nothing.
    """
    text = continuation.lstrip()
    words = r"\s+".join(re.escape(word) for word in target.split())
    found = re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE)
    return found is not None and re.search(r"[.!?](?=\s)|\n", text[: found.start()]) is None


def _summary(metric: str, records: Sequence[Record]) -> dict[str, Measure]:
    kinds = (*KINDS, "locality_unchanged") if metric.startswith("match") else KINDS
    mine = [record for record in records if record["metric"] == metric]
    return {kind: measure(record for record in mine if record["kind"] == kind) for kind in kinds}


def _retention(facts: Sequence[tuple[int, Fact]], records: Sequence[Record]) -> list[tuple[int, float]]:
    values: dict[int, float] = {}
    for metric in ("compare", "match_all", "generate"):
        for record in records:
            if record["metric"] == metric and record["kind"] == "efficacy":
                values.setdefault(record["edit"], 100 * record["value"])
    return [(edit, values[edit]) for edit, _ in facts if edit in values]
