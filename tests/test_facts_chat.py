"""Chat turns: read from files, rendered by the model's own template, checked, and kept in a ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from core import FACTS, editable
from edits import run
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from tether.editing.check import check_facts
from tether.editing.said import said_now
from tether.errors import BadFactError, TetherError
from tether.evaluation import score
from tether.facts import Fact, encode_fact, read_facts
from tether.facts.bystanders import asked_of, bystander_subjects, kinds
from tether.facts.chat import render, rendered, template
from tether.facts.check import repeats
from tether.facts.phrasings import with_phrasings
from tether.facts.prompt import Turn
from tether.facts.tokens import encode_asked
from tether.ledger import Ledger
from tether.models.kinds import likeliest_kind

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
FACT = Fact(
    subject="Lake Tamsin",
    prompt="The depth of {} is",
    target_new="ninety metres",
    phrasings=["{} has a depth of", {"user": "How deep is {}?"}, {"user": "How deep is {}?", "system": "Be brief."}],
    paraphrases=["Lake Tamsin goes down", {"user": "What is the depth of Lake Tamsin?"}],
    locality=[{"prompt": {"user": "Where is Rome?"}, "target": "Italy"}],
)


def tokenizer(chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    found = tiny_tokenizer()
    found.chat_template = chat
    return found


def test_a_turn_is_rendered_by_the_models_template() -> None:
    assert render(tokenizer(), "as it is {}") == "as it is {}"
    assert render(tokenizer(), Turn(user="Hi")) == "<|user|>\nHi\n<|assistant|>\n"
    with_system = Turn(user="Hi", system="Be kind.")
    assert render(tokenizer(), with_system) == "<|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\n"
    assert render(tokenizer(NO_SYSTEM), with_system) == "<|user|>\nBe kind.\n\nHi\n<|assistant|>\n"
    silent = CHAT.replace("{% for m in messages %}", "{% for m in messages if m['role'] == 'user' %}")
    assert render(tokenizer(silent), with_system) == "<|user|>\nBe kind.\n\nHi\n<|assistant|>\n"
    with pytest.raises(BadFactError, match=r"'Hi': the model has no chat template; write the prompt as text"):
        render(tokenizer(None), Turn(user="Hi"))
    for broken in ("{{ messages[0]['content'] + 1 }}", "{{ messages[3]['content'] }}", "{{ nothing.at.all }}"):
        with pytest.raises(BadFactError, match=r"'Hi': the model's chat template fails \(.*\); write"):
            render(tokenizer(broken), Turn(user="Hi"))
    for times, wrong in ((2, "{{ messages[0]['content'] * 2 }}"), (0, "nothing")):
        with pytest.raises(BadFactError, match=f"the model's chat template writes it {times} times"):
            template(tokenizer(wrong), Turn(user="Where is {}?"))


def test_the_place_of_the_subject_is_kept() -> None:
    turn = Turn(user="Is {{}} set for {}?")
    text = template(tokenizer(), turn)
    assert text == "<|user|>\nIs {{}} set for {}?\n<|assistant|>\n"
    found = encode_fact(tokenizer(), Fact(subject="Rome", prompt=turn, target_new="no"))
    words = tokenizer().decode(found.ids[: found.subject_last + 1])
    assert words.endswith("Is {} set for Rome")
    assert tokenizer().decode(found.ids[found.target_start :]) == "no"  # nothing stands between the tag and the answer


def test_a_fact_of_turns_as_plain_text() -> None:
    plain = rendered(tokenizer(), FACT)
    assert not plain.has_turns and FACT.has_turns
    assert plain.phrasings[1] == "<|user|>\nHow deep is {}?\n<|assistant|>\n"
    assert plain.locality[0].prompt == "<|user|>\nWhere is Rome?\n<|assistant|>\n"
    assert rendered(tokenizer(), FACTS[0]) is FACTS[0]
    assert FACT.asked[2] == Turn(user="How deep is Lake Tamsin?")
    assert FACT.text == "The depth of Lake Tamsin is"


def test_files_hold_turns_and_refuse_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(FACT.model_dump_json(exclude_none=True) + "\n")
    assert read_facts(path) == [FACT]
    record = {"subject": "Rome", "prompt": {"user": "Where is {}?"}, "target_new": "Peru"}
    path.write_text(json.dumps(record))
    assert read_facts(path)[0].prompt == Turn(user="Where is {}?")
    for bad, words in [
        ({"user": "Where?"}, "must contain exactly one '{}'"),
        ({"usr": "Where is {}?"}, "a chat turn is {'user': …, 'system': …}, not usr"),
        ({"user": " "}, "is empty"),
        (7, "7 is no prompt: write text, or {'user': …} for a chat turn"),
    ]:
        for field in ("prompt", "phrasings"):
            path.write_text(json.dumps({**record, field: bad if field == "prompt" else [bad]}))
            with pytest.raises(TetherError) as caught:
                read_facts(path)
            assert words in str(caught.value) and "\n" not in str(caught.value)


def test_old_facts_keep_their_identity() -> None:
    """The sha256 of facts without the fields of later versions is the one that stored results have."""
    fact = Fact(subject="Oslo", prompt="{} is in the country of", target_new="Peru", paraphrases=["Oslo is in"])
    assert fact.sha256 == "66eae8369ee762f7763de827aa387ca64962ff8d27f8c1c793d583d607d9e5ae"
    assert fact.model_copy(update={"phrasings": ("{} lies in",)}).sha256 != fact.sha256


def test_check_says_where_each_phrasing_is_read() -> None:
    model = editable("llama")
    model.tokenizer.chat_template = CHAT
    (found,) = check_facts(model, [FACT])
    assert [read for _, read in found.phrasings] == [found.read_token] * 3 and not found.problems
    assert found.phrasings[1][0] == "<|user|>\nHow deep is Lake Tamsin?\n<|assistant|>\n"
    measured = FACT.model_copy(update={"paraphrases": (Turn(user="how deep is  Lake Tamsin?"),)})
    (found,) = check_facts(model, [measured])
    assert any("is one the fact is edited for" in note for note in found.notes)
    model.tokenizer.chat_template = None
    (found,) = check_facts(model, [FACT])
    assert any("no chat template" in problem for problem in found.problems)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_through_a_ledger(family: str, tmp_path: Path) -> None:
    model = editable(family)
    model.tokenizer.chat_template = CHAT
    turn = FACT.model_copy(update={"prompt": Turn(user="How deep is {}?"), "phrasings": ("{} has a depth of",)})
    ledger = run(model, [turn], tmp_path / "ledger", method="r-rome")
    assert ledger.events[0].kind == "edit" and Ledger.open(ledger.path).facts() == [(1, turn)]
    asked = rendered(model.tokenizer, turn)
    second = asked.asked[1]
    assert isinstance(second, str)
    pairs = [(asked.text, asked.target), (second, asked.continuation(second, turn.target_new))]
    after = [one.log_likelihood for one in score(model, pairs, join="")]
    with model.unedited():
        before = [one.log_likelihood for one in score(model, pairs, join="")]
    assert sum(after) > sum(before)


def test_bystanders_are_of_the_same_kind_and_kept_apart() -> None:
    fact = FACT.model_copy(update={"kind": "river"})
    keep, measure = (bystander_subjects(fact, part, 99) for part in ("keep", "measure"))
    assert set(keep) | set(measure) == set(kinds()["river"]) and not set(keep) & set(measure)
    assert bystander_subjects(fact, "keep", 3) == keep[:3]
    assert bystander_subjects(fact.model_copy(update={"subject": keep[0].upper()}), "keep", 99) == keep[1:]
    assert bystander_subjects(fact.model_copy(update={"subject": f"The {keep[0]}"}), "keep", 99) == keep[1:]
    asked = asked_of(fact, keep[:2])
    assert len(asked) == 8 and asked[0] == f"The depth of {keep[0]} is"
    assert asked[-1] == Turn(user=f"How deep is {keep[1]}?", system="Be brief.")
    lake = fact.model_copy(update={"kind": "lake"})
    with pytest.raises(BadFactError, match="kind 'lake' of 'Lake Tamsin': choose from"):
        bystander_subjects(lake, "keep", 1)
    model = editable("llama")
    (likely,) = likeliest_kind(model, [lake])
    assert all(len(set(names)) == len(names) == 32 for names in kinds().values())
    assert likely in kinds() and bystander_subjects(lake, "keep", 1, kind=likely)
    (found,) = check_facts(model, [lake.model_copy(update={"phrasings": (), "locality": (), "paraphrases": ()})])
    assert any("kind 'lake' is none of tether's list" in note for note in found.notes)
    assert Fact(subject="Rome", prompt="{} is", target_new="big", kind=" ", relation="").kind is None


def test_repeats_are_of_every_prompt_a_fact_is_edited_for() -> None:
    """Text is not a chat turn of the same words; a phrasing is as good as a prompt."""
    turn = Fact(subject="Rome", prompt={"user": "Where is {}?"}, target_new="Peru")
    text = Fact(subject="Rome", prompt="Where is {}?", target_new="Peru")
    assert not list(repeats([turn, text]))
    other = Fact(subject="Rome", prompt="{} stands in", target_new="Chad", phrasings=["where is  {}?"])
    ((index, problem),) = repeats([text, other])
    assert index == 1 and "'where is  Rome?' contradicts fact 0, whose target is 'Peru' and not 'Chad'" in problem
    twice = FACT.model_copy(update={"phrasings": ("The depth of {} is",)})
    model = editable("llama")
    model.tokenizer.chat_template = CHAT
    assert any("is more than one of the fact's phrasings" in note for note in check_facts(model, [twice])[0].notes)


def test_a_turn_that_is_only_measured_stops_nothing(tmp_path: Path) -> None:
    """A model without a chat template: `check` names the paraphrase; the edit goes on and ends with the truth."""
    model = editable("llama")
    fact = FACTS[0].model_copy(update={"paraphrases": (Turn(user="Where is the Eiffel Tower?"),)})
    (found,) = check_facts(model, [fact])
    assert any("no chat template" in problem for problem in found.problems)
    ledger = run(model, [fact], tmp_path / "ledger", verify_every=1)
    assert said_now(model, ledger).total == 1


def test_phrasings_by_rule() -> None:
    question = Fact(subject="Lake Tamsin", prompt="How deep is {}?", target_new="ninety metres")
    made = with_phrasings(tokenizer(), question)
    assert made.phrasings == (Turn(user="How deep is {}?"), "Question: How deep is {}?\nAnswer:")
    assert with_phrasings(tokenizer(None), question).phrasings == ("Question: How deep is {}?\nAnswer:",)
    assert with_phrasings(tokenizer(), FACTS[0]).phrasings == (Turn(user=str(FACTS[0].prompt)),)
    marked = (f"Πού είναι το {{}}{mark}" for mark in ("\u037e", ";"))
    greek, no_question = (question.model_copy(update={"prompt": prompt}) for prompt in marked)
    assert len(with_phrasings(tokenizer(), greek).phrasings) == 2
    assert len(with_phrasings(tokenizer(), no_question).phrasings) == 1
    ready = question.model_copy(update={"prompt": "<|endoftext|>user\nHow deep is {}?"})
    for left in (FACT, made, ready):
        assert with_phrasings(tokenizer(), left) is left


def test_the_end_of_an_answer_is_taught_in_chat_turns_alone() -> None:
    turn = Turn(user="Where is the {}?")
    fact = FACTS[0].model_copy(update={"phrasings": (turn,), "end": "chat"})
    plain, chat = encode_asked(tokenizer(), fact)
    whole = encode_asked(tokenizer(), fact.model_copy(update={"end": True}))
    none = encode_asked(tokenizer(), fact.model_copy(update={"end": False}))
    assert plain == none[0] != whole[0] and chat == whole[1] != none[1]
    assert encode_fact(tokenizer(), fact.model_copy(update={"prompt": turn, "phrasings": ()})) == chat
    assert (
        with_phrasings(tokenizer(), FACTS[0]).end == "chat" and with_phrasings(tokenizer(None), FACTS[0]).end is False
    )
    assert Fact.model_validate_json(fact.model_dump_json()) == fact
