"""Rows of a results file against each other, on the same items: which differences are more than chance?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tether.errors import TetherError
from tether.evaluate.measure import Record
from tether.evaluate.paired import Paired, holm, kept, paired
from tether.evaluate.results import Results, Row
from tether.restraint import parse

LEVEL = 0.05

RowKey = tuple[int, str]
Values = dict[int, float]  # item -> points of percent, or nats a token
Items = dict[tuple[RowKey, str], Values]  # by row and ability
_LARGEST = 700.0  # whose exponential is finite


@dataclass(frozen=True)
class Kept:
    """The share of the unedited model's score that a row has, in percent, and its standard error. For the perplexity:
    the ratio to the unedited model's, in percent."""

    percent: float
    stderr: float


@dataclass(frozen=True)
class Comparison:
    """One ability of one row against a baseline row, on the `test.n` items both have.

    `test` is of row − baseline: in points of percent, or (perplexity) in nats a token, mean over windows of text, where
    less is better. `p` is the paired t-test's, `p_holm` the same corrected for all comparisons made together. `kept`
    and `baseline_kept` are shares of the unedited row, where there is one and it scored anything.
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


def compare(results: Results, baseline: str = "none") -> list[Comparison]:
    """Every row against its baseline row, ability by ability, with Holm's correction over all of them.

    `baseline` is a restraint (each row against the one of that restraint after as many edits) or a number of edits
    (against the row of the same restraint after so many edits; 0: the unedited model). Raises TetherError where there
    is no such pair of rows, or no items of abilities.
    """
    rows = {row.key: row for row in results.rows}
    items = _values(results.items)
    if not items:
        raise TetherError(
            "these results have no items of general abilities: evaluate with --abilities, and keep the .items.jsonl "
            "beside the results"
        )
    unedited = _unedited(rows)
    found = [
        _compare(rows[key], rows[other], ability, items, unedited)
        for key, other in _pairs(list(rows), _normal(baseline))
        for ability in rows[key].abilities
        if items.get((key, ability), {}).keys() & items.get((other, ability), {}).keys()
    ]
    if not found:
        raise TetherError(
            f"no row can be compared with {baseline!r}: the rows are "
            f"{', '.join(f'{edits} edits {restraint}' for edits, restraint in rows)}; name a restraint or a number of "
            "edits of these"
        )
    tested = [index for index, comparison in enumerate(found) if comparison.test.p is not None]
    corrected = dict(zip(tested, holm([found[index].test.p or 0.0 for index in tested]), strict=True))
    return [replace(comparison, p_holm=corrected.get(index)) for index, comparison in enumerate(found)]


def _pairs(keys: Sequence[RowKey], baseline: str) -> Iterator[tuple[RowKey, RowKey]]:
    """Every row with the one it is held against."""
    unedited = _unedited(keys)
    for edits, restraint in keys:
        if not baseline.isdigit():
            other: RowKey | None = (edits, baseline)
        elif int(baseline) == 0:
            other = unedited
        else:
            other = (int(baseline), restraint)
        if edits and other is not None and other in keys and other != (edits, restraint):
            yield (edits, restraint), other


def _compare(row: Row, other: Row, ability: str, items: Items, unedited: RowKey | None) -> Comparison:
    mine, theirs = items[row.key, ability], items[other.key, ability]
    shared = sorted(mine.keys() & theirs.keys())
    first, second = [mine[item] for item in shared], [theirs[item] for item in shared]
    unit = row.abilities[ability].unit
    start = {} if unedited is None else items.get((unedited, ability), {})
    return Comparison(
        ability=ability,
        unit=unit,
        row=row.key,
        baseline=other.key,
        value=_shown(row.abilities[ability].value),
        baseline_value=_shown(other.abilities[ability].value),
        test=paired(first, second),
        p_holm=None,
        kept=_kept(mine, start, unit),
        baseline_kept=_kept(theirs, start, unit) if other.key[0] else None,
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


def _values(records: Iterable[Record]) -> Items:
    """row and ability -> item -> points of percent, or nats a token. What is no number is left out."""
    items: Items = {}
    for record in records:
        if "ability" not in record:
            continue
        value = record["nll"] if "nll" in record else record.get("value")
        if value is None:
            continue
        value = value / record["n_tokens"] if "nll" in record else 100 * value
        items.setdefault(((record["edits"], record["restraint"]), record["ability"]), {})[record["item"]] = value
    return items


def _unedited(keys: Iterable[RowKey]) -> RowKey | None:
    return next((key for key in keys if key[0] == 0), None)


def _normal(baseline: str) -> str:
    """A restraint as rows write it; anything else as it is."""
    return str(parse(baseline)) if baseline.startswith(("none", "log:", "linear:")) else baseline


def _checkpoint(edits: int) -> str:
    return f"the {edits}-edit model" if edits else "the unedited model"


def _restraint(name: str) -> str:
    return "unrestrained" if name == "none" else name


def _shown(value: float | None) -> float:
    return math.inf if value is None else value
