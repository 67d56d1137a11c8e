"""Blocks and MLP output projections, found by structure on every family, and refused where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_config, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, FineGrainedFP8Config, PreTrainedModel

from tether.errors import TetherError, WrongModelError
from tether.models import Anatomy, EditableModel, find_anatomy

EXPECTED = {
    "llama": ("model.layers", "mlp.down_proj"),
    "mistral": ("model.layers", "mlp.down_proj"),
    "qwen2": ("model.layers", "mlp.down_proj"),
    "qwen3": ("model.layers", "mlp.down_proj"),
    "gemma": ("model.layers", "mlp.down_proj"),
    "gemma2": ("model.layers", "mlp.down_proj"),
    "gemma3": ("model.layers", "mlp.down_proj"),
    "gpt2": ("transformer.h", "mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h"),
    "gptj": ("transformer.h", "mlp.fc_out"),
    "falcon": ("transformer.h", "mlp.dense_4h_to_h"),
    "phi": ("model.layers", "mlp.fc2"),
    "opt": ("model.decoder.layers", "fc2"),
}
REFUSED: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 80, "num_key_value_heads": 2, "num_local_experts": 4},
    # Its shared expert alone would fit the description.
    "qwen2_moe": {"moe_intermediate_size": 80, "shared_expert_intermediate_size": 80, "num_experts": 4},
    "bert": {"intermediate_size": 80},
    "mamba": {},
}


def on_meta(kind: str, **more: Any) -> PreTrainedModel:
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **more}))


def test_every_family_of_the_tests_is_expected() -> None:
    assert EXPECTED.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", EXPECTED)
def test_found_on_every_family(family: str) -> None:
    hf, _ = tiny_model(family)
    assert find_anatomy(hf) == Anatomy(*EXPECTED[family])


@pytest.mark.parametrize("family", EXPECTED)
def test_found_on_the_meta_device(family: str) -> None:
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(tiny_config(family))
    assert find_anatomy(hf) == Anatomy(*EXPECTED[family])


@pytest.mark.parametrize("family", EXPECTED)
def test_the_projection_is_what_the_block_adds_of_its_mlp(family: str) -> None:
    """Without the projections' output the blocks' MLPs are gone: the logits change, and no shape is wrong."""
    hf, tokenizer = tiny_model(family)
    model = EditableModel(hf, tokenizer)
    ids = torch.tensor([tokenizer("The Eiffel Tower").input_ids])
    before = hf(input_ids=ids).logits
    for layer in range(model.n_layers):
        p, q = model.weight(model.weight_name(layer)).shape
        assert (p, q) == (32, 80)
        model.set_update(model.weight_name(layer), -model.original(model.weight_name(layer)))
    assert not torch.allclose(hf(input_ids=ids).logits, before, atol=1e-2)
    model.clear_updates()
    assert torch.equal(hf(input_ids=ids).logits, before)


def test_gate_and_up_in_one_matrix() -> None:
    hf = on_meta("phi3", intermediate_size=80, num_key_value_heads=2, pad_token_id=None)
    assert find_anatomy(hf) == Anatomy("model.layers", "mlp.down_proj")


@pytest.mark.parametrize("kind", REFUSED)
def test_other_layouts_are_refused_on_one_line_that_says_how_to_name_them(kind: str) -> None:
    hf = on_meta(kind, **REFUSED[kind])
    with pytest.raises(
        TetherError, match=r"looked for .* 4 blocks .* 32 .*; found .*; name it: anatomy=.*--anatomy"
    ) as e:
        find_anatomy(hf)
    assert "\n" not in str(e.value)


def test_an_encoder_decoder_is_refused() -> None:
    config = AutoConfig.for_model("t5", vocab_size=300, d_model=32, d_ff=80, num_layers=4, num_heads=4)
    with torch.device("meta"):
        hf = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(TetherError, match="no decoder with a language-model head"):
        find_anatomy(hf)


def test_two_projections_that_fit_are_both_named() -> None:
    hf, _ = tiny_model("opt", width=32)  # fc1 and fc2 have one shape
    with pytest.raises(
        TetherError, match=r"more than one: model\.decoder\.layers\.\*\.fc1, model\.decoder\.layers\.\*\.fc2"
    ):
        find_anatomy(hf)
    named = {"blocks": "model.decoder.layers", "projection": "fc2"}
    assert find_anatomy(hf, named) == Anatomy(**named)


def test_named_in_a_file(tmp_path: Path) -> None:
    hf = on_meta("qwen2_moe", **REFUSED["qwen2_moe"])
    named = {"blocks": "model.layers", "projection": "mlp.shared_expert.down_proj"}
    file = tmp_path / "anatomy.json"
    file.write_text(json.dumps(named))
    assert find_anatomy(hf, file) == find_anatomy(hf, str(file)) == Anatomy(**named)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"blocks": "model.layers"}, "exactly the keys 'blocks' and 'projection'"),
        ({"blocks": "model.layers", "projection": "mlp.down_proj", "head": "x"}, "exactly the keys"),
        ({"blocks": "model.layer", "projection": "mlp.down_proj"}, "no ModuleList of the model: it has model.layers"),
        ({"blocks": "model.layers", "projection": "mlp.up_proj"}, "block 0 .* hidden size 32: .* mlp.down_proj"),
        ({"blocks": "model.layers", "projection": "mlp.nothing"}, "block 0 .* hidden size 32"),
        ({"blocks": "model.layers", "projection": 3}, "must be text"),
        ("no such file.json", "no readable JSON file"),
    ],
)
def test_a_wrong_name_is_refused(named: Any, message: str) -> None:
    hf, _ = tiny_model("llama")
    with pytest.raises(TetherError, match=message):
        find_anatomy(hf, named)


def test_packed_weights_are_called_quantised() -> None:
    hf, _ = tiny_model("llama")
    hf.model.layers[1].mlp.down_proj.weight = nn.Parameter(torch.zeros(640, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(WrongModelError, match=r"quantised \(model\.layers\.1\.mlp\.down_proj has integer weights\)"):
        find_anatomy(hf)


def test_a_quantised_configuration_is_named() -> None:
    hf, _ = tiny_model("gpt2")
    for quantised in ({"quant_method": "fp8"}, FineGrainedFP8Config()):
        hf.config.quantization_config = quantised
        with pytest.raises(WrongModelError, match=r"is quantised \(fp8\)"):
            find_anatomy(hf)
    for unpacked in ({"quant_method": "mxfp4", "dequantize": True}, {"quant_method": "gguf"}):
        hf.config.quantization_config = unpacked
        assert find_anatomy(hf).projection == "mlp.c_proj"
