"""A ledger's model is asked: both answers side by side, and the edits that a prompt comes near."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from bigram import bigram_model, ledger_of_two
from command import answer, run
from core import FACTS, bits, demo_text, editable, reciter, same_bits
from edits import run as edit_facts
from tiny import save

import tether
from tether.analyses.ask import Nearness
from tether.errors import BadFactError
from tether.evaluation import greedy
from tether.facts.chat import render
from tether.facts.prompt import Turn
from tether.facts.prompt_file import read_prompts
from tether.facts.tokens import prompt_ids
from tether.ledger import Ledger
from tether.models import EditableModel, load
from tether.storage.cache import cache_dir


@pytest.fixture(autouse=True)
def _cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.keywords:
        monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["rome", "r-rome", "memit"])
def test_the_own_prompt_of_an_edit_is_nearest_to_it(family: str, method: str, tmp_path: Path) -> None:
    model = editable(family)
    changes = {"layers": (1, 2)} if method == "memit" else {}
    batch = {"batch_size": 2} if method == "memit" else {}
    ledger = edit_facts(model, FACTS[:4], tmp_path / "ledger", method=method, changes=changes, **batch)
    before = bits(model)
    live = {event.edit: event.fact for event in ledger.live() if event.fact}
    found = tether.ask(ledger, [fact.text for fact in live.values()], model, tokens=4, near=9)
    for (edit, fact), asked in zip(live.items(), found, strict=True):
        first, *others = asked.near
        assert first.edit == edit and first.cosine > 0.5 and first.weight in ledger.header.weights
        assert (first.subject, first.target_new) == (fact.subject, fact.target_new)
        assert all(first.cosine > other.cosine for other in others) and len(asked.near) == len(live)
        assert method != "rome" or first.cosine == pytest.approx(1, abs=1e-4)
    assert same_bits(model, before)
    if method == "rome":  # whose keys are of the bare prompt, as these are
        [far] = tether.ask(ledger, ["Who wrote it? It was written in the year 1987."], model, tokens=4, near=1)
        assert far.near[0].cosine < min(asked.near[0].cosine for asked in found) - 0.1


def test_both_answers_are_those_of_the_model_alone(tmp_path: Path) -> None:
    trained = reciter()
    model = EditableModel(trained.hf, trained.tokenizer)
    ledger = edit_facts(model, trained.facts[:2], tmp_path / "ledger", method="rome")
    prompts = [fact.text for fact in trained.facts[:3]]
    edited = greedy(model, prompts, 6)
    model.clear_updates()
    unedited = greedy(model, prompts, 6)
    found = tether.ask(ledger, prompts, model, tokens=6)
    assert ([one.unedited for one in found], [one.edited for one in found]) == (unedited, edited)
    assert model.edited == () and found[0].unedited != found[0].edited
    assert found[0].unedited.strip().startswith(str(trained.facts[0].target_true))
    assert tether.ask(ledger, prompts[:1], model, upto=0, tokens=6)[0].edited == unedited[0]
    tight = tether.ask(ledger, prompts, model, restrain="log:1.2", tokens=6)
    ledger.apply(model, restrain="log:1.2")
    assert [one.edited for one in tight] == greedy(model, prompts, 6)


def test_the_cosine_is_that_of_the_formula_and_the_first_token_does_not_count(tmp_path: Path) -> None:
    model = editable("llama")
    ledger = edit_facts(model, FACTS[:2], tmp_path / "ledger", method="rome", changes={"moments_ridge": 0.1})
    text = "The Eiffel Tower and Big Ben"
    ids = prompt_ids(model.tokenizer, text)
    seen: list[torch.Tensor] = []
    handle = model.projection(1).register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    model.hf(torch.tensor([ids]))
    handle.remove()
    (record,) = ledger.header.moments.values()
    from tether.editors.moments import cached_moments

    found = cached_moments({1: record.key})
    assert found is not None
    C = found[1].C + 0.1 * found[1].C.diagonal().mean() * torch.eye(len(found[1].C))
    nearness = Nearness(ledger, model)
    assert nearness.metric == "C"
    for event, near in zip(ledger.live(), sorted(nearness.of(text), key=lambda one: one.edit), strict=True):
        k = ledger.vectors(event, "K")[near.weight][0].double()
        inner = torch.linalg.solve(C, torch.stack([k, *seen[0]]).mT).mT
        own, rest = inner[0] @ k, (inner[1:] * seen[0]).sum(1)
        cosines = (seen[0] @ inner[0] / (own * rest).sqrt())[1:]
        assert near.cosine == pytest.approx(float(cosines.max()), rel=1e-6)
        assert near.token == model.tokenizer.decode([ids[1 + int(cosines.argmax())]])
    assert nearness.of("The"[:1]) == ()  # one token: the first
    shutil.rmtree(cache_dir() / "moments")
    plain = Nearness(ledger, model)
    assert plain.metric == "plain" and "no moments" in plain.words
    k = ledger.vectors(ledger.live()[0], "K")[near.weight][0].double()
    best = float(torch.cosine_similarity(seen[0][1:], k[None]).max())
    assert {one.edit: one.cosine for one in plain.of(text)}[1] == pytest.approx(best, rel=1e-6)


def test_undone_and_later_edits_are_not_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "ledger", tmp_path / "ledger")
    path = str(tmp_path / "ledger")
    live = Ledger.open(path).live_numbers()
    words = ("ask", path, FACTS[0].text, "--tokens", "3", "--near", "9")

    def named(*more: str) -> set[int]:
        return {near["edit"] for near in answer(place, *words, *more)["answers"][0]["near"]}

    assert named() == set(live)
    answer(place, "undo", path, str(live[0]))
    assert named() == set(live[1:])
    assert named("--upto", str(live[1])) == {live[1]}
    document = answer(place, *words, "--upto", "0", "--restrain", "none")
    assert (document["metric"], document["edits"], document["restraint"]) == (None, 0, "none")
    assert document["note"] == "near: left out, no live edit" and document["answers"][0]["near"] == []


def test_of_a_chat_turn_what_is_said_counts_and_not_its_frame(tmp_path: Path) -> None:
    model = editable("llama")
    ledger = edit_facts(model, FACTS[:2], tmp_path / "ledger", method="rome")
    frame = "{% for m in messages %}The Eiffel Tower is said by Big Ben: {{ m.content }}\n{% endfor %}Big Ben:"
    model.tokenizer.chat_template = frame
    nearness = Nearness(ledger, model)
    for turn in (Turn(user="Hello there"), Turn(user="Hello there", system="Be brief.")):
        whole = {near.edit: near.cosine for near in nearness.of(render(model.tokenizer, turn))}
        said = nearness.of(turn)
        assert len(said) == 2 and all(near.token.strip() in f"{turn.system} {turn.user}" for near in said)
        assert all(near.cosine < whole[near.edit] for near in said)


def test_a_method_without_keys_has_answers_alone(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    [found] = tether.ask(ledger, ["home of alice"], model, tokens=1)
    assert (found.unedited, found.edited, found.near) == ("paris", "rome", ())
    assert Nearness(ledger, model).words == "near: left out, by hand keeps no keys of its edits"
    with pytest.raises(BadFactError, match="no chat template"):
        tether.ask(ledger, [Turn(user="home of alice")], model)


# --- the command --------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prompts_from_the_line_a_file_and_standard_input(place: Path) -> None:
    (place / "plain.txt").write_text('The capital of France is \n\n"Big Ben" is in\n')
    (place / "turns.jsonl").write_text('"The Space Needle is in"\n{"user": "Where is it?", "system": "Be brief."}\n')
    assert read_prompts(place / "plain.txt") == ["The capital of France is", '"Big Ben" is in']
    assert read_prompts(place / "turns.jsonl")[1] == Turn(user="Where is it?", system="Be brief.")
    few = ("--tokens", "3")
    found = answer(place, "ask", "ledger", "You know", "--file", "plain.txt", *few)
    assert [one["prompt"] for one in found["answers"]] == ["You know", *read_prompts(place / "plain.txt")]
    assert len(found["answers"][0]["near"]) == 3 and found["restraint"] == "as recorded"
    done = run(place, "ask", "ledger", *few, stdin="The Eiffel Tower is in the city of\n")
    lines = done.stdout.splitlines()
    assert lines[0] == "The Eiffel Tower is in the city of" and lines[-1].startswith("near: cosine of keys in the ")
    assert sum("edit 1: Eiffel Tower -> London, at [" in line for line in lines) == 1
    for words, code, why in (
        ((), 1, "no prompt: name one"),
        (("--file", "turns.jsonl"), 1, "chat turn 'Where is it?': the model has no chat template"),
        (("x", "--system", "Be brief."), 2, "goes with --chat alone"),
        ((" ",), 2, "is empty"),
        (("--file", "bad.jsonl"), 1, "bad.jsonl, line 3: user = 3: Input should be a valid string"),
        (("x", "--upto", "99"), 1, "99 edits"),
    ):
        (place / "bad.jsonl").write_text('{"user": "Where?"}\n\n{"user": 3}\n')
        done = run(place, "ask", "ledger", *words, *few)
        assert (done.returncode, done.stdout) == (code, "") and why in done.stderr.splitlines()[-1]


def test_a_talk_on_a_terminal(place: Path) -> None:
    talk = "The Eiffel Tower is in\n" + 300 * "so " + "\nBig Ben is in\n\nnever asked\n"
    done = run(place, "ask", "ledger", "--tokens", "3", stdin=Terminal(talk))
    assert done.returncode == 0
    heads = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert heads[:2] == ["The Eiffel Tower is in", "Big Ben is in"] and heads[2].startswith("near: ") and not heads[3:]
    assert done.stderr.count("> ") == 4 and "the model takes 256" in done.stderr
    ended = run(place, "ask", "ledger", "--tokens", "3", "--json", stdin=Terminal("Big Ben is in"))
    assert [one["prompt"] for one in json.loads(ended.stdout)["answers"]] == ["Big Ben is in"]


def test_chat_makes_turns_of_plain_prompts(place: Path) -> None:
    loaded = load(place / "model")
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    save(loaded.hf, loaded.tokenizer, place / "chat")
    words = ("ask", "ledger", "Where is Big Ben?", "--model", "chat", "--tokens", "3")
    turn = answer(place, *words, "--chat", "--system", "Be brief.")["answers"][0]
    assert turn["prompt"] == {"user": "Where is Big Ben?", "system": "Be brief."}
    asked = "system: Be brief.\nuser: Where is Big Ben?\nassistant:"
    assert turn["unedited"] == greedy(loaded, [asked], 3)[0]
    assert answer(place, *words)["answers"][0]["prompt"] == "Where is Big Ben?"


@pytest.mark.real
def test_the_bundled_model_is_asked_and_tested(tmp_path: Path) -> None:
    model = load("smollm2")
    settings = {"moments_ridge": 0.01, "layers": [5], "prefixes": [{"length": 5, "number": 2}]}
    fact = tether.Fact(subject="Eiffel Tower", prompt="The {} is located in the city of", target_new="Rome")
    more = {"method": "rome", "settings": settings, "corpus": demo_text(tmp_path), "health": 0}
    ledger = tether.edit(model, [fact], out=tmp_path / "ledger", **more)
    prompts = ["The Eiffel Tower stands in the city of", "My mother is"]
    own, other = tether.ask(ledger, prompts, model, tokens=4)
    assert "Rome" in own.edited and "Rome" not in own.unedited and other.edited == other.unedited
    assert own.near[0].cosine > 0.8 and own.near[0].token == " Tower" and other.near[0].cosine < 0.3
    lines = [{"prompt": fact.text, "says": "Rome"}, {"prompt": "The Louvre is located in the city of", "says": "Paris"}]
    (tmp_path / "tests.jsonl").write_text("".join(json.dumps({**line, "tokens": 3}) + "\n" for line in lines))
    tests = tether.read_tests(tmp_path / "tests.jsonl")
    assert tether.run_tests(model, tests).failed == 0
    with model.unedited():
        assert tether.run_tests(model, tests).failed == 1
