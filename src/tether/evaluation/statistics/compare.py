"""Rows of a results file against each other, on the same items: which differences are more than chance?"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from tether.constraints.base import parse
from tether.errors import TetherError
from tether.evaluation.metrics.base import KINDS, reported_by
from tether.evaluation.results import Results, Row, RowKey
from tether.evaluation.statistics.mean import Record
from tether.evaluation.statistics.paired import Paired, holm, kept, paired
from tether.facts.fact import PORTABILITY

LEVEL = 0.05

Values = dict[int, float]  # item (of editing metrics: edit) -> points of percent, or nats a token
Items = dict[tuple[RowKey, str], Values]  # by row and ability, or `metric kind`
_LARGEST = 700.0  # whose exponential is finite
_TESTED = (*KINDS, *PORTABILITY)  # kinds of prompts
_OTHER = " (other)"  # behind the restraint of a row of the other file


@dataclass(frozen=True)
class Kept:
    """The share of the unedited model's score that a row has, in percent, and its standard error. For the perplexity:
    the ratio to the unedited model's, in percent."""

    percent: float
    stderr: float


@dataclass(frozen=True)
class Comparison:
    """One ability of one row against a baseline row, on the `test.n` items both have; or one editing metric, `ability`
    being its name and kind of prompts (`compare locality`) and the items the facts, each the mean of its prompts.

    `test` is of row − baseline: in points of percent, or (perplexity) in nats a token, mean over windows of text, where
    less is better. `p` is the paired t-test's, `p_holm` the same corrected for all comparisons made together. `kept`
    and `baseline_kept` are shares of the unedited row, where there is one and it scored anything; None for the metrics
    that edits raise.
    """

    ability: str
    unit: str
    row: RowKey
    baseline: RowKey
    value: float
    baseline_value: float
    test: Paired
    p_holm: float | None
    kept: Kept | None
    baseline_kept: Kept | None

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below LEVEL."""
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def verdict(self) -> str:
        """One sentence."""
        restraints = ["unrestrained" if key[1] == "none" else key[1] for key in (self.row, self.baseline)]
        if self.row[0] == self.baseline[0]:
            where, names = f"{self.row[0]} edits", restraints
        else:
            counts = self.row[0], self.baseline[0]
            where, names = restraints[0], [f"the {n}-edit model" if n else "the unedited model" for n in counts]
        first = self._side(names[0], self.value, self.kept, told=False)
        second = self._side(names[1], self.baseline_value, self.baseline_kept, told=self.kept is not None)
        return f"{self.ability}, {where}: {first}; {second}; {self._chance()}"

    def _side(self, name: str, value: float, share: Kept | None, *, told: bool) -> str:
        """What one row has; `told`: what the share is of was said before."""
        of = "perplexity" if self.unit == "ppl" else "score"
        if share is None:
            return f"{name}: {of} {value:.1f}"
        verb = "has" if self.unit == "ppl" else "keeps"
        digits = 0 if share.stderr >= 1 else 1
        shown = f"{name} {verb} {share.percent:.{digits}f} ± {share.stderr:.{digits}f} %"
        return shown if told else f"{shown} of the unedited {of}"

    def _chance(self) -> str:
        if self.p_holm is None:
            return "a single item says nothing"
        p = "p < 0.001" if self.p_holm < 0.001 else f"p = {self.p_holm:.2g}"
        said = p if self.significant else f"no significant difference ({p})"
        return said if self.test.agrees else f"{said}; the bootstrap disagrees (p = {self.test.bootstrap_p:.2g})"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "significant": self.significant, "verdict": self.verdict}


def compare(results: Results, baseline: str = "none", *, editing: bool = False) -> list[Comparison]:
    """Every row against its baseline row, ability by ability, with Holm's correction over all of them; with `editing`
    the editing metrics that are `tested`, by kind of prompts, too, in the same family.

    `baseline` is a restraint (each row against the one of that restraint after as many edits) or a number of edits
    (against the row of the same restraint after so many edits; 0: the unedited model). Raises TetherError where there
    is no such pair of rows, or no items.
    """
    written = baseline
    with suppress(TetherError):
        written = str(parse(baseline))  # a restraint as rows write it
    found = compare_rows(results, _pairs(results.rows, written), editing=editing)
    if found:
        return found
    if not any(editing or "ability" in item for item in results.items):
        raise TetherError(
            f"these results have no items of {'anything' if editing else 'general abilities'}: evaluate with "
            "--abilities, and keep the .items.jsonl beside the results"
        )
    raise TetherError(
        f"no row can be compared with {baseline!r}: the rows are "
        f"{', '.join(f'{row.edits} edits {row.restraint}' for row in results.rows)}; name a restraint or a number of "
        "edits of these"
    )


def compare_files(results: Results, others: Results, *, editing: bool = False) -> tuple[Results, list[Comparison]]:
    """Rows of one results file against those of another, of the same number of edits and restraint (or the last row of
    each, where none are the same): as `compare`, and one file with the rows of both, those of `others` marked.

    Raises TetherError where the two were not measured on the same facts, with the same metrics, tasks and data.
    """
    for what, one, other in _measured_with(results, others):
        if one != other:
            raise TetherError(f"the two results differ in {what} ({one} and {other}): measure both in the same way")
    both = Results(**{**dict(results), "rows": []})
    for found, mark in ((results, ""), (others, _OTHER)):
        items = found.items
        for row in found.rows:
            marked = row.model_copy(update={"restraint": row.restraint + mark})
            both.add(marked, [item for item in items if (item["edits"], item["restraint"]) == row.key])
    pairs = [(key, key) for key in sorted({row.key for row in results.rows} & {row.key for row in others.rows})]
    if not pairs and results.rows and others.rows:
        pairs = [(results.rows[-1].key, others.rows[-1].key)]
    marked_pairs = [(row, (edits, restraint + _OTHER)) for row, (edits, restraint) in pairs]
    return both, compare_rows(both, marked_pairs, editing=editing)


def _measured_with(one: Results, other: Results) -> Iterator[tuple[str, Any, Any]]:
    yield "facts", one.facts_sha256[:12], other.facts_sha256[:12]
    for name in ("metrics", "max_paraphrases", "max_locality"):
        yield name, one.settings.get(name), other.settings.get(name)
    mine, theirs = (found.settings.get("abilities") or {} for found in (one, other))
    for name in sorted(mine.keys() & theirs.keys()):
        yield f"the ability {name}", mine[name], theirs[name]


def compare_rows(results: Results, pairs: Iterable[tuple[RowKey, RowKey]], *, editing: bool) -> list[Comparison]:
    """`compare` for any pairs of (row, baseline row), by their keys: one family under Holm's correction. Empty where no
    pair has an item in common."""
    metrics = reported_by(name for row in results.rows for name in row.editing) if editing else {}
    tested = [name for name, metric in metrics.items() if name in metric.tested]
    items = _values(results.items, tested)
    measured = {row.key: _measured(row, tested) for row in results.rows}
    unedited = _unedited(results.rows)
    abilities = {name for row in results.rows for name in row.abilities}
    found = []
    for row, baseline in pairs:
        for name, (unit, value) in measured[row].items():
            mine, theirs = items.get((row, name), {}), items.get((baseline, name), {})
            shared = _shared(mine, theirs)
            if not shared[0]:
                continue
            # Edits can only cost the unedited model some of an ability and of locality; the other metrics they raise.
            keeps = name in abilities or name.endswith(" locality")
            start = items.get((unedited, name), {}) if keeps and unedited is not None else {}
            found.append(
                Comparison(
                    ability=name,
                    unit=unit,
                    row=row,
                    baseline=baseline,
                    value=value,
                    baseline_value=measured[baseline][name][1],
                    test=paired(*shared),
                    p_holm=None,
                    kept=_kept(mine, start, unit),
                    baseline_kept=_kept(theirs, start, unit) if baseline[0] else None,
                )
            )
    corrected = iter(holm([one.test.p for one in found if one.test.p is not None]))
    return [one if one.test.p is None else replace(one, p_holm=next(corrected)) for one in found]


def _measured(row: Row, tested: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Unit and value by name: the abilities, then the `tested` editing metrics by kind of prompts."""
    found: dict[str, tuple[str, float | None]] = {name: (one.unit, one.value) for name, one in row.abilities.items()}
    for metric in tested:
        kinds = row.editing.get(metric, {})
        found |= {f"{metric} {kind}": ("percent", kinds[kind].value) for kind in _TESTED if kind in kinds}
    return {name: (unit, math.inf if value is None else value) for name, (unit, value) in found.items()}


def _pairs(rows: Sequence[Row], baseline: str) -> Iterator[tuple[RowKey, RowKey]]:
    """Every row with the one it is compared with."""
    keys = [row.key for row in rows]
    for key in keys:
        edits, restraint = key
        other: RowKey | None = (edits, baseline)
        if baseline.isdigit():
            other = (int(baseline), restraint) if int(baseline) else _unedited(rows)
        if edits and other is not None and other in keys and other != key:
            yield key, other


def _kept(values: Values, before: Values, unit: str) -> Kept | None:
    """`before` is the unedited model's, empty where it was not measured."""
    mine, theirs = _shared(values, before)
    if unit == "percent":
        found = kept(mine, theirs)
        return found and Kept(*(100 * share for share in found))
    if len(mine) < 2:
        return None
    test = paired(mine, theirs)
    ratio = 100 * math.exp(min(test.difference, _LARGEST))
    return Kept(ratio, ratio * (test.stderr or 0.0))


def _shared(first: Values, second: Values) -> tuple[list[float], list[float]]:
    """The values of the items that both have, in one order."""
    items = sorted(first.keys() & second.keys())
    return [first[item] for item in items], [second[item] for item in items]


def _values(records: Iterable[Record], tested: Sequence[str]) -> Items:
    """By row and ability, or `metric kind` of the `tested` editing metrics: item -> points of percent, or nats a token.
    What is no number is left out. The items of a metric are the edits, each the mean of its prompts."""
    found: defaultdict[tuple[RowKey, str], defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if "ability" in record:
            name, item = record["ability"], record["item"]
        elif record["metric"] in tested and record["kind"] in _TESTED:
            name, item = f"{record['metric']} {record['kind']}", record["edit"]
        else:
            continue
        value = record.get("nll", record.get("value"))
        if value is not None:
            points = value / record["n_tokens"] if "nll" in record else 100 * value
            found[(record["edits"], record["restraint"]), name][item].append(points)
    return {
        measure: {item: math.fsum(values) / len(values) for item, values in items.items()}
        for measure, items in found.items()
    }


def _unedited(rows: Iterable[Row]) -> RowKey | None:
    return next((row.key for row in rows if row.unedited), None)
