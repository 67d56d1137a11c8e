"""What an engine that people deploy with would do with a folder, read as its loader reads it; the engine is not run.

for finding in check_adapter("adapter", ["vllm", "ollama"]):
    print(finding.line())
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tether.errors import BadSettingsError, MissingExtraError, TetherError
from tether.export.adapter import RANKS
from tether.export.manifest import MANIFEST
from tether.models.checkpoint_files import stored_tensors

Verdict = Literal["right", "wrong", "refused", "unknown"]
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_NO_LORA = ("gpt2", "gpt_neox", "gptj", "falcon")  # model types that vLLM serves without adapters (0.14)
_OLLAMA = {"llama": "llama", "mistral": "llama", "gemma2": "gemma2"}  # model type -> architecture of a safetensors one
_OLLAMA_WHOLE = ("llama", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3", "qwen2", "cohere")  # that it converts
_TRANSPOSED = ("gpt2",)  # model types whose adapters the converter of llama.cpp turns round


@dataclass(frozen=True)
class Finding:
    """What one engine does by one of its rules: `right`, `wrong` (it loads and answers otherwise than the edited
    model), `refused` (an error, or no way to load it), `unknown` (the folder does not tell)."""

    engine: str
    rule: str
    verdict: Verdict
    says: str

    def line(self) -> str:
        """As a person reads it."""
        return f"{self.engine}: {self.rule}: {self.verdict}: {self.says}"


@dataclass(frozen=True)
class _Folder:
    """An adapter as it lies on disk. `factors` are the shapes of A and B by module, `strange` tensors of other
    names."""

    form: str
    config: Mapping[str, Any]
    factors: Mapping[str, dict[str, tuple[int, ...]]]
    strange: Sequence[str]
    model_type: str | None
    layers: int | None
    facts: Mapping[str, Any]

    def scales(self) -> dict[str, tuple[float, float, int]]:
        """By module the scale that peft means, the file's one alpha, and the rank of the module's tensors."""
        r, alpha = self.rank, float(self.config.get("lora_alpha", 8))  # as peft where they are missing
        found = {}
        for module, shapes in self.factors.items():
            rank, own = (_pattern(self.config.get(key), module) for key in ("rank_pattern", "alpha_pattern"))
            divisor = rank or r
            meant = float(own if own is not None else alpha) / (divisor**0.5 if self.rooted else divisor)
            found[module] = (meant, alpha, shapes["A"][0])
        return found

    @property
    def rank(self) -> float:
        return float(self.config.get("r", 8))

    @property
    def rooted(self) -> bool:
        return bool(self.config.get("use_rslora"))


def check_adapter(folder: str | Path, engines: Sequence[str]) -> list[Finding]:
    """One Finding a rule for every engine of ENGINES. The folder is an adapter of peft, of mlx-lm or a GGUF file, or
    merged weights, written here or by others; of its base model, what its manifest or its base's folder says is known.

    Raises BadSettingsError for an engine that is not known, TetherError for a folder that is none of these.
    """
    strange = [engine for engine in engines if engine not in ENGINES]
    if strange:
        raise BadSettingsError(f"engine {strange[0]!r}: choose {', '.join(ENGINES)}")
    read = _read(Path(folder))
    if read.form in ("merged", "gguf"):
        return [Finding(engine, "form", *_whole(engine, read)) for engine in engines]
    return [Finding(engine, *rest) for engine in engines for rest in ENGINES[engine](read)]


_Rest = tuple[str, Verdict, str]  # a Finding without its engine


def _whole(engine: str, read: _Folder) -> tuple[Verdict, str]:
    takes = {"merged": ("vllm", "ollama", "mlx"), "gguf": ("llama.cpp", "ollama")}[read.form]
    if engine not in takes:
        instead = "gguf" if read.form == "merged" else "merged"
        return "refused", f"it does not load {read.form} weights: export --as {instead}"
    if (engine, read.form) == ("ollama", "merged") and read.model_type not in _OLLAMA_WHOLE:
        return "refused", f"safetensors of {read.model_type} models are not converted: export --as gguf"
    return "right", "whole weights, to which no rule of adapters applies"


def _vllm(read: _Folder) -> Iterator[_Rest]:
    if read.form != "lora":
        yield "form", "refused", f"it loads adapters of peft, and this is {read.form}: export --as lora"
        return
    missing = [key for key in ("r", "lora_alpha", "target_modules") if key not in read.config]
    if missing:
        yield "fields", "refused", f"adapter_config.json has no {missing[0]}"
    kind = read.model_type
    if kind in _NO_LORA:
        yield "base", "refused", f"it has no adapters for {kind} models: export --as merged"
    elif kind is None:
        yield "base", "unknown", "the folder does not say what model it is for"
    else:
        yield "base", "right", f"a {kind} model"
    rank = max([int(read.rank), *(rank for _, _, rank in read.scales().values())])
    step = next((step for step in RANKS if step >= rank), None)
    if step is None:
        yield "rank", "refused", f"rank {rank} is above {RANKS[-1]}: truncate it (--rank), or export --as merged"
    else:
        yield "rank", "right", f"serve it with --max-lora-rank {step}"
    divisor = read.rank**0.5 if read.rooted else read.rank
    off = [module for module, (meant, alpha, _) in read.scales().items() if not _close(meant, alpha / divisor)]
    yield _scale(off, "rank_pattern and alpha_pattern are dropped in silence; one lora_alpha / r serves every module")
    yield from _plain(read)


def _ollama(read: _Folder) -> Iterator[_Rest]:
    if read.form == "gguf-lora":
        yield from _llama_cpp(read)
        return
    if read.form != "lora":
        yield "form", "refused", f"its ADAPTER takes peft's safetensors or a GGUF adapter, and this is {read.form}"
        return
    kind = read.model_type
    if kind is None:
        yield "base", "unknown", "the folder does not say what model it is for; only llama and gemma2 are converted"
    elif kind in _OLLAMA:
        yield "base", "right", f"converted as {_OLLAMA[kind]}"
    else:
        yield "base", "refused", f"adapters of {kind} are not converted: export --as gguf-lora"
    alpha = read.config.get("lora_alpha")
    if isinstance(alpha, int) and alpha > 0:
        yield "lora_alpha", "right", f"{alpha}, an integer"
    else:
        yield "lora_alpha", "refused", f"{alpha!r} is read as an unsigned integer: write lora_alpha as one"
    yield _scale(_off_by_tensor(read), "patterns are ignored; lora_alpha is divided by the rank of each tensor")
    yield from _plain(read)


def _llama_cpp(read: _Folder) -> Iterator[_Rest]:
    if read.form == "lora":
        if read.model_type in _TRANSPOSED:
            yield "base", "wrong", f"its converter swaps A and B of {read.model_type}: export --as gguf-lora"
        yield "form", "refused", "it loads GGUF adapters, after a conversion: export --as gguf-lora"
        return
    if read.form != "gguf-lora":
        yield "form", "refused", f"it loads GGUF adapters, and this is {read.form}: export --as gguf-lora"
        return
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        found = read.facts.get(key)
        right = found == wanted
        yield key, "right" if right else "refused", f"{found}" if right else f"{found!r}: it must be {wanted!r}"
    base = read.facts.get("general.architecture")
    yield (
        "base",
        "right" if base else "refused",
        f"for models whose general.architecture is {base!r}",
    )
    alpha = read.facts.get("adapter.lora.alpha")
    if alpha is None:
        yield "adapter.lora.alpha", "refused", "missing"
    elif alpha == 0:
        yield "adapter.lora.alpha", "wrong", "0 stands for a scale of 1, whatever was meant"
    else:
        ranks = sorted({shapes["A"][0] for shapes in read.factors.values()})
        says = f"scale {', '.join(f'{alpha / rank:g}' for rank in ranks)}"
        one = len(ranks) == 1
        yield "adapter.lora.alpha", "right" if one else "unknown", says if one else f"{says}, by the rank of a tensor"
    if read.strange:
        yield "tensors", "refused", f"{read.strange[0]} is no lora_a or lora_b of a pair"
    else:
        yield "tensors", "right", f"{len(read.factors)} pairs of lora_a and lora_b"


def _mlx(read: _Folder) -> Iterator[_Rest]:
    if read.form != "mlx":
        yield "form", "refused", f"its loader wants num_layers and lora_parameters, and this is {read.form}: --as mlx"
        return
    parameters = read.config.get("lora_parameters")
    if "num_layers" not in read.config:
        yield "num_layers", "refused", "missing"
        return
    needed = ("rank", "scale", "dropout")
    if not isinstance(parameters, dict) or any(name not in parameters for name in needed):
        yield "lora_parameters", "refused", f"must have {', '.join(needed)}"
        return
    yield "scale", "right", f"lora_a · lora_b times {parameters['scale']:g}, not alpha / r"
    rank = parameters["rank"]
    other = [module for module, shapes in read.factors.items() if (shapes["A"][1], shapes["B"][0]) != (rank, rank)]
    if other:
        yield "rank", "wrong", f"{other[0]} does not have the one rank {rank}"
    else:
        yield "rank", "right", f"{rank} for every module"
    layers, keys = read.layers, parameters.get("keys")
    outside = []
    for module in read.factors:
        block, _, path = module.removeprefix("model.layers.").partition(".")
        early = layers is not None and block.isdecimal() and int(block) < layers - int(read.config["num_layers"])
        if early or not module.startswith("model.layers.") or not block.isdecimal() or path not in (keys or ()):
            outside.append(module)
    if outside or read.strange:
        name = (outside or list(read.strange))[0]
        yield (
            "names",
            "wrong",
            f"{name} is skipped in silence: no key names it, or num_layers, counted from the end, does not reach it",
        )
    elif layers is None:
        yield "names", "unknown", "how many blocks the model has is not said, and num_layers counts from the end"
    else:
        yield "names", "right", f"every module is in the last {read.config['num_layers']} blocks and among the keys"


ENGINES = {"vllm": _vllm, "ollama": _ollama, "mlx": _mlx, "llama.cpp": _llama_cpp}


def _scale(off: Sequence[str], how: str) -> _Rest:
    if not off:
        return "scale", "right", how.partition(";")[2].strip() or how
    return "scale", "wrong", f"{how}, so {off[0]}{f' and {len(off) - 1} more' if off[1:] else ''} gets another scale"


def _off_by_tensor(read: _Folder) -> list[str]:
    return [module for module, (meant, alpha, rank) in read.scales().items() if not _close(meant, alpha / rank)]


def _plain(read: _Folder) -> Iterator[_Rest]:
    """What is common to engines that know plain LoRA alone."""
    named = {"bias": "none", "modules_to_save": None, "use_dora": False}
    for key, plain in named.items():
        found = read.config.get(key)
        if found not in (plain, None, False, []):
            yield key, "refused", f"{found!r}: it must be {plain!r}"
    if read.strange:
        yield "tensors", "refused", f"{read.strange[0]} is no lora_A or lora_B of a pair"
    else:
        yield "tensors", "right", f"{len(read.factors)} pairs of lora_A and lora_B"


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def _pattern(patterns: Any, module: str) -> float | None:
    """The value of the first pattern that a module's path ends with, as peft matches them."""
    matches = (value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module))
    return next(matches, None)


# --- reading --------------------------------------------------------------------------------------------------------


def _read(folder: Path) -> _Folder:
    manifest, config = _json(folder / MANIFEST), _json(folder / "adapter_config.json")
    base = _json(Path(str(config.get("base_model_name_or_path", ""))) / "config.json")
    said = manifest.get("base")
    made_for: dict[str, Any] = said if isinstance(said, dict) else {}
    kind = made_for.get("model_type") or base.get("model_type")
    layers = made_for.get("layers")
    ggufs = sorted(folder.glob("*.gguf")) if folder.is_dir() else [folder] if folder.suffix == ".gguf" else []
    if (folder / "adapter_model.safetensors").is_file():
        if any(not isinstance(config.get(key, 8), int | float) or config.get(key) == 0 for key in ("r", "lora_alpha")):
            raise TetherError(
                f"{folder / 'adapter_config.json'}: r and lora_alpha must be numbers above 0; mend that file"
            )
        pairs, strange = _pairs(folder)
        return _Folder("lora", config, pairs, strange, kind, layers, {})
    if (folder / "adapters.safetensors").is_file():
        pairs, strange = _pairs(folder)
        return _Folder("mlx", config, pairs, strange, kind, layers, {})
    if (folder / "config.json").is_file():
        kind = _json(folder / "config.json").get("model_type") or kind
        return _Folder("merged", config, {}, (), kind, layers, {})
    if ggufs:
        return _gguf(ggufs[0], kind, layers)
    raise TetherError(
        f"{folder} is no adapter: it needs adapter_config.json with adapter_model.safetensors or adapters.safetensors, "
        "or a .gguf file"
    )


def _pairs(folder: Path) -> tuple[dict[str, dict[str, tuple[int, ...]]], list[str]]:
    """The shapes of A and B by module, and the names of all other tensors."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    strange = []
    for name, stored in stored_tensors(folder).items():
        matched = _TENSOR.fullmatch(name) or re.fullmatch(r"(?P<module>.+)\.lora_(?P<side>[ab])", name)
        if matched is None:
            strange.append(name)
        else:
            found.setdefault(matched["module"], {})[matched["side"].upper()] = stored.shape
    return _whole_pairs(found, strange)


def _whole_pairs(
    found: dict[str, dict[str, tuple[int, ...]]], strange: list[str]
) -> tuple[dict[str, dict[str, tuple[int, ...]]], list[str]]:
    halves = [module for module, shapes in found.items() if len(shapes) < 2]
    return {module: shapes for module, shapes in found.items() if module not in halves}, strange + halves


def _gguf(file: Path, kind: str | None, layers: int | None) -> _Folder:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError('a GGUF file needs gguf: install it with pip install "tether[gguf]"') from error
    try:
        reader = GGUFReader(file)
    except (OSError, ValueError) as error:
        raise TetherError(f"{file} is no GGUF file ({error}): export it anew") from error
    facts = {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
    if facts.get("general.type") == "model":
        return _Folder("gguf", {}, {}, (), kind, layers, facts)
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    strange = []
    for tensor in reader.tensors:
        module, _, side = tensor.name.rpartition(".lora_")
        if side in ("a", "b"):
            found.setdefault(module, {})[side.upper()] = tuple(int(n) for n in reversed(tensor.shape))
        else:
            strange.append(tensor.name)
    return _Folder("gguf-lora", {}, *_whole_pairs(found, strange), kind, layers, facts)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
