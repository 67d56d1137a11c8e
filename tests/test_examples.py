"""The examples run as they stand, on a tiny model, as a person runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from tiny import save, tiny_model

import tether

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(*tiny_model("llama"), tmp_path_factory.mktemp("model"))


def run(script: str, model: Path, folder: Path, *more: str) -> list[str]:
    corpus = resources.files("tether.data") / "plain_text.txt"
    command = [sys.executable, EXAMPLES / script, "--model", model, "--out", "my-edits", "--corpus", corpus, *more]
    environment = {**os.environ, "TETHER_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_edit_and_undo(model: Path, tmp_path: Path) -> None:
    unedited, edited, without, same, _ = run("edit_and_undo.py", model, tmp_path)
    assert unedited.startswith("unedited: ") and unedited.endswith("(n 4) of the new answers")
    assert edited.startswith("edited: ") and edited.endswith("(n 4) of the new answers")
    assert without.startswith("without 'French': ")
    assert len(tether.Ledger.open(tmp_path / "my-edits").live()) == 3
    assert same == "the unedited weights are as they were: True"


def test_compare_restraints(model: Path, tmp_path: Path) -> None:
    head, *rows, tip = run("compare_restraints.py", model, tmp_path)
    assert head.split() == ["edits", "restraint", "κ", "efficacy", "locality", "perplexity"]
    assert [row.split()[:2] for row in rows] == [["0", "none"], ["4", "none"], ["4", "log:1.2"], ["4", "linear:2"]]
    assert "tether export my-edits" in tip
    # Again: the ledger is opened, nothing is edited.
    assert run("compare_restraints.py", model, tmp_path, "--restrain", "none")[1:3] == rows[:2]
