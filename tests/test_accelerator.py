"""Where matrices lie: what edits move between the devices, and the whole path on an accelerator where there is one."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from core import FACTS, bits, close, editable, plain_text, random_moments, random_update, same_bits
from edits import run

from tether.constraints.base import Data, Weight, parse
from tether.editors.corpus import Corpus
from tether.editors.moments import moments
from tether.ledger import Ledger
from tether.ledger.replay import Sums
from tether.models import EditableModel

ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)
CPU, META = torch.device("cpu"), torch.device("meta")
GPU = [pytest.mark.gpu, pytest.mark.skipif(ACCELERATOR is None, reason="there is no accelerator")]
DEVICES = [CPU, pytest.param(ACCELERATOR, marks=GPU)]
CASES = [("r-rome", (1,), 1), ("memit", (0, 1), 3)]
ROUNDING = 1e-3  # of an update: what other float32 products and 12 steps of Adam make of the last bits


def on(device: torch.device, family: str = "llama", **more: Any) -> EditableModel:
    hf, tokenizer = (model := editable(family, **more)).hf, model.tokenizer
    return EditableModel(hf.to(device), tokenizer)


def test_a_dense_sum_stays_where_the_weight_is() -> None:
    """The meta device stands for an accelerator: what it holds cannot come back, so nothing p×q was moved."""
    inputs = {"w": (Weight((9, 12), 6.0), Data())}
    sums, restraint = Sums(inputs, {"w": META}), parse("log:1.2")
    for n in range(40):
        sums.add({"w": random_update(9, 12, 2, seed=n, scale=3.0)})
    held = sums.of["w"]
    assert held.on(META).is_meta and held.exact is not None and held.exact.added.is_meta
    assert held.factors.A.device == held.factors.B.device == CPU
    sums.restrain(restraint)
    restrained = sums.of["w"]
    assert restrained is not held and restrained.exact is not None and restrained.exact.added.is_meta
    assert float(restrained.factors.singular_values()[0]) < float(held.factors.singular_values()[0])
    free = Sums(inputs)
    free.add({"w": random_update(9, 12, 2, seed=0)})
    assert free.of["w"].on(META).is_meta, "made there of its factors"
    assert free.of["w"].dense.device == CPU


@pytest.mark.parametrize("device", DEVICES)
def test_moments_on_the_device(device: torch.device, tmp_path: Path) -> None:
    corpus = Corpus.parse(plain_text(), max_tokens=1024, window=64)
    expected = moments(editable("gpt2"), [0, 2], corpus, cache=tmp_path / "cpu")
    found = moments(on(device, "gpt2"), [0, 2], corpus, cache=tmp_path / "device")
    for layer, one in found.items():
        assert one.C.device == CPU and one.C.dtype == torch.float64 and one.tokens == 1024
        assert close(one.C, expected[layer].C, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_solve_on_the_device(device: torch.device) -> None:
    """Keys of any device; the answer is on the CPU, in float64."""
    one = random_moments(24)
    k = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    regular = one.C + 0.1 * one.C.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    found = one.on(device).solve(k.to(device), ridge=0.1)
    assert found.device == CPU and found.dtype == torch.float64
    torch.testing.assert_close(found, torch.linalg.solve(regular, k.double().mT).mT, rtol=1e-10, atol=0)
    expected = one.project(k, threshold=0.5)
    torch.testing.assert_close(one.on(device).project(k.to(device), threshold=0.5), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("device", "method", "layers", "batch"),
    [(CPU, "memit", (0, 1), 3), *(pytest.param(ACCELERATOR, *case, marks=GPU) for case in CASES)],
)
def test_edits_undo_and_replay_on_the_device(
    device: torch.device, method: str, layers: tuple[int, ...], batch: int, tmp_path: Path
) -> None:
    facts = FACTS[:3]
    how: dict[str, Any] = {"method": method, "batch_size": batch}
    changes = {"layers": layers, "mom2_update_weight": 20.0}
    there = run(editable("llama"), facts, tmp_path / "cpu", changes=changes, **how)
    model = on(device)
    before = bits(model)
    ledger = run(model, facts, tmp_path / "device", changes=changes, **how)
    for name in ledger.header.weights:
        update = model.update(name)
        assert update is not None and update.device.type == device.type
        assert close(update.cpu(), there.sums().of[name].dense, ROUNDING)
    live = bits(model)
    again = on(device)
    assert same_bits(Ledger.open(ledger.path).apply(again), live), "a replay gives the bits of the live run"
    ledger.undo(2)
    ledger.apply(model)
    for name in ledger.header.weights:
        kept = ledger.sums(model=model).of[name]
        assert kept.rank == len(facts) - 1
        assert torch.equal(model.weight(name), model.original(name) + kept.on(device))
    ledger.undo(1, 3)
    assert same_bits(ledger.apply(model), before), "no edit is left, and no bit of one"


@pytest.mark.gpu
@pytest.mark.skipif(ACCELERATOR is None, reason="there is no accelerator")
def test_edits_in_bfloat16_with_a_history_and_a_restraint(tmp_path: Path) -> None:
    """The float32 W₀ and sums are on the device with the weight; the weight is round(W₀ + Σ)."""
    assert ACCELERATOR is not None
    model = on(ACCELERATOR, dtype=torch.bfloat16)
    ledger = run(
        model, FACTS[:3], tmp_path / "ledger", method="r-rome", restrain="log:1.2", changes={"history": True}
    )  # fmt: skip
    (name,) = ledger.header.weights
    held = ledger.sums(model=model).of[name]
    assert held.exact is not None and held.exact.added.device.type == ACCELERATOR.type
    assert torch.equal(model.weight(name), (model.original(name) + held.on(ACCELERATOR)).bfloat16())
    (row,) = ledger.spectrum(model)
    assert row.rounding is not None and 0 < row.rounding < 1


def test_the_benchmark_runs_at_a_tiny_size_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bench/gpu.py` from end to end: it compares, and ends where bits or numbers differ."""
    bench = Path(__file__).parent.parent / "bench"
    monkeypatch.setenv("TETHER_CACHE", "")  # which the script sets: put back afterwards
    monkeypatch.syspath_prepend(str(bench))
    sizes = "--hidden 32 --width 80 --layers 3 --heads 2 --vocab 500 --words 500 --steps 3 --batches 1 2 --matmul 64"
    words = ["gpu.py", "--device", "cpu", "--dtype", "float32", *sizes.split()]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(bench / "gpu.py"), run_name="__main__")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = {cells[0]: cells[1:] for cells in lines if cells}
    assert float(rows["ROME, ΔW"][0]) == 0, "the CPU against itself"
    for what in ("ROME, one edit", "MEMIT, a batch of 2", "moments of 2 layers, 500 words"):
        assert all(float(cell) > 0 for cell in rows[what]), "seconds, memory, operations and share"
    assert float(rows["MEMIT, a batch of 2"][3]) > float(rows["MEMIT, a batch of 1"][3])
