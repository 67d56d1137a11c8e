"""A run killed by SIGKILL at any moment, resumed until it is done, ends with the bits of a run never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from core import FACTS, SETTINGS, plain_text, same_bits
from tiny import save, tiny_model

from tether.editing.run import edit
from tether.ledger import Ledger
from tether.models import load

# Imports once, then forks a child a life. A child edits with resume=True; it is killed at its n-th fsync (before or
# after it: inside an append, between the temporary file, its new name, the folder and the journal's line), or by its
# parent some time after its first event.
NURSERY = """
import json, os, signal, sys, time, traceback
import torch
torch.set_num_threads(1)
from pathlib import Path
from tether.facts.fact import Fact
from tether.models import load
from tether.editing.run import edit

folder, settings, corpus, facts, lives = sys.argv[1:]
load(folder)  # imports what every life needs
facts = [Fact.model_validate(fact) for fact in json.loads(facts)]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def live(out, deadly, before, alive):
    real, calls = os.fsync, 0

    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls == deadly and before:
            die()
        real(descriptor)
        if calls == deadly:
            die()

    os.fsync = fsync
    fresh = {} if (Path(out) / "ledger.json").exists() else {"settings": settings, "corpus": corpus}
    edit(load(folder), facts, out=out, restrain="linear:2", every=2, resume=True,
         progress=lambda _: os.write(alive, b"."), **fresh)

ends = []
for out, deadly, before, delay in json.loads(lives):
    listen, alive = os.pipe()
    child = os.fork()
    if not child:
        os.close(listen)
        try:
            live(out, deadly, before, alive)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(alive)
    if delay is not None:
        os.read(listen, 1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(listen)
    ends.append(os.waitstatus_to_exitcode(status))
print(json.dumps(ends))
"""

Life = tuple[str, int, bool, float | None]


def lives(base: Path, plan: list[Life]) -> list[int]:
    """The exit codes of processes that edit one after another, a fatal signal as its negative number."""
    facts = json.dumps([fact.model_dump(mode="json") for fact in FACTS[:5]])
    plan = [(str(base / out), deadly, before, delay) for out, deadly, before, delay in plan]
    arguments = [base / "model", base / "settings.json", plain_text(), facts, json.dumps(plan)]
    done = subprocess.run(
        [sys.executable, "-c", NURSERY, *map(str, arguments)],
        env={**os.environ, "TETHER_CACHE": str(base / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    ends: list[int] = json.loads(done.stdout)
    return ends


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the settings and, in `whole`, the ledger of a run never killed."""
    base = tmp_path_factory.mktemp("kill")
    save(*tiny_model("gpt2", n_layers=3), base / "model")
    (base / "settings.json").write_text(json.dumps(SETTINGS))
    assert lives(base, [("whole", 0, False, None)]) == [0]
    return base


def assert_as_never_killed(base: Path, out: str) -> None:
    model = load(base / "model")
    whole, killed = Ledger.open(base / "whole", model), Ledger.open(base / out, model)
    assert not killed.verify(model)["torn_line"]
    assert [(e.kind, e.edit, e.sha256) for e in killed.events] == [(e.kind, e.edit, e.sha256) for e in whole.events]
    assert {f.name: f.read_bytes() for f in (base / out / "factors").iterdir()} == {
        f.name: f.read_bytes() for f in (base / "whole/factors").iterdir()
    }
    expected = {name: value.clone() for name, value in whole.apply(model).hf.state_dict().items()}
    assert same_bits(killed.apply(load(base / "model")), expected)


def test_killed_inside_its_appends(place: Path) -> None:
    """Deaths at many numbers of fsyncs fall on every kind of moment: at last a process lives to the end."""
    deaths = [(1, True), (1, False), (2, True), (3, False), (5, True), (3, True)]
    plan: list[Life] = [("appends", deadly, before, None) for deadly, before in deaths]
    ends = lives(place, [*plan, ("appends", 0, False, None)])
    assert ends[:4] == [-signal.SIGKILL] * 4 and ends[-1] == 0
    assert ends.count(-signal.SIGKILL) >= 5
    assert_as_never_killed(place, "appends")


def test_killed_at_random_moments(place: Path) -> None:
    plan: list[Life] = [("random", 0, False, delay) for delay in (0.0, 0.19, 0.07)]
    ends = lives(place, [*plan, ("random", 0, False, None)])
    assert ends[0] == -signal.SIGKILL and ends[-1] == 0
    assert_as_never_killed(place, "random")


def test_another_process_finds_nothing_left_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(place / "cache"))
    model = load(place / "model")
    before = (place / "whole/journal.jsonl").read_bytes()
    ledger = edit(model, FACTS[:5], out=place / "whole", resume=True)
    kinds = [event.kind for event in ledger.events]
    assert kinds.count("edit") >= 4 and kinds.count("restrain") >= 2
    assert (place / "whole/journal.jsonl").read_bytes() == before
    assert same_bits(ledger.apply(load(place / "model")), dict(model.hf.state_dict()))
