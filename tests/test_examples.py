"""The examples run as they stand, on a tiny model, as a person runs them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from tiny import save, tiny_model

import tether

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(*tiny_model("llama"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs a script as the main program, in a folder of its own; the lines it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))

    def lines(script: str, *more: str) -> list[str]:
        corpus = str(resources.files("tether.data") / "plain_text.txt")
        words = [script, "--model", str(model), "--out", "my-edits", "--corpus", corpus, *more]
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return lines


def test_edit_and_undo(run: Callable[..., list[str]], tmp_path: Path) -> None:
    unedited, edited, without, same, _ = run("edit_and_undo.py")
    assert unedited.startswith("unedited: ") and unedited.endswith("(n 4) of the new answers")
    assert edited.startswith("edited: ") and edited.endswith("(n 4) of the new answers")
    assert without.startswith("without 'French': ")
    assert len(tether.Ledger.open(tmp_path / "my-edits").live()) == 3
    assert same == "the unedited weights are as they were: True"


def test_compare_restraints(run: Callable[..., list[str]]) -> None:
    head, *rows, tip = run("compare_restraints.py")
    assert head.split() == ["edits", "restraint", "κ", "efficacy", "locality", "perplexity"]
    assert [row.split()[:2] for row in rows] == [["0", "none"], ["4", "none"], ["4", "log:1.2"], ["4", "linear:2"]]
    assert "tether export my-edits" in tip
    # Again: the ledger is opened, nothing is edited.
    assert run("compare_restraints.py", "--restrain", "none")[1:3] == rows[:2]
