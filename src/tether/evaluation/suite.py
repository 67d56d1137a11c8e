"""Evaluate a model as it is, or the checkpoints of a ledger: `tether.evaluation`, `tether evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from tether.constraints.base import Constraint, label_of, parse
from tether.errors import BadSettingsError, TetherError, WrongModelError
from tether.evaluation.abilities.data import ability_data
from tether.evaluation.abilities.run import AbilityRun, ability_tasks, described
from tether.evaluation.abilities.task import AbilityResult
from tether.evaluation.measurement import Measurement, measurement_of
from tether.evaluation.metrics.base import METRICS
from tether.evaluation.metrics.editing import Baseline, NumberedFacts, applying, evaluate_editing, measure_baseline
from tether.evaluation.results import AS_IT_IS, Ability, Results, ResultsFile, Row, Singular, facts_sha256, read
from tether.evaluation.statistics.mean import Record
from tether.facts.fact import Fact
from tether.ledger import Ledger, SpectrumRow
from tether.models.editable import EditableModel
from tether.storage.atomic import check_writable
from tether.storage.versions import versions

logger = logging.getLogger(__name__)


class MeasurementOptions(TypedDict, total=False):
    """The fields of Measurement as keywords, but for `abilities`; `abilities_data` is its `data`."""

    metrics: Sequence[str]
    abilities_data: str | Path | None
    text: str | None
    limit: int | None
    quick: bool
    max_paraphrases: int | None
    max_locality: int | None
    trust_task_files: bool


def evaluate(
    model: EditableModel,
    facts: Sequence[Fact],
    abilities: Sequence[str] | None = None,
    *,
    measurement: Measurement | None = None,
    base: EditableModel | None = None,
    **options: Unpack[MeasurementOptions],
) -> Results:
    """One row for the model as it is now, which is not changed: `facts` (numbered from 1) and general abilities.

    `measurement` says what is measured; its fields can be given as keywords instead, `abilities` also by position.
    `base` is the unedited model of a checkpoint that was edited before it was loaded: what must not change is compared
    with it. Without it that is compared with the model without the updates it carries; of a model that carries none
    those numbers are left out. What was measured before of the same weights, task and data is taken from tether's
    cache. Raises TetherError for an unknown metric or ability, for data that are missing, and for a base whose
    tokenizer is another.
    """
    numbered = list(enumerate(facts, 1))
    plan = _Plan(measurement_of(measurement, abilities, options), facts)
    baseline = None
    if base is not None:
        if base.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            raise WrongModelError(f"{base.id} is not the base of {model.id}, its vocabulary is another: name its base")
        baseline = measure_baseline(base, numbered, plan.what)
    elif not model.edited and (names := [name for name in plan.what.metrics if METRICS[name].against_unedited]):
        what = " and ".join(names)
        logger.warning("%s carries no updates and has no base: what %s compares is left out", model.id, what)
    results = Results(
        model=model.id,
        ledger=None,
        facts_sha256=facts_sha256(facts),
        versions=versions(),
        settings=plan.settings(model, None),
    )
    edits = len(facts) if model.edited or base not in (None, model) else 0
    row = Row(edits=edits, restraint=AS_IT_IS, replayed=False)
    results.add(*plan.measure(model, numbered, baseline, AbilityRun(model, plan.tasks).measure, row))
    return results


def evaluate_ledger(
    ledger: Ledger,
    model: EditableModel,
    facts: Sequence[Fact] | None = None,
    *,
    at: Sequence[int] | None = None,
    restraints: Sequence[str | Constraint | None] = (None,),
    abilities: Sequence[str] | None = None,
    measurement: Measurement | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **options: Unpack[MeasurementOptions],
) -> Results:
    """A row for every number of edits in `at` (None: all) under every restraint (None: the journal as recorded).

    A row measures all facts edited so far. The row of 0 edits, one for all restraints ("none"), measures those of the
    largest row, so that every other row has a baseline. Facts given here lend their paraphrases, locality and
    instance prompts to the ledger's facts of the same subject, prompt and new target.

    `measurement`, or its fields as keywords, is as in `evaluate`. `out` must not exist yet, and gets every row as soon
    as it is measured. An interrupted evaluation goes on with `resume`, which keeps the rows there that were measured in
    the same way, on the same facts, with the same journal; abilities measured since then are in the cache. The model
    carries afterwards what it carried before. Raises TetherError for unknown names, a number beyond the ledger, facts
    that are not the ledger's.
    """
    what = measurement_of(measurement, abilities, options)
    path = None if out is None else Path(out)
    if path is not None:
        check_writable(path)
        if path.exists() and not resume:
            raise BadSettingsError(f"{path} exists: name another file, or go on with it by resume (--resume)")
    every = _with_prompts(ledger.facts(), facts)
    plan = _Plan(what, [fact for _, fact in every])
    ledger.check_model(model)
    counts = sorted(set([ledger.attempts] if at is None else at))
    chosen = list(dict.fromkeys(None if restraint is None else parse(restraint) for restraint in restraints))
    if not counts or not chosen:
        raise TetherError("no row to measure: name at least one number of edits and one restraint")
    attempted = {count: {edit for edit, _ in ledger.facts(count)} for count in counts}
    largest = attempted[counts[-1]]
    results = Results(
        model=ledger.header.model,
        ledger=str(ledger.path),
        facts_sha256=facts_sha256(fact for _, fact in every),
        versions=versions(),
        settings=plan.settings(model, ledger.head),
    )
    if path is not None and path.exists():
        old = read(path)
        largest = {edit for edit, _ in ledger.facts(_keep(results, old, counts[-1]))}
        if any(row.edits == 0 for row in old.rows):  # it went if it was of fewer facts, and is the others' baseline
            counts = sorted({0, *counts})
    # The largest number first: the row of 0 edits that a resumed evaluation finds was measured on its facts.
    todo = [
        (count, restraint)
        for count in reversed(counts)
        for restraint in (chosen if count else [parse("none")])
        if (count, label_of(restraint)) not in {row.key for row in results.rows}
    ]
    spectra = {
        restraint: ledger.spectrum(model, at=[count for count, own in todo if own == restraint], restrain=restraint)
        for restraint in dict.fromkeys(restraint for _, restraint in todo)
    }
    measured = [(edit, fact) for edit, fact in every if edit in largest]
    baseline = measure_baseline(model, measured, plan.what) if todo else None
    run = AbilityRun(model, plan.tasks)
    file = None if path is None else ResultsFile(path, results)
    with model.provisional({}):  # gives back what the model carries
        for index, (count, restraint) in enumerate(todo):
            ledger.apply(model, upto=count, restrain=restraint)
            logger.info("measuring %d edits, restraint %s", count, label_of(restraint))
            row = Row(
                edits=count,
                restraint=label_of(restraint),
                replayed=restraint is None,
                spectrum=singular(found for found in spectra[restraint] if found.edits == count),
            )
            so_far = [(edit, fact) for edit, fact in measured if not count or edit in attempted[count]]
            abilities_now = partial(run.measure, len(todo) - index)
            (file or results).add(*plan.measure(model, so_far, baseline, abilities_now, row))
    return results


class _Plan:
    """What is measured on every checkpoint: `what`, with the metrics that apply to the facts, and its tasks."""

    def __init__(self, what: Measurement, facts: Sequence[Fact]) -> None:
        self.what = what.model_copy(update={"metrics": applying(what.metrics, facts)})
        data = ability_data(what.data, text=what.text)
        self.tasks = ability_tasks(
            what.abilities, data, limit=what.limit, quick=what.quick, trust_task_files=what.trust_task_files
        )

    def settings(self, model: EditableModel, journal: str | None) -> dict[str, Any]:
        return {
            "metrics": list(self.what.metrics),
            "max_paraphrases": self.what.max_paraphrases,
            "max_locality": self.what.max_locality,
            "abilities": described(self.tasks),
            "dtype": str(model.dtype).removeprefix("torch."),
            "journal_sha256": journal,
        }

    def measure(
        self,
        model: EditableModel,
        facts: NumberedFacts,
        baseline: Baseline | None,
        measure_abilities: Callable[[], dict[str, AbilityResult]],
        row: Row,
    ) -> tuple[Row, list[Record]]:
        """`row` with what the model shows now, and the records of its items."""
        editing = evaluate_editing(model, facts, self.what, baseline=baseline)
        abilities = measure_abilities()
        measured = {
            "editing": editing.summary,
            "retention": editing.retention,
            "abilities": {
                name: Ability.model_validate(found, from_attributes=True) for name, found in abilities.items()
            },
        }
        items = editing.records + [record for found in abilities.values() for record in found.records]
        return row.model_copy(update=measured), items


def _with_prompts(ledger: NumberedFacts, given: Sequence[Fact] | None) -> list[tuple[int, Fact]]:
    """The ledger's facts, each with the prompts of the given fact that is the same edit."""
    if given is None:
        return list(ledger)
    by_edit = {(fact.subject, fact.prompt, fact.target_new): fact for fact in reversed(given)}
    matched = [(edit, by_edit.get((fact.subject, fact.prompt, fact.target_new))) for edit, fact in ledger]
    missing = sum(fact is None for _, fact in matched)
    if missing == len(matched) > 0:
        raise TetherError(
            f"none of the {len(given)} facts given is one of the {missing} edits of the ledger: name the facts it was "
            "made from, or none"
        )
    if missing:
        logger.warning(
            "%d of %d edits are not among the facts given: the ledger's own prompts serve", missing, len(matched)
        )
    return [(edit, new or own) for (edit, new), (_, own) in zip(matched, ledger, strict=True)]


def _keep(results: Results, old: Results, wanted: int) -> int:
    """Take the rows of an earlier evaluation that are what would be measured now. `wanted` is the largest number of
    edits asked for; returns the largest there will be."""
    if not results.comparable(old):
        logger.warning("the results there are of other facts, settings or edits: every row is measured anew")
        return wanted
    rows = old.rows
    if wanted > max((row.edits for row in rows), default=0):  # the row of 0 edits is of fewer facts
        rows = [row for row in rows if row.edits]
    results.rows = rows
    return max([wanted, *(row.edits for row in rows)])


def singular(rows: Iterable[SpectrumRow]) -> dict[str, Singular]:
    """The singular values of some weights as results hold them, by weight name."""
    return {row.weight: Singular.model_validate(row.extremes, from_attributes=True) for row in rows}
