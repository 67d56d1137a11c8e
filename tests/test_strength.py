"""`log:auto`: the strength that keeps most edits above the floor, found on the edits themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import answer
from command import run as command
from core import FACTS, SETTINGS, bits, editable, random_update, same_bits
from hypothesis import given
from hypothesis import strategies as st
from tiny import save, tiny_model

from tether.constraints.base import parse
from tether.constraints.prune import Linear, Log, restrain
from tether.editing.said import are_said
from tether.errors import BadSettingsError
from tether.evaluation import strength
from tether.evaluation.abilities.perplexity import perplexity
from tether.evaluation.scores import greedy
from tether.evaluation.strength import AUTO, Tried, _candidates, chosen, find_restraint
from tether.ledger import Ledger

STRONG = {**SETTINGS, "v_num_grad_steps": 8, "v_lr": 0.5, "clamp_norm_factor": 20.0, "prefixes": []}
TEXT = "The Eiffel Tower is in the city of Paris, and you know that. "


@pytest.fixture(autouse=True)
def _short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor is held against a few lines."""
    monkeypatch.setattr(strength, "builtin_text", lambda: 8 * TEXT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, facts, and a ledger of three edits, by the command."""
    folder = tmp_path_factory.mktemp("strength")
    save(*tiny_model("llama"), folder / "model")
    (folder / "facts.jsonl").write_text("".join(f.model_dump_json(exclude_none=True) + "\n" for f in FACTS[:3]))
    (folder / "settings.json").write_text(json.dumps(STRONG))
    (folder / "corpus.txt").write_text(TEXT * 200)
    answer(folder, *edit("ledger"))
    return folder


def edit(out: str, *more: str) -> list[str]:
    words = ["edit", "facts.jsonl", "--model", "model", "--method", "r-rome", "--settings", "settings.json"]
    return [*words, "--corpus", "corpus.txt", "--on-alarm", "warn", "--health", "0", "--out", out, *more]


@pytest.mark.parametrize(("layout", "kind"), [("llama", "log"), ("gpt2", "linear")])
def test_the_curve_is_what_the_restraints_do(layout: str, kind: str) -> None:
    """Every point is the model with that restraint of the sum. The facts are what the model says without any."""
    model = editable(layout)
    name = model.weight_name(1)
    m = float(torch.linalg.svdvals(model.original(name))[0])
    update = random_update(*model.original(name).shape, 6, seed=2, scale=6 * m)
    facts = []
    with model.provisional({name: update}):
        for fact in FACTS:
            said = fact.model_copy(update={"target_new": greedy(model, [fact.text], 1)[0], "join": ""})
            facts += [said] if said.target_new.strip() and are_said(model, [said])[0] else []
    assert len(facts) >= 3
    before = bits(model)
    found = find_restraint(model, {name: update}, {name: m}, facts, f"{kind}:auto", floor=60.0)
    assert same_bits(model, before) and found.facts == len(facts) and len(found.curve) == 7
    unedited = perplexity(model, 8 * TEXT).value
    for one in found.curve:
        with model.provisional({name: restrain(update, m, parse(f"{kind}:{one.strength!r}"))}):
            assert one.alive == pytest.approx(100 * sum(are_said(model, facts)) / len(facts))
            assert one.perplexity == pytest.approx(perplexity(model, 8 * TEXT).value / unedited, rel=1e-4)
    strengths = [one.strength for one in found.curve]
    assert strengths == sorted(strengths) and strengths[0] > 1
    assert found.curve[0].alive > found.curve[-1].alive
    assert found.restraint == parse(f"{kind}:{chosen(found.curve, 60.0)!r}")


def test_every_command_records_a_number(place: Path) -> None:
    results = answer(place, "evaluate", "ledger", "--restrain", "log:auto", "--floor", "60", "--metrics", "match",
                     "--abilities", "", "--out", "results.json")  # fmt: skip
    (found,) = results["strengths"].values()
    assert found["written"] == "log:auto" and found["floor"] == 60 and len(found["curve"]) == 7
    assert [row["restraint"] for row in results["rows"]] == [found["restraint"]]
    assert json.loads((place / "results.json").read_text())["strengths"] == results["strengths"]

    exported = answer(place, "export", "ledger", "--to", "merged", "--as", "merged", "--restrain", "log:auto",
                      "--floor", "60")  # fmt: skip
    assert exported["strength"] == found
    assert json.loads((place / "merged" / "manifest.json").read_text())["restraint"] == found["restraint"]

    edited = answer(place, *edit("auto", "--restrain", "log:auto", "--floor", "60"))
    assert edited["strength"] == found
    ledger = Ledger.open(place / "auto")
    assert ledger.header.restrain == "none"
    last = ledger.events[-1]
    assert (last.kind, last.restrain) == ("restrain", found["restraint"]) and "floor 60 %" in str(last.reason)

    answer(place, "export", "ledger", "--to", "whole", "--as", "merged", "--restrain", "none")
    words = ("restrain", "--base", "model", "--edited", "whole", "--out", "out", "--restrain", "log:auto")
    done = command(place, *words, "--facts", "facts.jsonl", "--floor", "60")
    assert done.returncode == 0, done.stderr
    assert f"log:auto is {found['restraint']}, from 3 facts" in done.stdout
    assert command(place, *words).returncode == 2


@given(st.floats(0.1, 50), st.floats(1.001, 1e4), st.sampled_from(["log", "linear"]))
def test_candidates_leave_their_share_of_the_excess(m: float, ratio: float, kind: str) -> None:
    top = m * ratio
    found = _candidates(kind, top, m)
    assert list(found) == sorted(found)
    for share, restraint in zip((0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05), found.values(), strict=True):
        assert isinstance(restraint, Log if kind == "log" else Linear)
        left = float(restraint(torch.tensor([top], dtype=torch.float64), m)[0]) - m
        assert left == pytest.approx(share * (top - m), rel=0.01)


def test_the_most_said_above_the_floor_and_the_strongest_of_equals() -> None:
    curve = [Tried(1.1, 90, 1.3), Tried(1.2, 80, 1.02), Tried(1.5, 80, 1.01), Tried(2, 60, 1.0)]
    assert [chosen(curve, floor) for floor in (70.0, 98.0, 99.5)] == [1.1, 1.5, 2]
    assert chosen(curve[:1], 98.0) == 1.1


def test_where_nothing_is_above_m(tmp_path: Path) -> None:
    model = editable("gpt2")
    name = model.weight_name(1)
    update = random_update(*model.original(name).shape, 2, seed=1, scale=0.1)
    found = find_restraint(model, {name: update}, {name: 1.0}, FACTS, "log:auto")
    assert str(found.restraint) == "log:1.2" and len(found.curve) == 1
    assert restrain(update, 1.0, found.restraint) is update
    with pytest.raises(BadSettingsError, match="there is no fact to ask"):
        find_restraint(model, {name: update}, {name: 1.0}, [], "log:auto")


def test_elsewhere_auto_is_refused_with_the_way(place: Path) -> None:
    for text in ("log:auto", "linear:auto+rank:4", "rank:4+log:auto"):
        with pytest.raises(BadSettingsError, match=r"auto is found from edits and their facts"):
            parse(text)
    assert AUTO.fullmatch("log:auto") and not AUTO.fullmatch("data_log:auto") and not AUTO.fullmatch("log:auto+rank:4")
    done = command(place, *edit("x", "--restrain", "log:auto", "--every", "2"))
    assert done.returncode == 2 and "once, at the end" in " ".join(done.stderr.split())
