"""Settings for a model that no data file describes, proposed from a small set of probe facts.

    found = tether.tune(model, facts, method="memit", corpus="text.txt")
    Path("settings.json").write_text(json.dumps(found.settings))

Every trial edits the probe facts into the unedited model and measures them; one setting is varied at a time, the layers
first. A trial that is not better than the settings before it by two standard errors, fact by fact, does not replace
them; the leader of several tried is compared as if it were the only one, so "sure" is a rule of thumb.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tether.editing.run import edit
from tether.editors import BatchEditor, editor
from tether.editors.corpus import Corpus
from tether.editors.moments import moments
from tether.editors.registry import EDITORS
from tether.editors.settings import LatentHparams, settings_for
from tether.errors import TetherError
from tether.evaluation.abilities.perplexity import builtin_text, perplexity
from tether.evaluation.metrics.editing import evaluate_editing
from tether.evaluation.statistics.paired import Paired, paired
from tether.facts.fact import Fact
from tether.models.editable import EditableModel
from tether.storage.atomic import write_atomically

logger = logging.getLogger(__name__)

Rounds = Sequence[tuple[str, list[dict[str, Any]]]]  # (setting, what to try); a function is of those chosen so far

DEPTHS = (0.1, 0.17, 0.25, 0.35, 0.5)  # where in the model layers are tried
WEIGHTS = (50.0, 200.0, 1000.0, 5000.0, 15000.0)  # λ
STEPS = (1.5,)  # times the steps of the settings so far
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
    model: EditableModel,
    facts: Sequence[Fact],
    *,
    method: str = "rome",
    corpus: str | Path | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[Trial], None] | None = None,
) -> Tuned:
    """Propose layers, λ (memit, emmet), steps and clamp for a method on a model, from probe facts (a dozen or more,
    with paraphrases and locality prompts if possible).

    `batch_size` None: all facts in one batch where the method can. The model must be unedited, and is unedited again
    afterwards. Raises TetherError where no trial could edit a fact.
    """
    if model.edited:
        raise TetherError("the model carries edits already: load it again to tune")
    if len(facts) < 2:
        raise TetherError(f"{len(facts)} probe facts: a standard error needs two, a sound choice a dozen or more")
    editor(method)
    if not issubclass(EDITORS[method].settings, LatentHparams):
        raise TetherError(f"{method} has no settings to find on probe facts: train it (`tether train-{method}`)")
    size = (len(facts) if isinstance(editor(method), BatchEditor) else 1) if batch_size is None else batch_size
    start, origin = settings_for(method, model)
    text = Corpus.parse("self" if corpus is None else corpus, seed=seed)
    rounds = list(_rounds(start, model.n_layers))
    wanted = sorted({layer for _, tried in rounds[:1] for changes in tried for layer in changes["layers"]})
    moments(model, sorted({*wanted, *start.layers}), text)
    probe = _Probe(model, facts, method, size, corpus or "self", seed, progress)

    try:
        tuned = _search(probe, method, rounds, origin, json.loads(start.model_dump_json()))
    finally:
        model.clear_updates()
    if len(probe.failures) == len(tuned.trials):
        raise TetherError(f"no trial could edit a probe fact; the last one: {probe.failures[-1]}")
    return tuned


def _search(probe: _Probe, method: str, rounds: Rounds, origin: str, start: dict[str, Any]) -> Tuned:
    """One setting after another."""
    best = probe.run(f"start: {origin}", start)
    trials, verdicts = [best], []
    for setting, changes in rounds:
        tried = []
        for change in changes:
            settings = {**best.settings, **{k: v(best.settings) if callable(v) else v for k, v in change.items()}}
            if settings != best.settings:
                tried.append(probe.run(_written(setting, settings), settings))
        trials += tried
        if not tried:
            continue
        leader = max(tried, key=lambda trial: trial.score)
        against = paired(leader.scores, best.scores)
        sure = better(against)
        chosen = f"{setting} {_value(best.settings[setting])} kept"
        if sure:
            chosen = f"{setting} {_value(leader.settings[setting])} chosen over {_value(best.settings[setting])}"
        verdicts.append(
            f"{chosen}: {leader.what} scores {against.difference:+.1f} ± {against.stderr:.1f} against it, "
            f"n = {against.n} facts{'' if sure else ' (not more than two standard errors)'}"
        )
        best = leader if sure else best
    return Tuned(method, best.settings, tuple(trials), tuple(verdicts))


def better(found: Paired) -> bool:
    """Whether the first is, by more than two standard errors and than rounding."""
    return found.difference > max(2 * (found.stderr or 0.0), NOTHING)


def _rounds(start: LatentHparams, n_layers: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(setting, what to try); a function is of the settings chosen so far."""
    width = len(start.layers)
    lasts = sorted({min(max(width - 1, round(depth * n_layers)), max(0, n_layers - 2)) for depth in DEPTHS})
    yield "layers", [{"layers": list(range(max(0, last - width + 1), last + 1))} for last in lasts]
    if "mom2_update_weight" in type(start).model_fields:
        yield "mom2_update_weight", [{"mom2_update_weight": weight} for weight in WEIGHTS]
    yield (
        "v_num_grad_steps",
        [{"v_num_grad_steps": lambda s, factor=factor: round(factor * s["v_num_grad_steps"])} for factor in STEPS],
    )
    yield (
        "clamp_norm_factor",
        [{"clamp_norm_factor": lambda s, factor=factor: factor * s["clamp_norm_factor"]} for factor in CLAMPS],
    )


def _value(value: Any) -> str:
    return "-".join(map(str, (value[0], value[-1]))) if isinstance(value, list) and len(value) > 1 else str(value)


def _written(setting: str, settings: dict[str, Any]) -> str:
    return f"{setting} {_value(settings[setting])}"


class _Probe:
    """Edits the probe facts with some settings, and measures."""

    def __init__(
        self, model: EditableModel, facts: Sequence[Fact], method: str, size: int, corpus: str | Path, seed: int,
        progress: Callable[[Trial], None] | None,
    ) -> None:  # fmt: skip
        self.model, self.facts, self.method, self.size = model, facts, method, size
        self.corpus, self.seed, self.progress = corpus, seed, progress
        self.start = perplexity(model, builtin_text()).value
        self.failures: list[str] = []

    def run(self, what: str, settings: dict[str, Any]) -> Trial:
        started = time.monotonic()
        self.model.clear_updates()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "settings.json"
            file.write_text(json.dumps(settings))
            ledger = edit(
                self.model, self.facts, method=self.method, out=Path(folder) / "ledger", batch_size=self.size,
                corpus=self.corpus, settings=file, seed=self.seed, health_every=len(self.facts) + 1,
            )  # fmt: skip
            kinds = {event.kind for event in ledger.events}
            reason = ledger.events[0].reason
        if kinds == {"failed"}:
            logger.warning("%s: no probe fact could be edited (%s)", what, reason)
            self.failures.append(f"{what}: {reason}")
        found = evaluate_editing(self.model, list(enumerate(self.facts)), metrics=("compare", "match"))
        ratio = perplexity(self.model, builtin_text()).value / self.start
        trial = Trial(
            what=what, settings=settings, scores=tuple(s * min(1.0, 1 / ratio) for s in self._scores(found.records)),
            efficacy=found.summary["match_tokens"]["efficacy"]["value"],
            generalization=self._either(found.summary, "generalization"),
            locality=self._either(found.summary, "locality"), perplexity_ratio=ratio,
            seconds=time.monotonic() - started,
        )  # fmt: skip
        if self.progress:
            self.progress(trial)
        return trial

    @staticmethod
    def _either(summary: Any, kind: str) -> float | None:
        value = summary["compare"][kind]["value"]
        return summary["match_tokens"][kind]["value"] if value is None else value

    def _scores(self, records: Sequence[dict[str, Any]]) -> Iterator[float]:
        """A fact's mean over the kinds it has prompts for."""
        for index in range(len(self.facts)):
            kinds = []
            for kind, metrics in (
                ("efficacy", ("match_tokens",)),
                ("generalization", ("compare", "match_tokens")),
                ("locality", ("compare", "match_tokens")),
            ):
                for metric in metrics:
                    values = [
                        r["value"] for r in records
                        if r["edit"] == index and r["kind"] == kind and r["metric"] == metric
                    ]  # fmt: skip
                    if values:
                        kinds.append(100 * sum(values) / len(values))
                        break
            yield math.fsum(kinds) / len(kinds)


def write_settings(tuned: Tuned, path: str | Path) -> None:
    """A settings file for `tether edit --settings`, written whole or not at all."""
    EDITORS[tuned.method].settings.model_validate(tuned.settings)
    write_atomically(Path(path), (json.dumps(tuned.settings, indent=2) + "\n").encode())
