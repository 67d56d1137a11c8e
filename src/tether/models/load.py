"""Loading a model: by hub id, from a folder, from a GGUF file, or a bundled one.

    model = tether.load("smollm2")
    model = tether.load("meta-llama/Llama-2-7b-hf", dtype="bfloat16")

Weights come from safetensors alone. A GGUF file is converted once, to float32 safetensors in the cache. The classes
of transformers take seconds to import, so a function that needs one imports it: most commands only read a ledger.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers.utils import cached_file, quantization_config
from transformers.utils import logging as hf_logging

from tether.errors import BadSettingsError, MissingExtraError, WrongModelError, first_line
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import check_states
from tether.models.layout import find_anatomy, refuse_quantised
from tether.storage.cache import built_folder, cache_dir

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

GgufConfig = getattr(quantization_config, "GgufConfig", None)  # earlier versions of transformers always unpack
logger = logging.getLogger(__name__)

_CONVERTER = 1  # part of the cache key: raise it when a conversion gives other files
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    source: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    anatomy: Mapping[str, str] | str | Path | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> EditableModel:
    """A model ready to be edited: in eval mode, no parameter requires a gradient.

    `source`: the name of a bundled model ("smollm2"), a local folder, a .gguf file, or a hub id, "org/name" or
    "org/name@revision"; only a hub id downloads, and not under `local_files_only` (for a name that a file gives, not
    the user) or HF_HUB_OFFLINE.
    `dtype`: None or "auto" keeps the checkpoint's own, on every device.
    `device`: the accelerator where there is one, else the CPU; `device_map` is handed to transformers in its place.
    `anatomy`: names a layout that `find_anatomy` does not recognise.
    Raises WrongModelError for what cannot be found, fetched, read or edited, BadSettingsError for an option that does
    not fit, MissingExtraError for a package that is needed.
    """
    from transformers import AutoTokenizer

    if device is not None and device_map is not None:
        raise BadSettingsError(f"device {device} and device_map {device_map} exclude each other: give one of them")
    if device_map is not None and util.find_spec("accelerate") is None:
        raise MissingExtraError(f"device_map {device_map} needs accelerate: pip install 'tether[device-map]'")
    wanted = _dtype(dtype)
    where = None if device_map is not None else _device(device)
    name = str(source)
    folder = _local_folder(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if folder is None:
        name, _, tag = name.partition("@")
        revision = revision or tag or None
        folder = _snapshot(name, revision, local_files_only)
        # Fetch by the commit the configuration came from, so that one model never mixes two.
        options |= {"revision": folder.name, "local_files_only": local_files_only}
        place, name = name, f"{name}@{revision}" if revision else name
    else:
        place = str(folder)
        name = name if name in _bundled() else str(Path(name).expanduser().resolve())
    refuse_quantised(_config(folder), name)
    if where is not None and where.type != "cpu" and util.find_spec("accelerate") is not None:
        device_map = {"": where}  # the weights go there straight from the files
    with _readable(name), _quiet():
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        if not tokenizer.is_fast:
            raise WrongModelError(
                f"the tokenizer of {name!r} gives no character offsets: add a fast one (tokenizer.json)"
            )
        hf = _whole(place, dtype=wanted, device_map=device_map, use_safetensors=True, **options)
    if where is not None:
        hf = hf.to(where)
    model = EditableModel(hf, tokenizer, id=name, folder=folder, anatomy=find_anatomy(hf, anatomy))
    check_states(model)
    return model


def with_adapter(base: EditableModel, folder: str | Path) -> EditableModel:
    """The model with a peft adapter merged into it. `base` is used up: its weights become those of the result. Raises
    MissingExtraError without peft, WrongModelError for an adapter that does not fit."""
    hf = wrapped(base.hf, folder).merge_and_unload(safe_merge=True)
    return EditableModel(hf, base.tokenizer, id=str(folder), anatomy=base.anatomy)


def wrapped(hf: PreTrainedModel, folder: str | Path) -> PeftModel:
    """A peft model of `hf`, whose modules it changes, and the adapter of a folder, switched on. Raises as
    `with_adapter`."""
    try:
        from peft import PeftModel
    except ImportError:
        raise MissingExtraError("an adapter needs peft: pip install 'tether[lora]'") from None
    with _readable(str(folder)), _quiet():
        try:
            return PeftModel.from_pretrained(hf, str(folder))
        except RuntimeError as error:
            what = f"{folder} is no adapter of {hf.name_or_path or 'this model'}"
            raise WrongModelError(f"{what} ({first_line(error)}): name its base") from None


def is_adapter(source: str | Path) -> bool:
    """Whether a folder holds a peft adapter and no model."""
    folder = Path(source).expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or dtype == "auto":
        return "auto"
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise BadSettingsError(f"dtype {dtype}: must be one of auto, {', '.join(_DTYPES)}")
    return found


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise BadSettingsError(
            f"device {str(device)!r} is not usable here ({first_line(error)}): leave it out or use cpu"
        ) from None


# --- where the files are --------------------------------------------------------------------------------------------


def _local_folder(source: str) -> Path | None:
    """The folder of safetensors for a bundled name, a .gguf file or a folder; None for a hub id."""
    bundled = _bundled().get(source)
    if bundled is not None:
        return _converted(_bundled_file(source, **bundled))
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        part = re.search(r"-0*(\d+)-of-0*(\d+)$", path.stem)
        if part and part[2] != "1":
            raise WrongModelError(
                f"{source!r} is part {part[1]} of a GGUF file in {part[2]}: join them (llama-gguf-split --merge) and "
                "give the one file"
            )
        return _converted(path)
    if source and path.is_dir():
        return path.resolve()
    is_id = source.count("/") <= 1 and source[:1] not in ("", ".", "/", "~") and path.suffix.lower() != ".gguf"
    if path.exists() or not is_id:
        names = ", ".join(_bundled())
        raise WrongModelError(f"{source!r} is no model: give a folder, a .gguf file, a hub id (org/name) or {names}")
    return None


def _bundled() -> dict[str, dict[str, str]]:
    data: Any = json.loads((resources.files("tether.models") / "bundled.json").read_text("utf-8"))
    return data


def published_name(model: EditableModel) -> str:
    """What others load the model by: a bundled model's hub id, else the hub id it came by or its folder names, else
    where it lies."""
    bundled = _bundled().get(model.id)
    if bundled is not None:
        return bundled["hub"]
    named = str(_config(model.folder).get("_name_or_path", "")) if model.folder is not None else ""
    if Path(model.id).is_absolute():
        is_id = named.count("/") == 1 and named[:1] not in (".", "/", "~") and not Path(named).exists()
        if is_id or Path(model.id).suffix.lower() == ".gguf":  # whose folder is a cache
            return named if is_id else model.id
    return model.hf.name_or_path or model.id


def gguf_file(model: EditableModel) -> Path | None:
    """The GGUF file that a model was loaded from; None for any other, and for a file that is no longer there."""
    bundled = _bundled().get(model.id)
    if bundled is not None:
        return _bundled_file(model.id, **bundled)
    path = Path(model.id)
    return path if path.suffix.lower() == ".gguf" and path.is_file() else None


def without_place(name: str) -> str:
    """What a model is called where others read it: of a path on this machine the last part."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name


def _bundled_file(name: str, *, package: str, glob: str, remedy: str, **_: str) -> Path:
    """The one file a wheel brings. The package is found, never imported: its own dependencies are not needed."""
    spec = util.find_spec(package)
    places = (spec and spec.submodule_search_locations) or ()
    files = [file for place in places for file in Path(place).glob(glob)]
    if len(files) != 1:
        raise MissingExtraError(f"bundled model {name!r} is not installed: {remedy}")
    return files[0]


def _snapshot(name: str, revision: str | None, local_files_only: bool) -> Path:
    """The hub cache's folder of one commit, holding at least the configuration."""
    try:
        with _quiet():
            config = cached_file(name, "config.json", revision=revision, local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        if local_files_only:
            raise WrongModelError(
                f"model {name!r} is not on this machine, and here nothing is downloaded: name the model (--model)"
            ) from None
        raise WrongModelError(
            f"{name!r} is no local folder and could not be fetched from the hub ({first_line(error)}): "
            "check the name, the network and the access token, or give a folder"
        ) from None
    return Path(config).parent


def _config(folder: Path) -> dict[str, Any]:
    """The configuration as stored; empty where it cannot be read, which transformers then says."""
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- reading them ---------------------------------------------------------------------------------------------------


def _converted(file: Path) -> Path:
    """The cached folder with the contents of a GGUF file: float32 safetensors, configuration, tokenizer."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()

    def build(folder: Path) -> None:
        missing = [package for package in ("gguf", "accelerate") if util.find_spec(package) is None]
        if missing:
            raise MissingExtraError(
                f"{file.name} needs {' and '.join(missing)} to be read: pip install {' '.join(missing)}"
            )
        from transformers import AutoTokenizer

        logger.info("converting %s once, into %s", file.name, folder.parent)
        with _readable(str(file)), _quiet():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            unpacked = {} if GgufConfig is None else {"quantization_config": GgufConfig(dequantize=True)}
            hf = _whole(file.parent, gguf_file=file.name, dtype=torch.float32, **unpacked)
            # The weights are plain float32 by now; what says otherwise would forbid saving them.
            hf.hf_quantizer = None
            if hasattr(hf.config, "quantization_config"):
                del hf.config.quantization_config
            hf.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    return built_folder(cache_dir() / "models" / f"{file.stem}-{digest[:16]}-v{_CONVERTER}", build)


def _whole(place: str | Path, **options: Any) -> PreTrainedModel:
    """`from_pretrained` that refuses weights left at random because the checkpoint has none of that name and shape."""
    from transformers import AutoModelForCausalLM

    hf, report = AutoModelForCausalLM.from_pretrained(
        place, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    missing = sorted(report["missing_keys"]) + sorted(entry[0] for entry in report["mismatched_keys"])
    if missing:
        raise WrongModelError(
            f"{place}: {len(missing)} weights such as {missing[0]} are not in the checkpoint: fetch it again"
        )
    return hf


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """What transformers says of an unreadable model, on one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError, struct.error) as error:
        raise WrongModelError(
            f"{name!r} cannot be read as a causal language model ({first_line(error)}): it must have a config.json, "
            "safetensors weights and a tokenizer.json"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of transformers and of the hub, and no bars but those of downloads, inside the block."""
    verbosity, of_hub = hf_logging.get_verbosity(), hub_logging.get_verbosity()
    hook = hf_logging.set_tqdm_hook(lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True}))
    hf_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_tqdm_hook(hook)
        hf_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(of_hub)
