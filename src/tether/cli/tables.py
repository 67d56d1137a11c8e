"""Tables as text, never cut to the width of a terminal: a line a row, on a pipe too."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tether.evaluation import Number, Results
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


def numbered(edits: Iterable[int]) -> str:
    """Numbers in order as the command line takes them: 3, 7, 10-20."""
    parts: list[list[int]] = []
    for edit in sorted(edits):
        if parts and edit == parts[-1][-1] + 1:
            parts[-1].append(edit)
        else:
            parts.append([edit])
    return ", ".join(f"{part[0]}-{part[-1]}" if part[2:] else ", ".join(map(str, part)) for part in parts)


def count(n: int, one: str, many: str = "") -> str:
    """`1 edit`, `2 edits`."""
    return f"{n} {one if n == 1 else many or f'{one}s'}"


def one_line(text: str) -> str:
    """A text without white space around it, its line ends as ⏎."""
    return "⏎".join(text.strip().splitlines())


def with_error(found: Number | Ability | None, missing: str = "") -> str:
    """Value ± standard error; `missing` for a value that is not finite."""
    if found is None or found.value is None:
        return "" if found is None else missing
    return f"{found.value:.1f}" + ("" if found.stderr is None else f" ± {found.stderr:.1f}")


def curve_table(name: str, curve: Iterable[Mapping[str, float]]) -> str:
    """The strengths that `auto` tried."""
    rows = [[f"{one['strength']:.4g}", f"{one['alive']:.1f}", f"{one['perplexity']:.3f}"] for one in curve]
    return table([name, "% said", "perplexity ×"], rows)


def found_lines(found: Mapping[str, Any]) -> str:
    """What `log:auto` came to, and the curve; `found` is the document of a `Found`."""
    what = f"{found['written']} is {found['restraint']}, from {count(found['facts'], 'fact')}"
    line = f"{what}; to keep: {found['floor']:g} % of the unedited perplexity"
    return "\n".join([curve_table("strength", found["curve"]), line])


def abilities_table(results: Results, marked: Collection[tuple[tuple[int, str], str]] = ()) -> str:
    """The general abilities: a line a row, a column an ability: value ± standard error, `*` where (row key, ability)
    is `marked`; empty without abilities."""
    measured = [row for row in results.rows if row.abilities]
    found = [pair for row in measured for pair in row.abilities.items()]
    names = list(dict.fromkeys(name for name, _ in found))
    if not names:
        return ""
    counts = {name: sorted({ability.n for own, ability in found if own == name}) for name in names}
    head = ["edits", "restraint", *(f"{name} (n {', '.join(map(str, counts[name]))})" for name in names)]
    rows = [
        [str(row.edits), row.restraint]
        + [with_error(row.abilities.get(name), "not finite") + "*" * ((row.key, name) in marked) for name in names]
        for row in measured
    ]
    units = {ability.unit for _, ability in found}
    notes = ["mean ± standard error over n items in percent"] if "percent" in units else []
    if "ppl" in units:
        notes.append("perplexity over n tokens" if notes else "perplexity ± standard error over n tokens")
    return "\n".join([table(head, rows, markdown=True), "; ".join(notes)])
