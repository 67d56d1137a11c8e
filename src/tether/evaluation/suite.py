"""Evaluate a model as it is, or the checkpoints of a ledger: `tether.evaluation`, `tether evaluate`."""

import hashlib
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tether.algebra.spectrum import Spectrum
from tether.constraints.base import Constraint, label_of, parse
from tether.constraints.prune import none
from tether.engine import LOCAL, Engine
from tether.errors import BadSettingsError, TetherError, WrongModelError
from tether.evaluation.abilities.run import AbilityRun, ability_data, ability_tasks
from tether.evaluation.in_context import InContext
from tether.evaluation.measurement import Measurement, measurement_of
from tether.evaluation.metrics.base import BYSTANDER, METRICS
from tether.evaluation.metrics.bystanders import with_kinds
from tether.evaluation.metrics.editing import Baseline, NumberedFacts, applying, evaluate_editing, measure_baseline
from tether.evaluation.results import (
    AS_IT_IS,
    IN_CONTEXT,
    Ability,
    Recent,
    Results,
    ResultsFile,
    Row,
    Singular,
    Told,
    read,
    write,
)
from tether.evaluation.statistics.mean import Record
from tether.evaluation.strength import AUTO, FLOOR, find_restraint_of
from tether.facts.fact import Fact
from tether.facts.prompt import Turn
from tether.ledger import IMPORT, Ledger
from tether.ledger.replay import check_counts
from tether.models.editable import EditableModel
from tether.storage.atomic import check_writable
from tether.storage.versions import versions

logger = logging.getLogger(__name__)


def evaluate(
    model: EditableModel,
    facts: Sequence[Fact],
    abilities: Sequence[str] | None = None,
    *,
    measurement: Measurement | None = None,
    base: EditableModel | None = None,
    engine: Engine = LOCAL,
    **options: Any,
) -> Results:
    """One row for the model as it is now, which is not changed: `facts` (numbered from 1) and general abilities.

    `measurement` says what is measured; its fields can be given as keywords instead (`abilities_data` is its `data`),
    `abilities` also by position. `base` is the unedited model of a checkpoint that was edited before it was loaded:
    what must not change is compared with it; without it, with the model without the updates it carries (of a model that
    carries none those numbers are left out). What was measured before of the same weights, task and data is taken from
    the cache. An `engine` with workers (`tether.engine`) shares out the facts; here and below the numbers are the same
    to rounding. Raises TetherError for an unknown metric or ability, missing data, a base with another tokenizer.
    """
    rows = _Rows(model, measurement_of(measurement, abilities, options), facts, engine=engine)
    numbered = _sample(list(enumerate(facts, 1)), rows.what.sample)
    baseline = None
    if base is not None:
        if base.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            raise WrongModelError(f"{base.id} is not the base of {model.id}, its vocabulary is another: name its base")
        if any(BYSTANDER in METRICS[name].asks for name in rows.what.metrics):  # both are asked about the same subjects
            numbered = with_kinds(base, numbered)
        baseline = measure_baseline(base, numbered, rows.what, engine=engine)
    elif not model.edited and (names := [name for name in rows.what.metrics if METRICS[name].against_unedited]):
        what = " and ".join(names) + (" compare" if names[1:] else " compares")
        logger.warning("%s carries no updates and has no base: what %s is left out", model.id, what)
    edits = len(facts) if model.edited or base not in (None, model) else 0
    rows.results.add(*rows.measure(numbered, baseline, 1, edits=edits, restraint=AS_IT_IS, replayed=False))
    return rows.results


def evaluate_pair(
    base: EditableModel,
    edited: EditableModel,
    facts: Sequence[Fact],
    *,
    measurement: Measurement | None = None,
    out: str | Path | None = None,
    engine: Engine = LOCAL,
) -> Results:
    """Any two checkpoints: a row for `base` as the unedited model, and one for `edited`, as `evaluate` measures it with
    that base. `out` must not exist yet. Neither model is changed."""
    path = None if out is None else Path(out)
    if path is not None and path.exists():
        raise BadSettingsError(f"{path} exists: name another file")
    results = evaluate(edited, facts, measurement=measurement, base=base, engine=engine)
    unedited = evaluate(base, facts, measurement=measurement, base=base, engine=engine)
    (row,) = unedited.rows
    results.add(row.model_copy(update={"edits": 0, "restraint": str(none())}), unedited.items)
    if path is not None:
        write(results, path)
    return results


def evaluate_in_context(
    model: EditableModel,
    facts: Sequence[Fact],
    *,
    measurement: Measurement | None = None,
    out: str | Path | None = None,
) -> Results:
    """A row of the unedited model, and one of it with the `facts` in every prompt: the baseline that edits nothing. In
    the second, general abilities are left out. `out` must not exist yet. The model is not changed."""
    path = None if out is None else Path(out)
    if path is not None and path.exists():
        raise BadSettingsError(f"{path} exists: name another file")
    rows = _Rows(model, measurement or Measurement(), facts)
    numbered = _sample(list(enumerate(facts, 1)), rows.what.sample)
    with model.unedited():
        baseline = measure_baseline(model, numbered, rows.what)
        rows.results.add(*rows.measure(numbered, baseline, 1, edits=0, restraint=str(none()), replayed=False))
        rows.results.add(*rows.in_context(numbered, baseline))
    if path is not None:
        write(rows.results, path)
    return rows.results


def evaluate_ledger(
    ledger: Ledger,
    model: EditableModel,
    facts: Sequence[Fact] | None = None,
    *,
    at: Sequence[int] | None = None,
    restraints: Sequence[str | Constraint | None] = (None,),
    abilities: Sequence[str] | None = None,
    measurement: Measurement | None = None,
    in_context: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    engine: Engine = LOCAL,
    floor: float = FLOOR,
    **options: Any,
) -> Results:
    """A row for every number of edits in `at` (None: all) under every restraint (None: the journal as recorded).

    A row measures all facts edited so far. The row of 0 edits, one for all restraints ("none"), measures those of the
    largest row, so that every other row has a baseline. Facts given here lend their paraphrases, locality and
    instance prompts to the ledger's facts of the same subject, prompt and new target; of a ledger of imported updates,
    which has no facts, they are what is measured, all of them in every row. `in_context` adds a row in which
    nothing is edited and the facts of the largest row stand in every prompt. For the restraints `log:auto` and
    `linear:auto` a number is found on the largest of the rows (`tether.evaluation.strength`), with `floor` percent of
    the unedited perplexity to keep.

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
    imported = ledger.header.method == IMPORT  # whose edits have no facts: the given ones are asked at every row
    ledger.check_model(model)
    counts = set([ledger.attempts] if at is None else at)
    check_counts(ledger.path, counts, ledger.attempts)
    tried = dict(fact for count in {*counts, ledger.attempts} for fact in ledger.facts(count))  # also replaced since
    every = list(enumerate(facts or (), 1)) if imported else _with_prompts(sorted(tried.items(), key=_number), facts)
    own = [fact for _, fact in every]
    rows = _Rows(model, what, own, ledger, engine=engine)
    results = rows.results
    if not counts or not restraints:
        raise TetherError("no row to measure: name at least one number of edits and one restraint")
    largest = max(counts)
    found = {
        one: find_restraint_of(ledger, model, one, facts=own, upto=largest, floor=floor)
        for one in restraints if isinstance(one, str) and AUTO.fullmatch(one)
    }  # fmt: skip
    results.strengths = {name: one.to_dict() for name, one in found.items()} or None
    named = [found[one].restraint if isinstance(one, str) and one in found else one for one in restraints]
    chosen = list(dict.fromkeys(None if restraint is None else parse(restraint) for restraint in named))
    if path is not None and path.exists():
        old = read(path)
        if ledger.events_after(str(old.settings.get("journal_sha256"))) is None:
            raise BadSettingsError(
                f"{path} has results of {old.ledger or old.model}, not of {ledger.path}: name another"
            )
        if results.comparable(old):
            there = max((row.edits for row in old.rows), default=0)
            # Where more edits are wanted, the row of 0 edits is of too few facts.
            results.rows = [row for row in old.rows if row.edits or largest <= there]
            largest = max(largest, there)
        else:
            logger.warning("the results there are of other facts, settings or edits: every row is measured anew")
        if any(row.edits == 0 for row in old.rows):  # it went if it was of fewer facts, and is the others' baseline
            counts.add(0)
    done = {row.key for row in results.rows}
    wanted: list[tuple[int, Constraint | None]] = [(count, one) for count in counts - {0} for one in chosen]
    wanted += [(0, none())] if 0 in counts else []
    todo = [(count, one) for count, one in wanted if (count, label_of(one)) not in done]

    def of_row(count: int) -> list[tuple[int, Fact]]:
        standing = {edit for edit, _ in ledger.facts(count or largest)}
        return _sample([(edit, fact) for edit, fact in every if imported or edit in standing], what.sample)

    asked = {edit for count in {*counts, largest} for edit, _ in of_row(count)}
    measured = [(edit, fact) for edit, fact in every if edit in asked]
    tell = in_context and (largest, IN_CONTEXT) not in done
    baseline = measure_baseline(model, measured, rows.what, engine=engine) if todo or tell else None
    file = results if path is None else ResultsFile(path, results)
    spectra = {name: Spectrum(model.original(name)) for name in ledger.header.weights} if todo else {}
    replay = ledger.replay(model)
    # The row of 0 edits comes last: where a resumed evaluation finds it, it is of the facts of the largest row there.
    states = chain(
        replay.states([count for count, _ in todo if count], chosen),
        replay.states([count for count, _ in todo if not count], [none()]),
    )
    due = (state for state in states if (state.edits, state.restraint) in todo)
    with model.provisional({}):  # gives back what the model carries
        for left, state in zip(range(len(todo), 0, -1), due, strict=True):
            count, label = state.edits, label_of(state.restraint)
            state.sums.show(model)
            logger.info("measuring %d edits, restraint %s", count, label)
            extremes = {name: one.of(state.sums.of[name].factors) for name, one in spectra.items()}
            spectrum = {name: Singular(**one.to_dict()) for name, one in extremes.items()}
            about = {"edits": count, "restraint": label, "replayed": state.restraint is None}
            file.add(*rows.measure(of_row(count), baseline, left, spectrum=spectrum, **about))
    if tell and baseline is not None:
        told = of_row(largest)
        logger.info("measuring %d facts in the prompt", len(told))
        with model.unedited():
            file.add(*rows.in_context(told, baseline, edits=largest))
    return results


class _Rows:
    """Measures one model, checkpoint by checkpoint: `what`, with the metrics that apply to `facts`, and its tasks.
    `results` have no rows yet."""

    def __init__(
        self, model: EditableModel, what: Measurement, facts: Sequence[Fact], ledger: Ledger | None = None, *,
        engine: Engine = LOCAL,
    ) -> None:  # fmt: skip
        self.model, self.engine = model, engine
        self.what = what.model_copy(update={"metrics": applying(what, model, facts)})
        data = ability_data(what.data, text=what.text)
        tasks = ability_tasks(
            what.abilities, data, limit=what.limit, quick=what.quick, trust_task_files=what.trust_task_files
        )
        self.abilities = AbilityRun(model, tasks)
        settings = {
            **self.what.model_dump(mode="json", include={"metrics", "max_paraphrases", "max_locality"}),
            **{name: value for name in ("sample", "told") if (value := getattr(what, name)) is not None},
            **{name: value for one in self.what.metrics for name, value in METRICS[one].settings(self.what).items()},
            "abilities": {task.name: task.described for task in tasks},
            "dtype": str(model.dtype).removeprefix("torch."),
            "journal_sha256": None if ledger is None else ledger.head,
        }
        self.results = Results(
            model=model.id if ledger is None else ledger.name_of(model),
            ledger=None if ledger is None else str(ledger.path),
            facts_sha256=hashlib.sha256("".join(fact.sha256 for fact in facts).encode()).hexdigest(),
            versions=versions(),
            settings=settings,
        )

    def measure(
        self, facts: NumberedFacts, baseline: Baseline | None, rows_left: int, **about: Any
    ) -> tuple[Row, list[Record]]:
        """A row of what the model shows now, with the fields `about` it, and the records of its items."""
        editing = evaluate_editing(self.model, facts, self.what, baseline=baseline, engine=self.engine)
        found = self.abilities.measure(rows_left)
        abilities = {name: Ability(**one.model_dump(exclude={"records"})) for name, one in found.items()}
        recent = None if editing.recent is None else Recent(edits=self.what.recent, editing=editing.recent)
        row = Row(
            **about, editing=editing.summary, recent=recent, relations=editing.relations, retention=editing.retention,
            abilities=abilities,
        )  # fmt: skip
        return row, editing.records + [record for one in found.values() for record in one.records]

    def in_context(
        self, facts: NumberedFacts, baseline: Baseline, edits: int | None = None
    ) -> tuple[Row, list[Record]]:
        """A row of the unedited model with the facts in every prompt, and the records of its items."""
        frame = InContext(self.model, [fact for _, fact in facts], self.what.told)
        editing = evaluate_editing(self.model, facts, self.what, baseline=baseline, frame=frame)
        told = Told(facts=len(facts), fewest=frame.fewest)
        if told.fewest < frame.most:
            logger.warning(
                "%d facts do not fit %s positions: the nearest by their subjects' words, %d or more, stand in a prompt",
                told.facts, self.model.limit, told.fewest,
            )  # fmt: skip
        row = Row(
            edits=len(facts) if edits is None else edits, restraint=IN_CONTEXT, replayed=False,
            editing=editing.summary, relations=editing.relations, retention=editing.retention, told=told,
        )  # fmt: skip
        return row, editing.records


def _sample(facts: NumberedFacts, number: int | None) -> list[tuple[int, Fact]]:
    """At most `number` of the facts, in their order: those whose contents have the lowest hashes."""
    drawn = sorted(facts, key=lambda numbered: numbered[1].sha256)[:number]
    return sorted(drawn, key=lambda numbered: numbered[0])


def _with_prompts(ledger: NumberedFacts, given: Sequence[Fact] | None) -> list[tuple[int, Fact]]:
    """The ledger's facts, each with the prompts of the given fact that is the same edit."""
    if given is None:
        return list(ledger)
    by_edit = {_edit(fact): fact for fact in reversed(given)}
    missing = sum(_edit(fact) not in by_edit for _, fact in ledger)
    if missing == len(ledger) > 0:
        raise TetherError(
            f"none of the {len(given)} facts given is one of the {missing} edits of the ledger: name the facts it was "
            "made from, or none"
        )
    if missing:
        total = len(ledger)
        logger.warning("%d of %d edits are not among the facts given: the ledger's own prompts serve", missing, total)
    return [(edit, by_edit.get(_edit(own), own)) for edit, own in ledger]


def _number(numbered: tuple[int, Fact]) -> int:
    return numbered[0]


def _edit(fact: Fact) -> tuple[str, str | Turn, str]:
    return fact.subject, fact.prompt, fact.target_new
