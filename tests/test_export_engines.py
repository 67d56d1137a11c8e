"""Exports for engines: GGUF and MLX files read back by their own rules, what engines would do with an adapter, and
llama.cpp itself."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from command import run
from core import random_update
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import save, tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tether.algebra.lowrank import LowRank
from tether.errors import TetherError, WrongModelError
from tether.export import Provenance, check_adapter, export_adapter, export_whole, make_adapter
from tether.facts.fact import Fact
from tether.models import EditableModel, load


def build(layout: str, folder: Path, **more: Any) -> EditableModel:
    save(*tiny_model(layout, n_layers=3, hidden=32, width=128, heads=4, **more), folder)
    return load(folder)


def updates_of(model: EditableModel) -> dict[str, LowRank]:
    """Of two MLP projections, and of the weights that read the residual stream in one attention."""
    names = [model.weight_name(0), model.weight_name(2)]
    names += [n for n, p in model.hf.named_parameters() if ".1." in n and p.ndim == 2 and "attn" in n]
    return {n: random_update(*model.weight(n).shape, 2 + i, seed=i, scale=0.5) for i, n in enumerate(names)}


def about(model: EditableModel) -> Provenance:
    return Provenance(
        "base", "rome", {}, "none", [], [], {}, model_type=model.hf.config.model_type, layers=model.n_layers
    )


def carry(model: EditableModel, updates: dict[str, LowRank]) -> None:
    for name, update in updates.items():
        model.set_update(name, update.to_dense())


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    return facts, {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_gguf_adapter_on_the_base_gives_the_merged_weights(tmp_path: Path, layout: str) -> None:
    model = build(layout, tmp_path / "hf")
    updates = updates_of(model)
    export_whole("gguf", model, tmp_path / "base", about(model))
    export_adapter("gguf-lora", model, updates, tmp_path / "adapter", about(model))
    carry(model, updates)
    export_whole("gguf", model, tmp_path / "merged", about(model))
    facts, factors = read_gguf(tmp_path / "adapter" / "adapter.gguf")
    assert facts["general.type"] == "adapter" and facts["adapter.type"] == "lora"
    assert facts["general.architecture"] == layout and "blk.0.ffn_down.weight.lora_a" in factors
    _, base = read_gguf(tmp_path / "base" / "model.gguf")
    _, merged = read_gguf(tmp_path / "merged" / "model.gguf")
    adapted = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
    assert len(adapted) == len(updates) == len(factors) // 2
    for name, weight in base.items():
        if name in adapted:
            a, b = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
            scale = facts["adapter.lora.alpha"] / len(a)  # as llama.cpp: by the rank of the tensor
            assert not np.allclose(weight, merged[name], atol=1e-3)
            np.testing.assert_allclose(weight + scale * (b @ a), merged[name], rtol=0, atol=1e-6)
        else:
            assert np.array_equal(weight, merged[name])
    assert all(finding.verdict == "right" for finding in check_adapter(tmp_path / "adapter", ["llama.cpp", "ollama"]))


@pytest.mark.parametrize("layout", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_a_gguf_model_is_read_back_as_it_was(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By transformers, which knows nothing of how it was written; then edited again as a GGUF model."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    # transformers leaves these two sizes at their defaults, and splits all text of a Qwen model as Qwen2's
    sizes = {"qwen3": {"head_dim": 128}, "gpt2": {"max_position_embeddings": 1024}}
    model = build(layout, tmp_path / "hf", **sizes.get(layout, {}))
    carry(model, updates_of(model))
    export_whole("gguf", model, tmp_path / "out", about(model))
    again = load(tmp_path / "out" / "model.gguf")
    ids = model.tokenizer("The Eiffel Tower is in the city of Paris, 1987!", return_tensors="pt").input_ids
    if layout != "qwen3":
        assert again.tokenizer(model.tokenizer.decode(ids[0])).input_ids == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(again.hf(ids).logits, model.hf(ids).logits, rtol=1e-4, atol=1e-4)


def test_what_a_gguf_file_holds_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    model = build("llama", tmp_path / "hf")
    export_whole("gguf", model, tmp_path / "plain", about(model))
    quantised(tmp_path / "plain" / "model.gguf", tmp_path / "q8.gguf")
    model = load(tmp_path / "q8.gguf")
    updates = updates_of(model)
    carry(model, updates)
    export_whole("gguf", model, tmp_path / "edited", about(model))
    before, after = (gguf.GGUFReader(file) for file in (tmp_path / "q8.gguf", tmp_path / "edited" / "model.gguf"))
    for name, field in before.fields.items():
        assert name.startswith("GGUF.") or after.fields[name].contents() == field.contents()
    same = [
        bool(x.tensor_type == y.tensor_type and np.array_equal(x.data, y.data))
        for x, y in zip(before.tensors, after.tensors, strict=True)
    ]
    assert same.count(False) == len(updates)
    again = load(tmp_path / "edited" / "model.gguf")
    for name in updates:
        assert torch.equal(again.weight(name), model.weight(name))


def test_a_gguf_model_in_another_dtype_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it computes with is what is written: round(W₀ + Σ) in its dtype."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    first = build("llama", tmp_path / "hf")
    export_whole("gguf", first, tmp_path / "plain", about(first))
    model = load(tmp_path / "plain" / "model.gguf", dtype="bfloat16")
    name = model.weight_name(1)
    carry(model, {name: random_update(*model.weight(name).shape, 2, seed=0, scale=0.5)})
    export_whole("gguf", model, tmp_path / "edited", about(model))
    _, tensors = read_gguf(tmp_path / "edited" / "model.gguf")
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.weight"], model.weight(name).float().numpy())


def quantised(file: Path, to: Path) -> None:
    """A GGUF file with its MLP matrices in Q8_0."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(to, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if array else None)
    q8 = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        if "ffn_down" in tensor.name:
            writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, q8), raw_dtype=q8)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_what_cannot_be_written_as_gguf_is_refused_in_one_line(tmp_path: Path) -> None:
    model = build("gpt_neox", tmp_path / "neox")
    with pytest.raises(TetherError, match="written whole") as error:
        export_whole("gguf", model, tmp_path / "out", about(model))
    assert "\n" not in str(error.value)
    name = model.weight_name(1)
    update = {name: random_update(*model.weight(name).shape, 1, seed=0)}
    export_adapter("gguf-lora", model, update, tmp_path / "mlp", about(model))
    attention = "gpt_neox.layers.1.attention.query_key_value.weight"
    update = {attention: random_update(*model.weight(attention).shape, 1, seed=0)}
    with pytest.raises(TetherError, match="how attention lies"):
        export_adapter("gguf-lora", model, update, tmp_path / "out", about(model))
    with pytest.raises(TetherError, match="mlx-lm"):
        export_adapter("mlx", model, update, tmp_path / "out", about(model))
    assert not (tmp_path / "out").exists()


def test_an_mlx_adapter_adds_the_update(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "hf")
    names = [model.weight_name(layer) for layer in (1, 2)]
    updates = {name: random_update(*model.weight(name).shape, 2 + i, seed=i) for i, name in enumerate(names)}
    export_adapter("mlx", model, updates, tmp_path / "mlx", about(model))
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    stored = load_file(tmp_path / "mlx" / "adapters.safetensors")
    assert config["num_layers"] == 2 and config["lora_parameters"]["keys"] == ["mlp.down_proj"]
    assert {tensor.shape[1 if name.endswith("a") else 0] for name, tensor in stored.items()} == {3}
    x = torch.randn(5, 128)
    for name, update in updates.items():
        a, b = (stored[f"{name.removesuffix('.weight')}.lora_{side}"] for side in "ab")
        adds = config["lora_parameters"]["scale"] * ((x @ a) @ b)
        torch.testing.assert_close(adds, x @ update.to_dense().mT, rtol=1e-4, atol=1e-5)
    verdicts = {finding.engine: finding.verdict for finding in check_adapter(tmp_path / "mlx", ["vllm", "mlx"])}
    assert verdicts == {"vllm": "refused", "mlx": "right"}
    config["num_layers"] = 1  # counted from the end, this no longer reaches block 1
    (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps(config))
    [finding] = [f for f in check_adapter(tmp_path / "mlx", ["mlx"]) if f.rule == "names"]
    assert finding.verdict == "wrong" and "model.layers.1.mlp.down_proj" in finding.says


def test_peft_adapts_the_edited_modules_alone(tmp_path: Path) -> None:
    """GPT-2 has a c_proj in the attention and one in the MLP."""
    model = build("gpt2", tmp_path / "hf")
    updates = {model.weight_name(1): random_update(32, 128, 2, seed=0)}
    export_adapter("lora", model, updates, tmp_path / "lora", about(model), base_name="org/name")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), tmp_path / "lora")
    wrapped = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert wrapped == ["base_model.model.transformer.h.1.mlp.c_proj"]
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/name"


# --- the check --------------------------------------------------------------------------------------------------------


def test_a_patterned_adapter_is_caught(tmp_path: Path) -> None:
    """One as peft writes it, with another rank for one module: vLLM drops the pattern, and with it the scale."""
    hf, tokenizer = tiny_model("llama", n_layers=2)
    save(hf, tokenizer, tmp_path / "base")
    for name, patterns in {
        "plain": {},
        "same-scale": {"rank_pattern": {"layers.1.mlp.down_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 2}},
        "ranks": {"rank_pattern": {"layers.1.mlp.down_proj": 2}},
        "alphas": {"alpha_pattern": {"layers.1.mlp.down_proj": 8}},
    }.items():
        config = LoraConfig(r=4, lora_alpha=4, target_modules=["down_proj"], **patterns)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        get_peft_model(base, config).save_pretrained(tmp_path / name)

    def wrong(name: str) -> set[str]:
        findings = check_adapter(tmp_path / name, ["vllm", "ollama"])
        assert {finding.verdict for finding in findings} <= {"right", "wrong"}, findings
        return {finding.engine for finding in findings if finding.verdict == "wrong"}

    assert wrong("plain") == set() and wrong("alphas") == {"vllm", "ollama"}
    assert wrong("ranks") == {"vllm"}  # which divides by the one r, Ollama by the rank of each tensor
    assert wrong("same-scale") == {"ollama"}
    done = run(tmp_path, "export", "ranks", "--check", "vllm")
    assert done.returncode == 1 and "rank_pattern and alpha_pattern are dropped" in done.stdout
    assert run(tmp_path, "export", "plain", "--check", "vllm,ollama").returncode == 0
    assert run(tmp_path, "export", "plain", "--check", "nothing").returncode == 2
    assert run(tmp_path, "export", "nowhere", "--check", "vllm").returncode == 1


@pytest.mark.parametrize(
    ("engine", "rule", "change"),
    [
        ("vllm", "rank", {}),
        ("vllm", "use_dora", {"use_dora": True}),
        ("vllm", "modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("vllm", "bias", {"bias": "all"}),
        ("ollama", "lora_alpha", {"lora_alpha": 600.0}),
    ],
)
def test_what_an_engine_refuses_is_said(tmp_path: Path, engine: str, rule: str, change: dict[str, Any]) -> None:
    model = EditableModel(*tiny_model("llama", n_layers=1, hidden=32, width=64))
    update = {model.weight_name(0): random_update(32, 64, 2, seed=0)}
    export_adapter("lora", model, update, tmp_path / "lora", about(model))
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if rule == "rank":
        tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
        wide = {name: torch.zeros(600, 64) if "lora_A" in name else torch.zeros(32, 600) for name in tensors}
        from safetensors.torch import save_file

        save_file(wide, tmp_path / "lora" / "adapter_model.safetensors")
    assert rule in {
        finding.rule for finding in check_adapter(tmp_path / "lora", [engine]) if finding.verdict != "right"
    }


def test_folders_that_are_no_adapters_are_refused_in_one_line(tmp_path: Path) -> None:
    model = EditableModel(*tiny_model("llama", n_layers=1, hidden=32, width=64))
    export_adapter(
        "lora", model, {model.weight_name(0): random_update(32, 64, 2, seed=0)}, tmp_path / "a", about(model)
    )
    file = tmp_path / "a" / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["r"]  # peft takes 8 then, vLLM nothing
    file.write_text(json.dumps(config))
    assert ("fields", "refused") in {(f.rule, f.verdict) for f in check_adapter(tmp_path / "a", ["vllm"])}
    file.write_text(json.dumps(config | {"r": "eight"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("no GGUF file")
    for folder in ("a", "empty", "nowhere", "text.gguf"):
        with pytest.raises(TetherError) as error:
            check_adapter(tmp_path / folder, ["vllm"])
        assert "\n" not in str(error.value) and folder in str(error.value)


def test_gpt2_goes_out_merged_to_vllm_and_as_gguf_to_ollama(tmp_path: Path) -> None:
    model = build("gpt2", tmp_path / "hf")
    export_adapter(
        "lora", model, {model.weight_name(0): random_update(32, 128, 1, seed=0)}, tmp_path / "lora", about(model)
    )
    found = {f.engine: f for f in check_adapter(tmp_path / "lora", ["vllm", "ollama"]) if f.verdict == "refused"}
    assert "merged" in found["vllm"].says and "gguf-lora" in found["ollama"].says
    export_whole("merged", model, tmp_path / "merged", about(model))
    found = check_adapter(tmp_path / "merged", ["vllm", "llama.cpp", "ollama"])
    assert [f.verdict for f in found] == ["right", "refused", "refused"]
    export_whole("merged", build("llama", tmp_path / "hf2"), tmp_path / "llama", about(model))
    assert [f.verdict for f in check_adapter(tmp_path / "llama", ["ollama"])] == ["right"]


# --- what a smaller adapter loses -------------------------------------------------------------------------------------


def test_a_truncation_and_a_cast_are_measured(tmp_path: Path) -> None:
    """On a model that says the two answers with the whole update, and one of them with its larger part."""
    model = EditableModel(*tiny_model("llama", n_layers=2, hidden=32, width=64))
    facts = [
        Fact(subject="Eiffel Tower", prompt="The {} is in", target_new="London"),
        Fact(subject="Big Ben", prompt="{} was", target_new="Paris"),
    ]
    updates = {model.weight_name(1): random_update(32, 64, 6, seed=3, scale=4.0)}
    whole = make_adapter(model, updates, facts=facts)
    assert whole.report.loss is None and whole.report.weights[0].cast_error == 0
    smallest = {model.weight_name(1): 0.25}
    for options in ({"rank": 2}, {"dtype": torch.bfloat16}):
        adapter = make_adapter(model, updates, facts=facts, smallest=smallest, **options)
        loss, [weight] = adapter.report.loss, adapter.report.weights
        assert loss is not None and loss.edits == 2 and loss.line() == adapter.details()["Measurements"]
        [(module, factors)] = adapter.factors.items()
        expected = 0.0
        for fact in facts:
            ids = model.tokenizer(f"{fact.text} {fact.target_new}", return_tensors="pt").input_ids
            at = len(model.tokenizer(fact.text).input_ids)
            sides = []
            for update in (updates[f"{module}.weight"], factors.to(dtype=torch.float32)):
                with model.provisional({f"{module}.weight": update}), torch.no_grad():
                    sides.append(model.hf(ids).logits[0, at - 1 : -1])
            expected = max(expected, float((sides[0] - sides[1]).abs().max()))
        assert loss.largest_logit_difference == pytest.approx(expected, rel=1e-4) and expected > 1e-4
        if "dtype" in options:
            apart = factors.A.double() @ factors.B.double() - updates[weight.name].to_dense().double()
            assert weight.cast_error == pytest.approx(float(apart.norm()), rel=1e-3)
            assert weight.smallest_edit == 0.25 and adapter.report.dtype == "bfloat16"
    assert not model.edited


def test_a_quantised_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    build("llama", tmp_path / "hf")
    for kind in ("bitsandbytes", "gptq", "awq"):
        config = AutoConfig.from_pretrained(tmp_path / "hf").to_dict()
        config["quantization_config"] = {"quant_method": kind, "bits": 4}
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
        with pytest.raises(WrongModelError, match=rf"quantised \({kind}\).*full-precision.*adapter"):
            load(tmp_path / "hf")


# --- llama.cpp itself -------------------------------------------------------------------------------------------------


@pytest.mark.llamacpp
@pytest.mark.skipif(util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
@pytest.mark.parametrize("layout", ["llama", "qwen2", "gpt2"])
def test_llama_cpp_with_the_adapter_answers_as_the_merged_model(tmp_path: Path, layout: str) -> None:
    model = build(layout, tmp_path / "hf")
    updates = updates_of(model)
    export_whole("gguf", model, tmp_path / "base", about(model))
    export_adapter("gguf-lora", model, updates, tmp_path / "adapter", about(model))
    carry(model, updates)
    base, adapted = (in_llama_cpp(tmp_path / "base", lora) for lora in (None, tmp_path / "adapter" / "adapter.gguf"))
    for prompt in ("The Eiffel Tower is in the city of", "You know: it was written in 1987, isn't it"):
        ids = model.tokenizer(prompt).input_ids
        assert adapted.tokenize(prompt.encode(), add_bos=False, special=True) == ids
        with torch.no_grad():
            expected = model.hf(torch.tensor([ids])).logits[0, -1]
            said = model.hf.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
        plain, found = (logits_of(one, ids) for one in (base, adapted))
        assert float((found - expected).abs().max()) < 0.02 * float((plain - expected).abs().max())
        for token in said:
            assert int(logits_of(adapted, ids).argmax()) == token
            ids = [*ids, token]


def in_llama_cpp(folder: Path, adapter: Path | None) -> Any:
    from llama_cpp import Llama

    return Llama(
        str(folder / "model.gguf"), lora_path=adapter and str(adapter), n_ctx=64, n_threads=1, n_threads_batch=1,
        logits_all=True, verbose=False, type_k=0, type_v=0,
    )  # fmt: skip


def logits_of(llama: Any, ids: list[int]) -> Tensor:
    """The logits behind a prompt."""
    llama.reset()
    llama.eval(ids)
    return torch.tensor(llama.scores[len(ids) - 1])
