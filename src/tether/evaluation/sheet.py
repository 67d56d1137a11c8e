"""Rows as one table, for a paper or a spreadsheet: methods × metrics, each a mean with its standard error and n.

CSV has three columns a metric; Markdown and LaTeX (booktabs) have `mean ± standard error` in one.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tether.errors import BadSettingsError
from tether.evaluation.metrics.base import reported_by
from tether.evaluation.results import Ability, Row
from tether.evaluation.statistics.mean import Number
from tether.storage.atomic import write_atomically

Measured = Number | Ability
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$",
          "κ": r"$\kappa$", "σ̂": r"$\hat\sigma$"}  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """`labels` of the first columns, `measures` of the others; a line has a text a label and what was measured, None
    where it was not."""

    labels: tuple[str, ...]
    measures: tuple[str, ...]
    lines: tuple[tuple[tuple[str, ...], tuple[Measured | None, ...]], ...]

    @classmethod
    def of(cls, rows: Iterable[tuple[Mapping[str, str], Row]]) -> "Sheet":
        """Every row with what it is of: the same labels in all."""
        rows = list(rows)
        found = [(label, _measured(row)) for label, row in rows]
        metrics = reported_by(name for _, row in rows for name in row.editing)
        names = [f"{name} {kind}" for name in metrics for kind in metrics[name].reports[name]]
        names += [f"{name} (last)" for name in names]
        names += list(dict.fromkeys(name for _, row in rows for name in row.abilities))
        names += ["κ", "σ̂_max"]
        there = {name for _, values in found for name, value in values.items() if value.value is not None}
        measures = tuple(name for name in names if name in there)
        labels = tuple(rows[0][0]) if rows else ()
        lines = tuple((tuple(label.values()), tuple(map(values.get, measures))) for label, values in found)
        return cls(labels, measures, lines)

    def main(self) -> "Sheet":
        """The columns that fit a screen: those that metrics name as theirs, and the abilities."""
        metrics = reported_by(name.partition(" ")[0] for name in self.measures)
        rest = {f"{name} {kind}" for name, metric in metrics.items() for kind in metric.reports[name]}
        rest -= {f"{name} {kind}" for metric in metrics.values() for name, kind in metric.columns}
        wanted = (name not in rest and not name.endswith(" (last)") for name in self.measures)
        kept = [index for index, shown in enumerate(wanted) if shown]
        lines = tuple((label, tuple(values[index] for index in kept)) for label, values in self.lines)
        return Sheet(self.labels, tuple(self.measures[index] for index in kept), lines)

    def csv(self) -> str:
        """Numbers in full; an empty cell where nothing was measured."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        parts = ("", " stderr", " n")
        writer.writerow([*self.labels, *(f"{name}{part}" for name in self.measures for part in parts)])
        for label, values in self.lines:
            cells = [(None, None, None) if v is None else (v.value, v.stderr, v.n or None) for v in values]
            writer.writerow([*label, *(cell for three in cells for cell in three)])
        return text.getvalue()

    def markdown(self) -> str:
        head = [*self.labels, *self.measures]
        lines = [head, ["---"] * len(head), *self._texts()]
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)

    def latex(self) -> str:
        """A tabular of booktabs."""
        lines = [[*self.labels, *self.measures], *self._texts()]
        head, *body = (f"{' & '.join(map(_latex, line))} \\\\\n" for line in lines)
        columns = "l" * len(self.labels) + "r" * len(self.measures)
        begin, end = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n", "\\bottomrule\n\\end{tabular}\n"
        return "".join([begin, head, "\\midrule\n", *body, end])

    def write(self, file: Path) -> None:
        """As its suffix says: .csv, .md or .tex."""
        check_sheet(file)
        text = {".csv": self.csv, ".md": self.markdown, ".tex": self.latex}[file.suffix]()
        write_atomically(file, text.encode())

    def _texts(self) -> list[list[str]]:
        return [[*label, *map(_text, values)] for label, values in self.lines]


def check_sheet(file: Path) -> None:
    """Raise BadSettingsError for a file of another kind."""
    if file.suffix not in (".csv", ".md", ".tex"):
        raise BadSettingsError(f"{file} is no table that is written: name it .csv, .md or .tex")


def _measured(row: Row) -> dict[str, Measured]:
    found: dict[str, Measured] = {**row.abilities}
    for editing, mark in ((row.editing, ""), (row.recent.editing if row.recent else {}, " (last)")):
        found |= {f"{name} {kind}{mark}": number for name, kinds in editing.items() for kind, number in kinds.items()}
    for name, field in (("κ", "kappa"), ("σ̂_max", "update_sigma_max")):
        values = [value for one in row.spectrum.values() if (value := getattr(one, field)) is not None]
        found[name] = Number(value=max(values, default=None), n=0, stderr=None, prompts=0)
    return found


def _text(found: Measured | None) -> str:
    if found is None or found.value is None:
        return ""
    return f"{found.value:.1f}" + ("" if found.stderr is None else f" ± {found.stderr:.1f}")


def _latex(text: str) -> str:
    for plain, written in _LATEX.items():
        text = text.replace(plain, written)
    return text
