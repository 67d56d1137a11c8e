"""Where subject and target lie among tokens, for the tokenizer families in use."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tether.errors import TetherError
from tether.facts import encode, locate

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
    full = encode(tokenizer(kind), prompt, subject, prefix=prefix, target=target)
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
