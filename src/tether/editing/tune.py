"""Settings for a model that no data file describes, proposed from a small set of probe facts.

    found = tether.tune(model, facts, method="memit", corpus="text.txt")
    Path("settings.json").write_text(json.dumps(found.settings))

Every trial edits the probe facts into the unedited model and measures them; one setting is varied at a time, the layers
first. A trial that is not better than the settings before it by two standard errors, fact by fact, does not replace
them; the leader of several tried is compared as if it were the only one, so "sure" is a rule of thumb.
"""

import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tether.editing.plan import DEFAULT_METHOD, EditPlan, Schedule
from tether.editing.run import edit
from tether.editors import BatchEditor, editor
from tether.editors.corpus import SELF, Corpus
from tether.editors.moments import moments
from tether.editors.registry import EDITORS
from tether.editors.settings import LatentHparams, settings_for
from tether.errors import BadSettingsError, TetherError
from tether.evaluation.abilities.perplexity import builtin_text, perplexity
from tether.evaluation.measurement import Measurement
from tether.evaluation.metrics.base import KINDS
from tether.evaluation.metrics.editing import evaluate_editing
from tether.evaluation.statistics.paired import Paired, paired
from tether.facts.fact import Fact
from tether.models.editable import EditableModel
from tether.storage.atomic import write_atomically

logger = logging.getLogger(__name__)

DEPTHS = (0.1, 0.17, 0.25, 0.35, 0.5)  # where in the model layers are tried
WEIGHTS = (50.0, 200.0, 1000.0, 5000.0, 15000.0)  # λ
STEPS = (1.5,)  # times the steps of the settings so far
VARIED = ("layers", "mom2_update_weight", "v_num_grad_steps", "clamp_norm_factor")  # what is tried, in this order
NOTHING = 0.1  # points of score that rounding alone can make
CLAMPS = (0.5, 0.2)  # times the clamp of the settings so far


@dataclass(frozen=True)
class Trial:
    """One set of settings on the probe facts. `scores` has one entry a fact, in percent: the mean of efficacy (share of
    target tokens said), generalization and locality (`compare` where the facts allow it), times the share of the
    unedited perplexity that is kept (at most 1)."""

    what: str
    settings: dict[str, Any]
    scores: tuple[float, ...]
    efficacy: float | None
    generalization: float | None
    locality: float | None
    perplexity_ratio: float
    seconds: float

    @property
    def score(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Tuned:
    """`settings` is what a settings file holds; `trials` everything tried; `verdicts` says, setting by setting, what
    was chosen and how sure that is."""

    method: str
    settings: dict[str, Any]
    trials: tuple[Trial, ...]
    verdicts: tuple[str, ...]


def tune(
    model: EditableModel, facts: Sequence[Fact], *, method: str = DEFAULT_METHOD,
    settings: Path | Mapping[str, Any] | None = None, vary: Sequence[str] = VARIED, corpus: str | Path | None = None,
    batch_size: int | None = None, seed: int = 0, progress: Callable[[Trial], None] | None = None,
) -> Tuned:  # fmt: skip
    """Propose layers, λ (memit, emmet), steps and clamp for a method on a model, from probe facts (a dozen or more,
    with paraphrases and locality prompts if possible).

    `settings` go over the bundled ones (or the rule's) at the start; `vary` names those to try, in the order of VARIED.
    `batch_size` None: all facts in one batch where the method can. The model must be unedited, and is unedited again
    afterwards. Raises TetherError where no trial could edit a fact.
    """
    if model.edited:
        raise TetherError("the model carries edits already: load it again to tune")
    if len(facts) < 2:
        raise TetherError(f"{len(facts)} probe facts: a standard error needs two, a sound choice a dozen or more")
    unknown = sorted(set(vary) - set(VARIED))
    if unknown or not vary:
        raise BadSettingsError(f"vary {', '.join(unknown) or 'nothing'}: choose from {', '.join(VARIED)}")
    batched = isinstance(editor(method), BatchEditor)
    if not issubclass(EDITORS[method].settings, LatentHparams):
        raise BadSettingsError(
            f"{method} has no settings to find on probe facts: write them into a settings file, or train its editor "
            "(tether train-mend makes MEND's)"
        )
    schedule = Schedule(batch_size=batch_size or (len(facts) if batched else 1), health=0)
    start, origin = settings_for(method, model, given=settings)
    there = [name for name in vary if name in start.used()]
    if not there:
        raise BadSettingsError(f"vary {', '.join(vary)}: {method} has no such setting; choose from {', '.join(VARIED)}")
    layers = _layers(start, model.n_layers)
    needed = {*start.layers, *(itertools.chain(*layers) if "layers" in vary else ())}
    moments(model, sorted(needed), Corpus.parse(corpus or SELF, seed=seed))
    plan = EditPlan(method=method, corpus=corpus or SELF, seed=seed)
    probe = _Probe(model, facts, plan, schedule, progress)
    values: Mapping[str, Callable[[Any], Sequence[Any]]] = {  # what to try beside a setting's value so far
        "layers": lambda now: layers,
        "mom2_update_weight": lambda now: WEIGHTS,
        "v_num_grad_steps": lambda now: [round(factor * now) for factor in STEPS],
        "clamp_norm_factor": lambda now: [factor * now for factor in CLAMPS],
    }
    verdicts: list[str] = []
    try:  # one setting after another, each with those chosen so far
        best = probe.run(f"start: {origin}", json.loads(start.model_dump_json()))
        for setting in [name for name in values if name in there]:
            now = best.settings[setting]
            others = [value for value in values[setting](now) if value != now]
            tried = [probe.run(f"{setting} {_written(value)}", {**best.settings, setting: value}) for value in others]
            if not tried:
                continue
            leader = max(tried, key=lambda trial: trial.score)
            against = paired(leader.scores, best.scores)
            verdicts.append(_verdict(setting, leader, best, against))
            best = leader if better(against) else best
    finally:
        model.clear_updates()
    if len(probe.failures) == len(probe.trials):
        raise TetherError(f"no trial could edit a probe fact; the last one: {probe.failures[-1]}")
    return Tuned(method, best.settings, tuple(probe.trials), tuple(verdicts))


def _layers(start: LatentHparams, n_layers: int) -> list[list[int]]:
    """As many layers as the settings have, ending at each of DEPTHS."""
    width = len(start.layers)
    lasts = sorted({min(max(width - 1, round(depth * n_layers)), max(0, n_layers - 2)) for depth in DEPTHS})
    return [list(range(max(0, last - width + 1), last + 1)) for last in lasts]


def _verdict(setting: str, leader: Trial, best: Trial, against: Paired) -> str:
    """Whether the leader replaces the best so far, and how sure that is."""
    before, after = (_written(trial.settings[setting]) for trial in (best, leader))
    compared = (
        f"{leader.what} scores {against.difference:+.1f} ± {against.stderr:.1f} against it, n = {against.n} facts"
    )
    if better(against):
        return f"{setting} {after} chosen over {before}: {compared}"
    return f"{setting} {before} kept: {compared} (not more than two standard errors)"


def _written(value: Any) -> str:
    return f"{value[0]}-{value[-1]}" if isinstance(value, list) and len(value) > 1 else str(value)


def better(found: Paired) -> bool:
    """Whether the first is, by more than two standard errors and than rounding."""
    return found.difference > max(2 * (found.stderr or 0.0), NOTHING)


@dataclass
class _Probe:
    """Edits the probe facts with some settings, and measures."""

    model: EditableModel
    facts: Sequence[Fact]
    plan: EditPlan
    schedule: Schedule
    progress: Callable[[Trial], None] | None
    trials: list[Trial] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start = perplexity(self.model, builtin_text()).value

    def run(self, what: str, settings: dict[str, Any]) -> Trial:
        """One trial; the model carries its edits afterwards."""
        started = time.monotonic()
        self.model.clear_updates()
        plan = self.plan.model_copy(update={"settings": settings})
        with tempfile.TemporaryDirectory() as folder:
            ledger = edit(self.model, self.facts, out=Path(folder) / "ledger", plan=plan, schedule=self.schedule)
            if all(event.kind == "failed" for event in ledger.events):
                self.failures.append(f"{what}: {ledger.events[0].reason}")
                logger.warning("no probe fact could be edited by %s", self.failures[-1])
        found = evaluate_editing(self.model, list(enumerate(self.facts)), Measurement(metrics=("compare", "match")))
        ratio = perplexity(self.model, builtin_text()).value / self.start
        scores = tuple(min(1.0, 1 / ratio) * score for score in _scores(found.records, len(self.facts)))
        efficacy, generalization, locality = (_mean(found.summary, kind) for kind in KINDS)
        seconds = time.monotonic() - started
        trial = Trial(what, settings, scores, efficacy, generalization, locality, ratio, seconds)
        self.trials.append(trial)
        if self.progress:
            self.progress(trial)
        return trial


def _mean(summary: Any, kind: str) -> float | None:
    value: float | None = None if kind == "efficacy" else summary["compare"][kind].value
    return summary["match_tokens"][kind].value if value is None else value


def _scores(records: Iterable[Mapping[str, Any]], facts: int) -> Iterator[float]:
    """A fact's mean over the kinds it has prompts for: `compare` where it allows it, else `match_tokens`."""
    values: dict[tuple[int, str, str], list[float]] = {}
    for record in records:
        values.setdefault((record["edit"], record["kind"], record["metric"]), []).append(100 * record["value"])
    for index in range(facts):
        means = []
        for kind in KINDS:
            compared = None if kind == "efficacy" else values.get((index, kind, "compare"))
            found = compared or values.get((index, kind, "match_tokens"))
            if found:
                means.append(math.fsum(found) / len(found))
        yield math.fsum(means) / len(means)


def write_settings(tuned: Tuned, path: str | Path) -> None:
    """A settings file for `tether edit --settings`, written whole or not at all."""
    EDITORS[tuned.method].settings.model_validate(tuned.settings)
    write_atomically(Path(path), (json.dumps(tuned.settings, indent=2) + "\n").encode())
