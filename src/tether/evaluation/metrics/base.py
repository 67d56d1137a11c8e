"""What an editing metric is, and the names of those that can be measured.

A metric asks prompts of the edited facts and gives a record an item. Its class says all else that is to be known of it,
so a metric is one file and one registration.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tether.errors import BadSettingsError, TetherError
from tether.evaluation.scores import Score, greedy
from tether.evaluation.statistics.mean import Number, Record, measure
from tether.facts.bystanders import relation_of
from tether.facts.fact import Fact
from tether.facts.prompt import Turn
from tether.models.editable import EditableModel
from tether.plugins import Registry

if TYPE_CHECKING:
    from tether.evaluation.measurement import Measurement

logger = logging.getLogger(__name__)

KINDS = ("efficacy", "generalization", "locality")
INSTANCE = "instance"  # the kind of an instance prompt
BYSTANDER = "bystander"  # the kind of a fact's own prompt asked of another subject

Pair = tuple[str, str]  # prompt, continuation


@dataclass(frozen=True)
class Item:
    """A prompt of a fact, of one of KINDS, INSTANCE, BYSTANDER or a kind of portability: `answer` is what it should be
    answered with, `other` what it should not, each with what stands between the prompt and it; None where the fact does
    not say. `prompt` is the text that a model reads; `turn`: the chat turn that the template made it of, if any.
    """

    edit: int
    fact: Fact
    kind: str
    prompt: str
    answer: str | None = None
    other: str | None = None
    turn: Turn | None = None

    @property
    def asked(self) -> str | Turn:
        """The prompt before it was rendered."""
        return self.prompt if self.turn is None else self.turn

    def record(self, metric: str, value: float, *, kind: str | None = None, **more: object) -> Record:
        """One measured item; `metric` and `kind` are as reported, `value` is from 0 to 1 (a change: from −1)."""
        asked = {"edit": self.edit, "fact": self.fact.id, "relation": relation_of(self.fact)}
        asked |= {"metric": metric, "kind": kind or self.kind}
        target = {} if self.kind == INSTANCE else {"target": self.answer and self.answer.strip()}
        return {**asked, "prompt": self.prompt, **target, "value": float(value), **more}


@dataclass(frozen=True)
class Asked:
    """One measurement of a metric: the model as it is now, the items, the scores of all `pairs`, and the unedited
    model's answers to all `questions`; None where that model is not known. `what` is measured, and `frame` gives the
    text in which the model now is asked a prompt."""

    model: EditableModel
    items: Sequence[Item]
    scores: Mapping[Pair, Score]
    unedited: Mapping[Any, Any] | None
    what: Measurement
    frame: Callable[[str | Turn], str]
    generated: dict[tuple[str, int], str] = field(default_factory=dict)  # shared by all metrics of a measurement

    def greedy(self, prompts: Sequence[str | Turn], tokens: int) -> list[str]:
        """The greedy continuation of every prompt by the model as it is now. What another metric asked is not asked
        again."""
        texts = [self.frame(prompt) for prompt in prompts]
        missing = list(dict.fromkeys(text for text in texts if (text, tokens) not in self.generated))
        if missing:
            found = zip(missing, greedy(self.model, missing, tokens), strict=True)
            self.generated.update({(text, tokens): said for text, said in found})
        return [self.generated[text, tokens] for text in texts]


class Metric(ABC):
    """An editing metric, `name` being that of the registry. It keeps nothing between calls.

    `asks`: the kinds of items that it is given. `reports`: its names in results, each with its kinds.
    `against_unedited`: kinds that compare with the unedited model; they are left out where it is not known. `tested`:
    reported names that `tether compare` tests, fact by fact. `columns`: reported (name, kind) that a table shows.
    `holds`: the reported name whose efficacy says whether an edit still holds.
    """

    name: ClassVar[str]
    asks: ClassVar[tuple[str, ...]] = KINDS
    reports: ClassVar[Mapping[str, tuple[str, ...]]]
    against_unedited: ClassVar[frozenset[str]] = frozenset()
    tested: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[tuple[str, str], ...]] = ()
    holds: ClassVar[str | None] = None

    def missing(self, model: EditableModel, facts: Sequence[Fact], what: Measurement) -> str | None:
        """What the model, the facts or the settings lack for this metric, as a sentence; None where it can be measured
        on some of the facts."""
        return None

    def pairs(self, item: Item) -> Sequence[Pair]:
        """What is scored, teacher-forced, for an item; all metrics share one call of `score`."""
        return ()

    def questions(self, items: Iterable[Item]) -> Sequence[Hashable]:
        """What must be known of the unedited model."""
        return ()

    def answers(self, model: EditableModel, questions: Sequence[Any]) -> Mapping[Any, Any]:
        """What the model as it is now says to each of `questions`. It is not changed."""
        return {}

    @abstractmethod
    def measure(self, asked: Asked) -> list[Record]:
        """A record for every item the metric applies to. The model is not changed. The items may be those of some of
        the facts alone: an engine with workers asks each of them about a part."""

    def settings(self, what: Measurement) -> Mapping[str, Any]:
        """The settings that this metric's numbers depend on besides its name, as results hold them."""
        return {}

    def summary(self, records: Sequence[Record], kinds: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Number]]:
        """The mean of every reported name and kind in `kinds`, from this metric's own records."""
        return {
            name: {
                kind: measure(one for one in records if (one["metric"], one["kind"]) == (name, kind)) for kind in its
            }
            for name, its in kinds.items()
        }

    def note(self, numbers: Mapping[str, Mapping[str, Number]]) -> str | None:
        """What a reader of a row's numbers must know besides (by reported name and kind); None for nothing."""
        return None


METRICS: Registry[Metric] = Registry(
    "tether.metrics", "editing metric", Metric, {
        "compare": "tether.evaluation.metrics.prefers_new:METRIC",
        "match": "tether.evaluation.metrics.match:METRIC",
        "generate": "tether.evaluation.metrics.generate:METRIC",
        "generate_chat": "tether.evaluation.metrics.generate_chat:METRIC",
        "portability": "tether.evaluation.metrics.portability:METRIC",
        "instance_change": "tether.evaluation.metrics.instance_change:METRIC",
        "bystanders": "tether.evaluation.metrics.bystanders:METRIC",
        "judge": "tether.evaluation.metrics.judge:METRIC",
    },
)  # fmt: skip


def default_metrics() -> tuple[str, ...]:
    """The metrics that are measured unless told otherwise: those that come with tether."""
    return tuple(name for name in METRICS if METRICS.source(name) == "tether")


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise BadSettingsError unless `metrics` are some of METRICS."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        wrong = ", ".join(unknown) or "nothing"
        raise BadSettingsError(f"{wrong} is no editing metric: choose from {', '.join(METRICS)}")


def reported_by(names: Iterable[str]) -> dict[str, Metric]:
    """The metric that reports each of `names`, in the order of the registry. Names that no metric reports any more are
    left out. The metrics of other packages are loaded only where those of tether do not report all."""
    wanted = set(names)
    found: dict[str, Metric] = {}
    for name in METRICS:
        if not wanted:
            break
        try:
            metric = METRICS[name]
        except TetherError as error:  # a package that is damaged says nothing of results that are there
            logger.warning("%s", error)
            continue
        found |= {reported: metric for reported in metric.reports if reported in wanted}
        wanted -= metric.reports.keys()
    return found
