"""Two models on the same items: is the difference more than chance?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEVEL = 0.95
_RESAMPLES = 10_000
_FEWEST = 10  # items below which resampling them says less than Student's t
_AT_ONCE = 2_000_000  # resampled items held in memory


@dataclass(frozen=True)
class Paired:
    """The mean difference of n pairs, its standard error and 95 % confidence interval by Student's t, and the paired
    t-test's p; beside it the interval and p of a bootstrap over items. None where a single pair says nothing, and for a
    bootstrap of fewer than ten."""

    n: int
    difference: float
    stderr: float | None
    ci: tuple[float, float] | None
    p: float | None
    bootstrap_ci: tuple[float, float] | None
    bootstrap_p: float | None

    @property
    def agrees(self) -> bool:
        """Whether both intervals contain 0, or neither does."""
        return self.ci is None or self.bootstrap_ci is None or _has_zero(self.ci) == _has_zero(self.bootstrap_ci)


def paired(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Paired:
    """`first` − `second`, item by item; both in the same order. Deterministic.

    The bootstrap draws the differences with replacement, _RESAMPLES times: its interval is that of the percentiles, its
    p twice the share of means on the far side of 0, never below 1/_RESAMPLES. Raises ValueError for unequal lengths or
    none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} items: pairs are needed")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Paired(n, mean, None, None, None, None, None)
    from scipy import stats  # which takes a second, and most commands compare nothing

    error = float(stats.sem(differences))
    if error == 0:  # items that all differ by the same
        ci, p = (mean, mean), 0.0 if mean else 1.0
    else:
        test = stats.ttest_1samp(differences, 0.0)
        low, high = test.confidence_interval(_LEVEL)
        ci, p = (float(low), float(high)), float(test.pvalue)
    if n < _FEWEST:
        return Paired(n, mean, error, ci, p, None, None)
    resampled = stats.bootstrap(
        (differences,), np.mean, n_resamples=_RESAMPLES, batch=max(1, _AT_ONCE // n), confidence_level=_LEVEL,
        method="percentile", rng=seed,
    )  # fmt: skip
    low, high = resampled.confidence_interval
    means = resampled.bootstrap_distribution
    tail = min(float((means <= 0).mean()), float((means >= 0).mean()))
    bootstrap_p = min(1.0, 2 * max(tail, 1 / (2 * _RESAMPLES)))
    return Paired(n, mean, error, ci, p, (float(low), float(high)), bootstrap_p)


def kept(values: Sequence[float], before: Sequence[float]) -> tuple[float, float] | None:
    """The share of the earlier mean that is left, Σvalues/Σbefore, and its standard error (delta method, paired items).

    se = √(Σ(vᵢ − r·bᵢ)² / (n(n−1))) / mean(b). None where nothing was there before, or for fewer than two items.
    """
    v, b = np.asarray(values, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if len(v) < 2 or b.mean() <= 0:
        return None
    ratio = float(v.mean() / b.mean())
    return ratio, float(np.sqrt(((v - ratio * b) ** 2).sum() / (len(v) * (len(v) - 1))) / b.mean())


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be held against one level although several were tested."""
    values = np.asarray(ps, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, (len(values) - np.arange(len(values))) * values[order]))
    return [float(p) for p in corrected]


def _has_zero(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]
