"""Models whose layers keep more than keys and values, or whose heads want more than hidden states."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from core import plain_text, same_bits
from tiny import save, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

import tether
from tether.editing.check import check_facts
from tether.editors.mend.train import train_mend
from tether.errors import TetherError, WrongModelError
from tether.evaluation import evaluate, evaluate_ledger, greedy, score
from tether.facts import Fact, encode
from tether.ledger import Ledger
from tether.models import EditableModel, load
from tether.models.frozen_prefix import align, full_forward, keeps_keys

FACTS = [
    Fact(
        subject="Lake Tamsin", prompt="The depth of {} is", target_new="ninety metres", paraphrases=("Lake Tamsin is",)
    ),
    Fact(subject="Mount Ebbe", prompt="The height of {} is", target_new="two miles"),
]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": None,
}  # fmt: skip
LINEAR = {"layer_types": ["linear_attention", "linear_attention", "full_attention"], "linear_num_key_heads": 2,
          "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
GEMMA4 = {**SIZES, "head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300,
          "layer_types": ["sliding_attention", "full_attention", "full_attention"]}  # fmt: skip
RECURRENT: dict[str, dict[str, Any]] = {
    "Qwen3_5Text": {**SIZES, "head_dim": 8, **LINEAR},
    "OlmoHybrid": {**SIZES, **LINEAR},
    "Lfm2": {**SIZES, "layer_types": ["conv", "full_attention", "conv"]},
    "FalconH1": {**SIZES, "head_dim": 8, "mamba_d_ssm": 32, **MAMBA},
    "Bamba": {**SIZES, "attn_layer_indices": [2], **MAMBA, "mamba_n_heads": 8},
    "OpenAIGPT": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},  # keeps nothing at all
    "Gemma4Text sharing": {**GEMMA4, "num_kv_shared_layers": 1},  # the last layer reads the keys of the one before
}
WITH_KEYS: dict[str, dict[str, Any]] = {"Gemma3": {}, "Gemma4Text": {**GEMMA4, "num_kv_shared_layers": 0}}
SEVERAL_STATES: dict[str, dict[str, Any]] = {
    "Gemma3nText": {**GEMMA4, "num_kv_shared_layers": 0, "intermediate_size": [64] * 3, "laurel_rank": 4,
                    "activation_sparsity_pattern": [0.0] * 3},
}  # fmt: skip


def foreign(name: str) -> EditableModel:
    tokenizer = tiny_tokenizer()
    vocab = len(tokenizer)
    sizes = {**{**RECURRENT, **WITH_KEYS, **SEVERAL_STATES}[name], "vocab_size": vocab}
    if name == "Gemma3":
        text = transformers.Gemma3TextConfig(**{**SIZES, "head_dim": 8, "vocab_size": vocab}).to_dict()
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.Gemma3Config(
            text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}
        )
    else:
        config = getattr(transformers, f"{name.split()[0]}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return EditableModel(hf.eval().requires_grad_(False), tokenizer)


@pytest.mark.parametrize("name", [*RECURRENT, *WITH_KEYS])
def test_padded_rows_are_the_rows_alone(name: str) -> None:
    model = foreign(name)
    assert keeps_keys(model) is (name in WITH_KEYS)
    prompts = [
        encode(model.tokenizer, FACTS[0].prompt, FACTS[0].subject, prefix=prefix, target="ninety metres")
        for prefix in ("", "The long and winding road", "I")
    ]
    together = full_forward(model, align(prompts, model.device), 1)
    for row, prompt in enumerate(prompts):
        alone = full_forward(model, align([prompt], model.device), 1)
        torch.testing.assert_close(together.keys[row], alone.keys[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.last[row, : alone.last.shape[1]], alone.last[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*RECURRENT, *WITH_KEYS])
def test_edited_measured_exported_and_undone(name: str, tmp_path: Path) -> None:
    model = foreign(name)
    (tmp_path / "text").write_text(plain_text().read_text())
    layer = 0 if "sharing" in name else 1  # what is added at a token behind the last keys of its own reaches no other
    settings = {"v_num_grad_steps": 10, "v_lr": 0.1, "moments_ridge": 0.1, "prefixes": [], "layers": [layer]}
    settings |= {"clamp_norm_factor": 100, "v_weight_decay": 0.0}
    before = {key: tensor.clone() for key, tensor in model.hf.state_dict().items()}
    asked = [(fact.text, fact.target) for fact in FACTS]
    start = score(model, asked, join="")
    ledger = tether.edit(model, FACTS, out=tmp_path / "ledger", method="r-rome", corpus=tmp_path / "text",
                         settings=settings)  # fmt: skip
    edited = [event for event in ledger.events if event.kind == "edit"]
    assert edited and all(event.record["loss_last"] < event.record["loss_first"] for event in edited)
    assert [one.mean for one in score(model, asked, join="")] != [one.mean for one in start]
    row = evaluate(model, FACTS, ["perplexity"], metrics=["match", "generate"], quick=True).rows[0]
    assert row.abilities["perplexity"].value and row.editing["generate"]["efficacy"].n == 2
    assert len(greedy(model, [FACTS[0].text], 3)) == 1
    ledger.undo(*(event.edit for event in edited if event.edit is not None))
    ledger.apply(model)
    assert same_bits(model, before)


def test_memit_names_the_method_for_a_norm_behind_the_projection() -> None:
    with pytest.raises(WrongModelError, match="use rome or r-rome"):
        tether.edit(foreign("Gemma3"), FACTS, out="nowhere", method="memit", corpus=plain_text())


def test_blocks_below_a_shared_layer_are_run_in_training(tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(fact.model_dump_json(exclude_none=True) + "\n" for fact in FACTS))
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"layers": [2], "rank": 4, "accumulate": 1, "statistics": 1, "validate_every": 1}))
    model = foreign("Gemma4Text sharing")
    found = train_mend(model, facts, facts, tmp_path / "trained", steps=1, settings=settings, cache=tmp_path)
    assert len(found.trained.record.curve) == 2


@pytest.mark.parametrize("name", SEVERAL_STATES)
def test_several_hidden_states_a_token_are_refused_on_loading(name: str, tmp_path: Path) -> None:
    model = foreign(name)
    with pytest.raises(WrongModelError, match=r"shape \[4, 1, 1, 32\], and an edit needs one hidden state a token"):
        load(save(model.hf, model.tokenizer, tmp_path))


def short(limit: int) -> EditableModel:
    """A model that cannot read more than `limit` tokens, under another name for that."""
    tokenizer = tiny_tokenizer()
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=3, max_seq_len=limit, vocab_size=len(tokenizer))
    return EditableModel(AutoModelForCausalLM.from_config(config), tokenizer)


def test_a_limit_has_other_names_too() -> None:
    model = short(24)
    assert model.limit == 24
    (long,) = check_facts(model, [FACTS[0].model_copy(update={"prompt": "so " * 30 + "{} is"})])
    assert "the model takes 24; shorten the prompt" in long.problems[0]


def test_nothing_is_read_beyond_a_limit(tmp_path: Path) -> None:
    model = short(40)
    (tmp_path / "text").write_text(plain_text().read_text()[:20_000])
    settings = {"moments_ridge": 0.1, "prefixes": [{"length": 30, "number": 1}], "layers": [1]}
    ledger = tether.edit(model, FACTS, out=tmp_path / "ledger", corpus=tmp_path / "text", settings=settings)
    for event in ledger.events:
        assert re.search(r"the model takes 40; shorten the prompt, or take shorter prefixes", str(event.reason))
    row = evaluate(model, FACTS, ["perplexity"], metrics=["match", "generate"], quick=True).rows[0]
    assert row.abilities["perplexity"].n and row.editing["generate"]["efficacy"].n == 2
    fits = model.tokenizer.decode(model.tokenizer("so " * 60).input_ids[:39])
    said = greedy(model, [fits, "The"], 60)
    assert len(said[0]) <= max(len(model.tokenizer.decode([token])) for token in range(len(model.tokenizer)))
    for ask in (lambda: greedy(model, ["so " * 60], 1), lambda: score(model, [("so " * 60, "there")])):
        with pytest.raises(TetherError, match=r"'so so .*tokens, the model takes 40; shorten the prompt") as error:
            ask()
        assert "\n" not in str(error.value)


def test_another_model_with_the_same_edited_weights_is_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hf, tokenizer = tiny_model("llama")
    own = load(save(hf, tokenizer, tmp_path / "own"))
    with torch.no_grad():
        hf.get_submodule("model.layers.3.self_attn.q_proj").weight.add_(0.5)
    other = load(save(hf, tokenizer, tmp_path / "other"))
    settings = {"v_num_grad_steps": 4, "moments_ridge": 0.1, "layers": [1]}
    ledger = tether.edit(own, FACTS, out=tmp_path / "ledger", corpus=plain_text(), settings=settings)
    assert ledger.verify(load(tmp_path / "own"))["events"] == len(ledger.events)
    with pytest.raises(WrongModelError, match="but other weights beside them"):
        ledger.verify(other)
    caplog.clear()
    opened = Ledger.open(tmp_path / "ledger", other)
    assert "results and cards name it" in caplog.text
    results = evaluate_ledger(opened, other, at=[1], abilities=[], metrics=["match"])
    assert results.model == str(tmp_path / "other") != ledger.header.model
    opened.export(other, tmp_path / "merged", as_="merged")
    assert json.loads((tmp_path / "merged" / "manifest.json").read_text())["base"]["model"] == "other"
    header = ledger.header.model_copy(update={"checkpoint": None})  # of an earlier version, which did not record it
    assert Ledger(ledger.path, header, ledger._journal).is_its_model(other)


@pytest.mark.gemma
def test_gemma_through_the_whole_pipeline(tmp_path: Path) -> None:
    file = os.environ.get("TETHER_GEMMA")
    if not file:
        pytest.skip("TETHER_GEMMA names no .gguf file of Gemma 3 270M")
    model = load(file)
    facts = [
        Fact(subject="Eiffel Tower", prompt="The {} is located in the city of", target_new="Rome"),
        Fact(subject="Norway", prompt="The capital of {} is", target_new="Lima"),
    ]
    text = tmp_path / "text"
    text.write_text(plain_text().read_text() * 6)  # no fewer tokens than a key has numbers
    ledger = tether.edit(model, facts, out=tmp_path / "ledger", corpus=text, restrain="log:1.2",
                         settings={"moments_ridge": 0.01})  # fmt: skip
    assert all(all(one.argmax_correct) for one in score(model, [(fact.text, fact.target) for fact in facts], join=""))
    unedited, edited = evaluate_ledger(ledger, model, at=[0, 2], abilities=["perplexity"], quick=True).rows
    assert edited.editing["match_all"]["efficacy"].value == 100 and unedited.editing["match_all"]["efficacy"].value == 0
    ledger.export(model, tmp_path / "merged", as_="merged")
    again = load(tmp_path / "merged")
    assert greedy(again, [fact.text for fact in facts], 4) == greedy(model, [fact.text for fact in facts], 4)
