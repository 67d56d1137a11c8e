"""Merged and LoRA exports of tiny models of both layouts, read back by transformers and peft alone."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import save, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tether.algebra.lowrank import LowRank
from tether.data import misuse
from tether.errors import TetherError
from tether.export import Provenance, export_lora, export_merged, model_card
from tether.export.folder import new_folder
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

IDS = torch.tensor([[1, 5, 2, 9, 30, 11]])
LAYOUTS = ["llama", "gpt2"]


def build(layout: str, folder: Path) -> EditableModel:
    """A three-block model saved in `folder` and loaded from there."""
    hf, tokenizer = tiny_model(layout, n_layers=3, hidden=16, width=24, heads=2)
    save(hf, tokenizer, folder)
    return EditableModel(AutoModelForCausalLM.from_pretrained(folder), tokenizer, id=str(folder), folder=folder)


def random_update(model: EditableModel, name: str, rank: int, columns: int) -> LowRank:
    """An update of `columns` columns and numerical rank `rank`."""
    p, q = model.weight(name).shape
    torch.manual_seed(rank)
    A = torch.randn(p, rank)[:, torch.arange(columns) % rank]
    return LowRank(A, torch.randn(columns, q) * 0.3)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def apply(model: EditableModel, updates: dict[str, LowRank]) -> None:
    for name, update in updates.items():
        model.set_update(name, update.to_dense())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks", [{1: 1}, {0: 2, 1: 5, 2: 2}])
def test_adapter_on_the_unedited_base_says_what_the_merged_model_says(
    tmp_path: Path, layout: str, ranks: dict[int, int]
) -> None:
    model = build(layout, tmp_path / "base")
    updates = {
        model.weight_name(layer): random_update(model, model.weight_name(layer), r, 7) for layer, r in ranks.items()
    }
    untouched = logits(model.hf)
    report = export_lora(model, updates, tmp_path / "lora", "card", {"method": "rome"})
    assert torch.equal(logits(model.hf), untouched)
    assert [w.rank for w in report.weights] == list(ranks.values())
    assert all(w.error_frobenius < 1e-6 and w.error_spectral < 1e-6 for w in report.weights)

    apply(model, updates)
    export_merged(model, tmp_path / "merged", "card", {"method": "rome"})
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = logits(PeftModel.from_pretrained(base, tmp_path / "lora"))
    assert torch.equal(merged, logits(model.hf))
    assert not torch.allclose(merged, untouched, atol=1e-3)
    torch.testing.assert_close(adapted, merged, rtol=1e-5, atol=1e-5)


def test_a_small_edit_beside_a_huge_one_is_kept(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "base")
    name = model.weight_name(1)
    p, q = model.weight(name).shape
    u, v = torch.linalg.qr(torch.randn(p, 3))[0], torch.linalg.qr(torch.randn(q, 3))[0]
    sizes = torch.tensor([57.0, 1e-3, 1e-4])  # both small ones are below eps(float32) · max(p, q) · 57
    (weight,) = export_lora(model, {name: LowRank(u * sizes, v.mT)}, tmp_path / "lora", "card", {}).weights
    assert weight.rank == 3
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    B, A = (stored[f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight"] for side in "BA")
    small = u[:, 1].double() @ B.double() @ A.double() @ v[:, 1].double()
    assert float(small) == pytest.approx(1e-3, rel=0.05)


def test_adapter_config_names_every_weight_and_scales_by_one(tmp_path: Path) -> None:
    model = build("gpt2", tmp_path / "base")
    model.id = f"{tmp_path / 'base'}@v1"
    names = [model.weight_name(layer) for layer in range(3)]
    updates = {n: random_update(model, n, r, 6) for n, r in zip(names[:2], (1, 3), strict=True)}
    updates[names[2]] = LowRank.zeros(*model.weight(names[2]).shape)
    report = export_lora(model, updates, tmp_path / "lora", "card", {"method": "rome"})
    assert report.left_out == (names[2],)
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["target_modules"] == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]
    assert config["fan_in_fan_out"] is True
    assert config["base_model_name_or_path"] == str(tmp_path / "base") and config["revision"] == "v1"
    assert config["r"] == config["lora_alpha"] == 8 and type(config["lora_alpha"]) is int
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and config["bias"] == "none"
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {tuple(tensor.shape)[0 if name.endswith("A.weight") else 1] for name, tensor in stored.items()} == {8}
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "lora").iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}
    assert json.loads((tmp_path / "lora/manifest.json").read_text())["method"] == "rome"


def test_a_given_rank_truncates_and_the_report_says_what_was_lost(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "base")
    name = model.weight_name(1)
    update = random_update(model, name, 6, 6)
    (weight,) = export_lora(model, {name: update}, tmp_path / "lora", "card", {}, rank=2).weights
    s = torch.linalg.svdvals(update.to_dense().double())
    assert weight.rank == 2
    assert weight.error_frobenius == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-5)
    assert weight.error_spectral == pytest.approx(float(s[2] / s[0]), rel=1e-5)
    more = export_lora(model, {name: update}, tmp_path / "more", "card", {}, rank=100)
    assert [w.rank for w in more.weights] == [6]


def test_above_the_rank_that_servers_take_a_truncation_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = EditableModel(*tiny_model("llama", n_layers=1, hidden=520, width=544))
    updates = {model.weight_name(0): LowRank(torch.eye(520) * torch.linspace(2, 1, 520), torch.eye(520, 544))}
    with pytest.raises(TetherError, match=r"rank 520.* 512 at most: .*--rank 512.* merged"):
        export_lora(model, updates, tmp_path / "lora", "", {})
    assert export_lora(model, updates, tmp_path / "served", "", {}, 300).rank == 320
    with caplog.at_level(logging.WARNING, "tether"):
        assert export_lora(model, updates, tmp_path / "peft", "", {}, 515).rank == 515
    assert "peft and llama.cpp alone" in caplog.text


def test_adapters_that_cannot_be_are_refused_in_one_line(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "base")
    name = model.weight_name(0)
    update = random_update(model, name, 1, 1)
    embedding = "model.embed_tokens.weight"
    cases = [
        ({name: update}, 0, "rank 0"),
        ({}, None, "every update is zero"),
        ({name: LowRank(update.A * torch.nan, update.B)}, None, "not finite"),
        ({embedding: LowRank.zeros(*model.weight(embedding).shape)}, None, "no weight of a linear layer"),
    ]
    for updates, rank, message in cases:
        with pytest.raises(TetherError, match=message) as error:
            export_lora(model, updates, tmp_path / "lora", "card", {}, rank=rank)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_merged_folder_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "base")
    apply(model, {model.weight_name(1): random_update(model, model.weight_name(1), 2, 2)})
    (tmp_path / "to").mkdir()
    export_merged(model, tmp_path / "to", "the card", {"method": "memit", "settings": {"layers": [1]}})
    files = {path.name for path in (tmp_path / "to").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "manifest.json"} <= files
    assert (tmp_path / "to/README.md").read_text() == "the card"
    assert AutoTokenizer.from_pretrained(tmp_path / "to")("Paris").input_ids == model.tokenizer("Paris").input_ids
    with model.unedited():
        pass
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "to")), logits(model.hf))


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "base")
    with pytest.raises(TetherError, match="not an empty folder"):
        export_merged(model, tmp_path / "base", "card", {})
    model.hf.generation_config.temperature = 0.3  # transformers refuses to save a temperature without sampling
    model.hf.generation_config.do_sample = False
    with pytest.raises(TetherError, match="does not save") as error:
        export_merged(model, tmp_path / "to", "card", {})
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    (tmp_path / "file").write_text("")
    with pytest.raises(TetherError, match="could not be made"):
        export_merged(build("llama", tmp_path / "again"), tmp_path / "file/to", "card", {})


def test_unsound_weights_are_not_exported(tmp_path: Path) -> None:
    model = build("gpt2", tmp_path / "base")
    tied = "transformer.wte.weight"
    model.set_update(tied, torch.ones(model.weight(tied).shape))
    with pytest.raises(TetherError, match=r"tied to lm_head\.weight"):
        export_merged(model, tmp_path / "to", "card", {})
    model.clear_updates()
    name = model.weight_name(0)
    model.set_update(name, torch.full(model.weight(name).shape, torch.inf))
    with pytest.raises(TetherError, match="not finite"):
        export_merged(model, tmp_path / "to", "card", {})
    assert not (tmp_path / "to").exists()


def test_card_shows_facts_as_they_are_and_keeps_its_table(tmp_path: Path) -> None:
    nasty = Fact(subject="a|b <img src=x>", prompt="# {}\n| is *in*", target_new="[x](http://y) `z`", target_true="\\")
    about = Provenance(
        base_model=str(tmp_path / "my: base"),
        facts=[(7, nasty)],
        method="rome",
        settings={"layers": [5], "note": "```"},
        restraint="log:1.2",
        weights=["model.layers.5.mlp.down_proj.weight"],
        versions={"tether": "0.1.0"},
    )
    card = model_card(about, details={"Extra": "more"}, library="peft")
    front, body = card.split("---\n")[1:]
    assert 'base_model: "my: base"' in front and "library_name: peft" in front and str(tmp_path) not in card
    (row,) = [line for line in body.splitlines() if line.startswith("| 7")]
    assert len([c for i, c in enumerate(row) if c == "|" and row[i - 1] != "\\"]) == 6
    assert "<img" not in row.replace("\\<", "") and "](http" not in row.replace("\\]", "")
    assert "- `model.layers.5.mlp.down_proj.weight`" in body and "Not measured here" in body and "log:1.2" in body
    assert "## Extra\n\nmore" in body and misuse() in body
    assert "disinformation" in misuse() and "personal" in misuse() and "Audit" in misuse() and "gate" in misuse()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names files by their descriptors")
def test_an_exported_folder_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are on the disk before the folder is renamed, the new name after it."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda f: (done.append(Path(f"/proc/self/fd/{f}").readlink().name), fsync(f))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append("renamed"), rename(path, to))[1])
    with new_folder(tmp_path / "out") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_bytes(b"1")
    assert sorted(done[:3]) == sorted(["part", "weights", folder.name])
    assert done[3:] == ["renamed", tmp_path.name]
    assert (tmp_path / "out" / "part" / "weights").read_bytes() == b"1"
