"""Rows of a results file against each other, on the same items: which differences are more than chance?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tether.constraints.base import parse
from tether.errors import TetherError
from tether.evaluation.metrics.base import KINDS, reported_by
from tether.evaluation.results import Results, Row, RowKey
from tether.evaluation.statistics.mean import Record
from tether.evaluation.statistics.paired import Paired, holm, kept, paired

LEVEL = 0.05

Values = dict[int, float]  # item (of editing metrics: edit) -> points of percent, or nats a token
Items = dict[tuple[RowKey, str], Values]  # by row and ability, or `metric kind`
_LARGEST = 700.0  # whose exponential is finite


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
        if self.row[0] == self.baseline[0]:
            where, names = f"{self.row[0]} edits", [_restraint(key[1]) for key in (self.row, self.baseline)]
        else:
            where, names = _restraint(self.row[1]), [_checkpoint(key[0]) for key in (self.row, self.baseline)]
        shares = self.kept, self.baseline_kept
        told = [
            self._side(name, value, share, first=share is not None and share is next(s for s in shares if s))
            for name, value, share in zip(names, (self.value, self.baseline_value), shares, strict=True)
        ]
        return f"{self.ability}, {where}: {'; '.join(told)}; {self._chance()}"

    def _side(self, name: str, value: float, share: Kept | None, *, first: bool) -> str:
        of = "perplexity" if self.unit == "ppl" else "score"
        if share is None:
            return f"{name}: {of} {value:.1f}"
        verb = "has" if self.unit == "ppl" else "keeps"
        digits = 0 if share.stderr >= 1 else 1
        shown = f"{share.percent:.{digits}f} ± {share.stderr:.{digits}f} %"
        return f"{name} {verb} {shown}" + (f" of the unedited {of}" if first else "")

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
    found = compare_rows(results, _pairs(results.rows, _normal(baseline)), editing=editing)
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


def compare_rows(
    results: Results, pairs: Iterable[tuple[RowKey, RowKey]], *, editing: bool = False
) -> list[Comparison]:
    """`compare` for any pairs of (row, baseline row), by their keys: one family under Holm's correction. Empty where no
    pair has an item in common."""
    tested = _tested(results) if editing else ()
    items = _values(results.items, tested)
    measured = {row.key: _measured(row, tested) for row in results.rows}
    unedited = _unedited(results.rows)
    found = [
        _compare(key, other, mine, measured[other][name], items, unedited)
        for key, other in pairs
        for name, mine in measured[key].items()
        if items.get((key, name), {}).keys() & items.get((other, name), {}).keys()
    ]
    ps = {index: comparison.test.p for index, comparison in enumerate(found) if comparison.test.p is not None}
    corrected = dict(zip(ps, holm(list(ps.values())), strict=True))
    return [replace(comparison, p_holm=corrected.get(index)) for index, comparison in enumerate(found)]


@dataclass(frozen=True)
class _Measured:
    """A number of a row. `keeps`: edits can only cost the unedited model some of it."""

    name: str
    unit: str
    value: float | None
    keeps: bool


def _tested(results: Results) -> tuple[str, ...]:
    """The editing metrics of these results that are tested, as reported."""
    metrics = reported_by(name for row in results.rows for name in row.editing)
    return tuple(name for name, metric in metrics.items() if name in metric.tested)


def _measured(row: Row, tested: Sequence[str]) -> dict[str, _Measured]:
    """By name: the abilities, then the `tested` editing metrics by kind of prompts."""
    found = [_Measured(name, ability.unit, ability.value, True) for name, ability in row.abilities.items()]
    found += [
        _Measured(f"{metric} {kind}", "percent", row.editing[metric][kind].value, kind == "locality")
        for metric in tested
        for kind in KINDS
        if kind in row.editing.get(metric, {})
    ]
    return {one.name: one for one in found}


def _pairs(rows: Sequence[Row], baseline: str) -> Iterator[tuple[RowKey, RowKey]]:
    """Every row with the one it is compared with."""
    keys, unedited = [row.key for row in rows], _unedited(rows)
    for edits, restraint in keys:
        if not baseline.isdigit():
            other: RowKey | None = (edits, baseline)
        elif int(baseline) == 0:
            other = unedited
        else:
            other = (int(baseline), restraint)
        if edits and other is not None and other in keys and other != (edits, restraint):
            yield (edits, restraint), other


def _compare(
    key: RowKey, other: RowKey, measured: _Measured, baseline: _Measured, items: Items, unedited: RowKey | None
) -> Comparison:
    mine, theirs = items[key, measured.name], items[other, measured.name]
    shared = sorted(mine.keys() & theirs.keys())
    first, second = [mine[item] for item in shared], [theirs[item] for item in shared]
    start = items.get((unedited, measured.name), {}) if unedited is not None and measured.keeps else {}
    return Comparison(
        ability=measured.name,
        unit=measured.unit,
        row=key,
        baseline=other,
        value=_shown(measured.value),
        baseline_value=_shown(baseline.value),
        test=paired(first, second),
        p_holm=None,
        kept=_kept(mine, start, measured.unit),
        baseline_kept=_kept(theirs, start, measured.unit) if other[0] else None,
    )


def _kept(values: Values, before: Values, unit: str) -> Kept | None:
    """`before` is the unedited model's, empty where it was not measured."""
    shared = sorted(values.keys() & before.keys())
    mine, theirs = [values[item] for item in shared], [before[item] for item in shared]
    if unit == "percent":
        found = kept(mine, theirs)
        return None if found is None else Kept(100 * found[0], 100 * found[1])
    if len(shared) < 2:
        return None
    test = paired(mine, theirs)
    ratio = 100 * math.exp(min(test.difference, _LARGEST))
    return Kept(ratio, ratio * (test.stderr or 0.0))


def _values(records: Iterable[Record], tested: Sequence[str]) -> Items:
    """row and ability -> item -> points of percent, or nats a token. What is no number is left out. Also row and
    `metric kind` of the `tested` editing metrics -> edit -> points of percent, the mean of the fact's prompts."""
    items: Items = {}
    prompts: dict[tuple[RowKey, str], dict[int, list[float]]] = {}
    for record in records:
        row = record["edits"], record["restraint"]
        if "ability" not in record:
            if record["metric"] in tested and record["kind"] in KINDS:
                facts = prompts.setdefault((row, f"{record['metric']} {record['kind']}"), {})
                facts.setdefault(record["edit"], []).append(100 * record["value"])
        elif "nll" in record:
            if record["nll"] is not None:
                items.setdefault((row, record["ability"]), {})[record["item"]] = record["nll"] / record["n_tokens"]
        elif record.get("value") is not None:
            items.setdefault((row, record["ability"]), {})[record["item"]] = 100 * record["value"]
    return items | {
        measure: {edit: math.fsum(values) / len(values) for edit, values in facts.items()}
        for measure, facts in prompts.items()
    }


def _unedited(rows: Iterable[Row]) -> RowKey | None:
    return next((row.key for row in rows if row.unedited), None)


def _normal(baseline: str) -> str:
    """A restraint as rows write it; anything else as it is."""
    try:
        return str(parse(baseline))
    except TetherError:
        return baseline


def _checkpoint(edits: int) -> str:
    return f"the {edits}-edit model" if edits else "the unedited model"


def _restraint(name: str) -> str:
    return "unrestrained" if name == "none" else name


def _shown(value: float | None) -> float:
    return math.inf if value is None else value
