"""A grid from its YAML to its store, on tiny models: done once, interrupted anywhere, resumed, failing in part."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import answer, run
from core import FACTS, SETTINGS
from tiny import invented_facts, save, tiny_model

import tether
from tether.analyses.points import Analyses, SpectrumPoint
from tether.errors import TetherError
from tether.evaluation import Results
from tether.evaluation.results import read as read_results
from tether.experiment import Outcome, Step, make_plan, read_grid, read_spec, run_grid
from tether.ledger import Ledger, writing
from tether.models import EditableModel, load
from tether.report.grid.series import editors

LAYOUTS = ["llama", "gpt2"]
TEXT = "The Eiffel Tower is in the city of Paris, and you know that. "


def grid_of(**changes: Any) -> dict[str, Any]:
    """Two seeds × rome × (once none and log:1.2, linear:2 every 2), four facts, perplexity."""
    return {
        "name": "tiny",
        "models": [{"name": "tiny", "load": "./model"}],
        "editors": [{"method": "rome", "settings": "settings.json"}],
        "datasets": [{"name": "some", "facts": "facts.jsonl", "metrics": ["compare", "match"]}],
        "edits": [0, 2, 4],
        "once": ["none", "log:1.2"],
        "every": [{"restrain": "linear:2", "every": 2}],
        "abilities_data": "text.txt",
        "corpus": "corpus.txt",
        "seeds": [0, 1],
        **changes,
    }


def place_in(folder: Path, family: str, facts: int = 5) -> Path:
    """A folder with a model, its settings, facts and texts."""
    folder.mkdir(parents=True, exist_ok=True)
    save(*tiny_model(family, n_layers=3), folder / "model")
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "facts.jsonl").write_text("".join(f.model_dump_json(exclude_none=True) + "\n" for f in FACTS[:facts]))
    (folder / "corpus.txt").write_text(TEXT * 200)
    (folder / "text.txt").write_text(TEXT * 5)
    return folder


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(grid_of(**changes)))
    return file


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments and abilities of the same model are computed once for all tests here."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path_factory.getbasetemp() / "grid-cache"))


@pytest.fixture(scope="module", params=LAYOUTS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A folder and what the uninterrupted grid in `whole` of it found."""
    folder = place_in(tmp_path_factory.mktemp("grid"), request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TETHER_CACHE", str(tmp_path_factory.getbasetemp() / "grid-cache"))
        return folder, run_grid(write(folder), folder / "whole")


def factors(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.glob("runs/*/ledger/factors/*"))}


def assert_same(out: Path, expected: Path) -> None:
    """Each edit once, the same factors bit for bit, and a store that says the same; a journal's head has its times."""
    assert factors(out) == factors(expected) != {}
    for folder in [place.parent for place in (expected / "runs").glob("*/ledger")]:
        events = [[(e.kind, e.edit, e.sha256) for e in Ledger.open(base / "runs" / folder.name / "ledger").events]
                  for base in (out, expected)]  # fmt: skip
        assert events[0] == events[1]
        assert [edit for kind, edit, _ in events[0] if kind != "restrain"] == [1, 2, 3, 4]
    ours, theirs = read_grid(out), read_grid(expected)
    assert [stored.run for stored in ours.runs] == [stored.run for stored in theirs.runs]
    assert [stored.rows for stored in ours.runs] == [stored.rows for stored in theirs.runs]


def test_what_a_grid_keeps(whole: tuple[Path, Outcome]) -> None:
    folder, outcome = whole
    out = folder / "whole"
    assert not outcome.failed and read_grid(out) == outcome.grid
    assert (out / "grid.yaml").read_text() == (folder / "tiny.yaml").read_text()
    runs = [(s.run.seed, s.run.restrain, s.run.every) for s in outcome.grid.runs]
    assert runs == [(0, "none", None), (0, "linear:2", 2), (1, "none", None), (1, "linear:2", 2)]
    for stored in outcome.grid.runs:
        found = Ledger.open(out / "runs" / stored.run.id / "ledger")
        restraints = ["none", "log:1.2"] if stored.run.every is None else ["as recorded"]
        expected = [(0, "none"), *((count, name) for count in (2, 4) for name in restraints)]
        assert [row.key for row in stored.rows] == expected
        assert sum(stored.counts.values()) == found.attempts == 4
        assert stored.hashes["journal"] == found.head and stored.hashes["model"] == found.header.fingerprint
        assert [event.kind for event in found.events].count("restrain") == (2 if stored.run.every else 0)
        assert stored.rows == read_results(out / "runs" / stored.run.id / "results.json").rows
        assert all(row.abilities["perplexity"].n > 50 and row.spectrum and row.editing for row in stored.rows)
    first, second = (outcome.grid.runs[i].rows[-1].abilities["perplexity"].value for i in (0, 2))
    assert first is not None and second is not None and first != second
    (drawn,) = editors(outcome.grid)
    last = drawn.measured("perplexity")["log:1.2"][-1]
    assert last.seeds == 2 and last.value == pytest.approx((first + second) / 2)
    assert last.stderr == pytest.approx(abs(first - second) / 2)


def test_a_done_grid_is_not_touched(whole: tuple[Path, Outcome]) -> None:
    folder, outcome = whole
    before = {file: file.stat().st_mtime_ns for file in (folder / "whole/runs").rglob("*") if file.is_file()}
    steps: list[Step] = []
    with pytest.raises(TetherError, match="--resume"):
        run_grid(folder / "tiny.yaml", folder / "whole")
    again = run_grid(folder / "tiny.yaml", folder / "whole", resume=True, progress=steps.append)
    assert again.grid == outcome.grid and not steps
    assert {file: file.stat().st_mtime_ns for file in (folder / "whole/runs").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("stop", [("edit", 2), ("evaluate", 1), ("edit", 7), ("load", 4)])
def test_interrupted_and_resumed(whole: tuple[Path, Outcome], stop: tuple[str, int], tmp_path: Path) -> None:
    folder, _ = whole
    seen: list[str] = []

    def progress(step: Step) -> None:
        seen.append(step.stage)
        if step.stage == stop[0] and seen.count(step.stage) == stop[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(folder / "tiny.yaml", tmp_path / "out", progress=progress)
    there = sum(1 for _ in (tmp_path / "out/runs").glob("*/run.json"))
    assert there == len(read_grid(tmp_path / "out").runs) < 4
    after: list[Step] = []
    run_grid(folder / "tiny.yaml", tmp_path / "out", resume=True, progress=after.append)
    assert sum(step.stage == "done" for step in after) == 4 - there
    assert_same(tmp_path / "out", folder / "whole")


PROGRAM = "import sys, torch; torch.set_num_threads(int(sys.argv.pop(1))); from tether.cli import main; main()"


@pytest.mark.parametrize("whole", ["gpt2"], indirect=True)
def test_killed_and_resumed(whole: tuple[Path, Outcome], tmp_path: Path) -> None:
    """SIGKILL at some moment of the second run; at last the command does the rest."""
    import torch

    folder, _ = whole
    out = tmp_path / "out"
    words = [sys.executable, "-c", PROGRAM, str(torch.get_num_threads()), "grid", str(folder / "tiny.yaml")]
    words += ["--out", str(out), "--resume", "--json"]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while sum(1 for _ in out.glob("runs/*/ledger/factors/*.safetensors")) < 6 and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = subprocess.run(words, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["done"]) == 4
    assert_same(out, folder / "whole")


def test_a_ledger_put_there_beforehand(whole: tuple[Path, Outcome], tmp_path: Path) -> None:
    """`tether edit` with the same arguments, three of the four facts; the grid goes on from there."""
    folder, outcome = whole
    first = outcome.grid.runs[0].run
    model = load(folder / "model")
    place = tmp_path / "out/runs" / first.id / "ledger"
    place.parent.mkdir(parents=True)
    facts = tether.read_facts(folder / "facts.jsonl")[:3]
    tether.edit(
        model, facts, out=place, method="rome", seed=0, settings=folder / "settings.json", corpus=folder / "corpus.txt"
    )
    before = (place / "journal.jsonl").read_bytes()
    run_grid(folder / "tiny.yaml", tmp_path / "out")
    assert (place / "journal.jsonl").read_bytes().startswith(before)
    assert_same(tmp_path / "out", folder / "whole")


@pytest.mark.parametrize("whole", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 5}, "seed"),
        ({"method": "r-rome"}, "method"),
        ({"restrain": "log:1.2"}, "restrain"),
        ({"settings": None}, "settings"),
        ({"corpus": "facts.jsonl"}, "corpus"),
        ({"facts": FACTS[1:3]}, "edit 1 is not the grid's"),
    ],
)
def test_a_ledger_that_is_another_fails_its_run_alone(
    whole: tuple[Path, Outcome], changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    folder, outcome = whole
    first = outcome.grid.runs[0].run
    place = tmp_path / "runs" / first.id / "ledger"
    place.parent.mkdir(parents=True)
    arguments = {"method": "rome", "settings": folder / "settings.json", "corpus": folder / "corpus.txt"}
    arguments |= {"facts": FACTS[:1], **changes}
    if "corpus" in changes:
        arguments["corpus"] = folder / changes["corpus"]
    tether.edit(load(folder / "model"), out=place, **arguments)
    before = (place / "journal.jsonl").read_bytes()
    found = run_grid(folder / "tiny.yaml", tmp_path)
    assert list(found.failed) == [first.id] and what in found.failed[first.id]
    assert (place / "journal.jsonl").read_bytes() == before
    assert found.failed[first.id] in (place.parent / "failed.txt").read_text()
    assert [stored.run for stored in found.grid.runs] == [stored.run for stored in outcome.grid.runs[1:]]
    shutil.rmtree(place)
    assert not run_grid(folder / "tiny.yaml", tmp_path, resume=True).failed
    assert not (place.parent / "failed.txt").exists()
    assert_same(tmp_path, folder / "whole")


def test_a_failed_run_is_one_line_and_exit_1(tmp_path: Path) -> None:
    """The second model cannot be read: its run fails, the first one's is kept."""
    place_in(tmp_path, "llama")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    models = [{"name": "broken", "load": "./broken"}, {"name": "tiny", "load": "./model"}]
    write(tmp_path, models=models, seeds=[0], every=[], edits=[2], once=["none"], abilities=[])
    done = run(tmp_path, "grid", "tiny.yaml", "--out", "out", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    (name,) = document["failed"]
    assert name.startswith("broken-rome-some") and "cannot be read" in document["failed"][name]
    assert len(document["done"]) == 1 == len(read_grid(tmp_path / "out").runs)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"tether: 1 of 2 runs failed: {name}: ")


def test_a_changed_question_keeps_the_ledger(tmp_path: Path) -> None:
    """Another restraint or checkpoint measures anew and edits nothing; another seed is another run."""
    place_in(tmp_path, "llama")
    first = run_grid(write(tmp_path, seeds=[0], every=[]), tmp_path / "out")
    (old,) = first.grid.runs
    journal = tmp_path / "out/runs" / old.run.id / "ledger/journal.jsonl"
    before = journal.read_bytes()
    file = write(tmp_path, seeds=[0], every=[], once=["linear:2", "none"], edits=[1, 4])
    (new,) = run_grid(file, tmp_path / "out", resume=True).grid.runs
    assert new.run.id == old.run.id and journal.read_bytes() == before
    assert [row.key for row in new.rows] == [(1, "linear:2"), (1, "none"), (4, "linear:2"), (4, "none")]
    assert new.rows[-1] == next(row for row in old.rows if row.key == (4, "none"))
    (other,) = run_grid(write(tmp_path, seeds=[1], every=[]), tmp_path / "out", resume=True).grid.runs
    assert other.run.id != old.run.id and read_grid(tmp_path / "out").runs == [other]


def test_changed_files_make_other_runs(tmp_path: Path) -> None:
    place_in(tmp_path, "llama")
    file = write(tmp_path)
    ids = {job.run.id for job in make_plan(read_spec(file)).jobs}
    (tmp_path / "settings.json").write_text(json.dumps({**SETTINGS, "v_lr": 0.2}))
    assert not ids & {job.run.id for job in make_plan(read_spec(file)).jobs}


def test_mend_and_memit_in_batches(tmp_path: Path) -> None:
    """A trained editor and batches of two, shuffled facts; mend without shuffle would not depend on the seed."""
    place_in(tmp_path, "gpt2", facts=6)
    steps = {"steps": 4, "validate_every": 2, "accumulate": 2, "rank": 4, "statistics": 2, "validation": 2}
    (tmp_path / "mend.json").write_text(json.dumps({**steps, "layers": [1, 2]}))
    train = tmp_path / "train.jsonl"
    train.write_text("".join(f.model_dump_json(exclude_none=True) + "\n" for f in invented_facts()[:6]))
    tether.train_mend(
        load(tmp_path / "model"), train, train, tmp_path / "mend.safetensors", settings=tmp_path / "mend.json"
    )
    (tmp_path / "memit.json").write_text(
        json.dumps({k: v for k, v in SETTINGS.items() if k != "layers"} | {"layers": [0, 1], "mom2_update_weight": 10})
    )
    editors = [
        {"method": "memit", "settings": "memit.json", "batch_size": 2},
        {"method": "mend", "editor": "mend.safetensors", "edits": [3]},
    ]
    dataset = {"name": "some", "facts": "facts.jsonl", "shuffle": True, "metrics": ["match"]}
    outcome = run_grid(write(tmp_path, editors=editors, datasets=[dataset], every=[], abilities=[]), tmp_path / "out")
    assert not outcome.failed and [s.run.method for s in outcome.grid.runs] == ["memit", "mend"] * 2
    assert [s.run.edits for s in outcome.grid.runs] == [4, 3] * 2 and outcome.grid.runs[0].run.batch_size == 2
    orders = [
        [fact.prompt for _, fact in Ledger.open(tmp_path / "out/runs" / s.run.id / "ledger").facts()]
        for s in outcome.grid.runs
    ]
    assert orders[0] != orders[2] and orders[1] == orders[0][:3]


def test_a_ledger_made_within_other_memory_is_the_grids(tmp_path: Path) -> None:
    """How much memory δ's steps may keep decides which run it is, and not whether its ledger is another."""
    place_in(tmp_path, "llama")
    settings = {k: v for k, v in SETTINGS.items() if k != "layers"} | {"layers": [0, 1], "mom2_update_weight": 10}

    def asked(out: str, memory: float) -> Outcome:
        (tmp_path / "memit.json").write_text(json.dumps({**settings, "memory_gb": memory}))
        grid = write(
            tmp_path, editors=[{"method": "memit", "settings": "memit.json"}], every=[], seeds=[0], abilities=[]
        )
        (job,) = make_plan(read_spec(grid)).jobs
        made = tmp_path / "first/runs"
        if made.exists():
            shutil.copytree(next(made.iterdir()) / "ledger", tmp_path / out / "runs" / job.run.id / "ledger")
        return run_grid(grid, tmp_path / out)

    first, second = asked("first", 1.0), asked("second", 0.25)
    assert not first.failed and not second.failed
    (one,), (other,) = first.grid.runs, second.grid.runs
    assert one.run.id != other.run.id and one.hashes["journal"] == other.hashes["journal"]


def test_analyses_get_what_they_need_and_are_kept(tmp_path: Path) -> None:
    place_in(tmp_path, "llama")
    asked: list[tuple[Any, ...]] = []

    def analyse(
        model: EditableModel, ledger: Ledger, wanted: Sequence[str], *, restraints: Sequence[str], at: Sequence[int],
        results: Results,
    ) -> Analyses:  # fmt: skip
        asked.append((tuple(wanted), tuple(restraints), tuple(at), len(results.rows), bool(results.items)))
        point = {"sigma_max": 1.5, "sigma_min": 0.0, "kappa": None, "update_sigma_max": float("inf"), "m": 0.1}
        spectrum = [SpectrumPoint(edits=1, restraint=name, weight="w", **point) for name in restraints]
        return Analyses(spectrum=spectrum)

    outcome = run_grid(write(tmp_path, seeds=[0], analyses=["spectrum"]), tmp_path / "out", analyse=analyse)
    assert asked == [
        (("spectrum",), ("none", "log:1.2"), (0, 2, 4), 5, True),
        (("spectrum",), ("as recorded",), (0, 2, 4), 3, True),
    ]
    assert [p.restraint for s in outcome.grid.runs for p in s.analyses.spectrum] == ["none", "log:1.2", "as recorded"]
    assert read_grid(tmp_path / "out") == outcome.grid
    again = run_grid(tmp_path / "tiny.yaml", tmp_path / "out", resume=True, analyse=analyse)
    assert again.grid == outcome.grid and len(asked) == 2


def test_a_bug_in_one_run_is_told_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place_in(tmp_path, "llama")

    def analyse(model: EditableModel, ledger: Ledger, wanted: Sequence[str], **more: Any) -> Analyses:
        if ledger.header.every is None:
            raise ZeroDivisionError("no such\nthing")
        return Analyses()

    with caplog.at_level(logging.CRITICAL):
        outcome = run_grid(write(tmp_path, seeds=[0], analyses=["bound"]), tmp_path / "out", analyse=analyse)
    assert list(outcome.failed.values()) == ["ZeroDivisionError: no such thing"]
    assert [s.run.every for s in outcome.grid.runs] == [2]


def test_two_processes_on_one_folder(whole: tuple[Path, Outcome]) -> None:
    folder, _ = whole
    with writing(folder / "whole"), pytest.raises(TetherError, match="another process"):
        run_grid(folder / "tiny.yaml", folder / "whole", resume=True)


def test_a_damaged_run_is_named(whole: tuple[Path, Outcome], tmp_path: Path) -> None:
    folder, outcome = whole
    shutil.copytree(folder / "whole", tmp_path / "out")
    file = tmp_path / "out/runs" / outcome.grid.runs[1].run.id / "run.json"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(TetherError, match=r"run\.json is damaged .*remove it"):
        run_grid(folder / "tiny.yaml", tmp_path / "out", resume=True)
    file.unlink()
    assert run_grid(folder / "tiny.yaml", tmp_path / "out", resume=True).grid.runs == outcome.grid.runs


def test_the_command(whole: tuple[Path, Outcome]) -> None:
    folder, outcome = whole
    plan = answer(folder, "grid", "tiny.yaml", "--plan", "--out", "whole")
    assert [r["id"] for r in plan["runs"]] == [s.run.id for s in outcome.grid.runs]
    assert {r["state"] for r in plan["runs"]} == {"done"} and plan["rows"] == 2 * (5 + 3)
    assert plan["ledgers"] == 4 and plan["ledgers_every"] == 2 and not plan["missing"]
    done = answer(folder, "grid", "tiny.yaml", "--out", "whole", "--resume")
    assert done["done"] == done["runs"] and done["rows"] == plan["rows"] and not done["failed"]
    refused = run(folder, "grid", "tiny.yaml", "--out", "whole")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert run(folder, "grid", "tiny.yaml", "--out", "whole", "--resume", "--engine", "abacus").returncode == 2
