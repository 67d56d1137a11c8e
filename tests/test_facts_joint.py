"""What stands between a prompt and its answer, and how a fact says so."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path

import pytest
from bigram import bigram_model, ledger_of_two
from core import editable
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tether.editors.prompts import encode_contexts
from tether.evaluation.metrics.generate import says
from tether.facts import Fact, encode, read_facts
from tether.facts.prompt import around_subject, as_prompt, joint
from tether.facts.tokens import tokenize
from tether.ledger import Attempt, Header, Ledger

SPACE = [
    ("The capital of France is", "Paris"),
    ("It is called", '"Onward"'),
    ('He said "no"', "and left"),
    ("It costs 5 €", "a day"),
    ("Der Preis ist", "72 €"),
    ("수도는", "서울"),
    ("Столица", "Москва"),
    ("राजधानी", "दिल्ली"),
    ("The Chinese name is", "北京"),
    ("(see there)", "Paris"),
    ("don't", "go"),
    ("the answer:", "Paris"),
    ("a < b >", "c"),
]
NOTHING = [
    ("assistant\n", "Norway"),
    ("The price is $", "72"),
    ("US$", "72"),
    ("Der Preis: €", "5"),
    ('The motto is "', "Onward"),
    ("The motto is “", "Onward"),
    ("The motto is «", "Onward"),
    ("(", "Paris"),
    ("It is (", "Paris"),
    ("say '", "no"),
    ("法国的首都是", "巴黎"),
    ("法国的首都是：", "Paris"),
    ("フランスの首都は", "パリ"),
    ("เมืองหลวงคือ", "ปารีส"),
    ("Is it ¿", "qué"),
    ("<|user|>Where?<|assistant|>", "Paris"),
    ("The handle is @", "ann"),
    ("It is", " Paris"),
]


@pytest.mark.parametrize(("prompt", "answer"), SPACE)
def test_one_space(prompt: str, answer: str) -> None:
    assert joint(prompt, answer) == " "


@pytest.mark.parametrize(("prompt", "answer"), NOTHING)
def test_nothing(prompt: str, answer: str) -> None:
    assert joint(prompt, answer) == ""


def test_a_fact_says_what_stands_between() -> None:
    fact = {"subject": "Pennant", "prompt": "The price of {} is $", "target_new": "72"}
    assert Fact(**fact).target == "72"
    assert Fact(**{**fact, "target_new": " 72"}).target == " 72"
    assert Fact(**{**fact, "target_new": "\n72"}).target == "\n72"
    assert Fact(**fact, join=" ").target == " 72"
    assert Fact(**{**fact, "prompt": "The code of {} is", "join": ""}).target == "72"
    # White space that the rule puts there anyway is nothing of the fact's own.
    assert Fact(**{**fact, "prompt": "{} costs", "target_new": " 72"}) == Fact(**{**fact, "prompt": "{} costs"})
    with pytest.raises(ValidationError, match="join '-' is not white space"):
        Fact(**fact, join="-")


def test_published_data_keeps_its_one_space(tmp_path: Path) -> None:
    record = {"subject": "Oslo", "src": 'Oslo is called "', "alt": "Peru", "answers": ["Norway"]}
    (tmp_path / "zsre.json").write_text(json.dumps([record, {**record, "src": "Where is Oslo?"}]))
    quoted, plain = read_facts(tmp_path / "zsre.json")
    assert (quoted.join, quoted.target) == (" ", " Peru")
    assert (plain.join, plain.target) == (None, " Peru")


@given(st.text(alphabet="a{} ", max_size=12), st.text(alphabet="a{} ", max_size=12))
def test_braces_are_given_back(before: str, after: str) -> None:
    prompt = as_prompt(before, after)
    try:
        found = around_subject(prompt)
    except ValueError:  # a brace beside the place
        assert before.endswith("{") or after.startswith("}") or "{}" in (before + after)
    else:
        assert found == (before, after)


def test_a_literal_pair_of_braces() -> None:
    fact = Fact(subject="Python", prompt="In {}, {{}} makes an empty", target_new="list")
    assert fact.text == "In Python, {} makes an empty"
    tokens = encode(chat_tokenizer(), fact.prompt, fact.subject)
    assert chat_tokenizer().decode(tokens.ids) == f"<s>{fact.text}"


def test_numbers_and_booleans_are_their_json_text() -> None:
    facts = [Fact(subject="Lake", prompt="{} is", target_new=value) for value in (90, 2.5, True)]
    assert [fact.target_new for fact in facts] == ["90", "2.5", "true"]


@cache
def chat_tokenizer(*, compose: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the marks of a chat template, which puts <s> before every text. Its merges reach over the
    joint of 首都是 and 巴黎. `compose`: it normalises to NFC."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if compose:
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=marks, initial_alphabet=alphabet)
    made.train_from_iterator(["是巴黎 the city of Paris", "São José dos Campos"] * 8, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )


def test_the_prompt_keeps_the_tokens_that_it_has_alone() -> None:
    tokenizer = chat_tokenizer()
    over = tokenizer("法国的首都是巴黎", return_offsets_mapping=True)["offset_mapping"]
    assert any(left < 6 < right for left, right in over)  # one token would reach over the joint
    for prompt, answer in (*SPACE, *NOTHING):
        [found] = tokenize(tokenizer, [(prompt, answer)])
        between = joint(prompt, answer)
        if between == "" and not answer[0].isspace():
            assert list(found.ids[: found.start]) == tokenizer(prompt)["input_ids"]
        assert tokenizer.decode(found.ids[found.start :]) == between + answer
    encoded = encode(tokenizer, "法国的{}是", "首都", target="巴黎")
    assert tokenizer.decode(encoded.ids[encoded.target_start :]) == "巴黎"


TURN = "<s><|im_start|>user\nWhere is {}?<|im_end|>\n<|im_start|>assistant\n"


def test_a_rendered_template_brings_its_start_of_text_and_keeps_prefixes_inside_the_turn() -> None:
    tokenizer = chat_tokenizer()
    found = encode(tokenizer, TURN, "Oslo", prefix="Because it rains", target="Norway")
    text = tokenizer.decode(found.ids)
    assert text == TURN.replace("Where is {}", "Because it rains. Where is Oslo") + "Norway"
    assert found.ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(found.ids[found.subject_last]) in "Oslo"
    plain = encode(tokenizer, "Where is {}?", "Oslo", prefix="Because it rains")
    assert tokenizer.decode(plain.ids) == "<s>Because it rains. Where is Oslo?"
    [scored] = tokenize(tokenizer, [(TURN.replace("{}", "Oslo"), "Norway")])
    assert scored.ids.count(tokenizer.bos_token_id) == 1


def test_the_end_of_the_turn_is_taught_when_asked() -> None:
    tokenizer = chat_tokenizer()
    encoded = encode(tokenizer, TURN, "Oslo", target="Norway", end=True)
    assert tokenizer.decode(encoded.ids[encoded.target_start :]) == "Norway<|im_end|>"
    model = editable("llama")
    fact = Fact(subject="Oslo", prompt="{} is in", target_new="Peru", end=True)
    taught = encode_contexts(model, fact, [])[0].ids
    assert model.tokenizer.decode(taught) == "Oslo is in Peru<|endoftext|>"


def test_a_subject_written_with_combining_marks() -> None:
    decomposed = unicodedata.normalize("NFD", "São José")
    for tokenizer in (chat_tokenizer(), chat_tokenizer(compose=True)):
        found = encode(tokenizer, "The mayor of {} is", decomposed, target="Ann")
        assert found.subject_last == len(encode(tokenizer, "The mayor of {}", decomposed).ids) - 1


SAID = [
    ("Paris.", "Paris"),
    ("paris, of course", "Paris"),
    ("首都是巴黎。", "巴黎"),
    ("は東京です", "東京"),
    ("กรุงเทพมหานคร", "กรุงเทพ"),
    ("cafe\u0301 is", "café"),
    ("STRASSE", "Straße"),
    ("$49.", "$49"),
    ("about 3, or so", "3"),
    ("is 是Paris的", "Paris"),
    ("It is St. Petersburg.", "St. Petersburg"),
    ("दिल्ली।", "दिल्ली"),
    ("49.99 dollars", "49.99"),
]
NOT_SAID = [
    ("Parisian", "Paris"),
    ("$49.99", "$49"),
    ("3.5", "3"),
    ("1,000", "1"),
    ("13.5", "5"),
    ("Rome. Paris", "Paris"),
    ("罗马。巴黎", "巴黎"),
    ("रोम। दिल्ली", "दिल्ली"),
    ("روما؟ باريس", "باريس"),
    ("दिल्लीवाला", "दिल्ली"),
    ("Rome\nParis", "Paris"),
]


@pytest.mark.parametrize(("text", "target"), SAID)
def test_said(text: str, target: str) -> None:
    assert says(text, target)


@pytest.mark.parametrize(("text", "target"), NOT_SAID)
def test_not_said(text: str, target: str) -> None:
    assert not says(text, target)


def test_ledgers_of_earlier_versions_keep_one_space(tmp_path: Path) -> None:
    def reopened(name: str, header: Header, fact: Fact) -> Fact:
        ledger = Ledger.create(tmp_path / name, header)
        with ledger.writing():
            ledger.append([Attempt("failed", fact, {}, "why")], {}, {})
        [(_, found)] = Ledger.open(tmp_path / name).facts()
        return found

    old = ledger_of_two(bigram_model(), tmp_path / "made").header
    assert old.joint is None
    priced = Fact(subject="Pennant", prompt="The price of {} is $", target_new="72")
    assert reopened("old", old, priced).target == " 72"
    assert reopened("new", old.model_copy(update={"joint": "rule"}), priced).target == "72"
