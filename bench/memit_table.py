"""Results of `tether evaluate` of several ledgers as one table: κ of every edited weight, scores, perplexity.

python bench/memit_table.py memit-1.json memit-10.json memit-100.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import table

from tether.evaluation import read
from tether.evaluation.results import Row

SCORES = (("compare", "efficacy"), ("compare", "generalization"), ("compare", "locality"), ("match_tokens", "efficacy"))


def line(name: str, row: Row, start: float | None) -> list[str]:
    numbers = [row.editing[metric][kind] for metric, kind in SCORES]
    ppl = row.abilities["perplexity"].value
    return [
        name, row.restraint, " / ".join(f"{s.kappa:.1f}" for s in row.spectrum.values()),
        f"{max(s.update_sigma_max or 0.0 for s in row.spectrum.values()):.1f}",
        f"{ppl:.2f}" + (f" ({ppl / start:.3f})" if start else ""),
        *(f"{number.value:.1f} ± {number.stderr:.1f}" for number in numbers),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    lines: list[list[str]] = []
    for path in parser.parse_args().results:
        rows = read(path).rows
        start = next((row.abilities["perplexity"].value for row in rows if not row.edits), None)
        lines += [line("unedited", row, start) for row in rows if not row.edits and not lines]
        lines += [line(f"{path.stem}, {row.edits} edits", row, start) for row in rows if row.edits]
    head = ["results", "restraint", "κ", "σ̂_max", "perplexity (ratio)", *(" ".join(score) for score in SCORES)]
    table(head, lines)


if __name__ == "__main__":
    main()
