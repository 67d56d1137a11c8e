"""The rules of the findings: what must hold in an editor's data for each claim, in the order of the paper.

A rule returns whether the data show the claim, and the numbers it was decided on. It raises CannotSay where the data
do not suffice. `claims.yaml` says every rule in words, under the name of its function.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from tether.analyses.points import Difference
from tether.evaluation.statistics.compare import LEVEL
from tether.report.curves import UNEDITED, Curves, Point, at, last_shared
from tether.report.grid.series import Correlation, Editor, curve_name, p_text, rank_correlation

Judgement = tuple[bool, str]
Key = tuple[int, str]  # edits, restraint

RISE = 1.1  # what grows by less has not grown
MOVE = RISE - 1  # what moves by less hardly moves
TREND = 0.5  # rank correlation with the edits from which a rise is one
LOSS = 5.0  # points of percent that an editing score may lose and be kept
CHECKPOINTS = 5  # below which no order of ranks has p < 0.05
EXACT = 0.01  # of N·δ_max
INSTANCE = 25.0  # the largest instance change in table 2 without PRUNE
ERRORS = 1.96  # standard errors that are more than chance, where no paired test is stored
FEW = 6  # items below which no comparison is made: a small built-in text has two or three windows


class CannotSay(Exception):  # noqa: N818 - no error: an answer
    """What is missing for a judgement."""


@dataclass(frozen=True)
class Contrast:
    """A measure under one checkpoint and restraint against another: `sign` 1 better, -1 worse, 0 no more than chance;
    `gain` in its own unit, better is positive."""

    sign: int
    gain: float
    text: str


def kappa_climbs(editor: Editor) -> Judgement:
    weight, curves = editor.worst("kappa")
    _need(curves, "κ was not measured")
    kappa, largest = curves["none"], editor.spectra("sigma_max")[weight].get("none", [])
    enough = len(kappa) >= 3 and not kappa[0].edits
    _need(enough, f"{len(kappa)} checkpoints of κ, three with the unedited weight are needed")
    return _grows(kappa) and _grows(largest), (
        f"κ {_range(kappa)} (ρ with the edits {_trend(kappa):.2f}), σ_max {_range(largest)} "
        f"(ρ {_trend(largest):.2f}), 0 → {kappa[-1].edits} edits, {weight}"
    )


def sigma_min_stays(editor: Editor) -> Judgement:
    weight, _ = editor.worst("kappa")
    points = editor.spectra("sigma_min").get(weight, {}).get("none", [])
    _need(len(points) >= 2 and not points[0].edits and points[0].value > 0, "σ_min was not measured before and after")
    furthest = max((p.value / points[0].value - 1 for p in points), key=abs)
    told = f"σ_min {_range(points)}, at most {100 * furthest:+.1f} % from the unedited one, {weight}"
    return abs(furthest) <= MOVE, told


def update_grows(editor: Editor) -> Judgement:
    weight, curves = editor.worst("update_sigma_max")
    points = [p for p in curves.get("none", []) if p.edits]
    _need(len(points) >= 2, "σ̂_max was measured at fewer than two numbers of edits")
    m = editor.m[weight]
    return _grows(points) and points[-1].value > m, (
        f"σ̂_max {_range(points)} for N = {points[0].edits} → {points[-1].edits} (ρ {_trend(points):.2f}), "
        f"{points[-1].value / m:.2f} m, {weight}"
    )


def kappa_restrained(editor: Editor) -> Judgement:
    name = _prune(editor)
    weight, curves = editor.worst("kappa")
    a, b = _free_and_held(curves, name, "κ")
    told = f"κ {curves['none'][0].value:.3g} unedited, {a.value:.3g} after {a.edits} edits, {b.value:.3g} with {name}"
    return b.value * RISE < a.value, f"{told}, {weight}"


def bound_holds(editor: Editor) -> Judgement:
    points = [p for s in editor.runs for p in s.analyses.bound]
    _need(points, "the bound was not measured")
    broken, silent = sum(not p.holds for p in points), sum(p.bound_from_kappa is None for p in points)
    return not broken, (
        f"no actual error above the bound of theorem 3.1 in {len(points) - broken} of {len(points)} cases; γ ≤ 0 in "
        f"{silent}, where theorem 3.2 says nothing"
    )


def _bound_grows(editor: Editor, of: str) -> Judgement:
    weight = editor.worst_bound()
    points = editor.bounds(of).get(weight, {}).get("none", [])
    _need(len(points) >= CHECKPOINTS, f"the bound was measured at {len(points)} edits; {CHECKPOINTS} are needed")
    seen, told = _significant(rank_correlation([p.edits for p in points], [p.value for p in points]), 1)
    return seen, f"bound {_range(points)}, edits {points[0].edits} → {points[-1].edits}, {told}, {weight}"


edit_bound_grows = partial(_bound_grows, of="edit")
sum_bound_grows = partial(_bound_grows, of="sum")


def bound_restrained(editor: Editor) -> Judgement:
    name, weight = _prune(editor), editor.worst_bound()
    a, b = _free_and_held(editor.bounds("sum").get(weight, {}), name, "the bound")
    told = f"bound of the sum of {a.edits} edits {a.value:.3g}, {b.value:.3g} with {name}, {weight}"
    return b.value * RISE < a.value, told


def copies_add_up(editor: Editor) -> Judgement:
    points = editor.copies("none")
    _need(len(points) >= 2, "copies of one update were not measured")
    furthest = max(abs(p.update_sigma_max / (p.copies * p.delta_max) - 1) for p in points)
    last = points[-1]
    return furthest <= EXACT, (
        f"σ̂_max = {last.update_sigma_max:.4g} for N = {last.copies}, N·δ_max = {last.copies * last.delta_max:.4g}; "
        f"at most {100 * furthest:.2g} % apart"
    )


def copies_restrained(editor: Editor) -> Judgement:
    names = sorted({p.restraint for s in editor.runs for p in s.analyses.copies})
    logs = [name for name in names if name.startswith("log:")]
    name = "log:1.2" if "log:1.2" in logs else next(iter(logs), "")
    free, held = ({p.copies: p for p in editor.copies(restraint)} for restraint in ("none", name))
    most = max(free.keys() & held.keys(), default=None)
    if most is None:
        raise CannotSay("copies of one update were not measured under a log restraint")
    fewest, a, b = free[min(free)], free[most], held[most]
    told = f"N = {most} copies: σ̂_max {a.update_sigma_max:.3g} → {b.update_sigma_max:.3g} with {name}"
    seen = b.update_sigma_max * RISE < a.update_sigma_max
    if fewest.efficacy is not None and b.efficacy is not None:
        lost = f"the edit does not hold with N = {fewest.copies} (efficacy {fewest.efficacy:.1f})"
        _need(fewest.efficacy > LOSS, lost)
        seen = seen and b.efficacy >= fewest.efficacy - LOSS
        told += f", efficacy {b.efficacy:.1f} ({fewest.efficacy:.1f} for N = {fewest.copies})"
    if a.perplexity is not None and b.perplexity is not None:
        seen = seen and b.perplexity <= a.perplexity
        told += f", perplexity {a.perplexity:.4g} → {b.perplexity:.4g}"
    return seen, told


def abilities_fall(editor: Editor) -> Judgement:
    found = []
    for task in editor.tasks:
        points = editor.measured(task).get("none", [])
        if len(points) < 2 or points[0].edits or points[0].value <= 2 * (points[0].stderr or 0.0):
            continue  # what was never there cannot fall
        one = contrast(editor, task, (points[-1].edits, "none"), (0, "none"))
        if one is not None:
            found.append(one)
    _need(found, "no ability was measured before and after that the unedited model has")
    fell = sum(c.sign < 0 for c in found)
    return 2 * fell > len(found), f"{fell} of {len(found)} fell: {_listed(found)}"


def abilities_kept(editor: Editor) -> Judgement:
    return _better(*_contrasts(editor, editor.tasks, _prune(editor), "none"))


def _falls(editor: Editor, kind: str, *, from_unedited: bool) -> Judgement:
    """A kind of score is lower after the most edits than at the first checkpoint, by more than chance."""
    measure = next((measure for measure in editor.kinds if measure.endswith(kind)), "")
    points = [p for p in editor.measured(measure).get("none", []) if p.edits or from_unedited]
    _need(len(points) >= 2, f"{kind} was measured at fewer than two numbers of edits")
    found = contrast(editor, measure, (points[-1].edits, "none"), (points[0].edits, "none"))
    if found is None:
        raise CannotSay("there is neither a paired test nor a standard error")
    return found.sign < 0, f"{found.text}, {points[0].edits} → {points[-1].edits} edits"


forgotten = partial(_falls, kind="efficacy", from_unedited=False)
locality_falls = partial(_falls, kind="locality", from_unedited=True)


def editing_kept(editor: Editor) -> Judgement:
    edits, found = _contrasts(editor, editor.kinds, _prune(editor), "none")
    _need(found, "no two rows can be compared")
    kept = all(c.sign >= 0 and c.gain >= -LOSS for c in found)
    return kept, f"after {edits} edits {_listed(found)}"


def editing_improved(editor: Editor) -> Judgement:
    return _better(*_contrasts(editor, editor.kinds, _prune(editor), "none"))


def locality_abilities(editor: Editor) -> Judgement:
    return _correlated(editor.beside_abilities(editor.measured(f"{editor.metric} locality")), 1)


def instances_stay(editor: Editor) -> Judgement:
    points = [p for p in editor.instance_changes().get("none", []) if p.edits]
    _need(points, "instance change was not measured")
    highest = max(points, key=lambda p: p.value)
    told = f"instance change at most {highest.value:.1f} points (after {highest.edits} edits)"
    return highest.value <= INSTANCE, told


def values_closer(editor: Editor) -> Judgement:
    name = _prune(editor)
    shifts = [s.analyses.values.shift for s in editor.runs if s.analyses.values is not None]
    pairs = [(shift["none"], shift[name]) for shift in shifts if "none" in shift and name in shift]
    _need(pairs, "the values were not measured")
    free, held = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    told = f"mean distance from the value when edited {free:.3f} of its norm after all edits, {held:.3f} with {name}"
    return held * RISE < free, told


def log_beats_linear(editor: Editor) -> Judgement:
    name, other = _prune(editor), editor.linear
    if other is None:
        raise CannotSay("no linear restraint was measured")
    return _better(*_contrasts(editor, [*editor.tasks, *editor.kinds], name, other))


def kappa_abilities(editor: Editor) -> Judgement:
    return _correlated(editor.beside_abilities(editor.worst("kappa")[1]), -1)


def multiple_beats_once(editor: Editor) -> Judgement:
    both = editor.once_and_multiple
    if both is None:
        raise CannotSay("no restraint was applied both once and every so many edits")
    _check_that_prune_acts(editor)
    return _better(*_contrasts(editor, [*editor.tasks, *editor.kinds], both[1], both[0]))


def _need(enough: object, message: str) -> None:
    if not enough:
        raise CannotSay(message)


def _prune(editor: Editor) -> str:
    """The curve of PRUNE."""
    if editor.prune is None:
        raise CannotSay("no log restraint was measured")
    _check_that_prune_acts(editor)
    return editor.prune


def _check_that_prune_acts(editor: Editor) -> None:
    """A restraint does nothing where no singular value of the unrestrained sum exceeds its m."""
    m = editor.m
    sizes = editor.spectra("update_sigma_max")
    ratios = [p.value / m[weight] for weight, curves in sizes.items() for p in curves.get("none", [])]
    if ratios and max(ratios) <= 1:
        raise CannotSay(f"no σ̂ exceeds m (the largest is {max(ratios):.2f} m), so PRUNE changes nothing")


def _free_and_held(curves: Curves, name: str, what: str) -> tuple[Point, Point]:
    """The points without a restraint and with `name` after the most edits that both have."""
    free, held = curves.get("none", []), curves.get(name, [])
    last = last_shared(free, held)
    a, b = at(free, last), at(held, last)
    if a is None or b is None:
        raise CannotSay(f"{what} was not measured with and without PRUNE")
    return a, b


def _range(points: Sequence[Point]) -> str:
    return f"{points[0].value:.3g} → {points[-1].value:.3g}"


def _trend(points: Sequence[Point]) -> float:
    found = rank_correlation([p.edits for p in points], [p.value for p in points])
    if found is not None:
        return found.rho
    return math.copysign(1.0, points[-1].value - points[0].value) if len(points) == 2 else 0.0


def _grows(points: Sequence[Point]) -> bool:
    return points[-1].value > RISE * points[0].value and _trend(points) > TREND


def _better(edits: int, found: Sequence[Contrast]) -> Judgement:
    """Something is better beyond chance, and nothing worse."""
    _need(found, "no two rows can be compared")
    better, worse = (sum(c.sign == sign for c in found) for sign in (1, -1))
    told = f"better in {better}, worse in {worse} of {len(found)} after {edits} edits: {_listed(found)}"
    return better > 0 and not worse, told


def _correlated(pairs: Sequence[tuple[float, float]], sign: int) -> Judgement:
    _need(len(pairs) >= CHECKPOINTS, f"{len(pairs)} checkpoints have both; {CHECKPOINTS} are needed for p < {LEVEL}")
    return _significant(rank_correlation([x for x, _ in pairs], [y for _, y in pairs]), sign)


def _significant(found: Correlation | None, sign: int) -> Judgement:
    if found is None:
        return False, "one of the two never changes"
    return found.p < LEVEL and sign * found.rho > 0, str(found)


def contrast(editor: Editor, measure: str, row: Key, baseline: Key) -> Contrast | None:
    """A row against its baseline, by the paired tests that are stored, else by standard errors; None where neither
    is, or on fewer than FEW items."""
    curves = editor.measured(measure)
    a, b = (at(curves.get(name, []), edits) for edits, name in (row, baseline))
    if a is None or b is None:
        return None
    less_is_better = editor.tasks.get(measure) == "ppl"
    gain = b.value - a.value if less_is_better else a.value - b.value
    values = f"{measure} {b.value:.1f} → {a.value:.1f}"
    stored = _stored(editor, measure, row, baseline)
    if any(d.n < FEW for d, _ in stored):
        return None
    if stored:
        signs = [_sign(d) * (1 if forward != less_is_better else -1) for d, forward in stored]
        sign = max((1, -1), key=signs.count)
        most, p = signs.count(sign), stored[0][0].p_holm
        if len(signs) > 1:
            chance = f"more than chance in {most} of {len(signs)} seeds"
        else:
            chance = "one item" if p is None else p_text(p)
        return Contrast(sign if 2 * most > len(signs) else 0, gain, f"{values} ({chance})")
    if a.stderr is None or b.stderr is None:
        return None
    error = math.hypot(a.stderr, b.stderr)
    sign = 0 if abs(gain) <= ERRORS * error else int(math.copysign(1, gain))
    return Contrast(sign, gain, f"{values} (± {error:.1f})")


def _stored(editor: Editor, measure: str, row: Key, baseline: Key) -> list[tuple[Difference, bool]]:
    """The stored comparisons of two rows, one a run, and whether they have them in this order."""
    found = []
    wanted = [(edits, name if edits else UNEDITED) for edits, name in (row, baseline)]
    for stored in editor.runs:
        for d in stored.analyses.differences:
            keys = [(edits, curve_name(stored.run, edits, name)) for edits, name in (d.row, d.baseline)]
            if d.measure == measure and keys in (wanted, wanted[::-1]):
                found.append((d, keys == wanted))
                break
    return found


def _sign(found: Difference) -> int:
    if found.p_holm is None or found.p_holm >= LEVEL or found.mean == 0:
        return 0
    return 1 if found.mean > 0 else -1


def _contrasts(editor: Editor, measures: Iterable[str], first: str, second: str) -> tuple[int, list[Contrast]]:
    """`first` against `second` after the most edits both have, by every measure that can be compared."""
    found: list[tuple[int, Contrast]] = []
    for measure in measures:
        curves = editor.measured(measure)
        last = last_shared(curves.get(first, []), curves.get(second, []))
        if last is not None and (one := contrast(editor, measure, (last, first), (last, second))) is not None:
            found.append((last, one))
    return max((last for last, _ in found), default=0), [one for _, one in found]


def _listed(found: Sequence[Contrast]) -> str:
    return ", ".join(c.text for c in found)
