"""What `check_facts` finds, on tiny models of both layouts."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tether.editing.check import check_facts
from tether.facts import Fact
from tether.models.editable import EditableModel
from tether.models.layout import Anatomy

PLACES = ["Norway", "France", "Oslo", "Paris", "Rome", "Lima", "Bergen"]
WORDS = ["<unk>", "the", "capital", "of", "is", "city", "a", "in", "land", "big", *PLACES]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> EditableModel:
    """Two layers, hidden size 16, one token a word."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.normalizer = normalizers.Replace("™", "")
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    torch.manual_seed(0)
    if request.param == "llama":
        hf = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
            )
        )
        return EditableModel(hf, tokenizer, anatomy=Anatomy("model.layers", "mlp.down_proj"))
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=64))
    return EditableModel(hf, tokenizer, anatomy=Anatomy("transformer.h", "mlp.c_proj"))


def fact(subject: str, target: str, prompt: str = "the capital of {} is", **more: str) -> Fact:
    return Fact(subject=subject, prompt=prompt, target_new=target, **more)  # type: ignore[arg-type]


def greedy(model: EditableModel, text: str, n: int) -> str:
    ids = model.tokenizer(text)["input_ids"]
    start = len(ids)
    for _ in range(n):
        ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
    return " ".join(WORDS[i] for i in ids[start:])


def other(word: str) -> str:
    return "Lima" if word != "Lima" else "Rome"


def test_the_token_an_edit_is_read_at(model: EditableModel) -> None:
    (check,) = check_facts(model, [fact("Norway", other(greedy(model, "the capital of Norway is", 1)))])
    assert check.tokens == ("the", "capital", "of", "Norway", "is")
    assert (check.index, check.read_at, check.read_token, check.problems) == (0, 3, "Norway", ())


@pytest.mark.parametrize("n", [1, 3])
def test_a_fact_the_model_already_says(model: EditableModel, n: int) -> None:
    """In a batch of prompts of different lengths, more than one batch of them."""
    text = "the capital of Norway is"
    said = greedy(model, text, n)
    almost = " ".join([*said.split()[:-1], other(said.split()[-1])])
    longer = "in the big land {} a"
    fill = [fact(place, other(greedy(model, longer.replace("{}", place), 1)), longer) for place in [*WORDS[1:]]]
    checks = check_facts(model, [fact("Norway", almost), *fill, fact("Norway", said)])
    assert not any(check.problems for check in checks[:-1])
    answered, contradiction = checks[-1].problems
    assert answered == f"the model already answers {said!r} to {text!r}: nothing to edit"
    assert contradiction.startswith(f"{text!r} contradicts fact 0, whose target is {almost!r}")


def test_it_is_the_model_as_it_is_now_that_answers(model: EditableModel) -> None:
    name = model.weight_name(1)
    before = greedy(model, "the capital of Norway is", 1)
    torch.manual_seed(3)
    model.set_update(name, torch.randn(model.weight(name).shape) * 30)
    try:
        now = greedy(model, "the capital of Norway is", 1)
        assert now != before
        assert check_facts(model, [fact("Norway", before)])[0].problems == ()
        assert "already answers" in check_facts(model, [fact("Norway", now)])[0].problems[0]
    finally:
        model.clear_updates()


def test_duplicates_and_contradictions(model: EditableModel) -> None:
    target = other(greedy(model, "the capital of Norway is", 1))
    first = fact("Norway", target)
    again = fact("  NORWAY ", target.upper(), "the  capital of {} is")
    against = fact("capital of Norway", target + " city", "the {} is")
    checks = check_facts(model, [first, again, against])
    assert checks[0].problems == ()
    assert checks[1].problems == (f"{again.text!r} is a duplicate of fact 0: remove one of the two",)
    assert "contradicts fact 0" in checks[2].problems[0]
    known = check_facts(model, [against], known=[fact("France", "Rome"), first])
    assert "contradicts known fact 1" in known[0].problems[0]


def test_targets_that_cannot_be_edited_in(model: EditableModel) -> None:
    facts = [fact("Norway", "™"), fact("™", "Rome"), fact("France", "Lima", target_true=" lima")]
    no_target, no_subject, same = check_facts(model, facts)
    assert (no_target.tokens, no_target.read_at, no_target.read_token) == ((), None, None)
    assert "target '™' has no token" in no_target.problems[0]
    assert "subject '™' has no token" in no_subject.problems[0]
    assert "target_new equals target_true 'lima': give another new answer" in same.problems


def test_a_prompt_longer_than_the_model_takes(model: EditableModel) -> None:
    limit = model.hf.config.max_position_embeddings
    long = fact("France", "Lima", limit * "the " + "capital of {} is")
    good, bad = check_facts(model, [fact("Norway", other(greedy(model, "the capital of Norway is", 1))), long])
    assert good.problems == () and bad.read_at is None
    assert bad.problems == (f"{long.text[:60]!r}: {limit + 5} tokens, the model takes {limit}; shorten the prompt",)


def test_no_facts(model: EditableModel) -> None:
    assert check_facts(model, []) == []
