"""The headroom of a run, on its health line, in its journal and in the report of the ledger."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from command import answer
from core import FACTS, editable
from edits import run
from hypothesis import given
from hypothesis import strategies as st

from tether.editing.headroom import headroom
from tether.editing.loop import Progress
from tether.editing.run import edit
from tether.editing.running_headroom import due
from tether.ledger import Ledger

MEMIT = {"layers": (0, 1), "mom2_update_weight": 5.0, "v_num_grad_steps": 4}
MORE = [fact.model_copy(update={"target_new": new}) for new in ("Rome", "Oslo") for fact in FACTS]


@pytest.mark.parametrize(("layout", "method", "size"), [("llama", "memit", 1), ("gpt2", "emmet", 4)])
def test_a_run_reads_what_headroom_measures(layout: str, method: str, size: int, tmp_path: Path) -> None:
    """After an undo and an append too: at edit 10, and at 20, where edit 3 is out."""
    model, seen = editable(layout), list[Progress]()
    options: dict[str, Any] = {"method": method, "changes": MEMIT, "batch_size": size, "on_alarm": "warn"}
    ledger = run(model, MORE, tmp_path / "l", progress=seen.append, **options)
    assert [at.done for at in seen if at.reading and at.reading.room] == ([10] if size == 1 else [9, 10, 11, 12])
    ledger.undo(3)
    edit(model, MORE[:8], out=tmp_path / "l", batch_size=size, on_alarm="warn", progress=seen.append)
    ledger = Ledger.open(ledger.path)
    read = {e.edit: e.record["headroom"] for e in ledger.events if e.edit and "headroom" in e.record}
    last = max(read)
    assert last == 20 and seen[-1].reading
    found = headroom(model, ledger, bystanders=0)
    fullest = max(found.rooms, key=lambda one: one.used)
    assert read[last]["keys"] == fullest.keys == 19 and read[last]["weight"] == fullest.weight
    assert read[last]["used"] == pytest.approx(fullest.used, rel=1e-4)
    assert read[last]["left"] == pytest.approx(fullest.left, rel=1e-4)
    line = next(at.reading.line() for at in reversed(seen) if at.reading and at.reading.room)
    assert f"headroom {100 - read[last]['used']:.1f} %" in line


@given(st.integers(1, 2000), st.integers(1, 300))
def test_a_look_is_due_by_the_numbers_alone(first: int, count: int) -> None:
    """A batch is due where one of its edits is."""
    assert due(first, count) == any(due(number, 1) for number in range(first, first + count))


def test_looks_grow_rare() -> None:
    at = [number for number in range(1, 1001) if due(number, 1)]
    assert at[:8] == [10, 20, 30, 40, 50, 60, 70, 80] and all(number % 10 == 0 for number in at)
    assert len(at) < 25 and all(after <= 1.25 * before + 10 for before, after in pairwise(at))


def test_a_ledger_has_a_report(tmp_path: Path) -> None:
    model = editable("gpt2")
    run(model, MORE[:10], tmp_path / "ledger", method="memit", changes=MEMIT, batch_size=10)
    page = tmp_path / answer(tmp_path, "report", "ledger")["report"]
    assert page == tmp_path / "ledger-report" / "index.html"
    text = page.read_text()
    assert 'id="headroom"' in text and "degrees of freedom" in text
