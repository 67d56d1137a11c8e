"""Is one row of a grid better than another by more than chance?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tether.analyses.points import Difference
from tether.evaluation.statistics.compare import LEVEL
from tether.report.curves import UNEDITED, at, last_shared
from tether.report.grid.series import Editor, curve_name, p_text

ERRORS = 1.96  # standard errors that are more than chance, where no paired test is stored
FEW = 6  # items below which no comparison is made: a small built-in text has two or three windows

Key = tuple[int, str]  # edits, restraint


@dataclass(frozen=True)
class Contrast:
    """A measure under one checkpoint and restraint against another: `sign` 1 better, -1 worse, 0 no more than chance;
    `gain` in its own unit, better is positive."""

    sign: int
    gain: float
    text: str


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


def contrasts(editor: Editor, measures: Iterable[str], first: str, second: str) -> tuple[int, list[Contrast]]:
    """`first` against `second` after the most edits both have, by every measure that can be compared."""
    found: list[Contrast] = []
    most = 0
    for measure in measures:
        curves = editor.measured(measure)
        last = last_shared(curves.get(first, []), curves.get(second, []))
        if last is not None and (one := contrast(editor, measure, (last, first), (last, second))) is not None:
            found.append(one)
            most = max(most, last)
    return most, found


def listed(found: Sequence[Contrast]) -> str:
    """What each was, in a row."""
    return ", ".join(c.text for c in found)
