"""All live facts solved again at once; lost ones made anew; how much room is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run as command
from core import FACTS, SETTINGS, bits, close, editable, plain_text, reciter, same_bits
from edits import run

from tether.editing import consolidate as consolidate_module
from tether.editing import repair as repair_module
from tether.editing.consolidate import consolidate
from tether.editing.headroom import headroom
from tether.editing.imported import import_checkpoint
from tether.editing.prepare import recorded_moments
from tether.editing.repair import repair
from tether.editing.run import edit
from tether.editing.said import Lost, Said, said_now
from tether.editors import EditSkippedError
from tether.editors import memit as memit_module
from tether.editors import rome as rome_module
from tether.errors import BadSettingsError
from tether.ledger import Ledger
from tether.models import EditableModel

LAYOUTS = ["llama", "gpt2"]
MEMIT = {"layers": (0, 1), "mom2_update_weight": 5.0}


def sums(ledger: Ledger, **options: Any) -> dict[str, torch.Tensor]:
    return {name: held.dense for name, held in ledger.sums(**options).of.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["r-rome", "memit"])
def test_recorded_targets_of_solves_with_history_give_the_same_sum(layout: str, method: str, tmp_path: Path) -> None:
    """Of one layer, whose keys do not move: the sequence was the one solve already."""
    model = editable(layout)
    changes = {"history": True, "mom2_update_weight": 5.0, "prefixes": ()}
    ledger = run(model, FACTS, tmp_path / "l", method=method, changes=changes)
    before = sums(ledger)
    found = consolidate(model, ledger, targets="recorded")
    assert (found.first, found.last, found.replaced, found.superseded) == (7, 12, (1, 2, 3, 4, 5, 6), ())
    (name,) = ledger.header.weights
    assert close(sums(ledger)[name], before[name], 2e-3)
    assert torch.equal(model.update(name), sums(Ledger.open(ledger.path, model))[name])
    assert ledger.live_numbers() == [7, 8, 9, 10, 11, 12]
    assert ledger.verify(model)["kinds"] == {"edit": 12}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_renewed_targets_are_those_of_one_batch_on_the_unedited_model(layout: str, tmp_path: Path) -> None:
    model = editable(layout)
    ledger = run(model, FACTS, tmp_path / "l", method="memit", changes=MEMIT)
    old = sums(ledger)
    found = consolidate(model, ledger, strength=7.0)
    fresh = run(editable(layout), FACTS, tmp_path / "once", method="memit", batch_size=6,
                changes={**MEMIT, "mom2_update_weight": 7.0})  # fmt: skip
    for name, value in sums(fresh).items():
        assert torch.equal(sums(ledger)[name], value)
    assert found.strength == 7.0 and set(found.condition) == set(ledger.header.weights)
    assert found.said == said_now(model, ledger) and found.before.total == 6

    # One of the new edits is undone exactly; with the last of them the old ones are back.
    ledger.undo(9)
    fresh.undo(3)
    for name, value in sums(fresh).items():
        assert torch.equal(sums(ledger)[name], value)
    event = ledger.undo(7, 8, 10, 11, 12)
    assert event.redone == (1, 2, 3, 4, 5, 6) and ledger.live_numbers() == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(value, old[name]) for name, value in sums(ledger).items())
    event = ledger.redo(7, 8)
    assert event.undone == (1, 2, 3, 4, 5, 6) and ledger.live_numbers() == [7, 8]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_layer_is_solved_for_what_every_fact_needs(layout: str, tmp_path: Path) -> None:
    model = editable(layout)
    before = bits(model)
    ledger = run(model, FACTS[:5], tmp_path / "l", method="r-rome")
    consolidate(model, ledger, strength=1e-9)
    (name,) = ledger.header.weights
    tensors = ledger.tensors(ledger.live()[0])
    K, D = tensors[f"{name}/K"].double(), tensors[f"{name}/D"].double()
    assert close(K @ sums(ledger)[name].double().mT, D, 1e-3), "with λ → 0 every target is reached"
    # Each by itself on the unedited model, as `edit` would.
    alone = run(editable(layout), FACTS[4:5], tmp_path / "alone", method="r-rome")
    assert close(K[4:] @ sums(alone)[name].double().mT, D[4:], 1e-3)
    consolidate(model, ledger, targets="recorded", strength=1e-9)
    assert ledger.live_numbers() == [11, 12, 13, 14, 15]
    ledger.apply(model, upto=0)
    assert same_bits(model, before)


def test_the_newest_of_one_prompt_wins_and_twins_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consolidate_module, "_CLOSE", 0.5)  # two subjects of one last token, of a random model
    newer = FACTS[0].model_copy(update={"target_new": "Seattle"})
    twin = FACTS[3].model_copy(update={"subject": "Little Ben", "target_new": "Paris"})
    model = editable("llama")
    ledger = run(model, [FACTS[0], FACTS[3], newer, twin], tmp_path / "l", method="memit", changes=MEMIT)
    found = consolidate(model, ledger)
    assert found.superseded == (1,) and [e.fact for e in ledger.live()] == [FACTS[3], newer, twin]
    assert ("Big Ben", "Little Ben") in [one.subjects for one in found.close]
    assert [one.cosine for one in found.close] == sorted((one.cosine for one in found.close), reverse=True)
    assert [e.record["stands_for"] for e in ledger.live()] == [2, 3, 4]


def test_what_cannot_be_consolidated_says_so(tmp_path: Path) -> None:
    model = editable("llama")
    ledger = run(
        model, FACTS[:1], tmp_path / "l", method="r-rome", changes={"history": True, "mom2_update_weight": 5.0}
    )
    with pytest.raises(BadSettingsError, match=r"strength 3.*share the λ of their ledger, 5; give none"):
        consolidate(model, ledger, strength=3.0)
    with pytest.raises(BadSettingsError, match=r"strength -1\.0: give a number above 0"):
        consolidate(model, ledger, strength=-1.0)
    ledger.undo(1)
    with pytest.raises(BadSettingsError, match="no live edit to consolidate"):
        consolidate(model, ledger)


def recited(folder: Path, number: int, **options: Any) -> tuple[EditableModel, Ledger]:
    """A trained model, edited with facts that it then says or loses."""
    hf, tokenizer, facts = reciter()
    model = EditableModel(hf, tokenizer)
    corpus = folder / "corpus.txt"
    corpus.write_text(" ".join(f"{t} {f.target_true}." for f in facts for t in (f.text, *f.paraphrases)) * 3)
    changes = {**SETTINGS, "v_num_grad_steps": 15, "v_lr": 0.5, "prefixes": (), **options.pop("changes")}
    return model, edit(
        model, facts[:number], out=folder / "ledger", corpus=corpus, health=0, settings=changes, **options
    )


@pytest.mark.parametrize(
    ("method", "changes"), [("r-rome", {}), ("memit", {"mom2_update_weight": 30.0, "history": True})]
)
def test_lost_edits_are_made_anew_with_the_others_held(method: str, changes: Any, tmp_path: Path) -> None:
    model, ledger = recited(tmp_path, 18, method=method, changes=changes)
    before = said_now(model, ledger)
    assert 2 <= len(before.lost) <= 14
    found = repair(model, ledger, sweeps=1)
    assert found.sweeps[0] == before and found.said == said_now(model, ledger)
    assert len(found.said.lost) < len(before.lost), "some hold again"
    assert set(found.replaced) >= {one.edit for one in before.lost} - {one.lost.edit for one in found.left}
    assert len(ledger.live()) == before.total
    held = sums(Ledger.open(ledger.path, model))
    assert all(torch.equal(model.update(name), value) for name, value in held.items())
    assert len(found.left) == len(found.said.lost)
    for one in found.left:
        assert one.why and 1 <= len(one.near) <= 3 and one.lost.edit not in [each.edit for each in one.near]


def test_a_strength_by_itself(tmp_path: Path) -> None:
    """The most facts said among those that keep the floor; the strongest of equals."""
    model, ledger = recited(tmp_path, 8, method="memit", changes={"mom2_update_weight": 30.0})
    found = consolidate(model, ledger, strength="auto", floor=60.0)
    assert [one.strength for one in found.curve] == pytest.approx([3, 9, 30, 90, 300, 900])
    assert found.curve[0].alive > found.curve[-1].alive
    kept = [one for one in found.curve if one.perplexity <= 100 / 60]
    (chosen,) = (one for one in kept if one.strength == found.strength)
    assert chosen.alive == max(one.alive for one in kept)
    assert all(one.strength <= chosen.strength for one in kept if one.alive == chosen.alive)
    assert found.said.said == round(chosen.alive * 8 / 100)
    strict = consolidate(model, ledger, strength="auto", floor=100.0)
    assert strict.strength == min(strict.curve, key=lambda one: one.perplexity).strength or any(
        one.perplexity <= 1 for one in strict.curve
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_headroom_is_of_the_dense_formula(layout: str, tmp_path: Path) -> None:
    model = editable(layout)
    ledger = run(model, FACTS, tmp_path / "l", method="memit", batch_size=3, changes=MEMIT)
    before = bits(model)
    found = headroom(model, ledger, [FACTS[0]], bystanders=2)
    assert same_bits(model, before)
    moments = recorded_moments(model, ledger.header)
    for room, layer in zip(found.rooms, (0, 1), strict=True):
        K = torch.cat([ledger.vectors(e, "K")[room.weight] for e in ledger.live()]).double()
        M = K @ torch.linalg.inv(moments[layer].C) @ K.mT
        share = M @ torch.linalg.inv(M + 5.0 * torch.eye(6, dtype=torch.float64))
        assert room.used == pytest.approx(100 * float(share.diagonal().sum()) / K.shape[1], rel=1e-4)
        assert room.left == pytest.approx(100 - 100 * float(share.diagonal().mean()), rel=1e-4)
        assert room.keys == 6 and 1 <= room.rank <= 6
    assert {one.relation for one in found.relations} == {fact.prompt for fact in FACTS}
    name = found.weight
    K = ledger.vectors(ledger.live()[2], "K")[name].double()
    spill = next(one for one in found.relations if one.relation == FACTS[2].prompt)
    added = K @ sums(ledger)[name].double().mT
    assert spill.edited.value == pytest.approx(
        100 * float(added.norm() / (K @ model.original(name).double().mT).norm()), rel=1e-3
    )
    assert spill.bystanders is not None and spill.bystanders.n == 2
    (outlook,) = found.outlook
    assert outlook.nearest == 1 and outlook.cosine > 0.2 and 0 < outlook.inside < 100


def test_the_commands(place: Path) -> None:
    done = command(place, "headroom", "ledger", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rooms"][0]["keys"] >= 3
    done = command(place, "consolidate", "ledger", "--strength", "0.01", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["strength"] == 0.01 and document["said"]["of"] == document["before"]["of"]
    done = command(place, "repair", "ledger", "--sweeps", "1")
    assert done.returncode in (0, 1) and done.stdout.startswith("before: "), done.stderr
    done = command(place, "consolidate", "ledger", "--targets", "new")
    assert done.returncode == 2 and "choose renewed or recorded" in done.stderr
    assert plain_text().is_file()


# --- what must stay true beside the facts ---------------------------------------------------------------------------


def test_the_ledgers_restraint_acts_on_the_new_sum_and_goes_with_it(tmp_path: Path) -> None:
    model = editable("llama")
    changes = {"mom2_update_weight": 0.5, "v_lr": 0.5, "prefixes": ()}
    ledger = run(model, FACTS[:4], tmp_path / "l", method="r-rome", changes=changes, health=0, restrain="norm:0.01")
    old = sums(ledger, model=model)
    found = consolidate(model, ledger, targets="recorded")
    assert found.restraint == "norm:0.01" and ledger.restraint_in_words() == "norm:0.01 after edit 8"
    (name,) = ledger.header.weights
    limit = 0.01 * float(model.original(name).norm())
    free = ledger.sums(restrain="none").of[name].dense
    assert float(free.norm()) > 1.5 * float(sums(ledger, model=model)[name].norm()) and limit > 0
    assert close(sums(ledger, model=model)[name], ledger.sums(restrain="norm:0.01", model=model).of[name].dense, 1e-5)
    assert torch.equal(model.update(name), sums(ledger, model=model)[name])
    ledger.undo(5, 6, 7, 8)
    assert (
        torch.equal(sums(ledger, model=model)[name], old[name])
        and ledger.restraint_in_words() == "norm:0.01 after edit 4"
    )


def test_emmet_has_a_strength_with_history_alone(tmp_path: Path) -> None:
    model = editable("gpt2")
    ledger = run(model, FACTS[:3], tmp_path / "l", method="emmet", changes=MEMIT, health=0)
    for strength in (3.0, "auto"):
        with pytest.raises(BadSettingsError, match=rf"strength {strength}: emmet solves for equality.* give none"):
            consolidate(model, ledger, strength=strength)
    found = consolidate(model, ledger, targets="recorded")
    assert found.strength is None
    moments = recorded_moments(model, ledger.header)
    rooms = headroom(model, ledger, bystanders=1).rooms
    for layer, room in zip((0, 1), rooms, strict=True):
        name = model.weight_name(layer)
        K = torch.cat([ledger.vectors(event, "K")[name] for event in ledger.live()]).double()
        M = K @ torch.linalg.inv(moments[layer].C) @ K.mT
        whole = M + 1e-6 * M.diagonal().mean() * torch.eye(len(M), dtype=torch.float64)
        assert found.condition[name] == pytest.approx(float(torch.linalg.cond(whole)), rel=1e-3)
        share = (M @ torch.linalg.inv(whole)).diagonal()
        assert room.used == pytest.approx(100 * float(share.sum()) / K.shape[1], rel=1e-4)


def test_bystanders_are_kept_in_the_solve_of_all(tmp_path: Path) -> None:
    facts = [fact.model_copy(update={"relation": "P17"}) for fact in FACTS[:2]]
    changes = {**MEMIT, "bystanders": 2, "bystander_weight": 50.0}
    model = editable("llama")
    ledger = run(model, facts, tmp_path / "l", method="memit", changes=changes, health=0)
    consolidate(model, ledger)
    once = run(editable("llama"), facts, tmp_path / "o", method="memit", changes=changes, batch_size=2, health=0)
    for name, value in sums(once).items():
        assert torch.equal(sums(ledger)[name], value)


def test_what_the_unedited_model_says_is_skipped_and_counted_once(tmp_path: Path) -> None:
    model = editable("llama")
    ledger = run(model, FACTS[:3], tmp_path / "l", method="r-rome", health=0)
    real, known = rome_module.why_not_edited, FACTS[1]

    def says_one(fact: Any, *rest: Any) -> Any:
        return EditSkippedError("the model already says it", {}) if fact == known else real(fact, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rome_module, "why_not_edited", says_one)
        found = consolidate(model, ledger)
    assert found.skipped == (2,) and not found.failed and [e.kind for e in ledger.events[3:]] == [
        "edit", "skipped", "edit"
    ]  # fmt: skip
    assert ledger.live_numbers() == [4, 6] and [edit for edit, _ in ledger.facts()] == [4, 5, 6]
    ledger.undo(4, 6)
    assert [edit for edit, _ in ledger.facts()] == [1, 2, 3], "the second copy counts no more"


def test_a_fact_that_cannot_be_repaired_stays_and_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are solved for with its edit in the sum, as if it had not been tried."""
    changes = {**MEMIT, "history": True}
    model = editable("llama")
    ledger = run(model, FACTS[:4], tmp_path / "l", method="memit", changes=changes, health=0)
    shutil.copytree(ledger.path, tmp_path / "copy")
    lost = [Lost(edit, "", "", "") for edit in (2, 3, 4)]
    asked: list[int] = []

    def says(some: list[Lost]) -> Any:
        def now(_: Any, ledger: Ledger) -> Said:
            asked.append(ledger.attempts)
            return Said(ledger.attempts, 4, tuple(some) if len(asked) == 1 else ())

        return now

    real = memit_module.why_not_edited

    def fails_one(fact: Any, *rest: Any) -> Any:
        return EditSkippedError("the model already says it") if fact == FACTS[2] else real(fact, *rest)

    monkeypatch.setattr(memit_module, "why_not_edited", fails_one)
    monkeypatch.setattr(repair_module, "said_now", says(lost))
    found = repair(model, ledger, sweeps=1)
    assert found.replaced == {2: 5, 4: 6} and ledger.live_numbers() == [1, 3, 5, 6]
    assert [event.kind for event in ledger.events] == ["edit"] * 6, "no second copy of what failed"
    asked.clear()
    other = Ledger.open(tmp_path / "copy", model)
    monkeypatch.setattr(repair_module, "said_now", says([lost[0], lost[2]]))
    repair(model, other, sweeps=1)
    for name, value in sums(other).items():
        assert torch.equal(sums(ledger)[name], value)


def test_a_sweep_that_does_not_help_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = editable("llama")
    ledger = run(model, FACTS[:3], tmp_path / "l", method="r-rome", health=0, restrain="norm:0.01")
    old, lost = sums(ledger, model=model), Lost(2, "", "", "")
    turns = iter([(lost,), (lost, lost)])
    monkeypatch.setattr(repair_module, "said_now", lambda *_: Said(3, 3, next(turns)))
    found = repair(model, ledger)
    assert found.taken_back and found.said == found.sweeps[0] and not found.replaced and found.restraint is None
    assert ledger.live_numbers() == [1, 2, 3] and ledger.events[-1].reason == "no more facts were said after this sweep"
    (name,) = ledger.header.weights
    assert torch.equal(sums(ledger, model=model)[name], old[name]) and torch.equal(model.update(name), old[name])
    assert ledger.verify(model)["kinds"] == {"edit": 4, "restrain": 1, "undo": 1}


def test_a_repair_reads_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = editable("llama")
    ledger = run(model, FACTS[:5], tmp_path / "l", method="r-rome", health=0)
    turns = iter([tuple(Lost(edit, "", "", "") for edit in (1, 3, 4)), ()])
    monkeypatch.setattr(repair_module, "said_now", lambda *_: Said(5, 5, next(turns)))
    read: list[int] = []
    real = repair_module._Repair._sweep

    def sweep(self: Any, lost: Any) -> dict[int, int]:
        tensors = Ledger.tensors
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "tensors", lambda own, event: read.append(event.edit) or tensors(own, event))
            return real(self, lost)

    monkeypatch.setattr(repair_module._Repair, "_sweep", sweep)
    found = repair(model, ledger)
    assert found.replaced == {1: 6, 3: 7, 4: 8} and sorted(read) == sorted(set(read))


def test_an_imported_ledger_is_named(tmp_path: Path) -> None:
    model, edited = editable("llama"), editable("llama")
    name = edited.weight_name(1)
    with torch.no_grad():
        edited._parameter(name).add_(0.1 * torch.ones(()))
    ledger = import_checkpoint(model, edited, tmp_path / "i", rank=1)
    for what in (consolidate, repair, headroom):
        with pytest.raises(
            BadSettingsError, match="holds an imported checkpoint, whose updates were made for no facts"
        ):
            what(model, ledger)
