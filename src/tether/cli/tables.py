"""Tables of the results as text, never cut to the width of a terminal: a line a row, on a pipe too."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from tether.evaluation import Results
from tether.evaluation.results import Ability


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, markdown: bool = False, right: Collection[int] = ()
) -> str:
    """Columns two blanks apart, or a table of Markdown; the columns `right` are set right."""
    drawn = Table(box=MARKDOWN) if markdown else Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(head):
        drawn.add_column(name, justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    text = io.StringIO()
    console = Console(file=text, width=100_000, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def number(value: float | None, form: str, missing: str = "") -> str:
    return missing if value is None else format(value, form)


def with_error(value: float, stderr: float | None) -> str:
    return f"{value:.1f}" if stderr is None else f"{value:.1f} ± {stderr:.1f}"


def abilities_table(results: Results, marked: Collection[tuple[tuple[int, str], str]] = ()) -> str:
    """The general abilities: a line a row, a column an ability: value ± standard error, `*` where (row key, ability)
    is `marked`; empty without abilities."""
    measured = [row for row in results.rows if row.abilities]
    names = list(dict.fromkeys(name for row in measured for name in row.abilities))
    if not names:
        return ""
    counts = {name: sorted({row.abilities[name].n for row in measured if name in row.abilities}) for name in names}
    head = ["edits", "restraint", *(f"{name} (n {', '.join(map(str, counts[name]))})" for name in names)]
    rows = [
        [
            str(row.edits),
            row.restraint,
            *(_cell(row.abilities.get(name)) + "*" * ((row.key, name) in marked) for name in names),
        ]
        for row in measured
    ]
    units = {row.abilities[name].unit for row in measured for name in row.abilities}
    notes = []
    if "percent" in units:
        notes.append("mean ± standard error over n items in percent")
    if "ppl" in units:
        notes.append("perplexity over n tokens" if notes else "perplexity ± standard error over n tokens")
    return "\n".join([table(head, rows, markdown=True), "; ".join(notes)])


def _cell(ability: Ability | None) -> str:
    if ability is None:
        return ""
    return "not finite" if ability.value is None else with_error(ability.value, ability.stderr)
