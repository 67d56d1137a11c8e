"""What is said of invented facts, however they are asked, against what stays of other answers: table and figure.

python bench/hold_table.py results/hold --told results/hold/told.json --figure docs/images
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import table

from tether.evaluation import read
from tether.evaluation.results import Number, Row
from tether.experiment import read_grid
from tether.report.drawing import Chart, Panel, Style, numbered_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = {
    "own, text": ("generate", "efficacy"),
    "own, chat": ("generate_chat", "efficacy"),
    "held out, text": ("generate", "generalization"),
    "held out, chat": ("generate_chat", "generalization"),
    "others unchanged, text": ("bystanders", "unchanged_plain"),
    "others unchanged, chat": ("bystanders", "unchanged_chat"),
    "leak": ("bystanders", "leak"),
}
PANELS = {
    "prompts it was edited for": ("generate_chat", "efficacy"),
    "held-out prompts": ("generate_chat", "generalization"),
}


def rows_of(grid: Path, told: Path | None) -> dict[str, Row]:
    """A row a way of teaching: the editors of the grid at their last number of edits, and the facts in the prompt."""
    found: dict[str, Row] = {}
    for stored in read_grid(grid).runs:
        last = max(stored.rows, key=lambda row: row.edits)
        found[stored.run.method] = last
        if stored.rows[0].edits == 0:
            found["unedited"] = stored.rows[0]
    if told is not None:
        found["the fact in the prompt"] = next(row for row in read(told).rows if row.told is not None)
    return found


def value(row: Row, of: tuple[str, str]) -> Number:
    return row.editing[of[0]][of[1]]


def line(name: str, row: Row, start: float | None) -> list[str]:
    numbers = [value(row, of) for of in COLUMNS.values()]
    told = row.abilities.get("perplexity")
    cost = "" if told is None else f"{told.value:.2f}" + (f" (× {told.value / start:.3f})" if start else "")
    return [name, str(numbers[0].n), *(f"{one.value:.1f} ± {one.stderr:.1f}" for one in numbers), cost]


def draw(axes: Axes, rows: Mapping[str, Row], styles: Mapping[str, Style], of: tuple[str, str]) -> None:
    """Answered against unchanged, each with a standard error."""
    for name, row in rows.items():
        x, y = value(row, ("bystanders", "unchanged")), value(row, of)
        axes.errorbar(x.value, y.value, y.stderr, x.stderr, **{**styles[name].look, "linestyle": ""}, capsize=2)
    axes.set_xlabel("answers about others unchanged, percent")
    axes.set_ylabel("answered in the chat, percent")
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path)
    parser.add_argument("--told", type=Path, help="results of tether evaluate --in-context")
    parser.add_argument("--figure", type=Path, help="folder for hold.svg and hold.png")
    given = parser.parse_args()
    rows = rows_of(given.grid, given.told)
    rows = {name: rows[name] for name in sorted(rows, key=lambda name: name != "unedited")}
    start = next((row.abilities["perplexity"].value for name, row in rows.items() if name == "unedited"), None)
    table(["way", "n", *COLUMNS, "perplexity"], [line(name, row, start) for name, row in rows.items()])
    if given.figure is not None:
        shown = {name: row for name, row in rows.items() if name != "unedited"}
        styles = {name: numbered_style(i) for i, name in enumerate(shown)}
        panels = [Panel(title, partial(draw, rows=shown, styles=styles, of=of)) for title, of in PANELS.items()]
        Chart("hold", "Answered against unchanged", panels, list(styles.items())).save(given.figure)


if __name__ == "__main__":
    main()
