"""The guard: what it lets pass, when it restrains, and what it takes back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from core import FACTS, SETTINGS, bits, editable, reciter, same_bits
from edits import assert_says, kinds, run
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run as command
from tiny import save

from tether.constraints.prune import parse
from tether.editing.guard import GuardStopError, first_failing
from tether.editing.run import Progress, edit
from tether.errors import TetherError
from tether.evaluation.abilities.perplexity import perplexity
from tether.ledger import Ledger
from tether.models import EditableModel

LARGE = {"v_num_grad_steps": 25, "v_lr": 2.0, "v_weight_decay": 0.0, "clamp_norm_factor": 60.0}
STRONG = "linear:20"


class Trained:
    """The reciting model, and a text it knows, as corpus and as the guard's."""

    def __init__(self, folder: Path) -> None:
        hf, tokenizer, self.facts = reciter()
        self.model = EditableModel(hf, tokenizer)
        self.text = folder / "text.txt"
        self.text.write_text(
            " ".join(f"{t} {f.target_true}." for f in self.facts for t in (f.text, *f.paraphrases)) * 3
        )

    def run(self, out: Path, n: int, **more: Any) -> Ledger:
        if "guard" in more:
            more["guard_data"] = self.text
        if not (out / "ledger.json").exists():
            more |= {"changes": LARGE, "corpus": self.text}
        return run(self.model, self.facts[:n], out, **more)

    def share(self) -> float:
        text = self.text.read_text()
        with self.model.unedited():
            start = perplexity(self.model, text).value
        return perplexity(self.model, text).value / start

    def says(self, ledger: Ledger) -> None:
        """The model carries what the ledger on disk says, bit for bit."""
        carried = bits(self.model)
        Ledger.open(ledger.path, self.model).apply(self.model)
        assert same_bits(self.model, carried)


@given(st.integers(0, 50), st.integers(1, 50), st.data())
def test_bisection_finds_the_first_that_fails(good: int, more: int, data: st.DataObject) -> None:
    bad = good + more
    first = data.draw(st.integers(good + 1, bad))
    asked: list[int] = []

    def holds(n: int) -> bool:
        asked.append(n)
        return n < first

    assert first_failing(good, bad, holds) == first
    assert len(asked) <= more.bit_length() and all(good < n < bad for n in asked)


@pytest.mark.parametrize("rule", ["perplexity", "perplexity:0.9", "perplexity:x", "nli:1.5", "nli:0", ":1.1", "nan:1"])
def test_what_is_no_guard(rule: str, tmp_path: Path) -> None:
    with pytest.raises(TetherError) as caught:
        run(editable("gpt2"), FACTS[:1], tmp_path / "a", guard=rule)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a" / "ledger.json").exists()


def test_what_costs_little_passes(tmp_path: Path) -> None:
    model = editable("gpt2")
    ledger = run(model, FACTS[:4], tmp_path / "a", guard="perplexity:3", guard_every=2)
    assert kinds(ledger) == ["guard", "edit", "edit", "guard", "edit", "edit", "guard"]
    assert [e.record["edits"] for e in ledger.events if e.kind == "guard"] == [0, 2, 4]
    assert_says(model, ledger, "gpt2")


def test_restraint_is_tried_first_and_may_be_enough(tmp_path: Path) -> None:
    plain = Trained(tmp_path)
    ledger = plain.run(tmp_path / "plain", 2)
    free = plain.share()
    ledger.apply(plain.model, restrain=STRONG)
    held = plain.share()
    assert 1 < held < free, "the restraint helps here"
    trained = Trained(tmp_path)
    limit = (held + free) / 2
    ledger = trained.run(tmp_path / "a", 2, restrain=STRONG, guard=f"perplexity:{limit}", guard_every=2)
    assert kinds(ledger) == ["guard", "edit", "edit", "restrain", "guard"]
    event = ledger.events[-2]
    assert event.restrain == STRONG and "guard perplexity" in (event.reason or "")
    assert trained.share() == pytest.approx(held, rel=1e-5)
    trained.says(ledger)


@pytest.mark.parametrize("restrain", ["none", STRONG])
def test_the_first_edit_that_fails_and_all_after_it_are_taken_back(
    restrain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit lies between prefixes: everything is checked again from the ledger."""
    plain = Trained(tmp_path)
    last_resort = parse("log:1.2" if restrain == "none" else restrain)
    ledger = plain.run(tmp_path / "plain", 5)
    shares = []
    for n in range(6):
        ledger.apply(plain.model, upto=n, restrain=last_resort)
        shares.append(plain.share())
    first = next(n for n in range(5, 0, -1) if shares[n] > max(shares[:n]) and shares[n] <= min(shares[n:]))
    limit = (shares[first] + max(shares[:first])) / 2
    assert limit > 1
    trained = Trained(tmp_path)
    read, real = Counter[str](), Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: read.update([path.name]) or real(path))
        with pytest.raises(GuardStopError, match=f"edit {first} is the first") as caught:
            trained.run(tmp_path / "a", 5, restrain=restrain, guard=f"perplexity:{limit}", guard_every=5)
    counts = [read[f"{n:06d}.safetensors"] for n in range(1, 6)]
    assert counts == [1 + (n < first) for n in range(1, 6)], (
        "once by all of the bisection, and the live ones at the end"
    )
    assert "\n" not in str(caught.value)
    held = Ledger.open(tmp_path / "a")
    event = held.events[-1]
    assert event.kind == "guard" and event.undone == tuple(range(first, 6))
    assert [e.edit for e in held.live()] == list(range(1, first))
    assert held.verify(trained.model)["kinds"]["edit"] == 5, "their factors stay"
    trained.says(held)
    assert trained.share() <= limit
    assert event.record["first_failing"] == first and event.reason is not None


def test_the_command_ends_with_one(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    save(trained.model.hf, trained.model.tokenizer, tmp_path / "model")
    lines = [fact.model_dump_json(exclude_none=True) for fact in trained.facts[:2]]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "settings.json").write_text(json.dumps({**SETTINGS, **LARGE}))
    done = command(
        tmp_path, "edit", "facts.jsonl", "--model", "model", "--out", "ledger", "--corpus", "text.txt", "--settings",
        "settings.json", "--guard", "perplexity:1.00001", "--guard-every", "1", "--guard-data", "text.txt",
    )  # fmt: skip
    assert done.returncode == 1
    assert "undone" in done.stderr.splitlines()[-1]
    assert Ledger.open(tmp_path / "ledger").events[-1].kind == "guard"
    listed = command(tmp_path, "log", "ledger")
    assert "guard 1: guard perplexity:1.00001" in listed.stdout


def test_a_guard_leaves_the_model_as_it_found_it(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    before = bits(trained.model)
    with pytest.raises(GuardStopError):
        trained.run(tmp_path / "a", 1, guard="perplexity:1.00001", guard_every=1)
    assert same_bits(trained.model, before)


def test_every_restraint_that_stays_is_in_what_is_measured(tmp_path: Path) -> None:
    """With restraints between the edits the ledger replays them all after a take-back: bisection judged just that."""
    trained = Trained(tmp_path)
    with pytest.raises(GuardStopError) as caught:
        trained.run(
            tmp_path / "a", 4, restrain="linear:2", every=1, guard="perplexity:1.02", guard_every=4
        )  # fmt: skip
    held = Ledger.open(tmp_path / "a")
    event = held.events[-1]
    assert event.kind == "guard" and event.undone and str(event.undone[0]) in str(caught.value)
    trained.says(held)
    assert trained.share() == pytest.approx(event.record["share"], rel=1e-6)
    assert event.record["holds"] and trained.share() <= 1.02


def test_what_was_taken_back_is_tried_again_and_what_holds_is_not(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    with pytest.raises(GuardStopError):
        trained.run(tmp_path / "a", 1, guard="perplexity:1.00001", guard_every=1)
    again = edit(trained.model, trained.facts[1:2], out=tmp_path / "a", resume=True)
    assert [e.edit for e in again.live()] == [2], "the fact left out is not in the way"
    same = edit(trained.model, trained.facts[1:2], out=tmp_path / "a", resume=True)
    assert same.attempts == 2


def test_a_resumed_run_looks_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = Trained(tmp_path)
    expected = whole.run(tmp_path / "whole", 4, guard="perplexity:1000", guard_every=2)
    part = Trained(tmp_path)

    def stop(at: Progress) -> None:
        if at.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.run(tmp_path / "part", 4, guard="perplexity:1000", guard_every=2, progress=stop)
    found = part.run(tmp_path / "part", 4, guard="perplexity:1000", guard_every=2, resume=True)
    assert kinds(found) == kinds(expected)
    assert [e.sha256 for e in found.live()] == [e.sha256 for e in expected.live()]


def test_a_ledger_that_costs_too_much_already_is_not_blamed_on_new_edits(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    ledger = trained.run(tmp_path / "a", 1)
    with pytest.raises(TetherError, match="cost too much already"):
        trained.run(tmp_path / "a", 2, guard="perplexity:1.00001")
    assert Ledger.open(ledger.path).attempts == 1 and not Ledger.open(ledger.path).undone
