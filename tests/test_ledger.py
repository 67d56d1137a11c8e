"""The ledger: replay, undo, restraints of any prefix, one writer, and every kind of damage."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import safetensors.torch
import torch
from core import FACTS, bits, editable, random_update, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save, tiny_model

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Spectrum
from tether.constraints.prune import Restraint, none, parse
from tether.errors import BadLedgerError, BadSettingsError, TetherError, WrongModelError
from tether.ledger import Attempt, Event, Header, Ledger, Sums, WeightRecord, writing
from tether.ledger.journal import Journal
from tether.ledger.replay import Dense
from tether.models import EditableModel, load
from tether.storage.atomic import seal

LAYERS = (1, 2)


def new_ledger(path: Path, model: EditableModel) -> Ledger:
    """An empty ledger over two weights."""
    names = [model.weight_name(layer) for layer in LAYERS]
    weights = {
        name: WeightRecord(shape=tuple(model.weight(name).shape), sigma_max=Spectrum(model.original(name)).sigma_max)
        for name in names
    }
    header = Header(
        created="2026-01-01T00:00:00.000+00:00", model=model.id, fingerprint=model.fingerprint(names), dtype="float32",
        weights=weights, method="rome", settings={"layers": [1]}, settings_origin="the test", prefixes=("The",),
        moments={}, corpus={}, seed=0, threads=1, restrain="none", every=None, versions={},
    )  # fmt: skip
    return Ledger.create(path, header)


def updates(ledger: Ledger, number: int) -> dict[str, LowRank]:
    """Edit `number`: rank 1 and 0.7 m on one weight, rank 2 and 0.4 m on the other; the same for the same number."""
    return {
        name: random_update(*weight.shape, 1 + i, seed=10 * number + i, scale=(0.7, 0.4)[i] * weight.sigma_max)
        for i, (name, weight) in enumerate(ledger.header.weights.items())
    }


def fill(ledger: Ledger, plan: str, live: Sums | None = None, check: Callable[[Sums], None] | None = None) -> Sums:
    """Write events: a digit is an edit, `f` and `s` a failed and a skipped fact, `r` log:1.2, `l` linear:2.5."""
    live = live or ledger.sums()
    with ledger.writing():
        for step in plan:
            if step.isdigit():
                proposed = updates(ledger, int(step))
                vectors = {f"{name}/K": torch.ones(3) for name in proposed}
                ledger.append([Attempt("edit", FACTS[int(step) % len(FACTS)], {"loss_last": 0.1})], proposed, vectors)
                live.add(proposed)
            elif step in "fs":
                ledger.append(
                    [Attempt({"f": "failed", "s": "skipped"}[step], FACTS[0], {"loss": math.nan}, "why")], {}, {}
                )
            else:
                restraint = parse({"r": "log:1.2345678", "l": "linear:2.5"}[step])
                live.restrain(restraint)
                ledger.append_restraint(restraint, {"above_m": 1})
            if check:
                check(live)
    return live


def same_sums(one: Sums, other: Sums) -> bool:
    return all(
        torch.equal(held.dense, other.of[name].dense)
        and torch.equal(held.factors.A, other.of[name].factors.A)
        and torch.equal(held.factors.B, other.of[name].factors.B)
        for name, held in one.of.items()
    )


# --- replay and restraints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["1234", "12r34r5l", "1r2r3r", "1f2sr3", "", "r", "123456r789l"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_replay_gives_the_bits_of_the_live_run(plan: str, family: str, tmp_path: Path) -> None:
    model, live_model = editable(family), editable(family)
    ledger = new_ledger(tmp_path, model)

    def check(live: Sums) -> None:
        live.show(live_model)
        opened = Ledger.open(tmp_path)
        assert same_sums(opened.sums(), live)
        opened.apply(model)
        assert same_bits(model, live_model.hf.state_dict())

    live = fill(ledger, plan, check=check)
    report = ledger.verify(model)
    assert report["events"] == len(plan) and not report["torn_line"]
    assert report["kinds"].get("edit", 0) == sum(step.isdigit() for step in plan)
    assert same_sums(ledger.sums(ledger.attempts), live), "a prefix of everything is everything"
    opened = Ledger.open(tmp_path, model)
    assert [e.line() for e in opened.events] == [e.line() for e in ledger.events]


@pytest.mark.parametrize("restraint", ["none", "log:1.2", "log:e", "linear:2"])
def test_any_prefix_under_any_restraint_equals_the_dense_formula(restraint: str, tmp_path: Path) -> None:
    """W̄ = W + F(Σ), whatever restraints the journal holds: not W + Σ + F(Σ), not F(F(Σ))."""
    model = editable("llama")
    unedited = bits(model)
    ledger = new_ledger(tmp_path, model)
    fill(ledger, "12r3f45l6")
    numbers = [1, 2, 3, None, 4, 5, 6]
    for upto in range(len(numbers) + 1):
        ledger.apply(model, upto=upto, restrain=restraint)
        for name, weight in ledger.header.weights.items():
            total = torch.zeros(weight.shape, dtype=torch.float64)
            for number in numbers[:upto]:
                if number is not None:
                    total += updates(ledger, number)[name].to(dtype=torch.float64).to_dense()
            u, s, vh = torch.linalg.svd(total, full_matrices=False)
            expected = unedited[name].double() + (u * parse(restraint)(s, weight.sigma_max)) @ vh
            torch.testing.assert_close(model.weight(name).double(), expected, rtol=0, atol=1e-5)
            # What is reported of it.
            row = next(r for r in ledger.spectrum(model, at=[upto], restrain=restraint) if r.weight == name)
            dense = torch.linalg.svdvals(expected)
            assert row.extremes.sigma_max == pytest.approx(float(dense[0]), rel=1e-5)
            assert row.extremes.sigma_min == pytest.approx(float(dense[-1]), rel=1e-3)
            assert (row.edits, row.restraint, row.m) == (upto, restraint, weight.sigma_max)
    ledger.apply(model, upto=0, restrain=restraint)
    assert same_bits(model, unedited)


def test_many_prefixes_and_restraints_read_each_file_once_and_form_no_dense_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = editable("llama")
    ledger = new_ledger(tmp_path, model)
    fill(ledger, "12r3")
    files, dense = [], LowRank.to_dense
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: files.append(path.name) or real(path))
    monkeypatch.setattr(LowRank, "to_dense", lambda *args: files.append("dense") or dense(*args))
    rows = ledger.spectra(model, at=[3, 1], restraints=[None, "none", "log:1.2"])
    assert files == [f"{number:06d}.safetensors" for number in (1, 2, 3)]
    assert [(row.edits, row.restraint, row.weight) for row in rows] == [
        (n, restraint, name)
        for restraint in ("as recorded", "none", "log:1.2") for n in (3, 1) for name in ledger.header.weights
    ]  # fmt: skip
    for row in rows:
        restraint = None if row.restraint == "as recorded" else row.restraint
        expected = torch.linalg.svdvals(ledger.sums(row.edits, restraint).of[row.weight].dense.double())
        found = torch.tensor(row.update_singular_values, dtype=torch.float64)
        torch.testing.assert_close(found, expected[: len(found)], rtol=1e-4, atol=1e-6)
        assert ledger.spectrum(model, at=[row.edits], restrain=restraint).count(row) == 1


@pytest.mark.parametrize("stopped_at", [20, 75, 120])
def test_hundreds_of_edits_live_replayed_and_resumed_give_the_same_bits(stopped_at: int, tmp_path: Path) -> None:
    """Across every block of the dense sum and every compaction of the factors, with a restraint between them."""
    ledger = new_ledger(tmp_path, editable("llama", hidden=16, width=20))
    live = ledger.sums()
    names = list(ledger.header.weights)
    total = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in ledger.header.weights.items()}
    for number in range(1, 151):
        if number == stopped_at:
            live = Ledger.open(tmp_path).sums()
        proposed = {name: random_update(16, 20, 1 + number % 3, seed=number + 1000 * i) for i, name in enumerate(names)}
        with ledger.writing():
            ledger.append([Attempt("edit", FACTS[0], {})], proposed, {})
            live.add(proposed)
            for name, update in proposed.items():
                total[name] += update.to(dtype=torch.float64).to_dense()
            if number == 60:
                live.restrain(parse("log:1.2"))
                ledger.append_restraint(parse("log:1.2"), {})
                assert not same_sums(live, ledger.sums(restrain="none")), "it acts"
        for held in live.of.values():
            assert held.rank == held.factors.rank <= 16 + 8, "the factors stay small"
            torch.testing.assert_close(held.factors.to_dense(), held.dense, rtol=0, atol=1e-4)
        if number in (1, 31, 33, 60, 61, 97, 150):
            assert same_sums(Ledger.open(tmp_path).sums(), live)
            if number == 60:
                for name, held in live.of.items():
                    total[name] = held.dense.double()
    assert same_sums(ledger.sums(100), next(ledger.replay().states([100, 150], [None])).sums)
    for name, held in live.of.items():
        torch.testing.assert_close(held.dense.double(), total[name], rtol=0, atol=1e-4)


def test_the_dense_sum_does_not_depend_on_when_it_is_read() -> None:
    updates = [random_update(9, 12, 1 + n % 2, seed=n) for n in range(200)]
    looked, unlooked = Dense(torch.zeros(9, 12)), Dense(torch.zeros(9, 12))
    passes = 0
    for update in updates:
        before = looked.added
        looked, unlooked = looked.add(update), unlooked.add(update)
        passes += looked.added is not before
        assert looked.total.shape == (9, 12)
    assert torch.equal(looked.total, unlooked.total)
    assert passes < 20, "blocks, where once there was a pass over the matrix for every update"
    one_by_one = torch.zeros(9, 12)
    for update in updates[:8]:
        one_by_one = one_by_one + update.to_dense()
    found = Dense(torch.zeros(9, 12))
    for update in updates[:8]:
        found = found.add(update)
    assert torch.equal(found.total, one_by_one), "as ledgers were made before there were blocks"


def test_appending_parses_no_line_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "12")
    ledger = Ledger.open(tmp_path)
    parsed: list[int] = []
    check = Journal._check
    monkeypatch.setattr(
        Journal, "_check", lambda self, number, *line: parsed.append(number) or check(self, number, *line)
    )
    fill(ledger, "3r4")
    ledger.undo(2)
    assert (ledger.attempts, ledger.undone, ledger.since_restraint) == (4, {2}, 1)
    assert parsed == []
    other = Ledger.open(tmp_path)
    assert parsed == [1, 2, 3, 4, 5, 6]
    other.undo(1)
    with ledger.writing():
        assert parsed[6:] == [7], "what another wrote is read, and that alone"
    assert ledger.undone == {1, 2}


def test_a_line_that_another_changed_is_named_however_often_one_looks(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "123")
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"Space", b"Spice", 1) + b"more")
    for _ in range(2):
        with pytest.raises(BadLedgerError, match="event 2 does not match its checksum"):
            ledger.refresh()
    assert [event.edit for event in ledger.events] == [1, 2, 3]


def test_many_undone_at_once_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, together, calls = new_ledger(tmp_path, editable("llama")), Ledger.together, []
    fill(ledger, "123456")
    monkeypatch.setattr(Ledger, "together", lambda self, edits: calls.append(edits) or together(self, edits))
    ledger.undo(1, 2, 3, 4, 5)
    assert len(calls) == 1 and ledger.live_numbers() == [6]


def test_the_sums_to_append_to_check_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of an undone edit too."""
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "12r3")
    ledger.undo(2)
    files = []
    real = Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: files.append(path.name) or real(path))
        assert same_sums(ledger.checked_sums(), ledger.sums())
    assert files == [f"{number:06d}.safetensors" for number in (1, 2, 3, 1, 3)]
    (tmp_path / "factors/000005.safetensors").write_bytes(b"")
    with pytest.raises(BadLedgerError, match="lines were cut off after event 5"):
        ledger.checked_sums()
    (tmp_path / "factors/000005.safetensors").unlink()
    (tmp_path / "factors/000002.safetensors").write_bytes(b"")
    with pytest.raises(BadLedgerError, match=r"event 2 \(edit 2\).*does not match its sha256"):
        ledger.checked_sums()


def test_restrained_and_unrestrained_agree_while_nothing_exceeds_m(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "1")
    assert same_sums(ledger.sums(restrain="log:1.2"), ledger.sums(restrain=none()))


def test_every_record_is_read_back(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "1fs2r")
    events = Ledger.open(tmp_path).events
    assert [e.kind for e in events] == ["edit", "failed", "skipped", "edit", "restrain"]
    assert [e.edit for e in events] == [1, 2, 3, 4, None]
    assert [e.fact for e in events[:4]] == [FACTS[1], FACTS[0], FACTS[0], FACTS[2]]
    assert events[4].restrain == "log:1.2345678"
    assert isinstance(parse(events[4].restrain), Restraint)
    for name, update in ledger.factors(events[3]).items():
        assert torch.equal(update.A, updates(ledger, 2)[name].A) and torch.equal(update.B, updates(ledger, 2)[name].B)
    assert [number for number, _ in ledger.facts()] == [1, 2, 3, 4]
    assert [e.edit for e in ledger.live()] == [1, 4]
    assert [e.edit for e in ledger.live(upto=2)] == [1]


# --- undo -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.sets(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from(["12345", "12r345", "1r23r45l"]))
def test_undo_equals_the_sum_without_the_edits(undone: set[int], plan: str) -> None:
    """And every later restraint computed anew: the bits of a ledger that never had them."""
    with tempfile.TemporaryDirectory() as folder:
        model = editable("llama", n_layers=3)
        ledger = new_ledger(Path(folder) / "a", model)
        fill(ledger, plan)
        event = ledger.undo(*undone)
        assert event.undone == tuple(sorted(undone))
        without = new_ledger(Path(folder) / "b", model)
        expected = fill(without, "".join(step for step in plan if not (step.isdigit() and int(step) in undone)))
        opened = Ledger.open(Path(folder) / "a", model)
        assert same_sums(opened.sums(), expected)
        assert same_sums(opened.sums(restrain="log:1.2"), without.sums(restrain="log:1.2"))
        assert opened.undone == undone and not {e.edit for e in opened.live()} & undone
        opened.verify(model)
        if len(undone) == 5:
            before = bits(model)
            assert same_bits(opened.apply(model), before)


def test_what_cannot_be_undone(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "1f2")
    before = (tmp_path / "journal.jsonl").read_bytes()
    for numbers, message in (
        ((), "needs the number"),
        ((2,), "no live edit"),
        ((9,), "no live edit"),
        ((1, 2), "edit 2"),
    ):
        with pytest.raises(TetherError, match=message):
            ledger.undo(*numbers)
        assert (tmp_path / "journal.jsonl").read_bytes() == before
    ledger.undo(1)
    with pytest.raises(TetherError, match="undone already"):
        ledger.undo(1)
    with pytest.raises(TetherError, match="has edits 1 to 3"):
        ledger.sums(upto=4)


@settings(deadline=None, max_examples=10)
@given(st.sets(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from(["12345", "1r23r45l"]))
def test_redo_is_as_if_never_undone(numbers: set[int], plan: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = editable("llama", n_layers=3)
        ledger = new_ledger(Path(folder), model)
        before = fill(ledger, plan)
        ledger.undo(*numbers)
        without = ledger.sums()
        event = ledger.redo(*numbers)
        assert event.kind == "redo" and event.redone == tuple(sorted(numbers)) and event.undone is None
        opened = Ledger.open(Path(folder), model)
        assert same_sums(opened.sums(), before) and not opened.undone
        assert opened.live() == [e for e in opened.events if e.kind == "edit"]
        assert opened.verify(model)["kinds"]["redo"] == 1
        opened.undo(*numbers)
        assert same_sums(opened.sums(), without) and opened.undone == numbers


def test_what_cannot_be_redone(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "12")
    ledger.undo(2)
    for numbers, message in (((), "redo needs"), ((1,), "edit 1 is not undone"), ((2, 9), "edit 9 is not undone")):
        with pytest.raises(BadSettingsError, match=message):
            ledger.redo(*numbers)
    assert ledger.undone == {2}
    assert b"redone" not in (tmp_path / "journal.jsonl").read_bytes(), "readers that know no redo can read it"


# --- whose it is ----------------------------------------------------------------------------------------------------


def test_another_model_is_refused(tmp_path: Path) -> None:
    model, other = editable("llama"), editable("llama", seed=1)
    ledger = new_ledger(tmp_path, model)
    fill(ledger, "1")
    before = bits(other)
    for call in (
        lambda: Ledger.open(tmp_path, other),
        lambda: ledger.apply(other),
        lambda: ledger.verify(other),
        lambda: ledger.spectrum(other),
    ):
        with pytest.raises(TetherError, match="is not the model of"):
            call()
    assert same_bits(other, before)
    ledger.apply(model)
    Ledger.open(tmp_path, model)  # the model that carries the edits is still that model


def test_a_model_of_a_folder_in_any_dtype(tmp_path: Path) -> None:
    """The fingerprint is of the stored bytes; a bfloat16 weight is round(W₀ + Σ)."""
    folder = save(*tiny_model("llama"), tmp_path / "model")
    model = load(folder)
    ledger = new_ledger(tmp_path / "ledger", model)
    live = fill(ledger, "12r3")
    assert Ledger.open(tmp_path / "ledger").apply().id == model.id, "the recorded model is loaded"
    half = load(folder, dtype="bfloat16")
    ledger.apply(half)
    for name in ledger.header.weights:
        expected = (half.original(name) + live.of[name].dense).bfloat16()
        assert torch.equal(half.weight(name), expected)
    for row in ledger.spectrum(half):
        total = live.of[row.weight].dense.double()
        exact = half.original(row.weight) + total
        lost = torch.linalg.matrix_norm(half.weight(row.weight).double() - exact) / torch.linalg.matrix_norm(total)
        assert row.rounding == pytest.approx(float(lost), rel=1e-3) and 1e-4 < row.rounding < 1e-1
    assert {row.rounding for row in (*ledger.spectrum(half, at=[0]), *ledger.spectrum(model))} == {None}


def test_opening_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of somebody else may name any model of the hub."""
    model = editable("llama")
    model.id = "somebody/a-model"
    ledger = new_ledger(tmp_path, model)
    asked: list[Any] = []

    def cached_file(*_: Any, **options: Any) -> str:
        asked.append(options["local_files_only"])
        raise OSError("not in the cache")

    monkeypatch.setattr(sys.modules[load.__module__], "cached_file", cached_file)
    for call in (ledger.apply, ledger.spectrum, lambda: ledger.export(None, tmp_path / "out", as_="merged")):
        with pytest.raises(WrongModelError, match=r"made on 'somebody/a-model'.*name the model yourself"):
            call()
    assert asked == [True] * 3


def test_one_writer(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "1")
    other = Ledger.open(tmp_path)
    with ledger.writing(), pytest.raises(TetherError, match="another process"):
        other.undo(1)
    other.undo(1)
    fill(ledger, "2")  # what the other one wrote meanwhile is kept
    assert [e.kind for e in Ledger.open(tmp_path).events] == ["edit", "undo", "edit"]
    ledger.verify()


def test_a_file_system_without_locks_is_not_another_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "1")

    def acquire(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(TetherError, match=r"cannot be locked \(No locks available\)"):
        ledger.undo(1)


def test_no_ledger_and_no_second_one_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match="is no ledger"):
        Ledger.open(tmp_path)
    model = editable("llama")
    with writing(tmp_path), pytest.raises(TetherError, match="another process"):
        new_ledger(tmp_path, model)
    new_ledger(tmp_path, model)
    with pytest.raises(TetherError, match="is a ledger already"):
        new_ledger(tmp_path, model)


# --- damage ---------------------------------------------------------------------------------------------------------


@functools.cache
def sound() -> dict[str, bytes]:
    """The files of a ledger with every kind of event, the last one an edit."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = new_ledger(Path(folder), editable("llama", hidden=16, width=20))
        fill(ledger, "12fr3")
        ledger.undo(2)
        fill(ledger, "s4")
        ledger.verify()
        return {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}


FACTORS = {1: "factors/000001.safetensors", 2: "factors/000002.safetensors", 5: "factors/000004.safetensors",
           8: "factors/000006.safetensors"}  # fmt: skip


def opened(files: dict[str, bytes]) -> tuple[Header, list[Event]]:
    """Open and verify a ledger of these files."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "factors").mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        ledger = Ledger.open(folder)
        ledger.verify()
        return ledger.header, ledger.events
    finally:
        shutil.rmtree(folder)


def lines() -> list[bytes]:
    return sound()["journal.jsonl"].splitlines(keepends=True)


def refused(files: dict[str, bytes], *named: str) -> None:
    with pytest.raises(TetherError) as caught:
        opened(files)
    message = str(caught.value)
    assert "\n" not in message
    assert any(name in message for name in named), message


def test_the_sound_ledger_is_sound() -> None:
    _, events = opened(sound())
    kinds = ["edit", "edit", "failed", "restrain", "edit", "undo", "skipped", "edit"]
    assert [e.kind for e in events] == kinds
    assert {e.number: e.factors for e in events if e.factors} == FACTORS


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_flipped_bit_is_found_and_its_event_named(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["ledger.json", "journal.jsonl", *FACTORS.values()]))
    content = bytearray(sound()[name])
    offset = data.draw(st.integers(0, len(content) - 1))
    content[offset] ^= 1 << data.draw(st.integers(0, 7))
    files = {**sound(), name: bytes(content)}
    if name != "journal.jsonl":
        event = next((number for number, file in FACTORS.items() if file == name), 1)
        refused(files, f"event {event}", "ledger.json")
        return
    number = sound()[name][:offset].count(b"\n") + 1
    if offset == len(content) - 1:
        assert [e.number for e in opened(files)[1]] == list(range(1, number)), "a torn last line never happened"
        return
    try:
        found = opened(files)
    except TetherError as error:
        assert (
            f"event {number} " in str(error) or f"event {number + 1} " in str(error) or f"event {number}:" in str(error)
        )
    else:  # another writing of the same content (a tab for a space), in the last line, which none follows
        assert number == len(lines())
        assert repr(found) == repr(opened(sound()))


@pytest.mark.parametrize("number", range(1, 8))
def test_a_missing_line_is_found(number: int) -> None:
    """The last line alone can be missed by nobody: without it the ledger is what it was before that event."""
    kept = lines()
    del kept[number - 1]
    refused({**sound(), "journal.jsonl": b"".join(kept)}, f"event {number} ")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True))
def test_swapped_lines_are_found(pair: list[int]) -> None:
    i, j = sorted(pair)
    mixed = lines()
    mixed[i], mixed[j] = mixed[j], mixed[i]
    refused({**sound(), "journal.jsonl": b"".join(mixed)}, f"event {i + 1} ")


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 7))
def test_a_repeated_line_is_found(index: int) -> None:
    twice = lines()
    twice.insert(index, twice[index])
    refused({**sound(), "journal.jsonl": b"".join(twice)}, f"event {index + 2} ")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_cut_journal_is_an_earlier_one_or_is_found(data: st.DataObject) -> None:
    """Whole events are kept, a torn one is dropped; where factors of more than that one remain, lines were cut off."""
    content = sound()["journal.jsonl"]
    end = data.draw(st.integers(0, len(content)))
    files = {**sound(), "journal.jsonl": content[:end]}
    whole = content[:end].count(b"\n")
    if whole >= 7:  # no factors, or those of the next edit alone, are without a line
        assert repr(opened(files)[1]) == repr(opened(sound())[1][:whole])
    else:
        refused(files, f"event {whole};")


@pytest.mark.parametrize("name", ["ledger.json", "journal.jsonl", *FACTORS.values()])
def test_a_removed_file_is_found(name: str) -> None:
    files = {key: value for key, value in sound().items() if key != name}
    numbers = [f"event {number} " for number, file in FACTORS.items() if file == name]
    refused(files, *numbers, *([] if numbers else ["ledger.json", "event 0"]))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(FACTORS.items())), st.floats(0, 0.999))
def test_a_cut_factors_file_is_found(entry: tuple[int, str], share: float) -> None:
    number, name = entry
    data = sound()[name]
    refused({**sound(), name: data[: int(share * len(data))]}, f"event {number} ")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "dance"}, "kind = 'dance'"), ({"colour": "red"}, "colour"), ({"number": 7}, "numbered 7"),
     ({"previous": "0" * 64}, "does not follow")],
)  # fmt: skip
def test_well_sealed_lines_of_another_format_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TetherError, match=f"event 8.*{message}"):
        opened(resealed(**change))


def test_a_cut_tail_is_found_by_an_earlier_head(tmp_path: Path) -> None:
    """The last lines of an undo, a restraint or a failed fact leave no file by which they are missed."""
    ledger = new_ledger(tmp_path, editable("llama"))
    heads = [ledger.head]
    for step in ("1", "2", "r", "f", "u"):
        if step == "u":
            ledger.undo(1)
        else:
            fill(ledger, step)
        heads.append(ledger.head)
    for index, head in enumerate(heads):
        assert ledger.verify(head=head)["events_after_head"] == ledger.verify(head=head[:8])["events_after_head"]
        assert ledger.verify(head=head.upper())["events_after_head"] == 5 - index
    whole = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (2, 3, 4):
        (tmp_path / "journal.jsonl").write_bytes(b"".join(whole[:kept]))
        cut = Ledger.open(tmp_path)
        assert cut.verify()["events"] == kept, "the chain alone sees nothing"
        assert cut.verify(head=heads[kept])["events_after_head"] == 0
        with pytest.raises(BadLedgerError, match=f"after event {kept} .*were cut off"):
            cut.verify(head=heads[5][:12])
    for head in ("abc", "g" * 8, "0" * 65):
        with pytest.raises(BadSettingsError, match="at least the first 8"):
            ledger.verify(head=head)


def resealed(**change: Any) -> dict[str, bytes]:
    """The sound ledger whose last line, an edit, is changed by somebody who knows how lines are sealed."""
    kept = lines()
    body = {**json.loads(kept[-1]), **change}
    body.pop("checksum")
    kept[-1] = (json.dumps({**body, "checksum": seal(body)}, ensure_ascii=False) + "\n").encode()
    return {**sound(), "journal.jsonl": b"".join(kept)}


@pytest.mark.parametrize("name", ["/dev/zero", "../factors.safetensors", "factors/../ledger.json", "factors/pipe"])
def test_a_ledger_reads_no_file_outside_itself(name: str) -> None:
    refused(resealed(factors=name), f"event 8 (edit 6): names the file {name!r}")


def test_a_pipe_in_place_of_a_factors_file_is_not_waited_for(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, editable("llama"))
    fill(ledger, "1")
    (tmp_path / "factors/000001.safetensors").unlink()
    os.mkfifo(tmp_path / "factors/000001.safetensors")
    with pytest.raises(BadLedgerError, match=r"event 1 .*000001.safetensors is missing"):
        ledger.apply(editable("llama"))


def test_factors_that_are_none_are_named_on_one_line(tmp_path: Path) -> None:
    """With the right sha256 in the journal: no tensors, tensors that do not chain, those of another shape."""
    ledger = new_ledger(tmp_path, editable("llama"))
    name, weight = next(iter(ledger.header.weights.items()))
    p, q = weight.shape
    contents = {
        "no safetensors": b"hello",
        "no B": safetensors.torch.save({f"{name}/A": torch.zeros(p, 1)}),
        "no chain": safetensors.torch.save({f"{name}/A": torch.zeros(p, 1), f"{name}/B": torch.zeros(2, q)}),
        "other shape": safetensors.torch.save({f"{name}/A": torch.zeros(q, 1), f"{name}/B": torch.zeros(1, p)}),
    }
    fill(ledger, "1")
    for what, data in contents.items():
        (tmp_path / "factors/000001.safetensors").write_bytes(data)
        event = ledger.events[0].model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "checksum": ""})
        (tmp_path / "journal.jsonl").write_bytes(event.line())
        with pytest.raises(BadLedgerError, match=r"event 1 \(edit 1\).*does not hold") as caught:
            Ledger.open(tmp_path).sums()
        assert "\n" not in str(caught.value), what


@pytest.mark.parametrize(
    "line", [b'{"a": "\\ud800"}\n', b"[" * 100_000 + b"\n", b"[]\n", b"3\n", b"null\n", b"\n", b"{}\n", b"\xff\xfe\n"]
)
def test_lines_that_are_no_events(line: bytes) -> None:
    refused({**sound(), "journal.jsonl": b"".join(lines()) + line}, "event 9 ")


def test_a_newer_format_is_refused() -> None:
    header = sound()["ledger.json"].replace(b'"format": 1', b'"format": 2')
    with pytest.raises(TetherError, match="newer than this tether"):
        opened({**sound(), "ledger.json": header})


def test_after_a_torn_line_the_ledger_goes_on(tmp_path: Path) -> None:
    model = editable("llama")
    fill(new_ledger(tmp_path, model), "12")
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-10])
    ledger = Ledger.open(tmp_path, model)
    assert ledger.verify()["torn_line"] and ledger.attempts == 1
    fill(ledger, "2")
    report = Ledger.open(tmp_path, model).verify()
    assert report["kinds"] == {"edit": 2} and not report["torn_line"]
    assert hashlib.sha256(journal.read_bytes().splitlines(keepends=True)[-1]).hexdigest() == report["head"]


def test_factors_left_by_a_kill_do_not_outlive_another_fact(tmp_path: Path) -> None:
    """Killed between the factors of edit 2 and their line; then a fact fails in its place."""
    fill(new_ledger(tmp_path, editable("llama")), "12")
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    ledger = Ledger.open(tmp_path)
    ledger.verify()
    fill(ledger, "f")
    ledger.verify()
    assert [f.name for f in (tmp_path / "factors").iterdir()] == ["000001.safetensors"]
