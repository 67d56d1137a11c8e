"""The store of a grid: exactly what was put in comes out, a damaged file is named; numbers over seeds."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.analyses.points import Analyses, BoundPoint, CopiesPoint, Difference, SpectrumPoint, ValuePoint, Values
from tether.errors import TetherError
from tether.evaluation.results import Ability, Number, Row, Singular
from tether.experiment import StoredGrid, StoredRun, read_grid, write_grid
from tether.experiment.parquet import REST, ROWS
from tether.experiment.results import Run  # fmt: skip

NUMBERS = st.floats(allow_nan=False)  # infinity may stand there: an explosion of perplexity
MAYBE = st.none() | NUMBERS
COUNTS = st.integers(0, 2**40)
TEXTS = st.text(max_size=6)
RESTRAINTS = st.sampled_from(["none", "log:1.2", "log:e", "as recorded"])


def build(kind: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **fields)


NUMBER = {"value": MAYBE, "n": COUNTS, "stderr": MAYBE, "prompts": COUNTS}
ROW = build(
    Row, edits=COUNTS, restraint=RESTRAINTS, replayed=st.booleans(),
    editing=st.dictionaries(TEXTS, st.dictionaries(
        TEXTS, build(Number, **NUMBER) | build(Number, **NUMBER, neither=COUNTS), max_size=2), max_size=2),
    retention=st.lists(st.tuples(COUNTS, NUMBERS), max_size=3),
    abilities=st.dictionaries(TEXTS, build(Ability, value=MAYBE, n=COUNTS, stderr=MAYBE,
                                           unit=st.sampled_from(["percent", "ppl"])), max_size=2),
    spectrum=st.dictionaries(TEXTS, build(Singular, sigma_max=MAYBE, sigma_min=MAYBE, kappa=MAYBE,
                                          update_sigma_max=MAYBE), max_size=2),
)  # fmt: skip
ANALYSES = build(
    Analyses,
    spectrum=st.lists(build(SpectrumPoint, edits=COUNTS, restraint=RESTRAINTS, weight=TEXTS, sigma_max=NUMBERS,
                            sigma_min=NUMBERS, kappa=MAYBE, update_sigma_max=NUMBERS, m=NUMBERS), max_size=2),
    values=st.none() | build(
        Values, weight=TEXTS, explained=st.tuples(NUMBERS, NUMBERS), shift=st.dictionaries(RESTRAINTS, NUMBERS),
        points=st.lists(build(ValuePoint, edit=COUNTS, when=st.sampled_from(["edited", "end", "restrained"]),
                              restraint=RESTRAINTS, x=NUMBERS, y=NUMBERS), max_size=2)),
    copies=st.lists(build(CopiesPoint, copies=COUNTS, restraint=RESTRAINTS, update_sigma_max=NUMBERS, delta_max=NUMBERS,
                          kappa=MAYBE, perplexity=MAYBE, efficacy=MAYBE), max_size=2),
    bound=st.lists(build(BoundPoint, edits=COUNTS, restraint=RESTRAINTS, weight=TEXTS,
                         of=st.sampled_from(["sum", "edit"]), gamma=NUMBERS, kappa=NUMBERS, kappa_hat=NUMBERS,
                         error_median=NUMBERS, error_max=NUMBERS, bound=NUMBERS, bound_from_kappa=MAYBE,
                         holds=st.booleans()), max_size=2),
    differences=st.lists(build(Difference, measure=TEXTS, unit=TEXTS, row=st.tuples(COUNTS, RESTRAINTS),
                               baseline=st.tuples(COUNTS, RESTRAINTS), value=MAYBE, baseline_value=MAYBE, mean=NUMBERS,
                               stderr=MAYBE, n=COUNTS, p=MAYBE, p_holm=MAYBE, verdict=TEXTS), max_size=2),
)  # fmt: skip
RUN = build(
    Run, id=TEXTS, model=TEXTS, method=TEXTS, dataset=TEXTS, seed=st.integers(-9, 9), edits=COUNTS,
    batch_size=st.integers(1, 9), restrain=RESTRAINTS, every=st.none() | COUNTS,
)  # fmt: skip
STORED = build(
    StoredRun, run=RUN, rows=st.lists(ROW, max_size=3), analyses=ANALYSES,
    counts=st.dictionaries(TEXTS, COUNTS, max_size=2), versions=st.dictionaries(TEXTS, TEXTS, max_size=2),
    hashes=st.dictionaries(TEXTS, TEXTS, max_size=2),
)  # fmt: skip
GRID = build(
    StoredGrid, name=TEXTS, title=TEXTS, command=TEXTS,
    runs=st.lists(STORED, max_size=3, unique_by=lambda stored: stored.run.id),
)  # fmt: skip


@given(grid=GRID)
@settings(max_examples=60, deadline=None)
def test_exactly_what_was_put_in_comes_out(grid: StoredGrid) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_grid(grid, folder)
        found = read_grid(folder)
    assert found == grid
    for ours, theirs in zip(found.runs, grid.runs, strict=True):  # and in the same order
        assert repr(ours.rows) == repr(theirs.rows)


def a_run(seed: int, ppl: float, **changes: Any) -> StoredRun:
    run = Run(**{"id": f"r{seed}", "model": "m", "method": "rome", "dataset": "d", "seed": seed, "edits": 4, **changes})
    number = Number(value=50.0, n=4, stderr=2.5, prompts=8)
    row = Row(
        edits=4, restraint="none", replayed=False, editing={"compare": {"efficacy": number}}, retention=[(1, 100.0)],
        abilities={"perplexity": Ability(value=ppl, n=99, stderr=0.5, unit="ppl")},
        spectrum={"w": Singular(sigma_max=3.0, sigma_min=0.5, kappa=6.0, update_sigma_max=1.0)},
    )  # fmt: skip
    return StoredRun(run=run, rows=[row, Row(edits=0, restraint="none", replayed=False)], versions={"torch": "2"})


def test_one_number_a_line(tmp_path: Path) -> None:
    write_grid(StoredGrid(name="n", title="t", command="c", runs=[a_run(1, 30.0)]), tmp_path)
    lines = pyarrow.parquet.read_table(tmp_path / ROWS).to_pylist()
    told = [(line["what"], line["metric"], line["part"], line["value"], line["unit"]) for line in lines]
    assert told == [
        ("editing", "compare", "efficacy", 50.0, "percent"), ("retention", None, "1", 100.0, "percent"),
        ("ability", "perplexity", None, 30.0, "ppl"), ("spectrum", "sigma_max", "w", 3.0, None),
        ("spectrum", "sigma_min", "w", 0.5, None), ("spectrum", "kappa", "w", 6.0, None),
        ("spectrum", "update_sigma_max", "w", 1.0, None), ("row", None, None, None, None),
    ]  # fmt: skip
    assert lines[0]["stderr"] == 2.5 and lines[0]["n"] == 4 and lines[0]["prompts"] == 8 and lines[0]["seed"] == 1
    assert json.loads(lines[0]["versions"]) == {"torch": "2"} and lines[-1]["edits"] == 0


def test_a_run_stands_there_once(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match="'r1' stands twice"):
        write_grid(StoredGrid(name="n", title="t", command="c", runs=[a_run(1, 3.0), a_run(1, 4.0)]), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [ROWS, REST])
def test_damage_anywhere_is_one_clear_line(tmp_path: Path, name: str) -> None:
    write_grid(StoredGrid(name="n", title="t", command="c", runs=[a_run(1, 30.0)]), tmp_path)
    file = tmp_path / name
    whole = file.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        for data in (bytes(damaged), whole[:at]):
            file.write_bytes(data)
            with pytest.raises(TetherError, match=r"results\.parquet|analyses\.json") as caught:
                read_grid(tmp_path)
            assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(TetherError, match=f"{name} cannot be read .*name the folder of a grid"):
        read_grid(tmp_path)


def test_files_of_two_writes_are_told(tmp_path: Path) -> None:
    """A kill between the two files."""
    write_grid(StoredGrid(name="n", title="t", command="c", runs=[a_run(1, 30.0)]), tmp_path)
    old = (tmp_path / REST).read_bytes()
    write_grid(StoredGrid(name="n", title="t", command="c", runs=[a_run(1, 30.0), a_run(2, 31.0)]), tmp_path)
    (tmp_path / REST).write_bytes(old)
    with pytest.raises(TetherError, match="run tether grid again with --resume"):
        read_grid(tmp_path)
