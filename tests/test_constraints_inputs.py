"""A constraint of another package that uses W₀ and the moments: the same weights live, on replay and on export."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import command
import pytest
import torch
from core import FACTS, SETTINGS, bits, same_bits
from edits import kinds
from safetensors.torch import load_file
from test_ledger import fill, new_ledger
from tiny import save, tiny_model
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.analyses.analyse import analyse
from tether.constraints.base import AS_RECORDED, CONSTRAINTS, Constraint, Data, Weight, parse, read_number
from tether.constraints.checks import check_constraint
from tether.editing.run import Progress, edit
from tether.errors import BadSettingsError, TetherError
from tether.evaluation.suite import evaluate_ledger
from tether.ledger import Ledger
from tether.models import EditableModel, load


@dataclass(frozen=True)
class Cap(Constraint):
    """‖Σ‖_F is at most `share` of ‖W₀‖_F. Written `cap:0.01`."""

    name: ClassVar[str] = "cap"
    example: ClassVar[str] = "cap:0.01"
    share: float

    @classmethod
    def read(cls, parameter: str) -> Cap:
        return cls(read_number(cls.name, parameter, cls.example))

    def init(self, weight: Weight, data: Data) -> Any:
        return self.share * float(weight.original().double().norm())

    def apply(self, update: LowRank, state: Any) -> tuple[LowRank, Any]:
        size = update.norm()
        return (update if size <= state else LowRank(update.A * (state / size), update.B)), state

    def __str__(self) -> str:
        return f"{self.name}:{self.share:g}"


@dataclass(frozen=True)
class OnKeys(Cap):
    """The same of ΣC^½ and W₀C^½: what they do to the keys of the text on average. Written `on-keys:0.01`."""

    name: ClassVar[str] = "on-keys"
    example: ClassVar[str] = "on-keys:0.01"

    def init(self, weight: Weight, data: Data) -> Any:
        C = data.moments()
        return self.share * on_keys(weight.original(), C), C

    def apply(self, update: LowRank, state: Any) -> tuple[LowRank, Any]:
        limit, C = state
        size = on_keys(update.to_dense(), C) if update.rank else 0.0
        return (update if size <= limit else LowRank(update.A * (limit / size), update.B)), state


def on_keys(W: Tensor, C: Tensor) -> float:
    return float((W.double() @ C).mul(W.double()).sum().sqrt())


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    others = {one.name: EntryPoint(one.name, f"{__name__}:{one.__name__}", CONSTRAINTS.group) for one in (Cap, OnKeys)}
    monkeypatch.setitem(CONSTRAINTS.__dict__, "_others", others)
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))


def start(family: str, folder: Path) -> tuple[EditableModel, dict[str, Any]]:
    """A model in a folder, and the options of a run."""
    save(*tiny_model(family), folder / "model")
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "corpus.txt").write_text("The Eiffel Tower is in the city of Paris, and you know that. " * 200)
    options = {"settings": folder / "settings.json", "corpus": folder / "corpus.txt", "out": folder / "ledger"}
    return load(str(folder / "model")), options


@pytest.mark.parametrize("text", ["cap:0.01", "on-keys:0.01", "cap:0.02+on-keys:0.01+rank:1"])
def test_they_keep_the_rules_of_a_constraint(text: str) -> None:
    check_constraint(parse(text))


@pytest.mark.parametrize("text", ["cap:0.01", "on-keys:0.01"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_weights_live_on_replay_and_on_export(family: str, text: str, tmp_path: Path) -> None:
    model, options = start(family, tmp_path)
    edit(model, FACTS[:2], restrain=text, every=2, **options)
    ledger = edit(model, FACTS[2:4], out=options["out"])
    live = bits(model)
    assert kinds(ledger) == ["edit", "edit", "restrain"] * 2
    opened, other = Ledger.open(ledger.path), load(str(tmp_path / "model"))
    (name,) = ledger.header.weights
    assert same_bits(opened.apply(other), live)
    opened.export(other, tmp_path / "merged", as_="merged")
    assert torch.equal(load(str(tmp_path / "merged")).weight(name), model.weight(name))

    W, held = other.original(name), opened.sums(model=other).of[name]
    C = opened.replay(other).inputs[name][1].moments()
    assert C.shape == (W.shape[1], W.shape[1])
    size = (lambda one: float(one.double().norm())) if text.startswith("cap") else (lambda one: on_keys(one, C))
    assert size(held.dense) == pytest.approx(0.01 * size(W), rel=1e-5), "it acts, on the unedited weight"
    assert size(opened.sums(restrain="none").of[name].dense) > 0.011 * size(W)

    for restrain in (None, text):
        (row,) = opened.spectrum(other, restrain=restrain)
        (measured,) = evaluate_ledger(opened, other, restraints=[restrain], abilities=[]).rows
        top = float(torch.linalg.matrix_norm(opened.sums(restrain=restrain, model=other).of[name].dense.double(), 2))
        assert row.update_singular_values[0] == pytest.approx(top, rel=1e-5)
        assert measured.spectrum[name].update_sigma_max == pytest.approx(top, rel=1e-5)
    opened.export(other, tmp_path / "lora", as_="lora")
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    A, B = (next(one for key, one in stored.items() if f"lora_{side}" in key) for side in "AB")
    torch.testing.assert_close(B @ A, held.dense)

    opened.undo(4)
    without = bits(opened.apply(other))
    ledger.reload()
    assert same_bits(ledger.apply(model), without) and not same_bits(model, live)

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit(model, FACTS[4:5], out=options["out"], progress=stop)
    assert kinds(Ledger.open(ledger.path))[-1] == "edit"
    assert same_bits(Ledger.open(ledger.path).apply(other), bits(model)) and not same_bits(model, without)


def test_the_analyses_take_them(tmp_path: Path) -> None:
    model, options = start("llama", tmp_path)
    ledger = edit(model, FACTS[:3], restrain="cap:0.01", every=1, **options)
    found = analyse(model, ledger, wanted=["values", "copies", "bound"], restraints=["cap:0.001", AS_RECORDED], at=[])
    assert found.values is not None and {one.restraint for one in found.values.points} == {"cap:0.001", AS_RECORDED}
    assert {one.restraint for one in found.bound} == {"cap:0.001", AS_RECORDED}
    capped = [one.update_sigma_max for one in found.copies if one.restraint == "cap:0.001"]
    assert capped == pytest.approx([capped[-1]] * len(capped), rel=1e-5), "100 copies or one: the same share of W₀"


def test_what_is_not_at_hand_is_named_with_the_remedy(tmp_path: Path) -> None:
    model, options = start("llama", tmp_path)
    ledger = edit(model, FACTS[:2], restrain="on-keys:0.01", **options)
    live = bits(model)
    for restrain in ("cap:0.01", None):
        with pytest.raises(
            TetherError, match="asks for W₀ or for the moments, and no model is at hand: give the model"
        ) as caught:
            ledger.sums(restrain=restrain)
        assert "\n" not in str(caught.value)
    (kept,) = (tmp_path / "cache" / "moments").glob("*.safetensors")
    kept.unlink()
    with pytest.raises(TetherError, match=r"the moments of layer 1 of .* not in the cache") as caught:
        ledger.apply(model)
    assert same_bits(model, live)
    (remedy,) = re.findall("`(.*)`", str(caught.value))
    done = command.run(tmp_path, *shlex.split(remedy)[1:])
    assert done.returncode == 0 and kept.exists(), done.stderr
    assert same_bits(ledger.apply(load(str(tmp_path / "model"))), live)


def test_the_command_takes_them(tmp_path: Path) -> None:
    """Edit, evaluate and restrain by what needs W₀ or the moments; one line, before any edit, where they are not."""
    start("llama", tmp_path)
    (tmp_path / "facts.jsonl").write_text("".join(fact.model_dump_json() + "\n" for fact in FACTS[:2]))
    facts = ("facts.jsonl", "--model", "model", "--settings", "settings.json", "--corpus", "corpus.txt")
    chain = "data_log:1.2+null_space:0.9+rect:60+norm:0.01+sphere:0.5,0.5"
    command.answer(tmp_path, "edit", *facts, "--method", "r-rome", "--restrain", chain, "--out", "ledger")
    rows = command.answer(
        tmp_path, "evaluate", "ledger", "--facts", "facts.jsonl", "--restrain", f"none,sphere:0.5,0.5,{chain}",
        "--metrics", "match", "--abilities", "", "--at", "2", "--out", "results.json",
    )["rows"]  # fmt: skip
    assert [row["restraint"] for row in rows] == ["none", "sphere:0.5,0.5", chain]
    model = load(str(tmp_path / "model"))
    ledger = Ledger.open(tmp_path / "ledger", model)
    (name,) = ledger.header.weights
    held, W = ledger.sums(model=model).of[name].dense.double(), model.original(name).double()
    assert 0.004 < float(held.norm() / W.norm()) <= 0.01 * (1 + 1e-5), "capped, and then a little less along U"
    assert torch.equal(held, ledger.sums(restrain=chain, model=model).of[name].dense.double())

    done = command.run(tmp_path, "edit", *facts[:3], "--method", "ft", "--restrain", "null_space:0.5", "--out", "ft")
    assert done.returncode == 1 and not (tmp_path / "ft").exists()
    assert "null_space:0.5 needs the moments of the keys, and ft collects none: name another" in done.stderr
    done = command.run(tmp_path, "evaluate", "ledger", "--facts", "facts.jsonl", "--restrain", "none,null_space:1e-9",
                       "--metrics", "match", "--abilities", "", "--out", "other.json")  # fmt: skip
    assert done.returncode == 1 and "no eigenvalue of the moments lies below" in done.stderr
    assert not (tmp_path / "other.json").exists()

    command.answer(tmp_path, "export", "ledger", "--to", "merged", "--as", "merged", "--restrain", "none")
    pair = ("restrain", "--base", "model", "--edited", "merged")
    report = command.answer(tmp_path, *pair, "--out", "capped", "--restrain", "norm:0.01")
    D = load(str(tmp_path / "capped")).weight(name).double() - W
    assert report["matrices"][0]["name"].endswith(name) and float(D.norm() / W.norm()) == pytest.approx(0.01, rel=1e-4)
    done = command.run(tmp_path, *pair, "--out", "projected", "--restrain", "null_space:0.5")
    assert done.returncode == 2 and "which two checkpoints do not have" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "projected").exists()

    listed = {one["name"]: one for one in command.answer(tmp_path, "ls", "constraints")}
    assert listed["sphere"]["written"] == "sphere:0.5,0.5" and listed["data_log"]["needs"] == ["moments", "weight"]
    assert all(listed[one]["paper"] for one in listed.keys() - {"none", "cap", "on-keys"})


def test_a_ledger_without_moments_says_so(tmp_path: Path) -> None:
    model = EditableModel(*tiny_model("gpt2"))
    ledger = new_ledger(tmp_path, model)
    fill(ledger, "12")
    assert not same_bits(ledger.apply(model, restrain="cap:0.01"), bits(EditableModel(*tiny_model("gpt2"))))
    with pytest.raises(BadSettingsError, match=r"rome was run without moments of .*: name another restraint"):
        ledger.apply(model, restrain="on-keys:0.01")
