"""The edits as a LoRA adapter: ΔW = B·A is what a sum of edits already is."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError, MissingExtraError, TetherError
from tether.export.folder import new_folder, write_card_and_manifest
from tether.models.editable import EditableModel
from tether.models.load import published_name

logger = logging.getLogger(__name__)

LARGE_RANK = 512  # above it most programs that serve adapters refuse one


@dataclass(frozen=True)
class LoraWeight:
    """One adapted weight: its rank in the adapter, and ‖dropped part‖/‖update‖ in both norms."""

    name: str
    rank: int
    error_frobenius: float
    error_spectral: float


@dataclass(frozen=True)
class LoraReport:
    """What the adapter holds, and the weights left out because their update is zero."""

    weights: tuple[LoraWeight, ...]
    left_out: tuple[str, ...]


def export_lora(
    model: EditableModel,
    updates: Mapping[str, LowRank],
    to: str | Path,
    card: str,
    manifest: Mapping[str, object],
    rank: int | None = None,
    *,
    base_name: str | None = None,
) -> LoraReport:
    """Write a peft adapter of `updates` (weight name -> out×in update) for the unedited model; `model` is not changed.

    Each update is compressed to its numerical rank in float64, in which nothing is lost that float32 factors hold, or
    to at most `rank` where that is less: the report says what was lost. All weights have one rank in the file, the
    largest, filled with zeros, and `lora_alpha = r`, so that the scaling is 1 also for programs that know one rank and
    one alpha. `base_name` is written as the base model's name; default: `published_name`. `to` must not exist or be
    empty.
    Raises MissingExtraError without peft, BadSettingsError for a rank below 1, TetherError for an update that is zero
    everywhere or not finite.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError('a LoRA adapter needs peft: install it with pip install "tether[lora]"') from error
    if rank is not None and rank < 1:
        raise BadSettingsError(f"rank {rank}: an adapter has a rank of at least 1; give none to keep all")

    parts: dict[str, LowRank] = {}
    kept: dict[str, LoraWeight] = {}
    for name, update in updates.items():
        module = name.removesuffix(".weight")
        if not (model.is_transposed(name) or isinstance(model.hf.get_submodule(module), nn.Linear)):
            raise TetherError(f"{name} is no weight of a linear layer: no adapter can hold its update; export merged")
        if update.shape != tuple(model.weight(name).shape):
            raise ValueError(f"update {update.shape} does not fit {name}, which is {tuple(model.weight(name).shape)}")
        weight, factors = _compress(name, update, rank)
        if weight.rank == 0:
            continue
        kept[module], parts[module] = weight, factors
        if weight.rank > LARGE_RANK:
            logger.warning(
                "%s has an update of rank %d: many programs take adapters of at most %d; give a rank, or export merged",
                name, weight.rank, LARGE_RANK,
            )  # fmt: skip
    if not kept:
        raise TetherError("every update is zero: there is nothing to put in an adapter; apply edits first")

    r = max(weight.rank for weight in kept.values())
    tensors: dict[str, Tensor] = {}
    for module, factors in parts.items():
        missing = r - factors.rank
        tensors[f"base_model.model.{module}.lora_A.weight"] = pad(factors.B, (0, 0, 0, missing)).contiguous()  # r×in
        tensors[f"base_model.model.{module}.lora_B.weight"] = pad(factors.A, (0, missing)).contiguous()  # out×r
    base = base_name or published_name(model)
    config = LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base, inference_mode=True,
        revision=model.id.removeprefix(f"{base}@") if model.id.startswith(f"{base}@") else None,
        r=r, lora_alpha=r, target_modules=list(kept),
        fan_in_fan_out=any(model.is_transposed(weight.name) for weight in kept.values()),
    )  # fmt: skip
    with new_folder(to) as folder:
        config.save_pretrained(folder)
        written = folder / "adapter_config.json"
        settings = json.loads(written.read_text("utf-8"))
        settings["target_modules"].sort()  # peft writes a set
        written.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        write_card_and_manifest(folder, card, manifest)
    left_out = tuple(name for name in updates if name.removesuffix(".weight") not in kept)
    return LoraReport(tuple(kept.values()), left_out)


def _compress(name: str, update: LowRank, rank: int | None) -> tuple[LoraWeight, LowRank]:
    update = update.to("cpu", torch.float32)
    if not bool(update.A.isfinite().all() and update.B.isfinite().all()):
        raise TetherError(f"the update of {name} is not finite: undo the last edits or restrain them, then export")
    factors = update.truncate(rtol=torch.finfo(torch.float64).eps * max(update.shape))
    if rank is not None and rank < factors.rank:
        factors = update.truncate(rank)
    s, k = update.singular_values(), factors.rank
    if k == 0 or k == s.numel():
        return LoraWeight(name, k, 0.0, 0.0), factors
    return LoraWeight(name, k, float(s[k:].norm() / s.norm()), float(s[k] / s[0])), factors
