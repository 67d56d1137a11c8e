"""The edits for llama.cpp and what is built on it: an adapter, or the whole edited model, as a GGUF file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tether.errors import MissingExtraError, TetherError, WrongModelError
from tether.export.adapter import Adapter
from tether.export.folder import refuse_unsound
from tether.models.editable import EditableModel
from tether.models.load import gguf_file, published_name, without_place

ADAPTER, MODEL = "adapter.gguf", "model.gguf"

_SAME_AS = {
    "mistral": "llama",
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
}  # model type -> the architecture that GGUF files give it
_TURNED = ("llama",)  # architectures whose query and key rows lie in another order in GGUF files
_AS_THEY_ARE = ("gpt2", "qwen2", "qwen3", "gemma2", "gemma3")  # those whose attention lies as transformers has it
_WHOLE = {"llama": "silu", "qwen2": "silu", "qwen3": "silu", "gpt2": "gelu_new"}  # written whole, with this activation
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {  # how a tokenizer splits text before its merges -> what llama.cpp calls that
    None: "gpt-2",  # as byte-level BPE does by itself
    rf"{_WORDS}\p{{N}}{_REST}": "qwen2",
    rf"{_WORDS}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
}
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_qkv")


@dataclass(frozen=True)
class _Names:
    """What a GGUF file of the model's architecture calls its parameters, and how they lie in it."""

    architecture: str
    known: Any  # the library's map
    heads: int
    heads_kv: int

    def of(self, parameter: str) -> str:
        """`model.layers.5.mlp.down_proj.weight` -> `blk.5.ffn_down.weight`."""
        path, _, kind = parameter.rpartition(".")
        name = self.known.get_name(path)
        if name is None:
            raise TetherError(
                f"{parameter} has no name in GGUF files of {self.architecture}: export merged, and convert that"
            )
        return f"{name}.{kind}"

    def placed(self, name: str, rows: Tensor) -> Tensor:
        """The rows of a weight, of a bias or of an adapter's out×r factor, in the order the file has them."""
        kind = name.split(".")[-2]
        if self.architecture in _TURNED and kind in ("attn_q", "attn_k"):
            heads = self.heads if kind == "attn_q" else self.heads_kv
            size = rows.shape[0] // heads
            return rows.reshape(heads, 2, size // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
        if kind in _ATTENTION and self.architecture not in (*_TURNED, *_AS_THEY_ARE):
            raise TetherError(
                f"{name}: how attention lies in GGUF files of {self.architecture} is not known here; export merged, "
                "and convert that"
            )
        return rows


def _names(model: EditableModel) -> _Names:
    gguf = _library()
    config = model.hf.config.get_text_config()
    source = gguf_file(model)
    kind = _SAME_AS.get(config.model_type, config.model_type)
    architecture = kind if source is None else str(_value(gguf.GGUFReader(source), "general.architecture"))
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise TetherError(f"GGUF files have no architecture {architecture!r} that is known here: export merged")
    heads = config.num_attention_heads
    heads_kv = getattr(config, "num_key_value_heads", None) or heads
    names = gguf.get_tensor_name_map(known[architecture], model.n_layers)
    return _Names(architecture, names, heads, heads_kv)


def write_gguf_adapter(adapter: Adapter, model: EditableModel, folder: Path, *, base_name: str | None = None) -> None:
    """adapter.gguf: `NAME.lora_a` (r×in) and `NAME.lora_b` (out×r) of every edited weight, and an alpha of r, which
    llama.cpp divides by the rank of each tensor.

    Weights lie out×in in every GGUF file, so a layout that stores them in×out needs nothing of its own here. Raises
    MissingExtraError without the gguf package, TetherError for a weight that GGUF files have no name for.
    """
    gguf = _library()
    names = _names(model)
    writer = gguf.GGUFWriter(None, names.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter.report.rank))
    writer.add_string(gguf.Keys.General.BASE_MODEL_NAME.format(id=0), base_name or without_place(published_name(model)))
    for module, factors in adapter.factors.items():
        name = names.of(f"{module}.weight")
        _add(writer, f"{name}.lora_a", factors.B)
        _add(writer, f"{name}.lora_b", names.placed(name, factors.A))
    _write(writer, folder / ADAPTER)


def write_gguf_model(model: EditableModel, folder: Path) -> None:
    """model.gguf: the model with the edits it carries.

    Of a model that came from a GGUF file everything is taken over as it lies there, tokenizer and quantised weights
    included, but for the edited weights, which are written in float32. Any other model is written in its own dtype
    (vectors in float32), with a byte-level BPE tokenizer of one of the known splits. Raises MissingExtraError without
    the gguf package, TetherError in one line for a layout or a tokenizer that is not written here, and as
    `refuse_unsound`.
    """
    gguf = _library()
    refuse_unsound(model)
    names = _names(model)
    writer = gguf.GGUFWriter(None, names.architecture)
    with _shape_errors(model):
        source = gguf_file(model)
        if source is not None:
            _take_over(writer, gguf.GGUFReader(source), model, names)
        else:
            _add_settings(writer, model, names)
            _add_tokenizer(writer, model)
            _add_weights(writer, model, names)
    _write(writer, folder / MODEL)


def _take_over(writer: Any, reader: Any, model: EditableModel, names: _Names) -> None:
    gguf = _library()
    for field in reader.fields.values():
        held = field.contents()
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE or held == []:
            continue
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(field.name, held, field.types[0], field.types[-1] if array else None)
    edited = {names.of(name): name for name in model.edited}
    for tensor in reader.tensors:
        parameter = edited.pop(tensor.name, None)
        if parameter is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        lies = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if not torch.equal(lies.to(model.dtype).float(), names.placed(tensor.name, model.original(parameter).cpu())):
            raise WrongModelError(
                f"{tensor.name} of the GGUF file is not the unedited {parameter}: load that file anew"
            )
        _add(writer, tensor.name, names.placed(tensor.name, model.weight(parameter).float()))
    if edited:
        raise TetherError(f"{min(edited)} is not in the GGUF file that the model came from: export merged")


def _add_settings(writer: Any, model: EditableModel, names: _Names) -> None:
    config, kind = model.hf.config.get_text_config(), names.architecture
    act = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if kind not in _WHOLE:
        rule = f"models of {', '.join(_WHOLE)} are written whole, and others that came from a GGUF file"
        raise TetherError(f"{kind}: {rule}; export merged, and convert that")
    if act != _WHOLE[kind] or rope.get("rope_type", "default") != "default":
        what = f"activation {act}, positions {rope.get('rope_type', 'learned')}"
        raise TetherError(f"{what}: {kind} in GGUF files is written here with others; export merged, and convert that")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(Path(published_name(model)).name)
    writer.add_context_length(model.limit)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(model.n_layers)
    writer.add_feed_forward_length(model.weight(model.weight_name(0)).shape[1])
    writer.add_head_count(names.heads)
    writer.add_head_count_kv(names.heads_kv)
    writer.add_vocab_size(_rows(model))
    if rope:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(rope["rope_theta"])
        for add in (writer.add_rope_dimension_count, writer.add_key_length, writer.add_value_length):
            add(head)
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _add_tokenizer(writer: Any, model: EditableModel) -> None:
    """Byte-level BPE; the ids that no token has are filled up to the rows of the embeddings."""
    gguf, tokenizer = _library(), model.tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    made, splits = backend["model"], _splits(backend)
    if splits is None:
        raise TetherError(
            f"the tokenizer of {model.id} is no byte-level BPE that splits text as GPT-2's, Llama 3's or Qwen2's, and "
            "only these are written to a GGUF file: load the model from its own .gguf, whose tokenizer is taken over, "
            "or export merged, and convert that"
        )
    kinds = gguf.TokenType
    added = {token["id"]: token for token in backend["added_tokens"]}
    words = {place: word for word, place in made["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    tokens, types = [], []
    for i in range(_rows(model)):
        special = kinds.CONTROL if i in added and added[i]["special"] else kinds.USER_DEFINED
        tokens.append(words.get(i, f"[PAD{i}]"))
        types.append(kinds.UNUSED if i not in words else special if i in added else kinds.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in made["merges"]])
    for kind in ("bos", "eos", "unk", "pad"):
        place = getattr(tokenizer, f"{kind}_token_id")
        if place is not None:
            getattr(writer, f"add_{kind}_token_id")(place)
    begins = tokenizer("a").input_ids[0]
    writer.add_add_bos_token(begins == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _splits(backend: Mapping[str, Any]) -> str | None:
    """What llama.cpp calls the way in which a tokenizer splits text; None for one that is written in no GGUF file."""
    steps, made = backend["pre_tokenizer"] or {}, backend["model"]
    parts = steps.get("pretokenizers", [steps])
    pattern = parts[0]["pattern"].get("Regex") if len(parts) == 2 and parts[0].get("type") == "Split" else None
    last = parts[-1]
    bytewise = (
        last.get("type") == "ByteLevel" and not last["add_prefix_space"] and last["use_regex"] is (pattern is None)
    )
    found = _SPLITS.get(pattern) if len(parts) == (1 if pattern is None else 2) else None
    as_it_merges = bool(made.get("ignore_merges")) == (found == "llama-bpe")
    composes = (backend["normalizer"] or {}).get("type") in (None, "NFC")
    return found if made["type"] == "BPE" and bytewise and as_it_merges and composes else None


def _add_weights(writer: Any, model: EditableModel, names: _Names) -> None:
    head = model.hf.get_output_embeddings()
    tied = head is not None and head.weight is model.hf.get_input_embeddings().weight
    for parameter, tensor in model.hf.named_parameters():
        name = names.of(parameter)
        if tied and name == "output.weight":
            continue
        weight = model.weight(parameter) if tensor.ndim == 2 and parameter.endswith(".weight") else tensor.float()
        _add(writer, name, names.placed(name, weight))


def _rows(model: EditableModel) -> int:
    return int(model.hf.get_input_embeddings().weight.shape[0])


def _add(writer: Any, name: str, tensor: Tensor) -> None:
    """A tensor in its own dtype; numpy has no bfloat16, so the library casts."""
    gguf = _library()
    kinds = gguf.GGMLQuantizationType
    kind = {torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}.get(tensor.dtype, kinds.F32)
    data = tensor.detach().cpu().float().contiguous().numpy()
    writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)


def _write(writer: Any, file: Path) -> None:
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


@contextmanager
def _shape_errors(model: EditableModel) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError) as error:
        raise TetherError(f"{model.id} has no {error} as other models of its layout: export merged") from error


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError('a GGUF file needs gguf: install it with pip install "tether[gguf]"') from error
    return gguf
