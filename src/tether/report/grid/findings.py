"""Which of the paper's findings a grid shows: a stated rule for each, applied to every editor, never a reader's eye."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tether.evaluation.statistics.compare import LEVEL
from tether.experiment.results import StoredGrid
from tether.report.curves import Point, at, last_shared
from tether.report.grid.pick import (
    bounds,
    copies,
    instance_changes,
    kappa_and_abilities,
    linear,
    locality_and_abilities,
    once_and_multiple,
    prune,
    worst,
    worst_bound,
)
from tether.report.grid.row_difference import ERRORS, FEW, Contrast, contrast, contrasts, listed
from tether.report.grid.series import Correlation, Editor, editors, rank_correlation

Word = Literal["seen", "not seen", "cannot say"]
Judgement = tuple[Word, str]  # and the numbers it was decided on

_RISE = 1.1  # what grows by less has not grown
_TREND = 0.5  # rank correlation with the edits from which a rise is one
_LOSS = 5.0  # points of percent that an editing score may lose and be kept
_CHECKPOINTS = 5  # below which no order of ranks has p < 0.05
_EXACT = 0.01  # of N·δ_max
_INSTANCE = 25.0  # the largest instance change in table 2 without PRUNE

_CHANCE = (
    f"More than chance: the paired test on the same items ({FEW} or more), Holm's correction, p < 0.05 (several seeds: "
    f"in more than half of them); on fewer items nothing is said; where no test is stored, more than {ERRORS} combined "
    "standard errors."
)
_IDLE = "Cannot say where no σ̂ exceeds m, for then PRUNE changes nothing."
_PRUNE = "PRUNE: log:1.2 applied once, or the first log restraint measured; after the most edits."


@dataclass(frozen=True)
class Finding:
    """What the paper found, where it says so, and whether one editor's data show it, by which rule."""

    key: str
    name: str
    place: str
    rule: str
    editor: str
    verdict: Word
    sentence: str


@dataclass(frozen=True)
class Claim:
    """A finding of the paper and the rule that decides on it."""

    key: str
    name: str
    place: str
    rule: str
    judge: Callable[[Editor], Judgement]

    def of(self, editor: Editor) -> Finding:
        verdict, numbers = self.judge(editor)
        sentence = f"{verdict.capitalize()} for {editor.name}: {numbers}."
        return Finding(self.key, self.name, self.place, self.rule, editor.name, verdict, sentence)


def findings(grid: StoredGrid) -> list[Finding]:
    """Every claim of the paper, judged for every editor of the grid."""
    return [claim.of(editor) for claim in CLAIMS for editor in editors(grid)]


def _better(edits: int, found: Sequence[Contrast]) -> Judgement:
    """Seen where something is better beyond chance and nothing worse."""
    if not found:
        return "cannot say", "no two rows can be compared"
    better, worse = (sum(c.sign == sign for c in found) for sign in (1, -1))
    told = f"better in {better}, worse in {worse} of {len(found)} after {edits} edits: {listed(found)}"
    return ("seen" if better and not worse else "not seen"), told


def _idle(editor: Editor) -> str | None:
    """Says so where no singular value of the unrestrained sum exceeds its m, so that a restraint does nothing."""
    m = editor.m
    ratios = [
        point.value / m[weight] for weight, curves in editor.spectra("update_sigma_max").items()
        for point in curves.get("none", [])
    ]  # fmt: skip
    if ratios and max(ratios) <= 1:
        return f"no σ̂ exceeds m (the largest is {max(ratios):.2f} m), so PRUNE changes nothing"
    return None


# The rules, in the order of the paper.


def _range(points: Sequence[Point]) -> str:
    return f"{points[0].value:.3g} → {points[-1].value:.3g}"


def _trend(points: Sequence[Point]) -> float:
    found = rank_correlation([p.edits for p in points], [p.value for p in points])
    if found is not None:
        return found.rho
    return math.copysign(1.0, points[-1].value - points[0].value) if len(points) == 2 else 0.0


def _grows(points: Sequence[Point]) -> bool:
    return points[-1].value > _RISE * points[0].value and _trend(points) > _TREND


def _kappa_climbs(editor: Editor) -> Judgement:
    weight = worst(editor, "kappa")
    if weight is None:
        return "cannot say", "κ was not measured"
    kappa, largest = (editor.spectra(field)[weight].get("none", []) for field in ("kappa", "sigma_max"))
    if len(kappa) < 3 or kappa[0].edits:
        return "cannot say", f"{len(kappa)} checkpoints of κ, three with the unedited weight are needed"
    told = (
        f"κ {_range(kappa)} (ρ with the edits {_trend(kappa):.2f}), σ_max {_range(largest)} "
        f"(ρ {_trend(largest):.2f}), 0 → {kappa[-1].edits} edits, {weight}"
    )
    return ("seen" if _grows(kappa) and _grows(largest) else "not seen"), told


def _sigma_min_stays(editor: Editor) -> Judgement:
    weight = worst(editor, "kappa")
    points = [] if weight is None else editor.spectra("sigma_min")[weight].get("none", [])
    if len(points) < 2 or points[0].edits or points[0].value <= 0:
        return "cannot say", "σ_min was not measured before and after"
    furthest = max((p.value / points[0].value - 1 for p in points), key=abs)
    told = f"σ_min {_range(points)}, at most {100 * furthest:+.1f} % from the unedited one, {weight}"
    return ("seen" if abs(furthest) <= _RISE - 1 else "not seen"), told


def _update_grows(editor: Editor) -> Judgement:
    weight = worst(editor, "update_sigma_max")
    points = [] if weight is None else [p for p in editor.spectra("update_sigma_max")[weight]["none"] if p.edits]
    if weight is None or len(points) < 2:
        return "cannot say", "σ̂_max was measured at fewer than two numbers of edits"
    m = editor.m[weight]
    told = (
        f"σ̂_max {_range(points)} for N = {points[0].edits} → {points[-1].edits} (ρ {_trend(points):.2f}), "
        f"{points[-1].value / m:.2f} m, {weight}"
    )
    return ("seen" if _grows(points) and points[-1].value > m else "not seen"), told


def _abilities_fall(editor: Editor) -> Judgement:
    found = []
    for task in editor.tasks:
        points = editor.measured(task).get("none", [])
        if len(points) < 2 or points[0].edits or points[0].value <= 2 * (points[0].stderr or 0.0):
            continue  # what was never there cannot fall
        one = contrast(editor, task, (points[-1].edits, "none"), (0, "none"))
        if one is not None:
            found.append(one)
    if not found:
        return "cannot say", "no ability was measured before and after that the unedited model has"
    fell = sum(c.sign < 0 for c in found)
    return ("seen" if 2 * fell > len(found) else "not seen"), f"{fell} of {len(found)} fell: {listed(found)}"


def _under_prune(editor: Editor) -> Judgement | str:
    """The curve of PRUNE, or why nothing can be said of it."""
    name = prune(editor)
    if name is None:
        return "cannot say", "no log restraint was measured"
    idle = _idle(editor)
    return name if idle is None else ("cannot say", idle)


def _abilities_kept(editor: Editor) -> Judgement:
    name = _under_prune(editor)
    return name if isinstance(name, tuple) else _better(*contrasts(editor, editor.tasks, name, "none"))


def _forgotten(editor: Editor) -> Judgement:
    efficacy = next((kind for kind in editor.kinds if kind.endswith("efficacy")), "")
    points = [p for p in editor.measured(efficacy).get("none", []) if p.edits]
    if len(points) < 2:
        return "cannot say", "efficacy was measured at fewer than two numbers of edits"
    return _fell(contrast(editor, efficacy, (points[-1].edits, "none"), (points[0].edits, "none")), points)


def _locality_falls(editor: Editor) -> Judgement:
    locality = next((kind for kind in editor.kinds if kind.endswith("locality")), "")
    points = editor.measured(locality).get("none", [])
    if len(points) < 2:
        return "cannot say", "locality was measured at fewer than two numbers of edits"
    return _fell(contrast(editor, locality, (points[-1].edits, "none"), (points[0].edits, "none")), points)


def _fell(found: Contrast | None, points: Sequence[Point]) -> Judgement:
    if found is None:
        return "cannot say", "there is neither a paired test nor a standard error"
    return ("seen" if found.sign < 0 else "not seen"), f"{found.text}, {points[0].edits} → {points[-1].edits} edits"


def _editing_kept(editor: Editor) -> Judgement:
    name = _under_prune(editor)
    if isinstance(name, tuple):
        return name
    edits, found = contrasts(editor, editor.kinds, name, "none")
    if not found:
        return "cannot say", "no two rows can be compared"
    kept = all(c.sign >= 0 and c.gain >= -_LOSS for c in found)
    return ("seen" if kept else "not seen"), f"after {edits} edits {listed(found)}"


def _editing_improved(editor: Editor) -> Judgement:
    name = _under_prune(editor)
    return name if isinstance(name, tuple) else _better(*contrasts(editor, editor.kinds, name, "none"))


def _log_beats_linear(editor: Editor) -> Judgement:
    name, other = _under_prune(editor), linear(editor)
    if isinstance(name, tuple):
        return name
    if other is None:
        return "cannot say", "no linear restraint was measured"
    return _better(*contrasts(editor, [*editor.tasks, *editor.kinds], name, other))


def _multiple_beats_once(editor: Editor) -> Judgement:
    both = once_and_multiple(editor)
    if both is None:
        return "cannot say", "no restraint was applied both once and every so many edits"
    idle = _idle(editor)
    if idle is not None:
        return "cannot say", idle
    return _better(*contrasts(editor, [*editor.tasks, *editor.kinds], both[1], both[0]))


def _kappa_restrained(editor: Editor) -> Judgement:
    name, weight = _under_prune(editor), worst(editor, "kappa")
    if isinstance(name, tuple):
        return name
    curves = {} if weight is None else editor.spectra("kappa")[weight]
    free, held = curves.get("none", []), curves.get(name, [])
    last = last_shared(free, held)
    a, b = (None, None) if last is None else (at(free, last), at(held, last))
    if a is None or b is None:
        return "cannot say", "κ was not measured with and without PRUNE"
    told = f"κ {free[0].value:.3g} unedited, {a.value:.3g} after {last} edits, {b.value:.3g} with {name}, {weight}"
    return ("seen" if b.value * _RISE < a.value else "not seen"), told


def _correlated(pairs: Sequence[tuple[float, float]], sign: int) -> Judgement:
    if len(pairs) < _CHECKPOINTS:
        return "cannot say", f"{len(pairs)} checkpoints have both; {_CHECKPOINTS} are needed for p < {LEVEL}"
    found = rank_correlation([x for x, _ in pairs], [y for _, y in pairs])
    return _significant(found, sign)


def _significant(found: Correlation | None, sign: int) -> Judgement:
    if found is None:
        return "not seen", "one of the two never changes"
    return ("seen" if found.p < LEVEL and sign * found.rho > 0 else "not seen"), str(found)


def _values_closer(editor: Editor) -> Judgement:
    name = _under_prune(editor)
    if isinstance(name, tuple):
        return name
    shifts = [s.analyses.values.shift for s in editor.runs if s.analyses.values is not None]
    pairs = [(shift["none"], shift[name]) for shift in shifts if "none" in shift and name in shift]
    if not pairs:
        return "cannot say", "the values were not measured"
    free, held = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    told = f"mean distance from the value when edited {free:.3f} of its norm after all edits, {held:.3f} with {name}"
    return ("seen" if held * _RISE < free else "not seen"), told


def _copies_add_up(editor: Editor) -> Judgement:
    points = copies(editor, "none")
    if len(points) < 2:
        return "cannot say", "copies of one update were not measured"
    furthest = max(abs(p.update_sigma_max / (p.copies * p.delta_max) - 1) for p in points)
    last = points[-1]
    told = (
        f"σ̂_max = {last.update_sigma_max:.4g} for N = {last.copies}, N·δ_max = {last.copies * last.delta_max:.4g}; "
        f"at most {100 * furthest:.2g} % apart"
    )
    return ("seen" if furthest <= _EXACT else "not seen"), told


def _copies_restrained(editor: Editor) -> Judgement:
    names = {p.restraint for s in editor.runs for p in s.analyses.copies}
    name = "log:1.2" if "log:1.2" in names else next((n for n in sorted(names) if n.startswith("log:")), "")
    free, held = ({p.copies: p for p in copies(editor, restraint)} for restraint in ("none", name))
    most = max(free.keys() & held.keys(), default=None)
    if most is None:
        return "cannot say", "copies of one update were not measured under a log restraint"
    fewest, a, b = free[min(free)], free[most], held[most]
    told = f"N = {most} copies: σ̂_max {a.update_sigma_max:.3g} → {b.update_sigma_max:.3g} with {name}"
    leaves = True
    if fewest.efficacy is not None and b.efficacy is not None:
        if fewest.efficacy <= _LOSS:
            return "cannot say", f"the edit does not hold with N = {fewest.copies} (efficacy {fewest.efficacy:.1f})"
        leaves = b.efficacy >= fewest.efficacy - _LOSS
        told += f", efficacy {b.efficacy:.1f} ({fewest.efficacy:.1f} for N = {fewest.copies})"
    if a.perplexity is not None and b.perplexity is not None:
        leaves = leaves and b.perplexity <= a.perplexity
        told += f", perplexity {a.perplexity:.4g} → {b.perplexity:.4g}"
    return ("seen" if b.update_sigma_max * _RISE < a.update_sigma_max and leaves else "not seen"), told


def _bound_grows(of: str) -> Callable[[Editor], Judgement]:
    def judge(editor: Editor) -> Judgement:
        weight = worst_bound(editor)
        points = bounds(editor, of, weight).get("none", [])
        if len(points) < _CHECKPOINTS:
            return "cannot say", f"the bound was measured at {len(points)} edits; {_CHECKPOINTS} are needed"
        found = rank_correlation([p.edits for p in points], [p.value for p in points])
        verdict, told = _significant(found, 1)
        return verdict, f"bound {_range(points)}, edits {points[0].edits} → {points[-1].edits}, {told}, {weight}"

    return judge


def _bound_restrained(editor: Editor) -> Judgement:
    name, weight = _under_prune(editor), worst_bound(editor)
    if isinstance(name, tuple):
        return name
    curves = bounds(editor, "sum", weight)
    last = last_shared(curves.get("none", []), curves.get(name, []))
    a, b = (None, None) if last is None else (at(curves["none"], last), at(curves[name], last))
    if a is None or b is None:
        return "cannot say", "the bound was not measured with and without PRUNE"
    told = f"bound of the sum of {last} edits {a.value:.3g}, {b.value:.3g} with {name}, {weight}"
    return ("seen" if b.value * _RISE < a.value else "not seen"), told


def _bound_holds(editor: Editor) -> Judgement:
    points = [p for s in editor.runs for p in s.analyses.bound]
    if not points:
        return "cannot say", "the bound was not measured"
    broken, silent = sum(not p.holds for p in points), sum(p.bound_from_kappa is None for p in points)
    told = (
        f"no actual error above the bound of theorem 3.1 in {len(points) - broken} of {len(points)} cases; γ ≤ 0 in "
        f"{silent}, where theorem 3.2 says nothing"
    )
    return ("not seen" if broken else "seen"), told


def _instances_stay(editor: Editor) -> Judgement:
    points = [p for p in instance_changes(editor).get("none", []) if p.edits]
    if not points:
        return "cannot say", "instance change was not measured"
    highest = max(points, key=lambda p: p.value)
    told = f"instance change at most {highest.value:.1f} points (after {highest.edits} edits)"
    return ("seen" if highest.value <= _INSTANCE else "not seen"), told


CLAIMS: tuple[Claim, ...] = (
    Claim("kappa-climbs", "κ and σ_max climb with the number of edits", "Section 3.3, figure 2",
          f"Worst weight (largest κ after the most edits), no restraint, three checkpoints or more with the unedited "
          f"one: κ and σ_max both end more than {_RISE - 1:.0%} above the unedited weight's, and their rank "
          f"correlation with the edits is above {_TREND}.", _kappa_climbs),
    Claim("sigma-min-stays", "σ_min hardly moves", "Section 4, figure 2",
          f"Worst weight, no restraint: σ_min is nowhere more than {_RISE - 1:.0%} from the unedited weight's.",
          _sigma_min_stays),
    Claim("update-grows", "σ̂_max of the summed updates grows with N, beyond m", "Section 4, table 1",
          f"Weight with the largest σ̂_max/m, no restraint: σ̂_max at the largest N is more than {_RISE - 1:.0%} "
          f"above that at the smallest, its rank correlation with N is above {_TREND}, and it is above m.",
          _update_grows),
    Claim("kappa-restrained", "PRUNE holds κ down", "Appendix C.4, figure 15",
          f"{_PRUNE} Worst weight: κ is more than a factor {_RISE} below that without a restraint. {_IDLE}",
          _kappa_restrained),
    Claim("bound-holds", "The bound on the perturbation of keys holds", "Section 3.2, theorem 3.1",
          "No measured relative error of a key exceeds the bound, before or after a restraint.", _bound_holds),
    Claim("edit-bound-grows", "The bound of a single edit grows with its number", "Section 3.3, first conclusion",
          f"No restraint, worst weight, {_CHECKPOINTS} edits or more: Spearman's ρ of the bound (A = W_(j-1), E = "
          f"ΔW_j) with j is positive, p < {LEVEL}.", _bound_grows("edit")),
    Claim("sum-bound-grows", "The bound of all edits together grows", "Section 3.3, second conclusion",
          f"No restraint, worst weight, {_CHECKPOINTS} checkpoints or more: Spearman's ρ of the bound (A = W₀, E = "
          f"ΣΔW) with the edits is positive, p < {LEVEL}.", _bound_grows("sum")),
    Claim("bound-restrained", "PRUNE lowers the bound", "Section 4",
          f"{_PRUNE} The bound of the sum is more than a factor {_RISE} below that without a restraint. {_IDLE}",
          _bound_restrained),
    Claim("copies-add-up", "N copies of one update have N times its σ_max", "Section 4, motivation",
          f"Two numbers of copies or more: σ̂_max is within {_EXACT:.0%} of N·δ_max at all of them.", _copies_add_up),
    Claim("copies-restrained", "A restraint takes the redundancy and leaves the edit", "Section 4, motivation",
          f"log:1.2 (or the first log restraint) at the most copies: σ̂_max more than a factor {_RISE} lower and "
          f"perplexity no higher than without, efficacy no more than {_LOSS:.0f} points below that of the fewest "
          "copies; cannot say where the edit did not hold there.", _copies_restrained),
    Claim("abilities-fall", "Unrestrained editing costs general abilities", "Section 5.4, figures 3, 7-9",
          "Of the abilities (perplexity included) in which the unedited model scores more than two standard errors, "
          f"more than half are worse after the most edits, by more than chance. {_CHANCE}", _abilities_fall),
    Claim("abilities-kept", "PRUNE keeps more of the general abilities", "Section 5.4, figures 3, 7-9",
          f"{_PRUNE} At least one ability is better than without a restraint by more than chance, and none worse. "
          f"{_CHANCE} {_IDLE}", _abilities_kept),
    Claim("forgotten", "Earlier edits are forgotten as edits add up", "Section 5.5, figures 4, 10-12",
          f"No restraint: efficacy on all edits so far is lower after the most edits than after the fewest, by more "
          f"than chance. {_CHANCE}", _forgotten),
    Claim("locality-falls", "Unrelated facts are perturbed as edits add up", "Section 5.5, figures 4, 10-12",
          f"No restraint: locality is lower after the most edits than at the first checkpoint, by more than chance. "
          f"{_CHANCE}", _locality_falls),
    Claim("editing-kept", "PRUNE keeps the editing performance", "Section 5.5, figures 4, 10-12",
          f"{_PRUNE} Neither efficacy, generalization nor locality is worse than without a restraint by more than "
          f"chance, and none by more than {_LOSS:.0f} points. {_CHANCE} {_IDLE}", _editing_kept),
    Claim("editing-improved", "At many edits PRUNE improves the editing performance", "Section 5.5, figures 4, 10-12",
          f"{_PRUNE} At least one of efficacy, generalization and locality is better than without a restraint by more "
          f"than chance, and none worse. {_CHANCE} {_IDLE}", _editing_improved),
    Claim("locality-abilities", "Where locality is low, general abilities are low", "Section 5.5",
          f"No restraint, {_CHECKPOINTS} checkpoints or more: Spearman's ρ of locality with the share of the abilities "
          f"kept is positive, p < {LEVEL}.", lambda editor: _correlated(locality_and_abilities(editor), 1)),
    Claim("instances-stay", "Changing a concept's definition hardly changes its instances", "Section 5.6, table 2",
          f"No restraint: instance change is at most {_INSTANCE:.0f} points (the paper's largest) at every checkpoint.",
          _instances_stay),
    Claim("values-closer", "PRUNE keeps the values of early edits", "Section 5.7, figure 5",
          f"The mean distance of the values of the first 100 facts from those when edited, relative to the norm, is "
          f"more than a factor {_RISE} smaller with PRUNE than without. {_IDLE}", _values_closer),
    Claim("log-beats-linear", "The log restraint does better than the linear one", "Appendix C.3, figures 13, 14",
          f"{_PRUNE} Abilities and editing scores against the linear restraint: at least one better by more than "
          f"chance, none worse. {_CHANCE} {_IDLE}", _log_beats_linear),
    Claim("kappa-abilities", "Where κ is high, general abilities are low", "Appendix C.5, figure 16",
          f"No restraint, {_CHECKPOINTS} checkpoints or more: Spearman's ρ of the worst weight's κ with the share of "
          f"the abilities kept is negative, p < {LEVEL}.", lambda editor: _correlated(kappa_and_abilities(editor), -1)),
    Claim("multiple-beats-once", "Applying PRUNE several times does better than once", "Appendix C.6, table 6",
          "After the most edits both have: at least one ability or editing score is better by more than chance with "
          f"the restraint every so many edits than with it once, and none worse. {_CHANCE} {_IDLE}",
          _multiple_beats_once),
)  # fmt: skip
