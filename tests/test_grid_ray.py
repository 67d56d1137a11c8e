"""A grid on a local Ray cluster: a worker killed in the middle of a run costs nothing and repeats nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from test_grid_run import assert_same, place_in, write

from tether.errors import TetherError
from tether.experiment import Step, read_grid, run_grid
from tether.ledger import Ledger


def holder(lock: Path) -> int | None:
    """The worker of Ray that has the file open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::" in (process / "cmdline").read_bytes() and any(
                link.readlink() == lock for link in (process / "fd").iterdir()
            ):
                return int(process.name)
        except OSError:
            continue
    return None


def kill_in_the_middle(out: Path, killed: list[tuple[int, int]], over: threading.Event) -> None:
    """SIGKILL, once, for the worker of a run whose second edit is in the ledger."""
    while not over.is_set():
        for factors in out.glob("runs/*/ledger/factors"):
            done = len(list(factors.glob("*.safetensors")))
            folder = factors.parent.parent
            if done >= 2 and not (folder / "results.json").exists():
                worker = holder(folder / "run.lock")
                if worker is not None and worker != os.getpid():
                    os.kill(worker, signal.SIGKILL)
                    killed.append((worker, done))
                    return
        time.sleep(0.001)


def test_a_killed_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs side by side, and one whose model cannot be read; one worker is killed."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    place_in(tmp_path, "gpt2")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    models = [{"name": "broken", "load": "./broken"}, {"name": "tiny", "load": "./model"}]
    broken = {"when": {"model": "broken"}, "every": []}
    file = write(tmp_path, models=models, seeds=[0], abilities=[], overrides=[broken])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's workers have it
    try:
        run_grid(file, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    killed: list[tuple[int, int]] = []
    for attempt in range(3):  # on a busy machine a run may be over before it is found
        out = tmp_path / f"out{attempt}"
        over = threading.Event()
        killer = threading.Thread(target=kill_in_the_middle, args=(out, killed, over))
        killer.start()
        steps: list[Step] = []
        outcome = run_grid(file, out, engine="ray", progress=steps.append)
        over.set()
        killer.join()
        if killed:
            break
    import ray  # not before the engine, which sets where it listens

    assert not ray.is_initialized()
    assert len(killed) == 1 and 2 <= killed[0][1] <= 4
    (name,), (reason,) = outcome.failed, outcome.failed.values()
    assert name.startswith("broken-") and "cannot be read" in reason and "\n" not in reason
    assert sorted(step.stage for step in steps) == ["done", "done", "failed"]
    assert_same(out, tmp_path / "whole")
    assert read_grid(out) == outcome.grid and len(outcome.grid.runs) == 2
    for stored in outcome.grid.runs:
        ledger = Ledger.open(out / "runs" / stored.run.id / "ledger")
        assert sum(stored.counts.values()) == ledger.attempts == 4


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    file = write(place_in(tmp_path, "gpt2"), seeds=[0], every=[], ray_address="127.0.0.1:1")
    with pytest.raises(TetherError, match=r"Ray cannot be reached at 127\.0\.0\.1:1") as caught:
        run_grid(file, tmp_path / "out", engine="ray")
    assert "\n" not in str(caught.value)
