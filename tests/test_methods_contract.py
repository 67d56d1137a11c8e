"""One contract for every registered method, on both layouts; and what an editor may look at of its ledger's history."""

from __future__ import annotations

import functools
import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from core import FACTS, bits, editable, same_bits
from torch import Tensor

import tether
from tether.editing.method_checks import CHECKS, Case, check_method
from tether.editors import EDITORS, Context, EditFailedError, Proposal
from tether.editors.rome import Rome
from tether.editors.training import TrainingHparams
from tether.errors import TetherError
from tether.facts.fact import Fact
from tether.ledger import Event, Ledger
from tether.ledger.history import LedgerHistory
from tether.models import EditableModel

LAYOUTS = ["llama", "gpt2"]
STEPS = {"v_num_grad_steps": 12, "v_lr": 0.1, "v_weight_decay": 0.01}  # a random model needs no more
TRAINING = {"lr": 0.01, "epochs": 6, "keep": 0.1, "keep_pieces": 4, "keep_length": 16}
MEND = {
    "layers": [1, 2], "rank": 8, "lr": 1e-3, "lr_lr": 1e-4, "edit_lr": 1e-3, "accumulate": 2, "steps": 8,
    "validate_every": 4, "validation": 3, "statistics": 4,
}  # fmt: skip


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of the same model are collected once for all tests here."""
    monkeypatch.setenv("TETHER_CACHE", str(_folder() / "cache"))


@functools.cache
def trained(method: str, family: str) -> Path | None:
    """A trained editor, where the method needs one."""
    if EDITORS[method].open_trained is None:
        return None
    folder = _folder() / f"{method}-{family}"
    folder.mkdir()
    (folder / "facts.jsonl").write_text("\n".join(fact.model_dump_json(exclude_none=True) for fact in FACTS) + "\n")
    facts = folder / "facts.jsonl"
    tether.train_mend(editable(family), facts, facts, folder / "e", settings=MEND, cache=folder / "cache")
    return folder / "e"


@functools.cache
def case(method: str, family: str) -> Case:
    kind = EDITORS[method]
    trains = issubclass(kind.settings, TrainingHparams)
    settings: dict[str, Any] = {} if kind.open_trained else TRAINING if trains else STEPS
    return Case.of(EDITORS[method], editable(family), FACTS[:4], settings=settings, editor=trained(method, family))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("method", list(EDITORS))
def test_contract(method: str, family: str, check: Callable[[Case], None]) -> None:
    model = case(method, family).model
    before = bits(model)
    check(case(method, family))
    assert same_bits(model, before)


def test_a_name_is_that_of_its_method() -> None:
    assert {name: EDITORS[name].name for name in EDITORS} == {name: name for name in EDITORS}


# --- a method that breaks the contract ------------------------------------------------------------------------------


class Careless(Rome):
    """ROME that leaves its update in the model."""

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        proposal = super().propose(model, fact, context)
        for name, update in proposal.updates.items():
            model.weight(name).add_(update.to_dense())
        return proposal


class Dicing(Rome):
    """ROME with a random factor."""

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        proposal = super().propose(model, fact, context)
        factor = 1 + float(torch.rand((), generator=torch.Generator().manual_seed(next(self.seeds))))
        updates = {name: replace(update, A=factor * update.A) for name, update in proposal.updates.items()}
        return replace(proposal, updates=updates)

    seeds = itertools.count()


class Mute(Rome):
    """ROME that fails without saying at what."""

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        try:
            return super().propose(model, fact, context)
        except EditFailedError:
            raise EditFailedError("it did not work\nsorry") from None


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Careless, "broken, check_pure: the model's weights are as before"),
        (Dicing, "broken, check_deterministic: .* the same bits"),
        (Mute, "broken, check_a_failing_fact_is_named: one line that names the fact"),
    ],
)
def test_a_broken_method_is_told_what_is_wrong(kind: type[Rome], said: str) -> None:
    broken = replace(EDITORS["rome"], name="broken", editor=lambda: kind("rome"))
    with pytest.raises(AssertionError, match=said):
        check_method(broken, editable("llama"), FACTS[:4], settings=STEPS)


# --- the history ----------------------------------------------------------------------------------------------------


def dense_sum(ledger: Ledger, name: str) -> Tensor:
    model = editable("llama")
    ledger.apply(model, restrain="none")
    return model.weight(name) - model.original(name)


def ledger_of(method: str, folder: Path, facts: Sequence[Fact], **more: Any) -> Ledger:
    """A new ledger, or one that goes on."""
    if "moments" in EDITORS[method].needs and not folder.exists():
        settings = {**STEPS, "prefixes": [], "layers": more.pop("layers", [1])}
        more |= {"corpus": "self:1024", "settings": settings, "method": method}
    elif not folder.exists():
        more |= {"editor": trained(method, "llama"), "method": method}
    return tether.edit(editable("llama"), facts, out=folder, **more)


@pytest.mark.parametrize("method", ["rome", "mend"])
def test_the_history_of_single_edits(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_of(method, tmp_path / "l", FACTS[:2])
    read: list[int] = []
    tensors = Ledger.tensors

    def counted(self: Ledger, event: Event) -> dict[str, Tensor]:
        read.extend([event.edit or 0] if self is ledger else [])
        return tensors(self, event)

    monkeypatch.setattr(Ledger, "tensors", counted)
    history, plain = LedgerHistory(ledger), Ledger.open(ledger.path)
    assert history.edits == (1, 2) and not read, "nothing is read before it is asked for"
    for name in ledger.header.weights:
        keys, residuals = history.keys(name), history.residuals(name)
        assert torch.equal(keys, torch.cat([plain.vectors(event, "K")[name] for event in plain.live()]))
        wanted = [plain.vectors(e, "K")[name] @ plain.factors(e)[name].to_dense().mT for e in plain.live()]
        torch.testing.assert_close(residuals, torch.cat(wanted), rtol=1e-4, atol=1e-5)
        rows = [event.edit for event in plain.live() for _ in plain.vectors(event, "K")[name]]
        assert list(history.rows(name)) == rows
        torch.testing.assert_close(history.updates(name).to_dense(), dense_sum(plain, name), rtol=1e-4, atol=1e-5)
        assert history.values(name).shape == ((2 if method == "rome" else 0), len(dense_sum(plain, name)))
    assert sorted(set(read)) == sorted(read) == [1, 2], "each file once"

    ledger_of(method, tmp_path / "l", FACTS[2:3])  # goes on
    ledger.reload()
    assert history.edits == (1, 2, 3) and set(history.rows(name)) == {1, 2, 3}
    ledger.undo(1)
    assert history.edits == (2, 3) and set(history.rows(name)) == {2, 3}
    torch.testing.assert_close(
        history.updates(name).to_dense(), dense_sum(Ledger.open(ledger.path), name), rtol=1e-4, atol=1e-5
    )
    assert read == [1, 2, 3], "an undo reads nothing"


def test_the_history_of_batches_with_an_undo_in_one(tmp_path: Path) -> None:
    ledger = ledger_of("memit", tmp_path / "l", FACTS[:5], batch_size=3, layers=[0, 1])
    history = LedgerHistory(ledger)
    assert history.edits == (1, 2, 3, 4, 5)
    ledger.undo(2)
    assert history.edits == (1, 3, 4, 5)
    low, high = ledger.header.weights
    assert history.values(low).shape[0] == 0 and history.values(high).shape[0] == 4
    for name in (low, high):
        assert history.rows(name) == (1, 3, 4, 5)
        torch.testing.assert_close(history.updates(name).to_dense(), dense_sum(ledger, name), rtol=1e-4, atol=1e-5)
        first = dense_sum(ledger_of_first_batch(ledger, tmp_path / name), name)
        torch.testing.assert_close(history.residuals(name)[:2], history.keys(name)[:2] @ first.mT, rtol=1e-3, atol=1e-4)


def ledger_of_first_batch(ledger: Ledger, folder: Path) -> Ledger:
    """The ledger without its second batch."""
    shutil.copytree(ledger.path, folder)
    alone = Ledger.open(folder)
    alone.undo(4, 5)
    return alone


def test_no_edits_no_rows(tmp_path: Path) -> None:
    assert Context(None).history.edits == () and Context(None).history.keys("any").numel() == 0
    empty = Ledger.create(tmp_path, case("rome", "llama").header)
    (name,) = empty.header.weights
    p, q = empty.header.weights[name].shape
    history = LedgerHistory(empty)
    assert history.keys(name).shape == (0, q) and history.values(name).shape == (0, p)
    assert history.updates(name).shape == (p, q) and history.rows(name) == ()


# --- methods of other packages --------------------------------------------------------------------------------------

PACKAGE = """
import json
from dataclasses import dataclass
from hashlib import sha256

import torch
from tether.algebra.lowrank import LowRank
from tether.editors import Method, Proposal
from tether.editors.settings import Hparams


class NudgeHparams(Hparams):
    family = "nudge"
    size: float = 0.5

    @classmethod
    def rule(cls, model):
        return {"layers": (model.n_layers - 1,)}


class ScaledHparams(NudgeHparams):
    needs = frozenset({"editor"})


class Nudge:
    def weights(self, model, hparams):
        return [model.weight_name(layer) for layer in hparams.layers]

    def propose(self, model, fact, context):
        (name,) = self.weights(model, context.hparams)
        p, q = model.weight(name).shape
        key = torch.nn.functional.one_hot(torch.tensor(len(context.history.rows(name))), q).float()
        size = context.hparams.size * (context.trained or 1)
        update = LowRank(torch.full((p, 1), size), key[None])
        return Proposal({name: update}, {f"{name}/K": key}, {"seen": float(len(context.history.edits))})


@dataclass
class Opened:
    path: object
    network: float

    @property
    def sha256(self):
        return sha256(self.path.read_bytes()).hexdigest()

    def settings(self, given):
        return ScaledHparams.model_validate({"layers": (1,), **(given or {})})


def opened(path, model):
    return Opened(path, json.loads(path.read_text())["scale"])


NUDGE = Method("nudge", Nudge, NudgeHparams, "None (https://example.org)", "adds a constant")
SCALED = Method("scaled", Nudge, ScaledHparams, "None (https://example.org)", "adds a trained constant", opened)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with two methods, as its entry points declare them."""
    (tmp_path / "nudging.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("nudge", "scaled"):
        monkeypatch.setitem(EDITORS._others, name, EntryPoint(name, f"nudging:{name.upper()}", "tether.editors"))


def test_a_method_of_another_package_edits(package: None, tmp_path: Path) -> None:
    model = editable("gpt2")
    ledger = tether.edit(model, FACTS[:2], out=tmp_path / "l", method="nudge", settings={"size": 0.25})
    assert ledger.header.settings == {"layers": [3], "size": 0.25} and not ledger.header.moments
    again = tether.edit(model, FACTS[2:3], out=tmp_path / "l")
    assert [event.record["seen"] for event in again.live()] == [0, 1, 2], "an edit sees those before it"
    (name,) = again.header.weights
    written = (model.weight(name) - model.original(name))[:, :4]
    torch.testing.assert_close(written, torch.tensor([0.25, 0.25, 0.25, 0]).expand_as(written))
    with pytest.raises(TetherError, match="size"):
        tether.edit(editable("gpt2"), FACTS[:1], out=tmp_path / "m", method="nudge", settings={"size": "large"})
    with pytest.raises(TetherError, match="nudge needs no trained editor"):
        tether.edit(editable("gpt2"), FACTS[:1], out=tmp_path / "n", method="nudge", editor=tmp_path / "e")


def test_a_trained_method_of_another_package_edits(package: None, tmp_path: Path) -> None:
    model, file = editable("gpt2"), tmp_path / "trained.json"
    file.write_text('{"scale": 2.0}')
    with pytest.raises(TetherError, match="scaled edits with a trained editor"):
        tether.edit(model, FACTS[:1], out=tmp_path / "l", method="scaled")
    ledger = tether.edit(model, FACTS[:1], out=tmp_path / "l", method="scaled", editor=file)
    assert ledger.header.editor is not None and ledger.header.settings["layers"] == [1]
    tether.edit(model, FACTS[1:2], out=tmp_path / "l")
    (name,) = ledger.header.weights
    torch.testing.assert_close((model.weight(name) - model.original(name))[0, :3], torch.tensor([1.0, 1.0, 0.0]))
    file.write_text('{"scale": 3.0}')
    with pytest.raises(TetherError, match="is not the one this ledger was made with"):
        tether.edit(model, FACTS[2:3], out=tmp_path / "l")
