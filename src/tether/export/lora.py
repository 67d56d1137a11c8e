"""The edits as a LoRA adapter of peft, in the one form that every engine which reads such adapters loads right."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from tether.algebra.lowrank import LowRank
from tether.errors import MissingExtraError, TetherError
from tether.export.adapter import Adapter, LoraReport, make_adapter
from tether.export.folder import new_folder, write_card_and_manifest
from tether.models.editable import EditableModel
from tether.models.load import published_name


def export_lora(
    model: EditableModel,
    updates: Mapping[str, LowRank],
    to: str | Path,
    card: str,
    manifest: Mapping[str, object],
    rank: int | None = None,
    *,
    base_name: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> LoraReport:
    """Write a peft adapter of `updates` (weight name -> out×in update) for the unedited model; `model` is not changed.

    The factors are `make_adapter`'s, the folder `write_lora`'s; `to` must not exist or be empty. Raises as both.
    """
    adapter = make_adapter(model, updates, rank=rank, dtype=dtype)
    with new_folder(to) as folder:
        write_lora(adapter, model, folder, base_name=base_name)
        write_card_and_manifest(folder, card, manifest)
    return adapter.report


def write_lora(adapter: Adapter, model: EditableModel, folder: Path, *, base_name: str | None = None) -> None:
    """adapter_config.json and adapter_model.safetensors.

    One rank and `lora_alpha = r`, an integer, so that the scale is 1 also for programs that know one rank and one
    alpha; no patterns, no bias; full module paths, which match no other module. `base_name` is written as the base
    model's name; default: `published_name`. Raises MissingExtraError without peft.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError('a LoRA adapter needs peft: install it with pip install "tether[lora]"') from error
    paths = sorted(adapter.factors)
    others = [
        name
        for name, _ in model.hf.named_modules()
        if name not in adapter.factors and any(name.endswith(f".{path}") for path in paths)
    ]
    if others:
        raise TetherError(f"{others[0]} ends as an edited module does, and peft would adapt it too: export merged")
    tensors = {}
    for module, factors in adapter.factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = factors.B  # r×in
        tensors[f"base_model.model.{module}.lora_B.weight"] = factors.A  # out×r
    base, r = base_name or published_name(model), adapter.report.rank
    config = LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base, inference_mode=True,
        revision=model.id.removeprefix(f"{base}@") if model.id.startswith(f"{base}@") else None,
        r=r, lora_alpha=r, target_modules=paths,
        fan_in_fan_out=any(model.is_transposed(f"{module}.weight") for module in paths),
    )  # fmt: skip
    config.save_pretrained(folder)
    written = folder / "adapter_config.json"
    settings = json.loads(written.read_text("utf-8"))
    settings["target_modules"].sort()  # peft writes a set
    written.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
