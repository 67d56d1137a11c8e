"""What a person or a script meets at the command line beside the work itself: help, lists, one fact, errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import answer, run
from safetensors import SafetensorError
from scipy.sparse.linalg import ArpackNoConvergence

import tether
from tether.cli.app import VERBS, command_of, help_of
from tether.cli.options import printable, selected
from tether.cli.tables import numbered, table
from tether.errors import failure
from tether.ledger import Ledger

HEAVY = {"torch", "transformers", "scipy", "numpy", "safetensors"}
QUICK = ("--corpus", "corpus.txt", "--settings", "settings.json")
ONE = ("--subject", "Eiffel Tower", "--prompt", "The {} is in the city of", "--target", "London")


# --- help ---------------------------------------------------------------------------------------------------------


LIGHT = (
    "import sys, atexit; sys.argv[0] = 'tether'; from tether.cli import main\n"
    f"atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)); main()"
)


@pytest.mark.parametrize("words", [["ls", "cache"], ["ls", "models", "--json"], ["ls", "grids"], ["ls", "--help"]])
def test_what_needs_no_model_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n" and ("models" in done.stdout or "smollm2" in done.stdout)


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert ("tether 0." if words == ["--version"] else "undo") in done.stdout


def test_version(place: Path) -> None:
    assert run(place, "--version").stdout == f"tether {tether.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_examples(verb: str) -> None:
    text, examples = help_of(verb)
    assert text and examples and all(f"tether {verb}" in example for example in examples)
    command = command_of(verb)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    used = {word for example in examples for word in example.split() if word.startswith("--")}
    assert used <= known


def test_the_help_of_a_verb_is_grouped(place: Path) -> None:
    shown = run(place, "edit", "--help").stdout
    assert all(f"─ {panel} ─" in shown for panel in ("Model", "Method", "One fact", "Restraint and guard"))
    assert "Example" in shown


def test_an_unknown_verb_is_guessed(place: Path) -> None:
    done = run(place, "undoo", "ledger")
    assert done.returncode == 2 and "'undo'" in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.endswith(" (see tether --help)\n")


def test_a_wrong_word_is_named_in_plain_words_with_the_help_of_its_verb(place: Path) -> None:
    done = run(place, "ls", "methodz")
    assert done.returncode == 2 and done.stderr.endswith(" 'cache' (see tether ls --help)\n")
    assert done.stderr.startswith("tether: Invalid value for 'what': 'methodz' is not one of 'methods', ")


# --- lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("methods", "r-rome"),
        ("constraints", "log"),
        ("metrics", "compare"),
        ("abilities", "perplexity"),
        ("models", "smollm2"),
        ("grids", "paper"),
        ("cache", "moments"),
    ],
)
def test_lists(place: Path, what: str, name: str) -> None:
    assert name in {entry["name"] for entry in answer(place, "ls", what)}
    assert re.search(rf"^{name}\b", run(place, "ls", what).stdout, re.MULTILINE)


def test_the_cache_is_listed_and_cleared(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("moments/a.json", "models/m-v1/config.json", "models/m-v1.lock", "other/mine"):
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_text("12345")

    def held() -> dict[str, int]:
        return {entry["name"]: entry["bytes"] for entry in answer(tmp_path, "ls", "cache")}

    assert held() == {"models": 5, "texts": 0, "moments": 5, "abilities": 0, "states": 0, "fingerprints": 0}
    removed = answer(tmp_path, "ls", "cache", "--clear", "moments")["removed"]
    assert removed == [{"path": str(tmp_path / "cache/moments/a.json"), "bytes": 5}]
    assert held() == {"models": 5, "texts": 0, "moments": 0, "abilities": 0, "states": 0, "fingerprints": 0}
    assert "1 entry of" in run(tmp_path, "ls", "cache", "--clear", "all").stdout
    left = sorted(str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*"))
    assert left == ["models", "models/m-v1.lock", "moments", "other", "other/mine"]
    assert run(tmp_path, "ls", "grids", "--clear", "all").returncode == 2


# --- one fact, standard input -------------------------------------------------------------------------------------


def test_one_fact_undo_and_redo(place: Path) -> None:
    done = run(place, "edit", *ONE, "--target-true", "Paris", "--model", "model", "--out", "one", *QUICK)
    assert done.returncode == 0 and "method r-rome (the default)" in done.stderr
    ledger = Ledger.open(place / "one")
    (event,) = ledger.live()
    assert event.fact is not None
    assert (event.fact.subject, event.fact.target_new, event.fact.target_true) == ("Eiffel Tower", "London", "Paris")
    assert ledger.header.method == "r-rome" and done.stdout.splitlines()[-2] == f"head {ledger.head}"
    again = run(place, "edit", *ONE, "--model", "model", "--out", "one", "--json")
    assert "default" not in again.stderr and json.loads(again.stdout)["head"] == Ledger.open(place / "one").head


def test_facts_from_standard_input(place: Path) -> None:
    facts = (place / "facts.jsonl").read_text()
    words = ("edit", "-", "--model", "model", "--out", "piped", "--limit", "2", "--skip", "1", *QUICK, "--json")
    done = run(place, *words, stdin=facts)
    assert done.returncode == 0, done.stderr
    subjects = [event.fact.subject for event in Ledger.open(place / "piped").events if event.fact]
    assert subjects == [json.loads(line)["subject"] for line in facts.splitlines()[1:3]]
    bad = run(place, "edit", "-", "--model", "model", "--out", "x", stdin='{"subject": "Rome"}\n')
    assert bad.returncode == 1 and bad.stderr.startswith(
        "tether: standard input, record 1 (line 1): field 'prompt' is missing"
    )
    assert run(place, "edit", "-", "--model", "model", "--out", "x").returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        (), ("facts.jsonl", *ONE), ("-", *ONE), ONE[:4], ("--target", "London"), ("facts.jsonl", "--on-alarm", "loud"),
        (*ONE[:3], "The tower is in", *ONE[4:]),
    ],
)  # fmt: skip
def test_one_source_of_facts(place: Path, words: tuple[str, ...]) -> None:
    done = run(place, "edit", *words, "--model", "model", "--out", "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (place / "x").exists()
    assert done.stderr.endswith(" (see tether edit --help)\n")


def test_a_run_in_which_no_edit_succeeded_fails(place: Path) -> None:
    settings = json.loads((place / "settings.json").read_text()) | {"v_num_grad_steps": 1, "loss_threshold": 0}
    (place / "no-steps.json").write_text(json.dumps(settings))
    words = ("edit", *ONE, "--model", "model", "--out", "none", "--corpus", "corpus.txt", "--settings", "no-steps.json")
    done = run(place, *words, "--json")
    found = json.loads(done.stdout)
    assert (found["events"]["edit"], found["events"]["failed"]) == (0, 1)
    assert done.returncode == 1 and "no fact was edited: 1 failed" in done.stderr.splitlines()[-1]


def test_an_alarm_leaves_the_edit_out_unless_told_otherwise(place: Path) -> None:
    large = {"v_num_grad_steps": 25, "v_lr": 2.0, "v_weight_decay": 0.0, "clamp_norm_factor": 100.0}
    settings = json.loads((place / "settings.json").read_text()) | large
    (place / "large.json").write_text(json.dumps(settings))
    words = ("edit", *ONE, "--method", "rome", "--model", "model", "--corpus", "corpus.txt", "--settings", "large.json")
    done = run(place, *words, "--out", "alarmed", "--json")
    assert done.returncode == 1 and "health alarm" in json.loads(done.stdout)["failed"][0]["reason"]
    warned = answer(place, *words, "--out", "warned", "--on-alarm", "warn")["events"]
    assert (warned["edit"], warned["failed"]) == (1, 0)


# --- undo and redo ------------------------------------------------------------------------------------------------


def test_numbers_ranges_and_the_last() -> None:
    live = [2, 3, 5, 8]
    assert selected(["3", "5-9"], None, live) == [3, 5, 8]
    assert selected(["7", "2-3", "3"], None, live) == [7, 2, 3]
    assert selected(None, 2, live) == [5, 8] and selected(None, 9, live) == live
    with pytest.raises(tether.TetherError, match="6-7 holds no edit"):
        selected(["6-7"], None, live)


def test_undo_of_ranges_and_the_last(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "ledger", tmp_path / "ledger")
    path = str(tmp_path / "ledger")
    before = [event.edit for event in Ledger.open(path).live()]
    found = answer(place, "undo", path, "--last", "1")
    assert found["undone"] == before[-1:] and found["head"] == Ledger.open(path).head
    assert answer(place, "undo", path, "1-99")["undone"] == before[:-1]
    assert run(place, "undo", path, "1-99").returncode == 1
    for wrong in ((), ("1", "--last", "1"), ("one",), ("1-",), ("-5",)):
        assert run(place, "undo", path, *wrong).returncode == 2, wrong


def test_the_summary_of_edit_counts_what_was_taken_out_and_in_again(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "ledger", tmp_path / "ledger")
    path = str(tmp_path / "ledger")
    answer(place, "undo", path, "--last", "1")
    answer(place, "redo", path, "--last", "1")
    words = ("edit", "facts.jsonl", "--limit", "4", "--model", "model", "--out", path, "--resume")
    assert ", 1 undo, 1 redo" in run(place, *words).stdout.splitlines()[0]
    assert answer(place, *words)["events"]["redo"] == 1


def test_redo_takes_edits_in_again(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "ledger", tmp_path / "ledger")
    path = str(tmp_path / "ledger")
    before = [event.edit for event in Ledger.open(path).live()]
    head = answer(place, "undo", path, "1-99")["head"]
    found = answer(place, "redo", path, "--last", "1")
    assert found["redone"] == before[-1:] and found["live_edits"] == 1
    assert answer(place, "redo", path, "1-99")["live_edits"] == len(before)
    assert [event.edit for event in Ledger.open(path).live()] == before
    assert run(place, "redo", path, "1-99").returncode == 1
    assert "redo" in run(place, "log", path).stdout
    assert answer(place, "verify", path, "--head", head)["ok"]
    journal = tmp_path / "ledger" / "journal.jsonl"
    kept = Ledger.open(path).head
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    assert run(place, "verify", path).returncode == 0
    assert run(place, "verify", path, "--head", kept).returncode == 1


# --- what is printed ----------------------------------------------------------------------------------------------


def test_a_fact_does_not_steer_the_terminal(place: Path) -> None:
    fact = {"subject": "Big\x1b[2J Ben", "prompt": "I think\n{} is in the\u202e city of", "target_new": "Seattle"}
    (place / "escape.jsonl").write_text(json.dumps(fact) + "\n")
    done = run(place, "edit", "escape.jsonl", "--model", "model", "--out", "escaped", *QUICK)
    log = run(place, "log", "escaped").stdout
    assert len(log.splitlines()) == 2 and r"I think\nBig\x1b[2J Ben is in the\u202e city of" in log
    for text in (done.stdout, done.stderr, log, run(place, "check", "escape.jsonl", "--model", "model").stdout):
        assert "\x1b" not in text and "\u202e" not in text
    assert answer(place, "log", "escaped")["events"][0]["fact"]["subject"] == fact["subject"]


def test_printable_leaves_writing_as_it_is() -> None:
    assert printable("Ελλάδα, 日本, κ̂ → 2\u00a0%") == "Ελλάδα, 日本, κ̂ → 2\u00a0%"
    assert printable("a\tb\r\x07") == r"a\tb\r\x07"


def test_tables_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    long = "a [bold]name[/bold] " * 20
    plain = table(("name", "σ̂"), [[long.strip(), "1.5"], ["b", "10"]], right=[1])
    assert [line.split("  ")[-1].strip() for line in plain.splitlines()] == ["σ̂", "1.5", "10"]
    assert plain.splitlines()[1].startswith(long.strip())
    assert table(("a", "b"), [["1", "22"]], markdown=True).splitlines() == ["| a | b  |", "|---|----|", "| 1 | 22 |"]


# --- errors -------------------------------------------------------------------------------------------------------


def _error_of(call: Any) -> Exception:
    with pytest.raises(Exception) as raised:
        call()
    return raised.value


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (_error_of(lambda: torch.empty(10**15)), "out of memory ("),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory ("),
        (MemoryError(), "out of memory ("),
        (_error_of(lambda: torch.linalg.cholesky(-torch.eye(2))), "a linear-algebra routine failed ("),
        (_error_of(lambda: np.linalg.inv(np.zeros((2, 2)))), "a linear-algebra routine failed ("),
        (ArpackNoConvergence("no convergence", [], []), "a linear-algebra routine failed ("),
        (SafetensorError("Error while deserializing header"), "a safetensors file is damaged ("),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (KeyError("a bug"), None),
    ],
)
def test_errors_of_other_packages(error: Exception, line: str | None) -> None:
    found = failure(error)
    assert found is None if line is None else (found or "").startswith(line)


def test_they_leave_on_one_line_and_a_bug_shows_itself(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        torch.empty(10**15)

    monkeypatch.setattr("tether.cli.edit.edit_facts", run_out)
    words = ("edit", *ONE, "--method", "rome", "--model", "model", "--out", "x", *QUICK)
    done = run(place, *words, "--json")
    assert done.returncode == 1 and done.stderr.startswith("tether: out of memory (") and done.stderr.count("\n") == 1
    assert set(json.loads(done.stdout)) == {"error"}
    monkeypatch.setattr("tether.cli.edit.edit_facts", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        run(place, *words)


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_a_reader_that_leaves_early(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-c", "from tether.cli import main; main()", *words]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1


def test_results_and_settings_are_not_overwritten(place: Path) -> None:
    (place / "there.json").write_text("{}")
    for words in (
        ("evaluate", "ledger", "--out", "there.json"),
        ("tune", "--model", "model", "--facts", "facts.jsonl", "--out", "there.json"),
    ):
        done = run(place, *words)
        assert done.returncode == 1 and done.stderr.startswith("tether: there.json exists: ")
    assert (place / "there.json").read_text() == "{}"


def test_edits_are_named_as_the_command_line_takes_them() -> None:
    assert numbered([7, 3, *range(10, 21)]) == "3, 7, 10-20"
    assert selected(numbered([7, 3, *range(10, 21)]).split(), None, range(1, 30)) == [3, 7, *range(10, 21)]
    assert numbered([1, 2]) == "1, 2" and numbered([]) == ""
