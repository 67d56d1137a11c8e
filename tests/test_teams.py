"""Ledgers side by side, merged and picked from; in memory as a peft model; where an exported folder came from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from command import answer
from command import run as command
from core import FACTS, bits, editable, plain_text, same_bits
from edits import run
from torch import Tensor

import tether
from tether.errors import BadLedgerError, BadSettingsError, MissingExtraError, WrongModelError
from tether.facts.fact import Fact
from tether.ledger import Attempt, Ledger
from tether.models import EditableModel

LAYOUTS = ["llama", "gpt2"]
IDS = torch.tensor([[1, 5, 2, 9, 30, 11, 40, 3]])
TOWER, LANGUAGE, NEEDLE, BEN, FRANCE, _ = FACTS
OTHER_LANGUAGE = Fact(subject="danielle  darrieux", prompt="The mother tongue of {} is", target_new="Seattle")
MEMIT = {
    "layers": (0, 1), "v_num_grad_steps": 4, "v_lr": 0.1, "v_weight_decay": 0.01, "clamp_norm_factor": 4.0,
    "kl_factor": 0.0625, "prefixes": (), "mom2_update_weight": 20.0,
}  # fmt: skip


class Team:
    """Two ledgers on one model: both tried TOWER; of LANGUAGE they give other answers. `a` also in a batch of MEMIT."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        quick = {"v_num_grad_steps": 2}
        self.a = run(editable(family), [TOWER, LANGUAGE, NEEDLE], folder / "a", changes=quick, method="rome", health=0)
        self.b = run(
            editable(family), [TOWER, FRANCE, OTHER_LANGUAGE], folder / "b", changes=quick, method="rome", health=0
        )
        self.batch = tether.edit(
            editable(family), [TOWER, LANGUAGE, NEEDLE, FRANCE], out=folder / "batch", method="memit", settings=MEMIT,
            corpus=plain_text(), batch_size=4, restrain="log:1.2", health=0,
        )  # fmt: skip

    def copy(self, ledger: Ledger, to: Path) -> Ledger:
        """A ledger of its own with the same edits."""
        return tether.pick(ledger, ledger.live_numbers(), to)


@pytest.fixture(scope="module", params=LAYOUTS)
def team(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Team:
    return Team(request.param, tmp_path_factory.mktemp("team"))


def changed(ledger: Ledger, to: Path, **fields: str) -> Ledger:
    """An empty ledger with another header."""
    return Ledger.create(to, ledger.header.model_copy(update=fields))


def applied(ledger: Ledger, family: str) -> dict[str, Tensor]:
    return bits(ledger.apply(editable(family)))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def targets(ledger: Ledger) -> list[str]:
    return [fact.target_new for _, fact in ledger.facts()]


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


# --- side by side ---------------------------------------------------------------------------------------------------


def test_what_tells_two_ledgers_apart(team: Team, tmp_path: Path) -> None:
    found = tether.difference(team.a, team.b)
    assert [e.edit for e in found.only_a] == [3] and [e.edit for e in found.only_b] == [2]
    assert [(one.edit, two.edit) for one, two in found.same] == [(1, 1)]
    assert [(one.edit, two.edit) for one, two in found.other] == [(2, 3)]
    assert found.settings == {} and found.restraints == ("none", "none")
    far = tether.difference(team.a, team.batch)
    assert far.settings["method"] == ("rome", "memit") and far.restraints == ("none", "log:1.2 after edit 4")
    assert not far.only_a and [e.edit for e in far.only_b] == [4]
    # A relation asks the same in other words, and the last answer to a question is the ledger's.
    born = {"subject": "Rome", "relation": "P17", "target_new": "Spain"}
    again = run(
        editable(team.family),
        [Fact(prompt="{} lies in", **born), Fact(prompt="{} is in", **{**born, "target_new": "Peru"})],
        tmp_path / "again", changes={"v_num_grad_steps": 2}, method="rome", health=0,
    )  # fmt: skip
    one = tether.pick(again, [1], tmp_path / "one")
    assert [(x.edit, y.edit) for x, y in tether.difference(one, again).other] == [(1, 1), (1, 2)][1:]


def test_log_says_it(team: Team) -> None:
    words = command(team.folder, "log", "--diff", "a", "b").stdout
    assert "only in a: 1 edit\n    3 The Space Needle is in -> Paris" in words and "in both, the same: 1" in words
    assert "    2 The mother tongue of Danielle Darrieux is -> English\n" in words and "-> Seattle" in words
    found = answer(team.folder, "log", "--diff", "a", "batch")
    assert found["settings"]["method"] == ["rome", "memit"] and [e["edit"] for e in found["only_b"]] == [4]
    line = command(team.folder, "log", "batch", "--summary").stdout
    assert line.count("\n") == 1 and "4 edits; memit on in memory; restraint log:1.2 after edit 4; head" in line
    assert command(team.folder, "log", "a", "b").returncode == 2


# --- merge ----------------------------------------------------------------------------------------------------------


def test_a_merge_sums_the_updates_and_takes_what_both_say_once(team: Team, tmp_path: Path) -> None:
    made = tether.merge(team.a, team.b, tmp_path / "c", prefer="a")
    assert targets(made) == ["London", "English", "Paris", "Seattle"]
    expected = team.a.sums()
    expected.add(team.b.factors(team.b.live()[1]))
    assert all(torch.equal(held.dense, made.sums().of[name].dense) for name, held in expected.of.items())
    header = made.header
    assert "summed" in (header.origin or "")
    assert [(one.name, one.head, one.edits) for one in header.sources or ()] == [
        ("a", team.a.head, (1, 2, 3)), ("b", team.b.head, (2,)),
    ]  # fmt: skip
    model = editable(team.family)
    made.verify(model)
    made.undo(4)
    assert equal(applied(made, team.family), applied(team.a, team.family))
    made.redo(4)
    assert [fact.target_new for _, fact in tether.merge(team.a, team.b, tmp_path / "d", prefer="b").facts()] == [
        "London", "Paris", "Seattle", "Seattle",
    ]  # fmt: skip
    after = tether.edit(made.apply(model), [BEN], out=made.path, health=0)
    assert after.live_numbers() == [1, 2, 3, 4, 5] and same_bits(after.apply(editable(team.family)), bits(model))


def test_what_cannot_be_merged_is_said_and_leaves_nothing(team: Team, tmp_path: Path) -> None:
    refused = [
        (team.a, team.b, BadSettingsError, r"'The mother tongue of Danielle Darrieux is' \(2 of a: 'English', 3 of b"),
        (team.a, team.batch, BadSettingsError, "method is rome in"),
        (team.a, changed(team.a, tmp_path / "x", fingerprint="0" * 64), WrongModelError, "of other unedited weights"),
        (team.a, changed(team.a, tmp_path / "y", checkpoint="0" * 64), WrongModelError, "are of two models"),
    ]
    for one, other, kind, said in refused:
        with pytest.raises(kind, match=said) as error:
            tether.merge(one, other, tmp_path / "c")
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]
    some = tether.pick(team.batch, [1, 4], tmp_path / "some", restrain="log:2")
    with pytest.raises(BadSettingsError, match=r"ends with the restraint log:1\.2, .*log:2: name the one"):
        tether.merge(team.batch, some, tmp_path / "c")
    whole = tether.merge(team.batch, some, tmp_path / "c", restrain="log:2")
    assert targets(whole) == targets(team.batch)
    assert equal(applied(whole, team.family), bits(team.batch.apply(editable(team.family), restrain="log:2")))
    with pytest.raises(BadSettingsError, match="not an empty folder"):
        tether.merge(team.batch, some, tmp_path / "c", restrain="log:2")
    for file in (some.path / "factors").iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    (tmp_path / "more").mkdir()
    with pytest.raises(BadLedgerError, match=r"event 1 .* was changed"):
        tether.merge(Ledger.open(some.path), team.batch, tmp_path / "more" / "e", restrain="log:2")
    assert not list((tmp_path / "more").iterdir())


def test_merge_and_pick_as_commands(team: Team, tmp_path: Path) -> None:
    a, b, c = str(team.a.path), str(team.b.path), str(tmp_path / "c")
    stopped = command(tmp_path, "merge", a, b, "--out", c)
    assert stopped.returncode == 1 and "--prefer a or --prefer b" in stopped.stderr and not (tmp_path / "c").exists()
    done = command(tmp_path, "merge", a, b, "--out", c, "--prefer", "b", "--restrain", "log:e")
    assert "the updates are summed, no edit was computed anew" in done.stdout and "1 in both taken once" in done.stdout
    assert "restraint log:e after edit 4" in done.stdout
    said = command(tmp_path, "log", c).stdout
    assert "merge: the updates of the sources are summed" in said and f"2 edits of a at {team.a.head[:12]}" in said
    picked = answer(tmp_path, "pick", c, "2-4", "--out", "some")
    assert picked["edits"] == [2, 3, 4] and picked["restraint"] == "log:e after edit 3"
    assert answer(tmp_path, "verify", "some")["kinds"] == {"edit": 3, "restrain": 1}


# --- pick -----------------------------------------------------------------------------------------------------------


def test_picked_edits_have_their_factors_bit_for_bit(team: Team, tmp_path: Path) -> None:
    made = tether.pick(team.a, [3, 1], tmp_path / "some")
    assert [e.sha256 for e in made.live()] == [e.sha256 for e in team.a.live() if e.edit in (1, 3)]
    assert targets(made) == ["London", "Paris"]
    rest = team.copy(team.a, tmp_path / "rest")
    rest.undo(2)
    assert equal(applied(made, team.family), applied(rest, team.family))


def test_a_part_of_a_solve_is_the_solve_of_that_part(team: Team, tmp_path: Path) -> None:
    """As after the undo of the others, also under the restraint at the end; and it can be undone further."""
    rest = team.copy(team.batch, tmp_path / "rest")
    assert equal(applied(rest, team.family), applied(team.batch, team.family))
    rest.undo(2)
    made = tether.pick(team.batch, [1, 3, 4], tmp_path / "some")
    assert [event.batch for event in made.live()] == [(1, 3), (2, 3), (3, 3)]
    assert equal(applied(made, team.family), applied(rest, team.family))
    for ledger, edit in ((made, 3), (rest, 4)):
        ledger.undo(edit)
    one, other = (ledger.sums(restrain="none") for ledger in (made, rest))
    for name, held in one.of.items():
        torch.testing.assert_close(held.dense, other.of[name].dense, rtol=1e-3, atol=1e-6)
    alone = tether.pick(made, [2], tmp_path / "alone")
    assert alone.live()[0].batch is None
    alone.verify(editable(team.family))


def test_what_cannot_be_picked_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    model = editable("llama")
    settings = {"layers": (1,), "epochs": 1}
    shared = tether.edit(model, FACTS[:3], out=tmp_path / "ft", method="ft", settings=settings, batch_size=2, health=0)
    with pytest.raises(BadSettingsError, match=r"edit 1 of .* is picked, and shares one update with 2: take all"):
        tether.pick(shared, [1, 3], tmp_path / "some")
    assert targets(tether.pick(shared, [1, 2], tmp_path / "both")) == targets(shared)[:2]
    shared.undo(3)
    for edits in ([3], [9], []):
        with pytest.raises(BadSettingsError, match=r"no live edit|needs the number"):
            tether.pick(shared, edits, tmp_path / "some")
    assert not (tmp_path / "some").exists() and not list(tmp_path.glob(".*"))


# --- in memory as a peft model --------------------------------------------------------------------------------------


def test_as_a_peft_model_it_says_what_the_edited_model_says(team: Team) -> None:
    model = editable(team.family)
    unedited, storage = logits(model.hf), {id(p) for p in model.hf.parameters()}
    for options in ({}, {"restrain": "none"}, {"restrain": "log:1.05", "upto": 4}):
        wrapped = team.batch.as_peft(model, **options)
        assert torch.equal(logits(model.hf), unedited), "the model itself stays as it is"
        with wrapped.disable_adapter():
            assert torch.equal(logits(wrapped), unedited)
        edited = logits(team.batch.apply(editable(team.family), **options).hf)
        torch.testing.assert_close(logits(wrapped), edited, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(edited, unedited, atol=1e-3)
    shared = {id(p) for p in wrapped.parameters()} & storage
    assert len(shared) == len(storage) - len(team.batch.header.weights)
    # Whatever the model carries before and after plays no part.
    model = team.a.apply(model)
    again, carried = team.batch.as_peft(model), logits(model.hf)
    with again.disable_adapter():
        assert torch.equal(logits(again), unedited)
    assert torch.equal(logits(model.hf), carried)
    model.clear_updates()
    torch.testing.assert_close(logits(again), logits(team.batch.apply(model).hf), rtol=1e-4, atol=1e-5)


def test_without_peft_one_line_names_the_extra(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"tether\[lora\]"):
        team.a.as_peft(editable(team.family))


# --- exported ---------------------------------------------------------------------------------------------------------


def test_a_merged_folder_holds_this_ledgers_edits_alone(team: Team, tmp_path: Path) -> None:
    """Whatever the given model carries on other weights."""
    model, ledger = editable(team.family), team.a
    [edited] = ledger.header.weights
    other = next(name for name in (model.weight_name(0), model.weight_name(1)) if name != edited)
    model.set_update(other, torch.ones_like(model.original(other)))
    before = bits(model)
    ledger.export(model, tmp_path / "merged", as_="merged")
    assert same_bits(model, before)
    assert equal(bits(tether.load(tmp_path / "merged")), applied(ledger, team.family))


def test_the_card_names_the_weights_that_changed(team: Team, tmp_path: Path) -> None:
    for upto, named in ((0, []), (None, list(team.a.header.weights))):
        team.a.export(editable(team.family), tmp_path / f"upto-{upto}", as_="merged", upto=upto)
        manifest = json.loads((tmp_path / f"upto-{upto}" / "manifest.json").read_text())
        assert manifest["weights"] == named


def test_a_picked_edit_stands_for_none_of_its_new_ledger(team: Team, tmp_path: Path) -> None:
    made = team.copy(team.a, tmp_path / "more")
    with made.writing():
        stands = Attempt("edit", FRANCE, {"stands_for": 1, "norm": 0.5}, "made anew")
        made.append([stands], made.factors(made.live()[0]), {}, replacing=[1])
    assert "(for 1)" in command(tmp_path, "log", "more").stdout
    [event] = tether.pick(made, [4], tmp_path / "one").live()
    assert event.record == {"norm": 0.5} and "(for " not in command(tmp_path, "log", "one").stdout


def test_a_fact_steers_no_line_of_a_comparison(team: Team, tmp_path: Path) -> None:
    made = team.copy(team.a, tmp_path / "sly")
    sly = Fact(subject="Big Ben", prompt="{} is\nin both, the same: 99 of", target_new="Rome")
    with made.writing():
        made.append([Attempt("edit", sly, {})], made.factors(made.live()[0]), {})
    said = command(tmp_path, "log", "--diff", "sly", str(team.b.path)).stdout
    assert "in both, the same: 99" not in said.splitlines() and "\\nin both" in said


# --- whose ----------------------------------------------------------------------------------------------------------


def test_whose_folder_it_is(team: Team, tmp_path: Path) -> None:
    ledger = team.copy(team.a, tmp_path / "mine")
    model: EditableModel = editable(team.family)
    ledger.export(model, tmp_path / "merged", as_="merged", upto=2)
    ledger.export(model, tmp_path / "adapter", as_="lora", restrain="log:1.2")
    found = tether.whose(tmp_path / "merged", [ledger.path, team.b.path])
    assert found.changed == {} and found.later == {ledger.path: 0, team.b.path: None}
    assert found.manifest.ledger is not None and found.manifest.ledger.head == ledger.head and found.manifest.upto == 2
    assert [fact["edit"] for fact in found.manifest.facts] == [1, 2]
    assert found.manifest.base.sha256 == ledger.header.fingerprint
    ledger.undo(1)
    said = command(tmp_path, "whose", "adapter", "--ledger", "mine")
    assert (
        said.returncode == 0
        and "restraint log:1.2" in said.stdout
        and "mine: this ledger, 1 event later" in said.stdout
    )
    assert command(tmp_path, "whose", "adapter", "--ledger", str(team.b.path)).returncode == 1
    weights = tmp_path / "merged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    (tmp_path / "merged" / "more").write_text("")
    (tmp_path / "merged" / "config.json").unlink()
    document = command(tmp_path, "whose", "merged", "--json")
    assert document.returncode == 1
    changed = {"model.safetensors": "changed", "config.json": "missing", "more": "added"}
    assert json.loads(document.stdout)["changed"] == changed
    none = command(tmp_path, "whose", "mine")
    assert none.returncode == 1 and "no manifest.json" in none.stderr
