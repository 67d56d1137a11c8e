"""Sampled text: of the whole distribution, whatever the checkpoint says; and how it is put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core import editable
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from tether.models import EditableModel
from tether.models.sampling import PrefixLength, mixed_seed, plain_generation, sample, sample_prefixes

LAYOUTS = ["llama", "gpt2"]
OWN: dict[str, Any] = {
    "do_sample": True, "temperature": 0.05, "top_p": 0.3, "repetition_penalty": 5.0, "max_length": 4,
    "no_repeat_ngram_size": 1,
}  # fmt: skip


def ending_texts(model: EditableModel) -> None:
    """Make the tokenizer put an end of text after every text, as some do."""
    end = model.tokenizer.eos_token
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, model.tokenizer.eos_token_id)]
    )


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("top_k", [0, 5])
def test_the_checkpoints_own_settings_play_no_part(family: str, top_k: int) -> None:
    model = editable(family)
    expected = sample(model, ["The", "Because"], 12, seed=3, top_k=top_k)
    prefixes = sample_prefixes(model, [PrefixLength(length=4, number=2)], seed=0)
    own = GenerationConfig(**OWN, eos_token_id=model.tokenizer.eos_token_id)
    model.hf.generation_config = own
    assert sample(model, ["The", "Because"], 12, seed=3, top_k=top_k) == expected
    assert sample_prefixes(model, [PrefixLength(length=4, number=2)], seed=0) == prefixes
    assert model.hf.generation_config is own


def test_settings_are_the_models_again_after_an_error() -> None:
    model = editable("gpt2")
    kept = model.hf.generation_config
    with pytest.raises(KeyboardInterrupt), plain_generation(model, do_sample=False) as plain:
        assert model.hf.generation_config is plain and plain.temperature is None
        raise KeyboardInterrupt
    assert model.hf.generation_config is kept


def test_the_distribution_is_the_models() -> None:
    """The share of the likeliest next text, over many, is the probability that the model gives it."""
    model = editable("gpt2")
    model.hf.generation_config = GenerationConfig(**OWN)
    ids = model.tokenizer("The").input_ids
    probability = model.hf(torch.tensor([ids])).logits[0, -1].softmax(-1)
    probability[model.tokenizer.all_special_ids] = 0
    expected: dict[str, float] = {}
    for token, one in enumerate((probability / probability.sum()).tolist()):
        text = model.tokenizer.decode([*ids, token])
        expected[text] = expected.get(text, 0.0) + one
    likely = max(expected, key=expected.__getitem__)
    share = sample(model, ["The"] * 4000, 1, seed=0).count(likely) / 4000
    assert share == pytest.approx(expected[likely], abs=5 * (expected[likely] / 4000) ** 0.5)


def test_starts_of_unequal_length_stay_whole() -> None:
    model = editable("gpt2")
    starts = ["The", "The Eiffel Tower is in the city of"]
    texts = sample(model, starts, 5, seed=0)
    assert all(text.startswith(start) for text, start in zip(texts, starts, strict=True))


def test_no_text_begins_with_an_end_of_text() -> None:
    """A tokenizer that ends every text does not end the starts."""
    model = editable("gpt2")
    expected = sample(model, ["The"], 6, seed=0)
    ending_texts(model)
    assert model.tokenizer("The").input_ids[-1] == model.tokenizer.eos_token_id
    assert sample(model, ["The"], 6, seed=0) == expected


def test_seeds_of_parts_are_their_own() -> None:
    assert len({mixed_seed(seed, part) for seed in range(50) for part in range(50)}) == 2500
