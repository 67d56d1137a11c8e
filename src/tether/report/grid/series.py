"""The runs of a grid as curves: by editor, and under each editor by restraint, with seeds drawn together.

A curve is called by its restraint: `none`, `log:1.2` (once), `log:1.2 every 10` (runs with `every`). Runs that differ
in the seed alone are one curve of means, with standard errors over seeds; of one seed, over items.
"""

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import stats

from tether.analyses.points import BoundPoint, CopiesPoint, SpectrumPoint
from tether.constraints.base import AS_RECORDED
from tether.evaluation.metrics.base import KINDS, reported_by
from tether.evaluation.metrics.instance_change import INSTANCE_CHANGE
from tether.evaluation.results import Ability, Row
from tether.experiment.results import Run, StoredGrid, StoredRun
from tether.report.curves import UNEDITED, Curves, Estimate, Point, Sample, at, estimate, gather

_EXACT = 7  # points up to which a rank correlation's p counts every order


@dataclass(frozen=True)
class Editor:
    """Runs of one method in one batch size on one model and data set. `id` is fit for a file name."""

    name: str
    id: str
    runs: tuple[StoredRun, ...]

    @property
    def restraints(self) -> list[str]:
        """Names of all curves, `none` first."""
        found = dict.fromkeys(name for _, name, _ in self.rows() if name != UNEDITED)
        return sorted(found, key=lambda name: name != "none")

    def rows(self) -> Iterator[tuple[Run, str, Row]]:
        """Every row that belongs to a curve, with the curve's name."""
        for stored in self.runs:
            for row in stored.rows:
                name = curve_name(stored.run, row.edits, row.restraint)
                if name is not None:
                    yield stored.run, name, row

    def spectra(self, field: str) -> dict[str, Curves]:
        """weight -> curves of a field of SpectrumPoint."""
        return _by_weight(((stored.run, p) for stored in self.runs for p in spectrum(stored)), field)

    def bounds(self, of: str, field: str = "bound") -> dict[str, Curves]:
        """weight -> curves of a field of BoundPoint, of the "sum" or of single edits ("edit")."""
        found = ((stored.run, p) for stored in self.runs for p in stored.analyses.bound if p.of == of)
        return _by_weight(found, field)

    @property
    def m(self) -> dict[str, float]:
        """weight -> σ_max of the unedited weight."""
        return {point.weight: point.m for stored in self.runs for point in spectrum(stored)}

    @property
    def tasks(self) -> dict[str, str]:
        """General abilities measured, with their units."""
        return {task: found.unit for _, _, row in self.rows() for task, found in row.abilities.items()}

    @property
    def metric(self) -> str | None:
        """The editing metric that is judged by: the first that says whether an edit holds (`compare`, the paper's for
        CounterFact, where facts have a true target; then `match_all`, `generate`), else the first that was measured."""
        found = dict.fromkeys(metric for _, _, row in self.rows() for metric, kinds in row.editing.items() if kinds)
        holds = [name for name, metric in reported_by(found).items() if name == metric.holds]
        said = [name for name in holds if any(estimate(row, f"{name} efficacy") for _, _, row in self.rows())]
        return next(iter([*said, *found]), None)

    @property
    def kinds(self) -> list[str]:
        """What was measured of the metric, as measures (`compare efficacy`)."""
        metric = self.metric
        found = {kind for _, _, row in self.rows() for kind in row.editing.get(metric or "", {})}
        return [f"{metric} {kind}" for kind in KINDS if kind in found]

    def measured(self, measure: str) -> Curves:
        """Curves of an ability's name, or of a metric and kind (`compare locality`)."""
        return gather((name, row.edits, run.seed, estimate(row, measure)) for run, name, row in self.rows())

    def kept(self) -> Curves:
        """The mean over abilities of the share of the unedited model's score that is left, in percent (for the
        perplexity: the unedited model's over this one's). Abilities in which the unedited model scores no more than two
        standard errors are left out."""
        starts: dict[int, Row] = {}
        for run, name, row in self.rows():
            if name == UNEDITED and row.abilities:
                starts.setdefault(run.seed, row)
        rows = [(name, run.seed, row) for run, name, row in self.rows() if run.seed in starts]
        return gather((name, row.edits, seed, _kept(row, starts[seed])) for name, seed, row in rows)

    def instance_changes(self) -> Curves:
        """Instance change (ConceptEdit), in points of percent."""
        return self.measured(f"{INSTANCE_CHANGE} change")

    @property
    def prune(self) -> str | None:
        """The curve that stands for PRUNE: log:1.2, else the first log restraint applied once."""
        once = [name for name in self.restraints if name.startswith("log:") and " " not in name]
        return "log:1.2" if "log:1.2" in once else next(iter(once), None)

    @property
    def linear(self) -> str | None:
        """The linear restraint applied once."""
        return next((name for name in self.restraints if name.startswith("linear:") and " " not in name), None)

    @property
    def once_and_multiple(self) -> tuple[str, str] | None:
        """A restraint applied once, and the same every so many edits."""
        names = self.restraints
        pairs = ((name.split(" every ")[0], name) for name in names)
        return next(((once, name) for once, name in pairs if once in names and once != name), None)

    def worst(self, field: str) -> tuple[str, Curves]:
        """The weight whose field (`kappa`, or `update_sigma_max` against its m) is largest after the most edits,
        without a restraint, and its curves; ("", {}) where nothing was measured."""
        found = {weight: curves for weight, curves in self.spectra(field).items() if "none" in curves}
        m = self.m if field == "update_sigma_max" else {}
        return max(found.items(), key=lambda one: one[1]["none"][-1].value / m.get(one[0], 1.0), default=("", {}))

    def worst_bound(self) -> str:
        """The weight whose bound of the sum, or else of its last edit, is largest; "" where nothing was measured."""
        found = self.bounds("sum") or self.bounds("edit")
        return max(found, key=lambda w: found[w].get("none", [Point(0, 0, None)])[-1].value, default="")

    def beside_abilities(self, curves: Curves) -> list[tuple[float, float]]:
        """(value, share of the abilities kept) of every unrestrained checkpoint of the curves."""
        kept = self.kept().get("none", [])
        return [(p.value, q.value) for p in curves.get("none", []) if (q := at(kept, p.edits)) is not None]

    def copies(self, restraint: str) -> list[CopiesPoint]:
        """The copies of one update under a restraint, of the first run that has them."""
        measured = next((stored.analyses.copies for stored in self.runs if stored.analyses.copies), [])
        return sorted((p for p in measured if p.restraint == restraint), key=lambda p: p.copies)


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ of n points and its two-sided p."""

    rho: float
    p: float
    n: int

    def __str__(self) -> str:
        return f"ρ = {self.rho:.2f}, {p_text(self.p)}, n = {self.n}"


def editors(grid: StoredGrid) -> list[Editor]:
    """The editors of a grid, in order of appearance, with names that tell them apart."""
    groups: dict[tuple[str, str, str, int], list[StoredRun]] = {}
    for stored in grid.runs:
        run = stored.run
        groups.setdefault((run.model, run.dataset, run.method, run.batch_size), []).append(stored)
    one_model = len({key[0] for key in groups}) == 1
    found = []
    for number, ((model, dataset, method, batch), runs) in enumerate(groups.items()):
        name = f"{method} on {dataset}" + ("" if batch == 1 else f", batches of {batch}")
        name += "" if one_model else f", {model}"
        slug = re.sub(r"[^a-z0-9]+", "-", f"{method}-{dataset}".lower()).strip("-")
        ordered = tuple(sorted(runs, key=lambda stored: (stored.run.every is not None, -stored.run.edits)))
        found.append(Editor(name, f"{slug}-{number}", ordered))
    return found


def curve_name(run: Run, edits: int, restraint: str) -> str | None:
    """The curve that a run's row belongs to; None for a restraint put once on edits that had been computed under
    another one."""
    if edits == 0:
        return UNEDITED
    if restraint == AS_RECORDED:
        return run.restrain if run.every is None else f"{run.restrain} every {run.every}"
    return restraint if run.every is None else None


def _by_weight(points: Iterable[tuple[Run, SpectrumPoint | BoundPoint]], field: str) -> dict[str, Curves]:
    samples: dict[str, list[Sample]] = {}
    for run, point in points:
        name, value = curve_name(run, point.edits, point.restraint), getattr(point, field)
        if name is not None and value is not None:
            samples.setdefault(point.weight, []).append((name, point.edits, run.seed, (value, None)))
    return {weight: gather(found) for weight, found in samples.items()}


def spectrum(stored: StoredRun) -> list[SpectrumPoint]:
    """The singular values of a run: its analysis, or where there is none what stands in its rows."""
    if stored.analyses.spectrum:
        return stored.analyses.spectrum
    unedited = ((name, s.sigma_max) for row in stored.rows if row.edits == 0 for name, s in row.spectrum.items())
    m = {name: sigma_max for name, sigma_max in unedited if sigma_max is not None}
    return [
        SpectrumPoint(edits=row.edits, restraint=row.restraint, weight=name, m=m[name], **s.model_dump())
        for row in stored.rows for name, s in row.spectrum.items()
        if name in m and None not in (s.sigma_max, s.sigma_min, s.update_sigma_max)
    ]  # fmt: skip


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Spearman's, its p exact (over all orders) up to seven points, by Student's t above; None where nothing varies or
    for fewer than three."""
    n = len(x)
    if n < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    found = stats.spearmanr(x, y)
    p = float(found.pvalue)
    if n <= _EXACT:
        first, second = (stats.rankdata(values) - (n + 1) / 2 for values in (x, y))
        products = np.array(list(permutations(first))) @ second
        p = float(np.mean(np.abs(products) >= abs(float(first @ second)) - 1e-9))
    return Correlation(float(found.statistic), p, n)


def p_text(p: float) -> str:
    """p < 0.001, or p = 0.03."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _kept(row: Row, start: Row) -> Estimate | None:
    both = [(row.abilities[task], before) for task, before in start.abilities.items() if task in row.abilities]
    shares = [share for now, before in both if (share := _share(now, before)) is not None]
    if not shares:
        return None
    return statistics.fmean(v for v, _ in shares), math.hypot(*(error for _, error in shares)) / len(shares)


def _share(now: Ability, before: Ability) -> tuple[float, float] | None:
    if before.value is None or before.value <= 2 * (before.stderr or 0.0):
        return None
    if now.value is None:
        return (0.0, 0.0) if now.unit == "ppl" else None  # a perplexity past any number
    if now.unit == "ppl":
        return (share := 100 * before.value / now.value), share * (now.stderr or 0.0) / now.value
    return 100 * now.value / before.value, 100 * (now.stderr or 0.0) / before.value
