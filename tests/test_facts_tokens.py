"""Where subject and target lie among tokens, for the tokenizer families in use."""

from __future__ import annotations

import unicodedata
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tether.errors import TetherError
from tether.facts import Fact, encode, encode_fact, locate
from tether.facts.chat import special_tokens, start_of_turn
from tether.facts.tokens import Continuation, brought, tokenize

CORPUS = [
    "The Eiffel Tower is located in the city of Paris. The Space Needle is in Seattle.",
    "Where is the Louvre? In Paris, the capital of France, says Anna Banana from São Paulo.",
    "Paris is a city; Rome is a city too. Parisian food, Roman roads and 東京 are known to all.",
] * 4
KINDS = ("byte-level", "byte-level trimmed", "metaspace bpe", "unigram", "llama normalizer", "bos and eos")


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer trained on CORPUS: GPT-2-like, Llama-3-like, SentencePiece-like, with or without BOS, EOS."""
    special = ["<unk>", "<s>", "</s>"]
    if kind in ("byte-level", "byte-level trimmed", "bos and eos"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
            ),
        )
        if kind == "byte-level trimmed":
            made.post_processor = processors.ByteLevel(trim_offsets=True)
        if kind == "bos and eos":
            made.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
            )
    elif kind in ("llama normalizer", "joining words"):
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=False))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        if kind == "llama normalizer":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, special_tokens=special))
        made.pre_tokenizer = None
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    else:
        model, trainer = (
            (models.Unigram(), trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>"))
            if kind == "unigram"
            else (models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=200, special_tokens=special))
        )
        made = Tokenizer(model)
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Metaspace()
        made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def spans(kind: str, text: str) -> list[tuple[int, int]]:
    return tokenizer(kind)(text, return_offsets_mapping=True)["offset_mapping"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "subject", "prefix"),
    [
        ("{} is located in the city of", "The Eiffel Tower", ""),
        ("The city of {} is in", "Paris", ""),
        ("Where is {}", "the Louvre", ""),
        ("Where is {}?", "the Louvre", ""),
        ("{}'s capital", "France", ""),
        ("Paris, not {}, says Paris", "Paris", ""),
        ("{} is a city", "Paris", "Paris is known. In Paris"),
        ("Banana {} says", "Ana", "Because Ana"),
        ("{} is a", "São Paulo", ""),
        ("the city of {} is", "東京", "The"),
        ("{}", "Rome", "I"),
    ],
)
def test_subject_last_is_the_token_of_its_last_character(kind: str, prompt: str, subject: str, prefix: str) -> None:
    got = encode(tokenizer(kind), prompt, subject, prefix=prefix)
    full = (prefix + ". " if prefix else "") + prompt.replace("{}", subject)
    end = len(prefix + ". " if prefix else "") + prompt.index("{}") + len(subject)
    left, right = spans(kind, full)[got.subject_last]
    assert left < end <= right
    after = [i for i, (start, stop) in enumerate(spans(kind, full)) if start >= end and stop > start]
    assert all(got.subject_last < i for i in after)
    assert got.target_start == len(got.ids)
    assert locate(tokenizer(kind), full, end - len(subject), end) == got.subject_last


@pytest.mark.parametrize("kind", KINDS)
def test_target_tokens_are_those_behind_the_prompt(kind: str) -> None:
    bare = encode(tokenizer(kind), "The {} is located in the city of", "Eiffel Tower", prefix="I")
    full = encode(tokenizer(kind), "The {} is located in the city of", "Eiffel Tower", prefix="I", target="Rome")
    assert full.target_start == len(bare.ids) < len(full.ids)
    assert full.ids[: full.target_start] == bare.ids
    assert full.subject_last == bare.subject_last
    assert tokenizer(kind).decode(full.ids[full.target_start :]).strip() == "Rome"


def test_special_tokens_stand_before_the_text_and_never_behind_it() -> None:
    got = encode(tokenizer("bos and eos"), "{} is a", "Paris", target="city")
    assert got.ids[0] == 1
    assert got.ids[-1] != 2


def test_several_tokens_of_one_character_give_the_last() -> None:
    text = "東京 is"
    index = locate(tokenizer("byte-level"), text, 0, 2)
    assert spans("byte-level", text)[index + 1][0] >= 2


def test_errors_name_value_and_remedy() -> None:
    tok = tokenizer("byte-level")
    with pytest.raises(TetherError, match=r"exactly one"):
        encode(tok, "no place", "Paris")
    with pytest.raises(TetherError, match=r"subject"):
        encode(tok, "{} is", "")
    with pytest.raises(TetherError, match=r"part of"):
        locate(tok, "Paris", 3, 9)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TetherError, match=r"Slow gives no character offsets: load a fast tokenizer"):
        encode(Slow(), "{} is", "Paris")  # type: ignore[arg-type]


def test_a_character_the_tokenizer_drops_is_named() -> None:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "is": 1}, unk_token="<unk>"))
    made.normalizer = normalizers.Replace("™", "")
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    with pytest.raises(TetherError, match=r"'™' has no token"):
        encode(tok, "{} is", "™")
    with pytest.raises(TetherError, match=r"target '™' has no token"):
        encode(tok, "{} is", "is", target="™")


def test_a_token_that_joins_subject_and_target_is_named() -> None:
    with pytest.raises(TetherError, match=r"one token joins subject 's' and target 'P'"):
        encode(tokenizer("joining words"), "{}", "s", target="P")


WORD = st.text(alphabet="aPrisômeT東'-", min_size=1, max_size=8)
WORDS = st.lists(WORD, min_size=0, max_size=3).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), before=WORDS, subject=WORD, after=WORDS, prefix=WORDS, target=WORD)
def test_any_text(kind: str, before: str, subject: str, after: str, prefix: str, target: str) -> None:
    prompt = " ".join(part for part in (before, "{}", after) if part)
    full = encode(tokenizer(kind), prompt, subject, prefix=prefix, target=target, join=" ")
    head = f"{prefix}. " if prefix else ""
    text = f"{head}{prompt.replace('{}', subject)} {target}"
    end = len(head) + prompt.index("{}") + len(subject)
    where = spans(kind, text)
    left, right = where[full.subject_last]
    assert left < end <= right
    assert full.subject_last < full.target_start < len(full.ids)
    bare_end = len(text) - len(target) - 1
    assert all(stop <= bare_end for _, stop in where[: full.target_start])
    assert all(stop > bare_end for start, stop in where[full.target_start : len(full.ids)])


# --- chat templates, scripts, composed characters -------------------------------------------------------------------

CHATML = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURN = "<|im_start|>user\nWhere is the {}?<|im_end|>\n<|im_start|>assistant\n"


def chat_tokenizer(template: str | None, *, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level, a token a byte or a common pair; the tokens of ChatML are special."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [*CORPUS, "unhappy 是中国 " * 50],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet),
    )
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def text_of(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("prefix", ["", "Because"])
def test_a_bos_that_the_prompt_brings_stands_there_once(adds_bos: bool, prefix: str) -> None:
    tok = chat_tokenizer(CHATML, adds_bos=adds_bos)
    got = encode(tok, "<s>" + TURN, "Louvre", prefix=prefix, target="Paris")
    said = f"{prefix}. " if prefix else ""
    asked = TURN.replace("Where", said + "Where").replace("{}", "Louvre")
    assert text_of(tok, got.ids) == f"<s>{asked}Paris"
    assert text_of(tok, got.ids[: got.target_start]) == f"<s>{asked}"
    assert text_of(tok, got.ids[: got.subject_last + 1]).endswith("the Louvre")
    [scored] = tokenize(tok, [("<s>" + asked, "Paris")])
    assert scored == Continuation(got.ids, got.target_start)
    assert brought(tok, "<s>" + asked) == ("<s>" if adds_bos else "")
    assert brought(tok, asked) == ""


@pytest.mark.parametrize("template", [CHATML, BRACKETS, None])
def test_prefixes_stand_inside_the_turn(template: str | None) -> None:
    tok = chat_tokenizer(template)
    ours = "<s>[INST] The city of {} is [/INST]" if template == BRACKETS else "<s>" + TURN
    before = ours.partition("{}")[0]
    expected = "<s>[INST] " if template == BRACKETS else "<s><|im_start|>user\n"
    assert before[: start_of_turn(tok, before)] == expected
    assert start_of_turn(tok, "The city of ") == 0
    assert start_of_turn(tok, "<s>The city of ") == len("<s>")
    system = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert start_of_turn(tok, system + "Is the ") == len(system)


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (BRACKETS, "</s>"), (None, "</s>")])
def test_the_end_of_the_turn_is_a_part_of_the_target(template: str | None, end: str) -> None:
    tok = chat_tokenizer(template)
    fact = Fact(subject="Louvre", prompt="The {} is in", target_new="Paris", end=True)
    without = encode_fact(tok, fact.model_copy(update={"end": False}))
    for target in ("Paris", f"Paris{end}"):
        got = encode_fact(tok, fact.model_copy(update={"target_new": target}))
        assert got.ids == (*without.ids, special_tokens(tok)[end]) and got.target_start == without.target_start
    tok.eos_token = None
    if template != CHATML:
        with pytest.raises(TetherError, match=r"names no token that ends a turn or a text; leave end out"):
            encode_fact(tok, fact)


@pytest.mark.parametrize(("prompt", "target"), [("Louvre 是", "中国"), ("Louvre is un", "happy")])
def test_no_token_reaches_from_a_prompt_into_a_target_that_follows_at_once(prompt: str, target: str) -> None:
    """What is taught and scored is what the model is asked behind: the tokens of the prompt."""
    tok = chat_tokenizer(None)
    whole = tok(prompt + target)["input_ids"]
    alone = tok(prompt)["input_ids"]
    assert whole[: len(alone)] != alone, "there is a token across"
    got = encode(tok, prompt.replace("Louvre", "{}"), "Louvre", target=target, join="")
    assert list(got.ids[: got.target_start]) == alone
    assert text_of(tok, got.ids) == f"<s>{prompt}{target}"
    assert tokenize(tok, [(prompt, target, "")]) == [Continuation(got.ids, got.target_start)]


@pytest.mark.parametrize("word", ["caf\u00e9", "Hu\u1ebf", "\ud55c\uad6d"])
def test_a_subject_in_decomposed_characters(word: str) -> None:
    """A tokenizer that composes them gives the marks no place of their own."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, word: 1, "is": 2, "big": 3}, unk_token="<unk>"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    bytes_too = tokenizer.__wrapped__("byte-level")  # one of its own
    bytes_too.backend_tokenizer.normalizer = normalizers.NFC()
    for one in (words, bytes_too):
        composed = encode(one, "big {} is", word, target="big")
        assert encode(one, "big {} is", unicodedata.normalize("NFD", word), target="big") == composed
