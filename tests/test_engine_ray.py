"""Editing, moments and evaluation shared out to two workers of a local Ray cluster: as one process does it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command import run as command
from core import FACTS, SETTINGS, close, plain_text, same_bits
from core import bits as bits_of
from tiny import save, tiny_model

from tether.editing.run import edit
from tether.editors.corpus import Corpus
from tether.editors.moments import moments
from tether.engine import LOCAL, Engine, open_engine, split
from tether.errors import BadSettingsError, WrongModelError
from tether.evaluation import evaluate_ledger
from tether.ledger import Ledger
from tether.models import EditableModel, load

BATCHES = [FACTS[3], FACTS[0], FACTS[1], FACTS[5], FACTS[2], FACTS[4]]  # in the second a subject of the first


@pytest.fixture(scope="module")
def workers() -> Iterator[Engine]:
    """Two workers of a cluster that has room for three, whatever the machine."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        with open_engine("ray", workers=2) as engine:
            yield engine
    finally:
        ray.shutdown()


def edited(folder: Path, engine: Engine, method: str, monkeypatch: pytest.MonkeyPatch) -> tuple[EditableModel, Ledger]:
    """Two batches of three; the moments are collected in a cache of their own."""
    monkeypatch.setenv("TETHER_CACHE", str(folder / f"cache-{engine.parts}"))
    model = load(folder / "model")
    settings = {**SETTINGS, "layers": (0, 1), "mom2_update_weight": 5.0}
    return model, edit(
        model, BATCHES, out=folder / f"{method}-{engine.parts}", method=method, settings=settings, batch_size=3,
        corpus=plain_text(), health=0, engine=engine,
    )  # fmt: skip


@pytest.mark.parametrize(("layout", "method"), [("llama", "memit"), ("gpt2", "emmet")])
def test_an_edit_and_its_evaluation(
    workers: Engine, layout: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(*tiny_model(layout), tmp_path / "model")
    model, here = edited(tmp_path, LOCAL, method, monkeypatch)
    _, there = edited(tmp_path, workers, method, monkeypatch)
    assert [event.kind for event in there.events] == [event.kind for event in here.events] == ["edit"] * 6
    for name, held in here.sums().of.items():
        assert close(there.sums().of[name].dense, held.dense, 1e-3)
    before = bits_of(model)
    options = {"at": [0, 6], "abilities": (), "restraints": ["log:1.2"], "metrics": ("match", "generate", "bystanders")}
    results = [evaluate_ledger(here, model, BATCHES, engine=engine, **options) for engine in (LOCAL, workers)]
    assert same_bits(model, before)
    for one, other in zip(*(found.rows for found in results), strict=True):
        assert one.key == other.key and one.editing.keys() == other.editing.keys()
        for metric, kinds in one.editing.items():
            for kind, number in kinds.items():
                assert other.editing[metric][kind].value == pytest.approx(number.value, abs=1e-4)
                assert other.editing[metric][kind].n == number.n
    key = ("edits", "restraint", "metric", "kind", "edit", "prompt")
    items = [{tuple(item[name] for name in key): item["value"] for item in one.items} for one in results]
    assert items[1] == pytest.approx(items[0], abs=1e-6)


def test_moments_are_the_same_sums(workers: Engine, tmp_path: Path) -> None:
    model = load(save(*tiny_model("gpt2", width=16), tmp_path / "model"))
    corpus, seen = Corpus(plain_text(), window=32), []
    for engine in (LOCAL, workers):
        found = moments(model, [0, 2], corpus, cache=tmp_path / str(engine.parts), batch_tokens=64, engine=engine)
        seen.append(found)
    for layer in (0, 2):
        here, there = (found[layer] for found in seen)
        assert close(there.C, here.C, 1e-12) and there.tokens == here.tokens
        assert [n for n, _ in there.convergence] == [n for n, _ in here.convergence]
        assert [c for _, c in there.convergence] == pytest.approx([c for _, c in here.convergence], abs=1e-9)


def test_a_killed_worker_repeats_its_part_alone(workers: Engine, tmp_path: Path) -> None:
    """The worker of the third part is killed in the middle of it; the model carries an update."""
    model = load(save(*tiny_model("llama"), tmp_path / "model"))
    name = model.weight_name(1)
    model.set_update(name, torch.ones_like(model.original(name)))
    log = tmp_path / "log"

    def work(own: EditableModel, item: int) -> float:
        with log.open("a") as handle:
            handle.write(f"{item}\n")
        if item == 2 and log.read_text().split().count("2") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * float(own.weight(name).sum())

    found = list(workers.map(work, range(6), model))
    assert found == pytest.approx([item * float(model.weight(name).sum()) for item in range(6)])
    assert sorted(log.read_text().split()) == ["0", "1", "2", "2", "3", "4", "5"]


def test_what_workers_cannot_do_is_one_line(workers: Engine, tmp_path: Path) -> None:
    with pytest.raises(WrongModelError, match=r"lies in memory alone.*save it to a folder"):
        next(workers.map(lambda model, item: item, [1], EditableModel(*tiny_model("gpt2"))))
    model = load(save(*tiny_model("gpt2"), tmp_path / "model"))
    model.fingerprint([model.weight_name(0)])
    save(*tiny_model("gpt2", seed=1), tmp_path / "model")
    with pytest.raises(WrongModelError, match="has other weights than here") as caught:
        list(workers.map(lambda model, item: item, [1], model))
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(BadSettingsError, match="workers 9: the cluster has room for 1 to 3"),
        open_engine("ray", workers=9),
    ):
        pass


def test_engines_are_named(tmp_path: Path) -> None:
    assert split([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]] and split([1], 4) == [[1]] and split([], 4) == []
    for words, told in ((["--engine", "dask"], "choose one of local, ray"), (["--workers", "2"], "local has none")):
        done = command(tmp_path, "moments", "--model", "none", "--corpus", "self", *words)
        assert done.returncode == 2 and told in " ".join(done.stderr.split())
