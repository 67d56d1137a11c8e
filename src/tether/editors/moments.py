"""Second moments C = E[k kᵀ] of the keys of any set of layers, in one pass over a text.

Cached by content (weights, text, tokens, window, dtype) and resumable: a killed pass goes on where its last checkpoint
stands. `convergence` says whether the text was enough: how far the directions C⁻¹k of some real keys still turned when
the text doubled.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tether.errors import TetherError
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import forward_until, hooks
from tether.models.sampling import STARTS, sample
from tether.storage.atomic import write_atomically
from tether.storage.cache import cache_dir, locked

logger = logging.getLogger(__name__)

SELF = "self"
ENOUGH = 0.99  # mean cosine at the last doubling above which more text changes little
_PROBES = 32
_PANELS = 4  # column panels of KᵀK: only the upper ones are computed, 10 of 16


@dataclass(frozen=True)
class Moments:
    """C of one layer: q×q float64 on the CPU, over `tokens` keys; `convergence` lists (tokens, mean cosine of C⁻¹k with
    the one before)."""

    C: Float[Tensor, "q q"]
    tokens: int
    convergence: tuple[tuple[int, float], ...]
    _factors: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def solve(self, k: Float[Tensor, "*n q"], *, ridge: float = 0.0) -> Float[Tensor, "*n q"]:
        """(C + `ridge` · mean(diag C) · I)⁻¹k of one key or of each of many, float64. Raises TetherError for a
        singular matrix."""
        keys = k.cpu().double()
        return torch.cholesky_solve(keys.reshape(-1, keys.shape[-1]).mT, self._factor(ridge)).mT.reshape(keys.shape)

    def _factor(self, ridge: float) -> Tensor:
        if ridge not in self._factors:
            regular = self.C.clone()
            regular.diagonal().add_(ridge * self.C.diagonal().mean())
            factor, info = torch.linalg.cholesky_ex(regular)
            if int(info):
                raise TetherError(
                    f"the moments of {self.tokens} tokens are singular for keys of size {len(self.C)}: give more text"
                )
            self._factors[ridge] = factor
        return self._factors[ridge]


@dataclass(frozen=True)
class Corpus:
    """Where the keys come from: a plain text file, or `self`, text sampled from the unedited model."""

    path: Path | None = None
    max_tokens: int | None = None
    window: int = 256
    seed: int = 0

    @classmethod
    def parse(cls, text: str | Path, **kwargs: Any) -> Corpus:
        """`self` or a file's path. Raises TetherError where there is no such file."""
        if str(text) == SELF:
            return cls(None, **{"max_tokens": 32768, **kwargs})
        path = Path(text)
        if not path.is_file():
            raise TetherError(f"corpus {str(text)!r} is no file: give a plain text file, or 'self'")
        return cls(path, **kwargs)

    @property
    def name(self) -> str:
        return SELF if self.path is None else self.path.name

    def identity(self) -> dict[str, Any]:
        """What the moments depend on, as data."""
        text = f"seed {self.seed}" if self.path is None else hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"corpus": SELF if self.path is None else "file", "sha256": text, "max_tokens": self.max_tokens,
                "window": self.window}  # fmt: skip

    def windows(self, model: EditableModel) -> Iterator[list[int]]:
        """Windows of consecutive tokens, without padding; a last short one is left away unless it is the only one."""
        if self.max_tokens is not None and self.max_tokens < self.window:
            raise TetherError(
                f"{self.max_tokens} tokens of corpus {self.name!r} are fewer than a window; take at least {self.window}"
            )
        buffer: list[int] = []
        left, some = math.inf if self.max_tokens is None else self.max_tokens, False
        for text in self._texts(model):
            buffer += model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            while len(buffer) >= self.window and left >= self.window:
                yield buffer[: self.window]
                some, left, buffer = True, left - self.window, buffer[self.window :]
            if left < self.window:
                return
        if not some and buffer:
            yield buffer

    def _texts(self, model: EditableModel) -> Iterator[str]:
        if self.path is None:
            for batch in itertools.count():
                starts = [STARTS[i % len(STARTS)] for i in range(32)]
                yield "\n".join(sample(model, starts, self.window, seed=self.seed + 1 + batch)) + "\n"
        else:
            with self.path.open(encoding="utf-8", errors="replace") as handle:
                while lines := handle.readlines(1 << 20):
                    yield "".join(lines)


def moments(
    model: EditableModel,
    layers: Sequence[int],
    corpus: Corpus,
    *,
    cache: Path | None = None,
    batch_tokens: int = 4096,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[int, Moments]:
    """C of every wanted layer, of the unedited model, from the cache or in one pass that stops after the last layer.

    The model is not changed. `progress(tokens so far, total or None)` is called after each batch. Files go to `cache`
    (by default tether's cache folder), one a layer.
    """
    folder = (cache or cache_dir()) / "moments"
    folder.mkdir(parents=True, exist_ok=True)
    with model.unedited():
        keys = _keys(model, sorted(set(layers)), corpus)
        files = {layer: folder / f"{key}.safetensors" for layer, key in keys.items()}
        missing = {layer: file for layer, file in files.items() if not _whole(file)}
        if missing:
            partial = folder / f"{_pass_name(keys[layer] for layer in missing)}.partial"
            with locked(partial):
                if not all(map(_whole, missing.values())):
                    _Pass(model, missing, corpus, partial, batch_tokens, progress).run()
    return {layer: _load(file) for layer, file in files.items()}


def cached_moments(keys: Mapping[int, str], cache: Path | None = None) -> dict[int, Moments] | None:
    """The moments with these `moments_key`s, one a layer, where the cache holds them all; the text is not needed."""
    folder = (cache or cache_dir()) / "moments"
    files = {layer: folder / f"{key}.safetensors" for layer, key in keys.items()}
    return {layer: _load(file) for layer, file in files.items()} if all(map(_whole, files.values())) else None


def moments_key(model: EditableModel, layer: int, corpus: Corpus) -> str:
    """Identity of one layer's moments: weights of the checkpoint, text, tokens, window, dtype."""
    return _keys(model, [layer], corpus)[layer]


def _keys(model: EditableModel, layers: Sequence[int], corpus: Corpus) -> dict[int, str]:
    """`moments_key` of every layer; weights and text, which take long to hash, are hashed once."""
    shared = {**corpus.identity(), "weights": model.fingerprint(), "dtype": str(model.dtype)}
    described = {layer: json.dumps({**shared, "name": model.weight_name(layer)}, sort_keys=True) for layer in layers}
    return {layer: hashlib.sha256(text.encode()).hexdigest()[:32] for layer, text in described.items()}


def _pass_name(keys: Iterable[str]) -> str:
    """Of a pass for these layers, by their `moments_key`s."""
    return hashlib.sha256("".join(keys).encode()).hexdigest()[:32]


def recent_moments(model: EditableModel, layers: Sequence[int], cache: Path | None = None) -> Corpus | None:
    """The corpus of the newest complete cached moments of these layers for this model, or None."""
    folder = (cache or cache_dir()) / "moments"
    for note in sorted(folder.glob("*.json"), key=lambda f: f.stat().st_mtime, reverse=True):
        try:
            recorded = json.loads(note.read_text())
            corpus = Corpus(
                Path(recorded["path"]) if recorded["path"] else None, recorded["max_tokens"], recorded["window"],
                recorded["seed"],
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged and not used: delete it", note)
            continue
        if corpus.path is not None and not corpus.path.is_file():
            continue
        files = {layer: folder / f"{key}.safetensors" for layer, key in _keys(model, layers, corpus).items()}
        if all(_whole(file) and _tokens(file) >= _size(model, layer) for layer, file in files.items()):
            return corpus
    return None


class _Pass:
    """One pass over the corpus for the layers of `files`; needs the lock of `partial`, its checkpoint."""

    CHECKPOINT_EVERY = 32  # batches

    def __init__(
        self, model: EditableModel, files: dict[int, Path], corpus: Corpus, partial: Path, batch_tokens: int,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:  # fmt: skip
        layers = list(files)
        self.model, self.layers, self.corpus, self.files, self.partial = model, layers, corpus, files, partial
        self.rows, self.progress = max(1, batch_tokens // corpus.window), progress
        q = {layer: model.weight(model.weight_name(layer)).shape[1] for layer in layers}
        self.sums = {layer: torch.zeros(q[layer], q[layer], dtype=torch.float64) for layer in layers}
        self.probes: dict[int, Tensor] = {}
        self.directions: dict[int, Tensor] = {}
        self.curves: dict[int, list[tuple[int, float]]] = {layer: [] for layer in layers}
        self.tokens, self.batches = 0, 0
        self.next_look = 4 * max(q.values())

    def run(self) -> None:
        self._resume()
        windows = self.corpus.windows(self.model)
        for _ in range(self.batches * self.rows):
            next(windows, None)
        while batch := [w for _, w in zip(range(self.rows), windows, strict=False)]:
            self._add(torch.tensor(batch, device=self.model.device))
            self.batches += 1
            if self.tokens >= self.next_look:
                self._look()
                self.next_look = 2 * self.tokens
            if self.batches % self.CHECKPOINT_EVERY == 0:
                self._save(self.partial)
            if self.progress:
                self.progress(self.tokens, self.corpus.max_tokens)
        if not self.tokens:
            raise TetherError(f"corpus {self.corpus.name!r} has no tokens: give a file with text")
        self._look()
        for layer, file in self.files.items():
            with locked(file):
                if not _whole(file):  # else a pass for other layers wrote it meanwhile, and ledgers may name its bits
                    self._save(file, layer=layer)
        self.partial.unlink(missing_ok=True)

    def _add(self, ids: Tensor) -> None:
        """Run one batch up to the last wanted projection, adding float32 blocks KᵀK to float64 sums."""

        def see(layer: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                keys = args[0].reshape(-1, args[0].shape[-1]).float()
                if layer not in self.probes:
                    self.probes[layer] = keys[:: max(1, len(keys) // _PROBES)][:_PROBES].cpu().double()
                _add_gram(self.sums[layer], keys)

            return hook

        handles = [self.model.projection(layer).register_forward_pre_hook(see(layer)) for layer in self.layers]
        with hooks(*handles):
            forward_until(self.model, self.model.projection(max(self.layers)), input_ids=ids)
        self.tokens += ids.numel()

    def _look(self) -> None:
        """How far C⁻¹k of the probe keys turned since the last look."""
        for layer in self.layers:
            factor, info = torch.linalg.cholesky_ex(self._symmetric(layer))
            if int(info) or (self.curves[layer] and self.curves[layer][-1][0] == self.tokens):
                continue
            directions = torch.cholesky_solve(self.probes[layer].mT, factor)
            if layer in self.directions:
                cosine = torch.cosine_similarity(directions, self.directions[layer], dim=0).mean()
                self.curves[layer].append((self.tokens, float(cosine)))
            self.directions[layer] = directions.contiguous()  # the layout a checkpoint gives back: same last bits

    def _symmetric(self, layer: int) -> Tensor:
        upper = self.sums[layer].triu()
        return upper + upper.triu(1).mT

    # --- on disk ------------------------------------------------------------------------------------------------

    def _save(self, path: Path, *, layer: int | None = None) -> None:
        state = {"tokens": self.tokens, "batches": self.batches, "next_look": self.next_look, "curves": self.curves}
        note: dict[str, Any] | None = None
        if layer is None:
            tensors: dict[str, Tensor] = {}
            for i in self.layers:
                tensors |= {f"{i}/sum": self.sums[i], f"{i}/probes": self.probes[i]}
                if i in self.directions:
                    tensors[f"{i}/directions"] = self.directions[i].contiguous()
        else:
            tensors = {"C": (self._symmetric(layer) / self.tokens).contiguous()}
            state = {"tokens": self.tokens, "convergence": self.curves[layer]}
            note = {
                "path": str(self.corpus.path.resolve()) if self.corpus.path else None,
                "max_tokens": self.corpus.max_tokens,
                "window": self.corpus.window,
                "seed": self.corpus.seed,
            }
        write_atomically(path, save(tensors, metadata={"state": json.dumps(state)}))
        if note is not None:  # behind the tensors: a note promises them
            write_atomically(path.with_suffix(".json"), json.dumps(note).encode())

    def _resume(self) -> None:
        if not _whole(self.partial):
            return
        with safe_open(self.partial, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            names = set(file.keys())
            for i in self.layers:
                self.sums[i], self.probes[i] = file.get_tensor(f"{i}/sum"), file.get_tensor(f"{i}/probes")
                if f"{i}/directions" in names:
                    self.directions[i] = file.get_tensor(f"{i}/directions")
        self.tokens, self.batches, self.next_look = state["tokens"], state["batches"], state["next_look"]
        self.curves = {int(i): [(n, c) for n, c in curve] for i, curve in state["curves"].items()}
        logger.info("moments: going on after %d tokens", self.tokens)


def _add_gram(total: Tensor, keys: Tensor) -> None:
    """Add KᵀK to the upper triangle of `total`, in place, by column panels."""
    q = keys.shape[1]
    edges = [q * i // _PANELS for i in range(_PANELS + 1)]
    for left, right in itertools.pairwise(edges):
        if left < right:
            total[left:right, left:] += (keys[:, left:right].mT @ keys[:, left:]).cpu()


def _whole(file: Path) -> bool:
    """Whether a file of the cache is there and can be read; a damaged one is taken away."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as stored:
            stored.metadata()
    except SafetensorError:
        logger.warning("%s is damaged: collected anew", file)
        file.unlink(missing_ok=True)
        return False
    return True


def _tokens(file: Path) -> int:
    with safe_open(file, framework="pt") as stored:
        return int(json.loads(stored.metadata()["state"])["tokens"])


def _size(model: EditableModel, layer: int) -> int:
    return model.weight(model.weight_name(layer)).shape[1]


def _load(file: Path) -> Moments:
    with safe_open(file, framework="pt") as stored:
        state = json.loads(stored.metadata()["state"])
        return Moments(stored.get_tensor("C"), state["tokens"], tuple((n, c) for n, c in state["convergence"]))
