"""The general abilities of a results file as a table of text."""

from __future__ import annotations

from collections.abc import Collection

from tether.evaluation import Results
from tether.evaluation.results import Ability, Row


def abilities_table(results: Results, marked: Collection[tuple[tuple[int, str], str]] = ()) -> str:
    """A line a row, a column an ability: value ± standard error, `*` where (row key, ability) is `marked`; empty
    without abilities."""
    names = list(dict.fromkeys(name for row in results.rows for name in row.abilities))
    if not names:
        return ""
    counts = {name: sorted({row.abilities[name].n for row in results.rows if name in row.abilities}) for name in names}
    head = ["edits", "restraint", *(f"{name} (n {', '.join(map(str, counts[name]))})" for name in names)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in results.rows:
        if row.abilities:
            cells = [_cell(row, name, (row.key, name) in marked) for name in names]
            lines.append(f"| {row.edits} | {row.restraint} | " + " | ".join(cells) + " |")
    units = {row.abilities[name].unit for row in results.rows for name in row.abilities}
    note = "mean ± standard error over n items in percent"
    if "ppl" in units:
        note += "; perplexity over n tokens" if "percent" in units else ""
    return "\n".join([*lines, note if "percent" in units else "perplexity ± standard error over n tokens"])


def _cell(row: Row, name: str, mark: bool) -> str:
    found: Ability | None = row.abilities.get(name)
    if found is None:
        return ""
    if found.value is None:
        return "not finite"
    error = "" if found.stderr is None else f" ± {found.stderr:.1f}"
    return f"{found.value:.1f}{error}{'*' if mark else ''}"
