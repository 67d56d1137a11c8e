"""Health of an edited model, judged on a proposal, so that a disabling edit is seen before it is in.

The rule, for the worst of the edited weights (m is σ_max of the unedited weight, κ₀ its condition number):

    warn   σ̂_max > 3 m, or κ > 3 κ₀, or perplexity > 1.1 × the unedited model's
    alarm  this edit alone has σ_max(ΔW) > 8 m, or κ > 6 κ₀, or perplexity > 1.5 × the unedited model's

κ is measured where σ_min is due (`RunningSpectrum` says when) and for every disabling edit. Between, the κ of the last
measured edit that went in is judged. A disabling edit (σ_max(ΔW) > 8 m) is known from its factors alone, so a run that
looks at every K-th proposal looks at it too. PRUNE begins to act at σ̂_max > m, long before a model suffers; the limits
here are where SmolLM2 was seen to suffer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Extremes, Largest, RunningSpectrum, Spectrum
from tether.editing.running_headroom import Used
from tether.evaluation.abilities.perplexity import builtin_text, perplexity
from tether.ledger import WeightRecord
from tether.models import EditableModel

UPDATE = 3.0
ALONE = 8.0
KAPPA = (3.0, 6.0)
PERPLEXITY = (1.1, 1.5)

Level = Literal["ok", "warn", "alarm"]


@dataclass(frozen=True)
class Reading:
    """One look at a model with a proposal: the singular values of every edited weight, those of the `worst`, whether
    this edit alone is `disabling`, the level, and why. The worst weight is that with the largest κ/κ₀; where σ_min was
    not measured, that with the largest σ̂_max/m, and `kappa_ratio` is None. `update_ratio` is the largest σ̂_max/m.
    `before`: how many looks right before had the same level, which is not ok; 0 for a disabling edit. `room`: what the
    edits use of a weight, where that was looked at."""

    extremes: dict[str, Largest]
    worst: Largest
    kappa_ratio: float | None
    update_ratio: float
    perplexity_ratio: float | None
    disabling: bool
    level: Level
    reasons: tuple[str, ...]
    before: int
    room: Used | None = None

    def line(self) -> str:
        """The health line: why it is bad, or where that was said `before`, for how many looks."""
        parts = [f"σ̂_max/m {self.update_ratio:.2f}"]
        if isinstance(self.worst, Extremes):
            parts.append(f"κ {self.worst.kappa:.1f} (× {self.kappa_ratio:.2f})")
        if self.perplexity_ratio is not None:
            parts.append(f"perplexity × {self.perplexity_ratio:.3f}")
        if self.room is not None:
            parts.append(f"headroom {100 - self.room.used:.1f} %")
        why = f": {'; '.join(self.reasons)}" if self.reasons and not self.before else ""
        count = f", {self.before + 1} in a row" if self.before else ""
        return f"health {self.level}{count} — {', '.join(parts)}{why}"

    def record(self) -> dict[str, Any]:
        """For the journal: what was measured, and nothing else; with several weights, each is reported."""
        record: dict[str, Any] = {
            "health": self.level, "reasons": list(self.reasons), **self.worst.to_dict(),
            "update_sigma_max": max(one.update_sigma_max for one in self.extremes.values()),
            "update_ratio": self.update_ratio, "kappa_ratio": self.kappa_ratio,
            "perplexity_ratio": self.perplexity_ratio, "headroom": self.room and self.room.record(),
        }  # fmt: skip
        if len(self.extremes) > 1:
            record["weights"] = {name: one.to_dict() for name, one in self.extremes.items()}
        return {name: value for name, value in record.items() if value is not None}


class Health:
    """Watches the edited weights of a model: `look` at a proposal, `commit` what was added, `reset` to other sums.

    `weights` are those of the ledger's header and `sums` what the model carries on them. Keeps a RunningSpectrum of
    every weight, and the unedited perplexity of a small built-in text, which is measured when it is first needed. The
    model is changed by no method.
    """

    def __init__(
        self, model: EditableModel, weights: Mapping[str, WeightRecord], sums: Mapping[str, LowRank], *,
        sigma_min_every: int = 10,
    ) -> None:  # fmt: skip
        self.model = model
        self._m = {name: weight.sigma_max for name, weight in weights.items()}
        self._spectra = {
            name: RunningSpectrum(model.original(name), sigma_min_every=sigma_min_every) for name in weights
        }
        self._kappa = {  # κ₀, also where an older header has none
            name: weight.kappa or Spectrum(model.original(name)).unedited.kappa for name, weight in weights.items()
        }
        self._kappa_then: float | None = None  # κ/κ₀ when it was last measured of what went in
        self._looked: tuple[dict[str, LowRank], float | None] = {}, None  # the last proposal, and its κ/κ₀
        self._level: tuple[Level, int] = "ok", 0  # of the last look, and of how many looks in a row
        self.reset({name: held for name, held in sums.items() if held.rank})
        self._text = builtin_text()

    @cached_property
    def _perplexity(self) -> float:
        with self.model.unedited():
            return perplexity(self.model, self._text).value

    def reset(self, sums: Mapping[str, LowRank]) -> None:
        """The weights named carry these sums from now on, as after a restraint or an undo."""
        for name, held in sums.items():
            self._spectra[name].reset(held)
        self._kappa_then, self._looked = None, ({}, None)

    def commit(self, updates: Mapping[str, LowRank]) -> None:
        """The updates are in; whether they were looked at before or not."""
        for name, spectrum in self._spectra.items():
            spectrum.commit(updates.get(name))
        proposal, kappa_ratio = self._looked
        if proposal == dict(updates) and kappa_ratio is not None:
            self._kappa_then = kappa_ratio

    def alone(self, updates: Mapping[str, LowRank]) -> float:
        """The largest σ_max(ΔW)/m of the `updates` themselves, from their factors; above ALONE they are disabling."""
        found = (float(one.singular_values()[0]) / self._m[name] for name, one in updates.items() if one.rank)
        return max(found, default=0.0)

    def look(self, updates: Mapping[str, LowRank], *, read_text: bool) -> Reading:
        """Judge the weights with the proposed `updates`. With `read_text`, and for a disabling edit, the perplexity of
        the built-in text is measured with the proposal."""
        m, extremes, alone = self._m, self._extremes(updates), self.alone(updates)
        disabling, ppl = alone > ALONE, None
        if disabling or any(isinstance(one, Extremes) for one in extremes.values()):
            extremes = self._extremes(updates, sigma_min=True)
        update_ratios = {name: one.update_sigma_max / m[name] for name, one in extremes.items()}
        kappa_ratios = {
            name: self._kappa_ratio(name, one) for name, one in extremes.items() if isinstance(one, Extremes)
        }
        ratios = kappa_ratios or update_ratios
        worst = max(ratios, key=ratios.__getitem__)
        kappa, what_kappa = kappa_ratios.get(worst), "κ"
        self._looked = dict(updates), kappa
        if kappa is None:
            kappa, what_kappa = self._kappa_then, "κ as last measured"
        if read_text or disabling:
            with self.model.provisional(updates):
                ppl = perplexity(self.model, self._text).value
            ppl /= self._perplexity
        warn, alarm = [], []
        if disabling:
            alarm.append(f"this edit alone has σ_max {alone:.2f} m: a disabling edit")
        if max(update_ratios.values()) > UPDATE:
            warn.append(f"σ̂_max {max(update_ratios.values()):.2f} m")
        for value, limits, what in ((kappa, KAPPA, what_kappa), (ppl, PERPLEXITY, "perplexity")):
            if value is not None and not value <= limits[0]:  # NaN is within no limit
                (warn if value <= limits[1] else alarm).append(f"{what} {value:.2f} × the unedited model's")
        level: Level = "alarm" if alarm else "warn" if warn else "ok"
        before = self._level[1] if level == self._level[0] != "ok" and not disabling else 0
        self._level = level, before + 1
        return Reading(
            extremes, extremes[worst], kappa_ratios.get(worst), max(update_ratios.values()), ppl, disabling, level,
            (*alarm, *warn), before,
        )  # fmt: skip

    def _extremes(self, updates: Mapping[str, LowRank], sigma_min: bool | None = None) -> dict[str, Largest]:
        """Of every weight with the updates; with σ_min where it is due, or of all."""
        return {name: spectrum.look(updates.get(name), sigma_min=sigma_min) for name, spectrum in self._spectra.items()}

    def _kappa_ratio(self, name: str, found: Extremes) -> float:
        """κ/κ₀; 1 for a weight that was singular and still is."""
        return 1.0 if found.kappa == self._kappa[name] else found.kappa / self._kappa[name]
