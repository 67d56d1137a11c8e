"""The scorer against one plain forward a text, on three layouts; greedy continuation; perplexity."""

from __future__ import annotations

import logging
import math
import warnings
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tether.errors import TetherError
from tether.evaluation import builtin_text, greedy, perplexity, score
from tether.evaluation.scores import tokenize
from tether.models.editable import EditableModel

LAYOUTS = ("llama", "gpt2", "gemma2")
PAIRS = [
    ("a b c", "d"),
    ("a b c", "e"),
    ("a b c", "d e f"),
    ("b", "x y"),
    ("a b c d e f g h", "i"),
    ("x y z a", "b c"),
]


def words_tokenizer(bos_and_eos: bool) -> PreTrainedTokenizerFast:
    vocabulary = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", ".", "!"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos_and_eos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def tiny(layout: str) -> EditableModel:
    """Random weights, large enough that no two logits are close; Gemma caps its logits."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 32, "initializer_range": 0.5,
    }  # fmt: skip
    hf: PreTrainedModel
    if layout == "gpt2":
        config = GPT2Config(
            vocab_size=31, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        hf = GPT2LMHeadModel(config)
    elif layout == "llama":
        hf = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        hf = Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=8, final_logit_softcapping=1.5, sliding_window=4))
    return EditableModel(hf, words_tokenizer(layout != "gpt2"))


def plain(model: EditableModel, prompt: str, continuation: str) -> tuple[float, list[int], list[int]]:
    """log-likelihood, argmax, true ids, by one forward of the whole model on one text."""
    tokenizer = model.tokenizer
    prefix = [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    head = prefix + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    target = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([head + target])).logits[0, len(head) - 1 : -1].float()
    found = logits.log_softmax(-1)[range(len(target)), target].sum()
    return float(found), logits.argmax(-1).tolist(), target


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_a_plain_forward(layout: str, batch_tokens: int) -> None:
    model = tiny(layout)
    for pair, found in zip(PAIRS, score(model, PAIRS, batch_tokens=batch_tokens), strict=True):
        likelihood, argmax, target = plain(model, *pair)
        assert found.log_likelihood == pytest.approx(likelihood, abs=1e-5)
        assert list(found.argmax_ids) == argmax
        assert found.n_tokens == len(target)
        assert found.argmax_correct == tuple(a == t for a, t in zip(argmax, target, strict=True))
        assert found.mean == pytest.approx(likelihood / len(target), abs=1e-5)


def test_a_model_in_bfloat16_is_scored_by_a_float32_softmax() -> None:
    full = tiny("llama")
    half = EditableModel(LlamaForCausalLM(full.hf.config).to(torch.bfloat16), full.tokenizer)
    half.hf.load_state_dict(full.hf.state_dict())
    for pair, found in zip(PAIRS, score(half, PAIRS), strict=True):
        assert found.log_likelihood == pytest.approx(plain(half, *pair)[0], rel=0.02)


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), max_size=8), batch_tokens=st.integers(1, 40))
def test_any_pairs(pairs: list[tuple[str, str]], batch_tokens: int) -> None:
    """Few words, so that texts often begin with one another and share their forwards."""
    found = score(tiny("llama"), pairs, batch_tokens=batch_tokens)
    assert [s.log_likelihood for s in found] == pytest.approx(
        [plain(tiny("llama"), *pair)[0] for pair in pairs], abs=1e-5
    )


def forwarded_rows(model: EditableModel, pairs: list[tuple[str, str]]) -> list[int]:
    """Rows of every forward of the blocks."""
    seen: list[int] = []
    handle = model.block(0).register_forward_hook(lambda _, args, output: seen.append(len(args[0])))
    try:
        score(model, pairs)
    finally:
        handle.remove()
    return seen


def test_one_row_serves_all_candidates_of_a_prompt() -> None:
    model = tiny("llama")
    assert forwarded_rows(model, [("a b c", word) for word in "defg"]) == [1]
    assert forwarded_rows(model, [("a b c", "d"), ("a b c", "d e"), ("a b", "c d"), ("a b c", "d")]) == [1]
    assert forwarded_rows(model, [("a b c", "d e"), ("a b c", "f e")]) == [2]
    assert forwarded_rows(model, []) == []


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(TetherError, match=r"continuation '' has no token after 'a'"):
        score(tiny("llama"), [("a", "")])
    with pytest.raises(TetherError, match=r"prompt '' has no token before 'a'"):
        score(tiny("gpt2"), [("", "a")])
    assert score(tiny("llama"), [("", "a")])[0].n_tokens == 1  # behind the token a text begins with

    class Slow:
        is_fast = False

    with pytest.raises(TetherError, match=r"Slow gives no character offsets"):
        tokenize(Slow(), [("a", "b")])  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_takes_the_argmax_whatever_the_checkpoint_says(layout: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny(layout)
    kept = model.hf.generation_config
    kept.do_sample, kept.temperature, kept.top_k, kept.repetition_penalty = True, 5.0, 3, 9.0
    prompts = ["a b c", "x", "a b c d e f g", "x"]
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        found = greedy(model, prompts, 5, batch_tokens=24)
    assert not caplog.records
    assert model.hf.generation_config is kept and kept.temperature == 5.0
    for prompt, text in zip(prompts, found, strict=True):
        new: list[int] = []
        while len(new) < 5 and (not new or new[-1] != model.tokenizer.eos_token_id):
            new.append(plain(model, " ".join([prompt, *model.tokenizer.convert_ids_to_tokens(new)]), "a")[1][0])
        assert text == model.tokenizer.decode(new, skip_special_tokens=True)
    assert greedy(model, [], 5) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_perplexity_is_the_naive_formula(layout: str) -> None:
    model = tiny(layout)
    words = list("abcdefghijklmnopq")
    found = perplexity(model, " ".join(words), window=5)  # windows of 5, 5, 5 and 2 tokens
    losses = [-plain(model, words[i], " ".join(words[i + 1 : i + 5]))[0] for i in (0, 5, 10, 15)]
    counts = [4, 4, 4, 1]
    rate = sum(losses) / 13
    assert found.n == 13
    assert found.value == pytest.approx(math.exp(rate), rel=1e-5)
    spread = sum((loss - rate * n) ** 2 for loss, n in zip(losses, counts, strict=True))
    assert found.stderr == pytest.approx(math.exp(rate) * math.sqrt(4 / 3 * spread) / 13, rel=1e-4)
    assert [record["n_tokens"] for record in found.records] == counts
    assert [record["nll"] for record in found.records] == pytest.approx(losses, abs=1e-4)


def test_perplexity_of_one_window_and_of_too_little() -> None:
    model = tiny("gpt2")
    assert perplexity(model, "a b c").stderr is None
    assert perplexity(model, " ".join("ab" * 40), window=512).n == 32 - 1 + 32 - 1 + 16 - 1  # windows the model takes
    with pytest.raises(TetherError, match=r"has 1 tokens: perplexity needs at least 2"):
        perplexity(model, "a")
    with pytest.raises(TetherError, match=r"window 1"):
        perplexity(model, "a b", window=1)


def test_the_text_that_comes_with_the_package_is_plain_text() -> None:
    assert len(builtin_text().split()) > 100
