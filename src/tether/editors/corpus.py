"""The text that second moments are made of: a file, or text sampled from the model itself."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tether.errors import BadSettingsError
from tether.models.editable import EditableModel
from tether.models.sampling import STARTS, mixed_seed, sample
from tether.storage.atomic import write_atomically
from tether.storage.cache import cache_dir

logger = logging.getLogger(__name__)

SELF = "self"
_PER_NUMBER, _LEAST = 6, 2048  # tokens of sampled text for every number of a key, where none are told; at least
_ROWS = 128  # texts sampled side by side, at most
_LENGTH = 64  # tokens of a sampled text: many short ones cost less than few long ones, whose attention grows
_START = 8  # positions kept for the start of a sampled text, special tokens included
_SAMPLING = 3  # part of the identity of sampled text: raise it when the same seed gives other text


def is_sampled(corpus: str | Path | None) -> bool:
    """Whether a corpus as written is text sampled from the model: `self`, `self:TOKENS`, or none named."""
    return corpus is None or str(corpus).partition(":")[0] == SELF


@dataclass(frozen=True)
class Corpus:
    """Where the keys come from: a plain text file, or `self`, text sampled from the unedited model."""

    path: Path | None = None
    max_tokens: int | None = None
    window: int = 256
    seed: int = 0

    @classmethod
    def parse(cls, text: str | Path | None, **fields: Any) -> Corpus:
        """`self` (None means the same), `self:TOKENS`, or the path of a text file; `fields` are those of a Corpus.
        Raises BadSettingsError where there is no such file."""
        if is_sampled(text):
            tokens = str(text or SELF).partition(":")[2]
            if tokens and not tokens.isdecimal():
                raise BadSettingsError(f"corpus {str(text)!r}: write self, or self:TOKENS, as in self:8192")
            return cls(None, **{**({"max_tokens": int(tokens)} if tokens else {}), **fields})
        path = Path(str(text))
        if not path.is_file():
            raise BadSettingsError(f"corpus {str(text)!r} is no file: give a plain text file, or 'self'")
        return cls(path, **fields)

    @property
    def name(self) -> str:
        return SELF if self.path is None else self.path.name

    def sized(self, width: int) -> Corpus:
        """The same for keys of so many numbers: sampled text of which no length was told has six tokens for each."""
        if self.path is not None or self.max_tokens is not None:
            return self
        return replace(self, max_tokens=max(_LEAST, _PER_NUMBER * width))

    def identity(self) -> dict[str, Any]:
        """What the moments depend on, as data."""
        if self.path is None:
            kind, text = SELF, f"seed {self.seed}, sampling {_SAMPLING}"
        else:
            kind, text = "file", hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"corpus": kind, "sha256": text, "max_tokens": self.max_tokens, "window": self.window}

    def told(self) -> dict[str, Any]:
        """What was said of it: of sampled text not how it is sampled, nor a length that is left to the model."""
        if self.path is not None:
            return self.identity()
        length = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {"corpus": SELF, **length}

    def windows(self, model: EditableModel) -> Iterator[list[int]]:
        """Windows of consecutive tokens, no longer than the model's positions, without padding. A last short one is
        left out unless it is the only one."""
        window = min(self.window, model.limit or self.window)
        if self.max_tokens is not None and self.max_tokens < window:
            raise BadSettingsError(
                f"{self.max_tokens} tokens of corpus {self.name!r} are fewer than a window; take at least {window}"
            )
        buffer: list[int] = []
        left, some = math.inf if self.max_tokens is None else self.max_tokens, False
        for text in self._texts(model):
            buffer += model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            while len(buffer) >= window and left >= window:
                yield buffer[:window]
                some, left, buffer = True, left - window, buffer[window:]
            if left < window:
                return
        if not some and buffer:
            yield buffer

    def _texts(self, model: EditableModel) -> Iterator[str]:
        if self.path is None:
            yield from self._sampled(model)
            return
        with self.path.open(encoding="utf-8", errors="replace") as handle:
            while lines := handle.readlines(1 << 20):
                yield "".join(lines)

    def _sampled(self, model: EditableModel) -> Iterator[str]:
        """Text without end, from the cache as far as it was sampled before; a small corpus samples few rows."""
        length = _LENGTH if model.limit is None else min(_LENGTH, model.limit - _START)
        rows = _ROWS if self.max_tokens is None else min(_ROWS, self.max_tokens // length + 1)
        starts = [STARTS[i % len(STARTS)] for i in range(rows)]
        batches = "" if self.max_tokens is None else f" of about {math.ceil(self.max_tokens / (rows * length))}"
        seconds: list[float] = []
        for batch in itertools.count():
            known = [_SAMPLING, model.fingerprint(), str(model.dtype), self.seed, batch, rows, length]
            name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
            file = cache_dir() / "texts" / f"{name}.txt"
            if file.is_file():
                yield file.read_bytes().decode()
                continue
            took = f"; the last took {seconds[-1]:.0f} s" if seconds else ", kept for the next time"
            logger.info("sampling text from the model: batch %d%s (%d texts each)%s", batch + 1, batches, rows, took)
            start = time.monotonic()
            text = "\n".join(sample(model, starts, length, seed=mixed_seed(self.seed, batch))) + "\n"
            seconds.append(time.monotonic() - start)
            with suppress(OSError):  # a cache that cannot be written costs time, not the result
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, text.encode())
            yield text
