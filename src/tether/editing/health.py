"""Health of an edited model, judged on a proposal, so that a disabling edit is seen before it is in.

The rule, for the worst of the edited weights (m is σ_max of the unedited weight, κ₀ its condition number):

    warn   σ̂_max > 3 m, or κ > 3 κ₀, or perplexity > 1.1 × the unedited model's
    alarm  this edit alone has σ_max(ΔW) > 8 m, or κ > 6 κ₀, or perplexity > 1.5 × the unedited model's

PRUNE begins to act at σ̂_max > m, long before a model suffers; the limits here are where SmolLM2 was seen to suffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Extremes, Spectrum
from tether.evaluation.abilities.perplexity import builtin_text, perplexity
from tether.ledger import Sum
from tether.models import EditableModel

UPDATE = 3.0
ALONE = 8.0
KAPPA = (3.0, 6.0)
PERPLEXITY = (1.1, 1.5)

Level = Literal["ok", "warn", "alarm"]


@dataclass(frozen=True)
class Reading:
    """One look at a model with a proposal: the extremes of every edited weight, those of the `worst`, whose κ/κ₀ is the
    largest, whether this edit alone is `disabling`, the level, and why."""

    extremes: dict[str, Extremes]
    worst: Extremes
    kappa_ratio: float
    update_ratio: float
    perplexity_ratio: float | None
    disabling: bool
    level: Level
    reasons: tuple[str, ...]

    def line(self) -> str:
        """The health line."""
        ppl = "" if self.perplexity_ratio is None else f", perplexity × {self.perplexity_ratio:.3f}"
        why = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return (
            f"health {self.level} — σ̂_max/m {self.update_ratio:.2f}, κ {self.worst.kappa:.1f} "
            f"(× {self.kappa_ratio:.2f}){ppl}{why}"
        )

    def record(self) -> dict[str, Any]:
        """For the journal; with several weights, each is reported."""
        return {
            "health": self.level, "reasons": list(self.reasons), "sigma_max": self.worst.sigma_max,
            "sigma_min": self.worst.sigma_min, "kappa": self.worst.kappa, "kappa_ratio": self.kappa_ratio,
            "update_sigma_max": max(e.update_sigma_max for e in self.extremes.values()),
            "update_ratio": self.update_ratio,
            **({} if self.perplexity_ratio is None else {"perplexity_ratio": self.perplexity_ratio}),
            **({} if len(self.extremes) == 1 else {"weights": {
                name: {"sigma_max": e.sigma_max, "sigma_min": e.sigma_min, "kappa": e.kappa,
                       "update_sigma_max": e.update_sigma_max} for name, e in self.extremes.items()}}),
        }  # fmt: skip


class Health:
    """Watches a model's edited weights. Keeps the spectrum of each unedited weight and the unedited perplexity."""

    def __init__(self, model: EditableModel, m: Mapping[str, float]) -> None:
        self.model, self.m = model, dict(m)
        self.spectra = {name: Spectrum(model.original(name)) for name in m}
        self.start = {name: spectrum.of(None).kappa for name, spectrum in self.spectra.items()}
        self.text = builtin_text()
        with model.unedited():
            self.start_perplexity = perplexity(model, self.text).value

    def look(self, sums: Mapping[str, Sum], updates: Mapping[str, LowRank], *, read_text: bool) -> Reading:
        """Judge the weights W₀ + Σ for `sums` that already hold the proposed `updates`; the model itself is as before
        the proposal. With `read_text`, and for a disabling edit, the perplexity of a small built-in text is
        measured with the proposal."""
        extremes = {name: spectrum.of(sums[name].factors) for name, spectrum in self.spectra.items()}
        # A weight that was singular and still is has grown no worse.
        kappa_ratios = {n: 1.0 if e.kappa == self.start[n] else e.kappa / self.start[n] for n, e in extremes.items()}
        worst = max(extremes, key=kappa_ratios.__getitem__)
        update_ratio = max(e.update_sigma_max / self.m[name] for name, e in extremes.items())
        alone = max(
            (float(u.singular_values()[0]) / self.m[name] for name, u in updates.items() if u.rank), default=0.0
        )
        disabling, ppl = alone > ALONE, None
        if read_text or disabling:
            with self.model.provisional(updates):
                ppl = perplexity(self.model, self.text).value / self.start_perplexity
        warn, alarm = [], []
        if disabling:
            alarm.append(f"this edit alone has σ_max {alone:.2f} m: a disabling edit")
        if update_ratio > UPDATE:
            warn.append(f"σ̂_max {update_ratio:.2f} m")
        for value, limits, what in ((kappa_ratios[worst], KAPPA, "κ"), (ppl, PERPLEXITY, "perplexity")):
            if value is not None and not value <= limits[0]:  # NaN is within no limit
                (warn if value <= limits[1] else alarm).append(f"{what} {value:.2f} × the unedited model's")
        level: Level = "alarm" if alarm else "warn" if warn else "ok"
        return Reading(
            extremes, extremes[worst], kappa_ratios[worst], update_ratio, ppl, disabling, level, (*alarm, *warn)
        )
