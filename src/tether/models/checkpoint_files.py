"""Tensors of a checkpoint folder, one at a time: where each lies in its file, read and replaced in place."""

import hashlib
import json
import logging
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tether.errors import WrongModelError
from tether.storage.atomic import write_atomically
from tether.storage.cache import cache_dir, locked

logger = logging.getLogger(__name__)

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """One tensor: its file, the bytes [start, end) of the file it takes, its dtype as the format writes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def is_floating(self) -> bool:
        return self.dtype in _DTYPES

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        data = bytearray(self.end - self.start)
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            if handle.readinto(data) != len(data):
                raise WrongModelError(f"{self.file} ends early: the checkpoint is damaged; fetch it again")
        if not data:
            return torch.empty(self.shape, dtype=_DTYPES[self.dtype])
        return torch.frombuffer(data, dtype=_DTYPES[self.dtype]).reshape(self.shape)

    def overwrite(self, file: Path, tensor: Tensor) -> None:
        """Put `tensor` (cast to the stored dtype) where this tensor lies, in `file`, a copy of its own file."""
        cast = tensor.to(_DTYPES[self.dtype]).contiguous().cpu()
        if not bool(cast.isfinite().all()):
            raise WrongModelError(
                f"the restrained tensor does not fit into {self.dtype}: store the edited model in a wider dtype"
            )
        with file.open("r+b") as handle:
            handle.seek(self.start)
            handle.write(cast.flatten().view(torch.uint8).numpy().data)

    def chunks(self, size: int = 1 << 24) -> Iterator[bytes]:
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            for at in range(self.start, self.end, size):
                yield handle.read(min(size, self.end - at))


def same_bytes(a: Stored, b: Stored) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits, compared piece by piece."""
    return (
        a.dtype == b.dtype and a.shape == b.shape and all(x == y for x, y in zip(a.chunks(), b.chunks(), strict=True))
    )


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor in the safetensors files of a folder, in file order. WrongModelError for what is no such folder."""
    if not folder.is_dir():
        raise WrongModelError(f"{folder} is no folder: give the local folder of a checkpoint")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = [file.name for file in sorted(folder.iterdir()) if file.suffix in {".bin", ".pt", ".pth", ".gguf"}]
        found = f"only {other[0]}" if other else "none"
        raise WrongModelError(f"{folder} needs .safetensors files and has {found}: save the model as safetensors first")
    tensors: dict[str, Stored] = {}
    for file in files:
        for name, entry in _read(file).items():
            if name in tensors:
                raise WrongModelError(
                    f"{name} is in {tensors[name].file.name} and in {file.name}: keep one of the two files"
                )
            tensors[name] = entry
    return tensors


def kept_digest(folder: Path, digest: Callable[[], str]) -> str:
    """`digest()` of a folder's weights, kept in the cache under its path and the names, sizes and times of its
    safetensors files."""
    files = [(file.name, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    about = [str(folder.resolve()), *((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in files)]
    kept = cache_dir() / "fingerprints" / hashlib.sha256(json.dumps(about).encode()).hexdigest()
    try:
        found = kept.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        found = ""
    if re.fullmatch("[0-9a-f]{64}", found):
        return found
    found = digest()
    try:
        with locked(kept):
            write_atomically(kept, found.encode())
    except OSError as error:
        logger.info("the fingerprint of %s is not kept: %s", folder, error)
    return found


def _read(file: Path) -> dict[str, Stored]:
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        begin = 8 + length
        entries = {
            name: Stored(file, e["dtype"], tuple(e["shape"]), *(begin + at for at in e["data_offsets"]))
            for name, e in header.items()
        }
        size = file.stat().st_size
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise WrongModelError(f"{file} is no safetensors file ({error}): fetch it again") from error
    if any(not begin <= entry.start <= entry.end <= size for entry in entries.values()):
        raise WrongModelError(f"{file} ends early: the checkpoint is damaged; fetch it again")
    return dict(sorted(entries.items(), key=lambda item: item[1].start))
