"""Evaluate a model as it is, or the checkpoints of a ledger: `tether.evaluation`, `tether evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from tether.constraints.base import Constraint, label_of, parse
from tether.errors import TetherError
from tether.evaluation.abilities.data import ability_data
from tether.evaluation.abilities.run import AbilityRun, ability_tasks, described
from tether.evaluation.abilities.task import AbilityResult, AbilityTask
from tether.evaluation.measurement import Measurement, measurement_of
from tether.evaluation.metrics.editing import (
    Baseline,
    applying,
    check_metrics,
    evaluate_editing,
    measure_baseline,
)
from tether.evaluation.results import Ability, Results, Row, Singular, facts_sha256, number, read, write
from tether.evaluation.statistics.mean import Record
from tether.facts.fact import Fact
from tether.ledger import Ledger, SpectrumRow
from tether.models.editable import EditableModel
from tether.storage.atomic import check_writable
from tether.storage.versions import versions

logger = logging.getLogger(__name__)

AS_IT_IS = "as it is"  # of a model that came without a ledger

NumberedFacts = Sequence[tuple[int, Fact]]


class MeasurementOptions(TypedDict, total=False):
    """The fields of Measurement as keywords, but for `abilities`; `abilities_data` is its `data`."""

    metrics: Sequence[str]
    abilities_data: str | Path | None
    text: str | None
    limit: int | None
    quick: bool
    max_paraphrases: int | None
    max_locality: int | None


def evaluate(
    model: EditableModel,
    facts: Sequence[Fact],
    abilities: Sequence[str] | None = None,
    *,
    measurement: Measurement | None = None,
    **options: Unpack[MeasurementOptions],
) -> Results:
    """One row for the model as it is now, which is not changed: `facts` (numbered from 1) and general abilities.

    `measurement` says what is measured; its fields can be given as keywords instead, `abilities` also by position.
    What was measured before of the same weights, task and data is taken from tether's cache. Raises TetherError for an
    unknown metric or ability, and for data that are missing.
    """
    what = measurement_of(measurement, abilities, options)
    abilities_data, text, limit, quick = what.data, what.text, what.limit, what.quick
    metrics, max_paraphrases, max_locality = what.metrics, what.max_paraphrases, what.max_locality
    data = ability_data(abilities_data, text=text)
    tasks = ability_tasks(what.abilities, data, limit=limit, quick=quick)
    plan = _Plan(applying(metrics, facts), max_paraphrases, max_locality, tasks)
    numbered = list(enumerate(facts, 1))
    results = Results(
        model=model.id,
        ledger=None,
        facts_sha256=facts_sha256(facts),
        versions=versions(),
        settings=plan.settings(model, None),
    )
    edits = len(facts) if model.edited else 0
    run = AbilityRun(model, plan.abilities)
    results.add(*plan.measure(model, numbered, None, run.measure, Row(edits=edits, restraint=AS_IT_IS, replayed=False)))
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

    `measurement`, or its fields as keywords, is as in `evaluate`. `out` is written after every row, so an
    interrupted evaluation goes on with `resume`, which keeps the rows there that were measured in the same way, on the
    same facts, with the same journal; abilities measured since then are in the cache. The model carries afterwards what
    it carried before. Raises TetherError for unknown names, a number beyond the ledger, facts that are not the
    ledger's.
    """
    what = measurement_of(measurement, abilities, options)
    abilities_data, text, limit, quick = what.data, what.text, what.limit, what.quick
    metrics, max_paraphrases, max_locality = what.metrics, what.max_paraphrases, what.max_locality
    data = ability_data(abilities_data, text=text)
    if out is not None:
        check_writable(Path(out))
    every = _with_prompts(ledger.facts(), facts)
    tasks = ability_tasks(what.abilities, data, limit=limit, quick=quick)
    plan = _Plan(applying(metrics, (fact for _, fact in every)), max_paraphrases, max_locality, tasks)
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
    if resume and out is not None and Path(out).exists():
        old = read(out)
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
        restraint: ledger.spectrum(model, at=[count for count, its in todo if its == restraint], restrain=restraint)
        for restraint in dict.fromkeys(restraint for _, restraint in todo)
    }
    measured = [(edit, fact) for edit, fact in every if edit in largest]
    baseline = plan.baseline(model, measured) if todo else None
    run = AbilityRun(model, plan.abilities)
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
            results.add(*plan.measure(model, so_far, baseline, abilities_now, row))
            if out is not None:
                write(results, out)
    if out is not None and not todo:
        write(results, out)
    return results


class _Plan:
    """What is measured on every checkpoint."""

    def __init__(
        self,
        metrics: Sequence[str],
        max_paraphrases: int | None,
        max_locality: int | None,
        abilities: Sequence[AbilityTask],
    ) -> None:
        check_metrics(metrics)
        self.metrics, self.abilities = tuple(metrics), tuple(abilities)
        self.max_paraphrases, self.max_locality = max_paraphrases, max_locality

    def settings(self, model: EditableModel, journal: str | None) -> dict[str, Any]:
        return {
            "metrics": list(self.metrics),
            "max_paraphrases": self.max_paraphrases,
            "max_locality": self.max_locality,
            "abilities": described(self.abilities),
            "dtype": str(model.dtype).removeprefix("torch."),
            "journal_sha256": journal,
        }

    def baseline(self, model: EditableModel, facts: NumberedFacts) -> Baseline:
        return measure_baseline(model, facts, metrics=self.metrics, max_locality=self.max_locality)

    def measure(
        self,
        model: EditableModel,
        facts: NumberedFacts,
        baseline: Baseline | None,
        measure_abilities: Callable[[], dict[str, AbilityResult]],
        row: Row,
    ) -> tuple[Row, list[Record]]:
        """`row` with what the model shows now, and the records of its items."""
        editing = evaluate_editing(
            model,
            facts,
            baseline=baseline,
            metrics=self.metrics,
            max_paraphrases=self.max_paraphrases,
            max_locality=self.max_locality,
        )
        abilities = measure_abilities()
        measured = {
            "editing": {
                metric: {kind: number(found) for kind, found in kinds.items()}
                for metric, kinds in editing.summary.items()
            },
            "retention": editing.retention,
            "abilities": {
                name: Ability(value=found.value, n=found.n, stderr=found.stderr, unit=found.unit)
                for name, found in abilities.items()
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
    kept = {row.key for row in rows}
    results.rows = rows
    results.items = [item for item in old.items if (item["edits"], item["restraint"]) in kept]
    return max([wanted, *(row.edits for row in rows)])


def singular(rows: Iterable[SpectrumRow]) -> dict[str, Singular]:
    """The singular values of some weights as results hold them, by weight name."""
    return {
        row.weight: Singular(
            sigma_max=row.extremes.sigma_max,
            sigma_min=row.extremes.sigma_min,
            kappa=row.extremes.kappa,
            update_sigma_max=row.extremes.update_sigma_max,
        )
        for row in rows
    }
