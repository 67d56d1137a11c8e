"""Edits that stand for others, undone and taken in again in any order; restraints that go with them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from core import FACTS, close, editable, random_update
from edits import run
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.algebra.lowrank import LowRank
from tether.cli.log import log
from tether.constraints.prune import parse
from tether.errors import BadSettingsError
from tether.ledger import Attempt, Header, Ledger, WeightRecord
from tether.ledger.combine import pick

NAME = "w"


def empty(folder: Path) -> Ledger:
    """A ledger over one small weight; no model is needed to add and to undo."""
    header = Header(
        created="2026-01-01T00:00:00.000+00:00", model="none", fingerprint="0" * 64, dtype="float32",
        weights={NAME: WeightRecord(shape=(4, 6), sigma_max=6.0)}, method="memit", settings={"layers": [1]},
        settings_origin="the test", prefixes=(), moments={}, corpus={}, seed=0, threads=1, restrain="none", every=None,
        joint="rule", versions={},
    )  # fmt: skip
    return Ledger.create(folder, header)


def add(ledger: Ledger, number: int, replacing: Any = ()) -> None:
    """A batch of so many edits, which may stand for others."""
    first = ledger.attempts + 1
    old = [*replacing, *[None] * number][:number]
    attempts = [
        Attempt("edit", FACTS[0], {} if edit is None else {"stands_for": edit}, columns=0 if number > 1 else 1)
        for edit in old
    ]
    with ledger.writing():
        for one in [attempts] if replacing else [[attempt] for attempt in attempts]:
            columns = [Attempt(a.kind, a.fact, a.record, columns=1) for a in one]
            update = LowRank.sum([random_update(4, 6, 1, seed=first + place, scale=12.0) for place in range(len(one))])
            vectors = {f"{NAME}/K": torch.ones(len(one), 6), f"{NAME}/H": torch.eye(len(one))}
            ledger.append(columns, {NAME: update}, vectors, replacing=replacing)


def restrain(ledger: Ledger, **more: Any) -> None:
    with ledger.writing():
        restraint = parse("log:1.2")
        ledger.append_restraint(restraint, ledger.sums().restrain_recorded(restraint), **more)


def dense(ledger: Ledger, **options: Any) -> torch.Tensor:
    return Ledger.open(ledger.path).sums(**options).of[NAME].dense


def test_an_old_edit_and_what_stands_for_it_never_count_together(tmp_path: Path) -> None:
    """Replaced twice, and a part of the replacement replaced once more."""
    ledger = empty(tmp_path)
    add(ledger, 3)
    ledger.undo(2)  # by hand: it must not come back by itself
    first = dense(ledger)
    add(ledger, 2, replacing=[1, 3])
    add(ledger, 2, replacing=[4, 5])
    assert ledger.live_numbers() == [6, 7] and ledger.redoable == [2]
    for edit, standing in ((1, "6, 7"), (4, "6, 7")):
        with pytest.raises(BadSettingsError, match=f"edit {edit} is replaced: {standing} would stand for it"):
            ledger.redo(edit)
    ledger.undo(6, 7)
    assert ledger.live_numbers() == [4, 5]
    ledger.undo(4, 5)
    assert ledger.live_numbers() == [1, 3] and torch.equal(dense(ledger), first)
    event = ledger.redo(6)  # of the newest: what it stands for, two generations back, goes out
    assert event.undone == (1, 3) and ledger.live_numbers() == [6]
    with pytest.raises(BadSettingsError, match="edit 4 is replaced: 6 would stand for it; undo all 1"):
        ledger.redo(4, 5)
    ledger.undo(6)
    assert ledger.live_numbers() == [1, 3], "4 and 5 were undone by hand"
    ledger.undo(1)
    ledger.redo(4)
    ledger.undo(4)
    assert ledger.live_numbers() == [3], "1 was undone by hand"
    assert Ledger.open(tmp_path).live_numbers() == [3]


def test_a_repaired_part_of_a_consolidation(tmp_path: Path) -> None:
    ledger = empty(tmp_path)
    add(ledger, 2)
    add(ledger, 2, replacing=[1, 2])
    add(ledger, 1, replacing=[3])
    assert ledger.live_numbers() == [4, 5] and not ledger.redoable
    ledger.undo(4)
    assert ledger.live_numbers() == [5], "5 stands for 3, and 3 for 1 and 2"
    ledger.undo(5)
    assert ledger.live_numbers() == [3]
    ledger.undo(3)
    assert ledger.live_numbers() == [1, 2]
    ledger.redo(5)
    assert ledger.live_numbers() == [5]
    lines = [line.strip() for line in str(log(tmp_path).text).splitlines()[-4:]]
    assert lines == ["undo 4", "undo 5 (takes in again: 3)", "undo 3 (takes in again: 1, 2)",
                     "redo 5 (takes out again: 1, 2)"]  # fmt: skip


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_any_order_of_undo_and_redo(data: st.DataObject) -> None:
    """No edit counts beside one that stands for it, and one undone by hand stays out until it is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = empty(Path(folder))
        add(ledger, 3)
        above = {1: {4, 5}, 2: {4, 5}, 4: {6}, 3: {7}, 5: {8}, 6: {8}}
        for number, old in ((2, [1, 2]), (1, [4]), (1, [3]), (1, [5, 6])):
            add(ledger, number, replacing=old)
        by_hand: set[int] = set()
        for _ in range(data.draw(st.integers(1, 8))):
            undo = data.draw(st.booleans())
            possible = ledger.live_numbers() if undo else ledger.redoable
            if not possible:
                continue
            chosen = data.draw(st.sets(st.sampled_from(possible), min_size=1, max_size=2))
            try:
                (ledger.undo if undo else ledger.redo)(*sorted(chosen))
            except BadSettingsError:  # two at once, of which one stands for the other
                assert len(chosen) == 2 and not undo
                continue
            by_hand = by_hand | chosen if undo else by_hand - chosen
            live = set(ledger.live_numbers())
            assert not live & by_hand
            for edit in live:
                over, todo = set[int](), [edit]
                while todo:
                    todo += (new := above.get(todo.pop(), set()) - over)
                    over |= new
                assert not live & over
            assert Ledger.open(folder).live_numbers() == sorted(live)


def test_a_number_below_a_consolidation_means_the_edits_as_they_stood(tmp_path: Path) -> None:
    ledger = empty(tmp_path)
    add(ledger, 3)
    restrain(ledger)
    ledger.undo(2)
    before = dense(ledger)
    add(ledger, 2, replacing=[1, 3])
    restrain(ledger, only_with=(4, 5))
    assert [e.edit for e in ledger.live(3)] == [1, 3] and [e for e, _ in ledger.facts(3)] == [1, 3]
    assert torch.equal(dense(ledger, upto=3), before)
    both = {state.edits: state.sums.of[NAME].dense for state in ledger.replay().states([0, 2, 3, 5], [None])}
    assert not both[0].any() and torch.equal(both[3], before) and torch.equal(both[5], dense(ledger))
    assert ledger.restraint_in_words(3) == "log:1.2 after edit 3"
    assert ledger.restraint_in_words() == "log:1.2 after edit 5"


def test_a_restraint_goes_with_the_edits_it_was_for(tmp_path: Path) -> None:
    ledger = empty(tmp_path)
    add(ledger, 2)
    restrain(ledger)
    before = dense(ledger)
    add(ledger, 2, replacing=[1, 2])
    free = dense(ledger)
    restrain(ledger, only_with=(3, 4))
    held = dense(ledger)
    assert float(torch.linalg.svdvals(held)[0]) < float(torch.linalg.svdvals(free)[0])
    ledger.undo(3, 4)
    assert torch.equal(dense(ledger), before) and ledger.restraint_in_words() == "log:1.2 after edit 2"
    ledger.redo(3, 4)
    assert torch.equal(dense(ledger), held)


def test_a_copy_stands_for_nothing(tmp_path: Path) -> None:
    ledger = empty(tmp_path / "l")
    add(ledger, 2)
    add(ledger, 2, replacing=[1, 2])
    assert [e.record for e in ledger.live()] == [{"stands_for": 1}, {"stands_for": 2}]
    assert [e.record for e in pick(ledger, [3, 4], tmp_path / "picked").live()] == [{}, {}]


# --- history and restraints in between ------------------------------------------------------------------------------


def recursion(ledger: Ledger, name: str, after: int) -> torch.Tensor:
    """The solves of the live edits one by one, by the dense formula, restrained once after edit `after`."""
    kept = {}
    for event in ledger.live():
        tensors = ledger.tensors(event)
        kept[event.edit or 0] = [tensors[f"{name}/{kind}"][event.part].double() for kind in "KXD"]
    p, q = ledger.header.weights[name].shape
    total, K, X = torch.zeros(p, q, dtype=torch.float64), torch.zeros(0, q), torch.zeros(0, q)
    K, X = K.double(), X.double()
    restrained = False
    for edit, (k, x, d) in sorted(kept.items()):
        if edit > after and not restrained:
            sums = ledger.replay().without(frozenset(kept)).sums(exact=False)
            sums.add({name: LowRank(total.float(), torch.eye(q))})
            sums.restrain(parse("log:1.2"))
            total, restrained = sums.of[name].dense.double(), True
        K, X = torch.cat([K, k]), torch.cat([X, x])
        G = torch.linalg.inv(torch.eye(len(K), dtype=torch.float64) + K @ X.mT) @ X
        total = total + (d - k @ total.mT).mT @ G[-len(k) :]
    return total


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_solves_with_history_go_on_from_a_restrained_sum_after_an_undo(layout: str, tmp_path: Path) -> None:
    model = editable(layout)
    changes = {"history": True, "mom2_update_weight": 2.0, "v_lr": 0.5}
    ledger = run(model, FACTS[:3], tmp_path / "l", method="memit", changes=changes, health=0, restrain="log:1.2")
    ledger = run(model, FACTS[3:], ledger.path, restrain="none", health=0)
    (name,) = ledger.header.weights
    before = ledger.sums().of[name].dense
    assert ledger.restraint_in_words() == "log:1.2 after edit 3"
    assert not torch.equal(before, ledger.sums(restrain="none").of[name].dense)
    assert close(before.double(), recursion(ledger, name, 3), 2e-3)
    ledger.undo(2)
    assert close(ledger.sums().of[name].dense.double(), recursion(ledger, name, 3), 2e-3)
    with pytest.raises(BadSettingsError, match=r"others before them were undone or redone .history.*copy the folder"):
        pick(ledger, ledger.live_numbers(), tmp_path / "picked")
    ledger.undo(5)
    assert close(ledger.sums().of[name].dense.double(), recursion(ledger, name, 3), 2e-3)
    last = [sums.of[name].dense for _, sums in ledger.replay().solves()][-1]
    assert close(last, ledger.sums().of[name].dense, 2e-3)
    ledger.redo(2, 5)
    assert torch.equal(ledger.sums().of[name].dense, before), "marks that cancel change no bit"
