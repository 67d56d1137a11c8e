"""The first screen of a results file's report: what was edited, what the model now says, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from tether.evaluation.metrics.base import reported_by
from tether.evaluation.results import IN_CONTEXT, Results, Row
from tether.ledger import ATTEMPTS, Ledger
from tether.report.curves import estimate, restraint_name, short, under
from tether.report.drawing import BLUE, GREY, ORANGE, RED
from tether.report.exchanges import spread
from tether.report.page import Bar, First, Stretch, bars, n, note, table

_SAYS = {
    "generate": "left to itself, the model says it",
    "match_all": "all its tokens are the likeliest",
    "compare": "it is likelier than the other",
}  # metrics that tell what the model says, the first preferred
_WHEN = {"unedited": "before", "no restraint": "without a restraint"}
_FACTS = 4  # that the first card shows
_LOST = "lost"
_STATUS = {
    "held": (BLUE, 1.0),
    _LOST: (RED, 0.35),
    "failed": (ORANGE, 0.35),
    "undone": (GREY, 0.35),
    "not asked": (GREY, 0.35),
}


@dataclass(frozen=True)
class Told:
    """The rows that the first screen is about: the model `now`, which is the last row after the most edits; that
    without a restraint, where it is another; and the unedited one."""

    now: Row
    plain: Row | None
    unedited: Row | None

    @property
    def rows(self) -> list[tuple[str, str, Row]]:
        """Name, colour and row of each."""
        found = [("unedited", GREY, self.unedited), ("no restraint", RED, self.plain)]
        found.append((restraint_name(self.now.restraint), BLUE, self.now))
        return [(name, colour, row) for name, colour, row in found if row is not None]


def summary(results: Results, ledger: Ledger | None) -> list[First]:
    """The three cards."""
    rows = [row for row in results.rows if row.edits and row.restraint != IN_CONTEXT and (row.editing or row.abilities)]
    now = max(reversed(rows), key=lambda row: (row.edits, bool(row.spectrum)), default=None)  # of equal ones the last
    if now is None:
        nothing = bars({}, "")
        how = "Measured by tether evaluate LEDGER --out FILE, drawn by tether report FILE."
        return [
            _listed(results, ledger),
            First("What the model now says", "Not measured", nothing, how),
            First("What it cost", "Not measured", nothing, how),
        ]
    plain = next((row for row in rows if (row.edits, row.restraint) == (now.edits, "none") and row is not now), None)
    told = Told(now, plain, next((row for row in results.rows if row.unedited), None))
    return [_edited(results, ledger, told), _says(told), _cost(told)]


def _edited(results: Results, ledger: Ledger | None, told: Told) -> First:
    """Every edit as a stretch of a bar, in order: whether its prompt still gives the new answer."""
    status = {edit: "not asked" for edit, _ in told.now.retention}
    if ledger is not None:
        events = [e for e in ledger.events if e.kind in ATTEMPTS and e.edit is not None]
        status = {e.edit or 0: "not asked" if e.kind == "edit" else "failed" for e in events}
        status |= dict.fromkeys(ledger.undone, "undone")
    lines, held = [], {}
    for name, _, row in told.rows:
        if row.retention and not row.unedited:
            found = status | {edit: "held" if value == 100 else _LOST for edit, value in row.retention}
            held[name] = f"{list(found.values()).count('held')} of {len(row.retention)}"
            lines.append(Bar(name, _stretches(list(found.values())), held[name]))
    edits = told.now.edits if ledger is None else len(ledger.live())
    now = held.get(restraint_name(told.now.restraint))
    headline = _edits(edits, results, ledger) + (f"; {now} still held at the end" if now else "")
    drawn, sentence = _some(ledger)
    if lines:
        metric = next((name for name, one in reported_by(told.now.editing).items() if name == one.holds), "")
        sentence += (
            f"A stretch is an edit, from the first to the last: tall where it is held ({_SAYS.get(metric, metric)})."
        )
        drawn += bars({"every edit, in order": lines}, headline)
    return First("What was edited", headline, drawn or note("Not measured."), sentence)


def _listed(results: Results, ledger: Ledger | None) -> First:
    """The first card where nothing was measured."""
    edits = max((row.edits for row in results.rows), default=0) if ledger is None else len(ledger.live())
    drawn, sentence = _some(ledger)
    return First("What was edited", _edits(edits, results, ledger), drawn, sentence)


def _edits(edits: int, results: Results, ledger: Ledger | None) -> str:
    """The headline of the first card."""
    undone = 0 if ledger is None else len(ledger.undone)
    apart = f" ({undone} undone or replaced)" if undone else ""
    return f"{edits} fact{'' if edits == 1 else 's'} edited into {Path(results.model).name}{apart}"


def _some(ledger: Ledger | None) -> tuple[str, str]:
    """Some of the facts of a ledger as a table, and what its method changed."""
    if ledger is None:
        return "", ""
    some = [event for event in ledger.live() if event.fact is not None]
    cells = [[n(e.edit), e.fact.text, e.fact.target_new] for e in spread(some, _FACTS) if e.fact is not None]
    drawn = table(["edit", "prompt", "new answer"], cells, name="Some of the facts") if cells else ""
    return drawn, f"{ledger.header.method} changed {_and(ledger.header.weights)}. "


def _stretches(status: Sequence[str]) -> list[Stretch]:
    """Neighbours of one kind are one stretch; an edit has some air around it where there are few."""
    n, air, at, found = len(status), 0.15 if len(status) <= 60 else 0.0, 0, []
    for kind, same in groupby(status):
        for width in [1] * len(list(same)) if air else [len(list(same))]:
            found.append(Stretch(at / n, (at + width - air) / n, *_STATUS[kind]))
            at += width
    return found


def _says(told: Told) -> First:
    """The new answer: on the edited prompt, in other words, in chat."""
    asked = "What the model now says"
    metric = next((name for name in (*_SAYS, *told.now.editing) if "efficacy" in told.now.editing.get(name, {})), None)
    measures = {
        "the edited prompt": f"{metric} efficacy",
        "in other words": f"{metric} generalization",
        "in its chat": "generate_chat generalization",
    }
    found = {
        name: lines for name, m in measures.items() if (lines := _percent(told, m)) and _value(told.now, m) is not None
    }
    if metric is None or not found:
        return First(asked, "Not measured", bars({}, asked), "")
    said = {name: lines[-1].value for name, lines in found.items()}
    words = {"the edited prompt": "{} of the edited prompts", "in other words": "{} of others about the same",
             "in its chat": "{} in its chat"}  # fmt: skip
    headline = "The new answer is given to " + _and([words[name].format(value) for name, value in said.items()][:2])
    others = [f"{line.value} {_WHEN.get(line.name, under(line.name))}" for line in next(iter(found.values()))[:-1]]
    what = f"Mean over {told.now.editing[metric]['efficacy'].n} facts ({_SAYS.get(metric, metric)})"
    sentence = f"{what}; on {next(iter(found))} it was {_and(others)}." if others else f"{what}."
    return First(asked, headline, bars(found, headline), sentence)


def _cost(told: Told) -> First:
    """General abilities, the answers nearby that no edit was made for, and κ."""
    found: dict[str, list[Bar]] = {}
    said, plain = [], []
    ratio = _ratio(told)
    if ratio is not None:
        found["perplexity, × the unedited model's"] = _lines(told, ratio, None, "×")
        said.append(f"perplexity is × {ratio(told.now):.2f}")
        plain.append(("perplexity × {:.2f}", ratio))
    for task in [task for task, ability in told.now.abilities.items() if ability.unit == "percent"][:1]:
        if lines := _percent(told, task):
            found[task] = lines
            said.append(f"{task} {lines[-1].value}")
    nearby = [
        f"{metric} {kind}" for kind in ("locality_unchanged", "locality") for metric in (*_SAYS, *told.now.editing)
    ]
    kept = next((measure for measure in nearby if _value(told.now, measure) is not None), None)
    if kept is not None:
        word = "unchanged" if kept.endswith("unchanged") else "right"
        found[f"answers nearby, {word}"] = lines = _percent(told, kept)
        said.append(f"{lines[-1].value} of the answers nearby are {word}")
        plain.append(("{:.0f}\N{NO-BREAK SPACE}% of the answers nearby", lambda row: _value(row, kept)))
    if _kappa(told.now) is not None:
        found["κ of the weight"] = _lines(told, _kappa, None, "")
        plain.append(("κ {:.3g}", _kappa))
    headline = _and(said) or "Not measured"
    without = [form.format(value) for form, of in plain if told.plain and (value := of(told.plain)) is not None]
    sentence = f"Without a restraint: {_and(without)}. " if without else ""
    sentence += "κ, σ_max / σ_min, says how unevenly the weight amplifies." if "κ of the weight" in found else ""
    return First("What it cost", headline[:1].upper() + headline[1:], bars(found, "What it cost"), sentence)


def _lines(told: Told, of: Callable[[Row], float | None], top: float | None, unit: str) -> list[Bar]:
    """A bar for every row that has the value, from 0 to `top`, or to the largest of them."""
    values = [(name, colour, value) for name, colour, row in told.rows if (value := of(row)) is not None]
    top = top or max((value for _, _, value in values), default=1.0) or 1.0
    text = "× {:.2f}".format if unit == "×" else partial(short, unit=unit)
    return [Bar(name, [Stretch(0.0, max(value, 0.0) / top, colour)], text(value)) for name, colour, value in values]


def _percent(told: Told, measure: str) -> list[Bar]:
    return _lines(told, lambda row: _value(row, measure), 100, "percent")


def _ratio(told: Told) -> Callable[[Row], float | None] | None:
    """The perplexity over the unedited model's, of a row."""
    tasks = [task for task, ability in told.now.abilities.items() if ability.unit == "ppl"]
    start = _value(told.unedited, tasks[0]) if tasks and told.unedited else None
    if not start or _value(told.now, tasks[0]) is None:
        return None
    return lambda row: None if (value := _value(row, tasks[0])) is None else value / start


def _kappa(row: Row) -> float | None:
    return max((s.kappa for s in row.spectrum.values() if s.kappa), default=None)


def _value(row: Row, measure: str) -> float | None:
    found = estimate(row, measure)
    return None if found is None else found[0]


def _and(parts: Iterable[str]) -> str:
    *first, last = [*parts] or [""]
    return f"{', '.join(first)} and {last}" if first else last
