"""Where a model keeps its blocks and their MLP output projections, found by structure.

    find_anatomy(hf)                                            # Anatomy("model.layers", "mlp.down_proj")
    find_anatomy(hf, {"blocks": "net.h", "projection": "ff.out"})   # a layout that structure does not tell

No name of a model, a class or a module is looked at; the search runs on shapes and signatures alone, also on the meta
device.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tether.errors import WrongModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REMEDY = 'name it: anatomy={"blocks": "...", "projection": "..."} or --anatomy FILE.json with these two keys'


@dataclass(frozen=True)
class Anatomy:
    """Two dotted paths: the ModuleList of blocks, and inside a block the MLP output projection."""

    blocks: str
    projection: str


def find_anatomy(hf: PreTrainedModel, named: Mapping[str, str] | str | Path | None = None) -> Anatomy:
    """The blocks are the one ModuleList of `num_hidden_layers` modules with attention in each; the projection is the
    one Linear or Conv1D in every block, outside the attention, that gives the hidden size and takes the width a module
    beside it gives (or half of that, where gate and up are one matrix). Of several, one that takes fewer values than
    the hidden size is a bottleneck beside the MLP (Gemma 4's per-layer inputs) and is left out.

    `named` (a mapping or the path of a JSON file, keys "blocks" and "projection") is checked and taken instead.
    Raises WrongModelError where nothing or more than one thing fits (a mixture of experts, an encoder), and for
    quantised weights.
    """
    refuse_quantised(hf.config.to_dict(), type(hf).__name__)
    whole = next((n for n, m in hf.named_modules() if _holds_integers(m)), None)
    if whole is not None:
        raise WrongModelError(_quantised(type(hf).__name__, f"{whole} has integer weights"))
    if named is not None:
        return _named(hf, named)
    text = hf.config.get_text_config()
    layers, hidden = text.num_hidden_layers, text.hidden_size
    lists = {
        path: module
        for path, module in hf.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == layers
        and all(any(_is_attention(m) for m in block.modules() if m is not block) for block in module)
    }
    found = {path: projections for path, blocks in lists.items() if (projections := _projections(blocks, hidden))}
    if hf.can_generate() and not hf.config.is_encoder_decoder and len(found) == 1:
        [(path, projections)] = found.items()
        if len(projections) == 1:
            return Anatomy(path, projections[0])
    raise WrongModelError(
        f"layout of {type(hf).__name__} not recognised: looked for a decoder with one list of {layers} blocks with "
        f"attention, each with one Linear or Conv1D outside it that gives {hidden} values and takes the width of a "
        f"module beside it; found {_findings(hf, lists, found)}; {_REMEDY}"
    )


def stored_turned(folder: Path) -> frozenset[str]:
    """The names of the weights that a checkpoint stores in×out (GPT-2's Conv1D), by its config.json and on the meta
    device; none of one that transformers does not know."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return frozenset()
    return frozenset(f"{name}.weight" for name, module in hf.named_modules() if isinstance(module, Conv1D))


def refuse_quantised(config: Mapping[str, Any], name: str) -> None:
    """Raise WrongModelError where a configuration says that the weights are quantised, and not unpacked on loading. One
    of a GGUF file does not tell whether they were: look at the weights."""
    found = config.get("quantization_config") or {}
    method = found.get("quant_method", "see its quantization_config")
    method = getattr(method, "value", method)
    if found and method != "gguf" and not found.get("dequantize"):
        raise WrongModelError(_quantised(name, method))


def _quantised(name: str, why: str) -> str:
    return (
        f"{name} is quantised ({why}), and an update is added to floating-point weights: edit the full-precision "
        "checkpoint it was made from, export the edits as an adapter (--as lora), and serve this one with it"
    )


def _holds_integers(module: nn.Module) -> bool:
    """Whether a module keeps a matrix of integers as its weight: packed by bitsandbytes, GPTQ, AWQ."""
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return any(
        name in ("weight", "qweight") and tensor.ndim == 2 and not tensor.is_floating_point() for name, tensor in held
    )


def feeders(block: nn.Module, projection: str) -> list[str]:
    """Paths of the modules of a block that feed the MLP's output projection: its sibling Linear or Conv1D of the
    projection's input width (Llama's gate and up, GPT-2's c_fc), or of twice that, where gate and up are one matrix."""
    width = _width(block.get_submodule(projection))
    if width is None:
        return []
    parent = projection.rpartition(".")[0]
    return [
        f"{parent}.{name}" if parent else name
        for name, module in block.get_submodule(parent).named_children()
        if (found := _width(module)) and found == (width[1], found[1]) and found[1] in (width[0], 2 * width[0])
        and module is not block.get_submodule(projection)
    ]  # fmt: skip


def _named(hf: PreTrainedModel, named: Mapping[str, str] | str | Path) -> Anatomy:
    where = "anatomy"
    if isinstance(named, str | Path):
        where = str(named)
        try:
            named = json.loads(Path(named).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WrongModelError(f"{where} is no readable JSON file ({error}); {_REMEDY}") from None
    if not isinstance(named, Mapping) or set(named) != {"blocks", "projection"}:
        raise WrongModelError(f"{where} must have exactly the keys 'blocks' and 'projection'; {_REMEDY}")
    if not all(isinstance(path, str) for path in named.values()):
        raise WrongModelError(f"{where} {dict(named)}: both paths must be text; {_REMEDY}")
    anatomy = Anatomy(**named)
    blocks = _get(hf, anatomy.blocks)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        lists = [path for path, module in hf.named_modules() if isinstance(module, nn.ModuleList)]
        raise WrongModelError(f"blocks {anatomy.blocks!r} is no ModuleList of the model: it has {_listed(lists)}")
    hidden = hf.config.get_text_config().hidden_size
    for index, block in enumerate(blocks):
        module = _get(block, anatomy.projection)
        width = _width(module)
        if width is None or width[1] != hidden:
            fits = [p for p, m in block.named_modules() if (found := _width(m)) and found[1] == hidden]
            raise WrongModelError(
                f"projection {anatomy.projection!r} of block {index} is no Linear or Conv1D to the hidden size "
                f"{hidden}: the block has {_listed(fits)}"
            )
    return anatomy


def _projections(blocks: nn.ModuleList, hidden: int) -> list[str]:
    """Paths of what fits the description in every block, without bottlenecks where there is anything else."""
    each = [dict(_candidates(block, hidden)) for block in blocks]
    common = [path for path in each[0] if all(path in found for found in each)]
    return [path for path in common if all(found[path] >= hidden for found in each)] or common


def _candidates(block: nn.Module, hidden: int) -> Iterator[tuple[str, int]]:
    """Path and input width of whatever fits the description in one block."""
    outside = dict(_outside_attention(block))
    # Experts are stacked into tensors of three dimensions or kept in a list: no one matrix holds a token's MLP.
    if any(isinstance(m, nn.ModuleList) or any(p.ndim > 2 for p in m.parameters(False)) for m in outside.values()):
        return
    for path, module in outside.items():
        width = _width(module)
        if width is None or width[1] != hidden:
            continue
        parent = path.rpartition(".")[0]
        beside = [m for m in block.get_submodule(parent).children() if m is not module]
        if any(other is not None and other[1] in (width[0], 2 * width[0]) for other in map(_width, beside)):
            yield path, width[0]


def _outside_attention(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module below this one that is neither an attention nor inside one, with its path."""
    for name, child in module.named_children():
        if not _is_attention(child):
            yield prefix + name, child
            yield from _outside_attention(child, f"{prefix}{name}.")


def _is_attention(module: nn.Module) -> bool:
    return "attention_mask" in inspect.signature(type(module).forward).parameters


def _width(module: nn.Module | None) -> tuple[int, int] | None:
    """(in, out) of a module with one matrix of floating-point weights; None for any other."""
    if isinstance(module, nn.Linear):
        width, stored = (module.in_features, module.out_features), (module.out_features, module.in_features)
    elif isinstance(module, Conv1D):
        width = stored = (module.nx, module.nf)
    else:
        return None
    return width if tuple(module.weight.shape) == stored and module.weight.is_floating_point() else None


def _get(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _findings(hf: PreTrainedModel, lists: Mapping[str, nn.ModuleList], found: Mapping[str, list[str]]) -> str:
    if hf.config.is_encoder_decoder or not hf.can_generate():
        return "a model that is no decoder with a language-model head"
    if not lists:
        others = [f"{p} ({len(m)})" for p, m in hf.named_modules() if isinstance(m, nn.ModuleList)]
        return f"no such list of blocks, but {_listed(others)}"
    if not found:
        return f"blocks {_listed(list(lists))} and no such projection in each of them"
    return "more than one: " + _listed([f"{path}.*.{p}" for path, projections in found.items() for p in projections])


def _listed(names: list[str], most: int = 6) -> str:
    return (", ".join(names[:most]) + (", …" if len(names) > most else "")) or "none"
