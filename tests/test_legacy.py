"""What version 0.1.0 made opens unchanged, and says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tether
from tether.editing.prepare import recorded_editor
from tether.evaluation.results import read
from tether.ledger import Ledger
from tether.models import EditableModel

LEGACY = Path(__file__).parent / "legacy"
EXPECTED = json.loads((LEGACY / "expected.json").read_text())
SUMS = load_file(LEGACY / "expected.safetensors")
LEDGERS = ["rome", "memit", "mend"]


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tether.load(LEGACY / "model", device="cpu")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as the working folder: the files name each other from there."""
    shutil.copytree(LEGACY, tmp_path / "legacy")
    monkeypatch.chdir(tmp_path / "legacy")
    return tmp_path / "legacy"


def same_sums(name: str, model: EditableModel, label: str) -> None:
    for key, expected in SUMS.items():
        ledger, weight, restrain = key.split("/")
        if (ledger, restrain) == (name, label):
            update = model.update(weight)
            assert update is not None
            torch.testing.assert_close(update, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_opens_verifies_and_applies(name: str, place: Path, model: EditableModel) -> None:
    journal = (place / name / "journal.jsonl").read_bytes()
    ledger = tether.Ledger.open(name)
    expected = EXPECTED[name]
    assert ledger.verify(model, head=expected["head"]) == {**expected["verify"], "events_after_head": 0}
    assert [event.edit for event in ledger.live()] == expected["live"] and sorted(ledger.undone) == expected["undone"]
    assert {weight.kappa for weight in ledger.header.weights.values()} == {None}
    for restrain, label in ((None, "recorded"), ("none", "none")):
        ledger.apply(model, restrain=restrain)
        same_sums(name, model, label)
    model.clear_updates()
    assert (place / name / "journal.jsonl").read_bytes() == journal
    assert ledger.apply().id.endswith("model"), "the recorded model is found"


@pytest.mark.parametrize("name", LEDGERS)
def test_its_spectrum_is_the_same(name: str, model: EditableModel) -> None:
    rows = Ledger.open(LEGACY / name).spectra(model, at=[0, 2, 5], restraints=[None, "none"])
    for row, expected in zip(rows, EXPECTED[name]["spectrum"], strict=True):
        assert (row.edits, row.restraint, row.weight) == tuple(
            expected[key] for key in ("edits", "restraint", "weight")
        )
        assert row.m == expected["m"] and row.rounding is None
        for key, value in expected["extremes"].items():
            assert getattr(row.extremes, key) == pytest.approx(value, rel=1e-4, abs=1e-9)
        values = expected["update_singular_values"]
        assert list(row.update_singular_values)[: len(values)] == pytest.approx(values, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", LEDGERS)
def test_it_is_undone_redone_and_appended_to(name: str, place: Path, model: EditableModel) -> None:
    ledger = tether.Ledger.open(name)
    last = ledger.live_numbers()[-1]
    ledger.undo(last)
    ledger.redo(last)
    ledger.apply(model)
    same_sums(name, model, "recorded")
    model.clear_updates()
    undone = EXPECTED[name]["undone"]
    if undone:
        ledger.redo(*undone)
        assert len(ledger.live()) == 5
    parts = [ledger.factors(event) for event in ledger.live()]
    for weight, held in ledger.sums(restrain="none").of.items():
        whole = torch.stack([part[weight].to_dense() for part in parts]).sum(0)
        torch.testing.assert_close(held.dense, whole, rtol=1e-5, atol=1e-5)
    assert tether.Ledger.open(name).verify(model, head=EXPECTED[name]["head"])["events_after_head"] == 2 + bool(undone)


def test_the_trained_editor_opens(place: Path, model: EditableModel) -> None:
    ledger = tether.Ledger.open("mend")
    trained = recorded_editor(model, ledger.header, None)
    assert trained is not None and ledger.header.editor is not None
    assert trained.sha256 == ledger.header.editor.sha256


def test_the_results_open(place: Path) -> None:
    results: Any = read(place / "results.json")
    assert [(row.edits, row.restraint) for row in results.rows][:1] == [(0, "none")]
    assert {row.edits for row in results.rows} == {0, 2, 5} and results.rows[-1].editing
    assert len(tether.read_facts(place / "facts.jsonl")) == 5
