"""Second moments C = E[k kᵀ] of the keys of any set of layers, in one pass over a text.

Cached by content (weights, text, tokens, window, dtype) and resumable: a killed pass goes on where its last checkpoint
stands. `convergence` says whether the text was enough: how far the directions C⁻¹k of some real keys still turned when
the text doubled.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tether.editors.corpus import Corpus
from tether.errors import BadSettingsError
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import forward_until, hooks
from tether.storage.atomic import write_atomically
from tether.storage.cache import cache_dir, locked

logger = logging.getLogger(__name__)

ENOUGH = 0.99  # mean cosine at the last doubling above which more text changes little
_PROBES = 32
_PANELS = 4  # column panels of KᵀK: only the upper ones are computed, 10 of 16
_BLOCK = 32  # batches summed in float32, on a device that has no float64


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

    def sha256(self) -> str:
        """Of the bits of C."""
        return hashlib.sha256(self.C.numpy().tobytes()).hexdigest()

    def _factor(self, ridge: float) -> Tensor:
        if ridge not in self._factors:
            regular = self.C.clone()
            regular.diagonal().add_(ridge * self.C.diagonal().mean())
            factor, info = torch.linalg.cholesky_ex(regular)
            if int(info):
                raise BadSettingsError(
                    f"the moments of {self.tokens} tokens are singular for keys of size {len(self.C)}: give more text"
                )
            self._factors[ridge] = factor
        return self._factors[ridge]


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
    with model.unedited():
        keys = moments_keys(model, sorted(set(layers)), corpus)
        files = _files(keys, cache)
        missing = {layer: file for layer, file in files.items() if not _whole(file)}
        if missing:
            together = hashlib.sha256("".join(keys[layer] for layer in missing).encode()).hexdigest()[:32]
            unfinished = next(iter(missing.values())).with_name(f"{together}.partial")
            with locked(unfinished):
                if not all(map(_whole, missing.values())):
                    _Pass(model, missing, corpus, unfinished, batch_tokens, progress).run()
    return {layer: _load(file) for layer, file in files.items()}


def cached_moments(keys: Mapping[int, str], cache: Path | None = None) -> dict[int, Moments] | None:
    """The moments with these `moments_keys`, one a layer, where the cache holds them all; the text is not needed."""
    files = _files(keys, cache)
    return {layer: _load(file) for layer, file in files.items()} if all(map(_whole, files.values())) else None


def moments_keys(model: EditableModel, layers: Sequence[int], corpus: Corpus) -> dict[int, str]:
    """Identity of the moments of every layer: weights of the checkpoint, text, tokens, window, dtype. Weights and text,
    which take long to hash, are hashed once."""
    shared = {**corpus.identity(), "weights": model.fingerprint(), "dtype": str(model.dtype)}
    described = {layer: json.dumps({**shared, "name": model.weight_name(layer)}, sort_keys=True) for layer in layers}
    return {layer: hashlib.sha256(text.encode()).hexdigest()[:32] for layer, text in described.items()}


def _files(keys: Mapping[int, str], cache: Path | None) -> dict[int, Path]:
    """Where the cache keeps the moments with these keys."""
    folder = (cache or cache_dir()) / "moments"
    return {layer: folder / f"{key}.safetensors" for layer, key in keys.items()}


class _Gram:
    """ΣKᵀK of one layer, the upper panels alone: float64 on the device of the keys. Where the device has no float64,
    float32 blocks there, which are added to float64 on the CPU."""

    def __init__(self, q: int, device: torch.device) -> None:
        edges = [q * i // _PANELS for i in range(_PANELS + 1)]
        self._panels = [(left, right) for left, right in itertools.pairwise(edges) if left < right]
        self._total = torch.zeros(q, q, dtype=torch.float64, device=device if _has_float64(device) else "cpu")
        self._block = None if _has_float64(device) else torch.zeros(q, q, device=device)
        self._batches = 0

    def add(self, keys: Float[Tensor, "n q"]) -> None:
        """Float32 products of one batch."""
        total = self._total if self._block is None else self._block
        for left, right in self._panels:
            total[left:right, left:] += keys[:, left:right].mT @ keys[:, left:]
        self._batches += 1
        if self._batches % _BLOCK == 0:
            self._move_block()

    def _move_block(self) -> None:
        if self._block is not None:
            self._total += self._block.cpu()
            self._block.zero_()

    def upper(self) -> Float[Tensor, "q q"]:
        """The sum so far, upper panels, float64 on the CPU. On the CPU it is no copy."""
        self._move_block()
        return self._total.cpu()

    def restore(self, upper: Float[Tensor, "q q"]) -> None:
        self._total.copy_(upper)

    def symmetric(self) -> Float[Tensor, "q q"]:
        """The sum so far, float64 on the CPU."""
        upper = self.upper().triu()
        return upper + upper.triu(1).mT


def _has_float64(device: torch.device) -> bool:
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


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
        weights = {layer: model.weight(model.weight_name(layer)) for layer in layers}
        self.sums = {layer: _Gram(weight.shape[1], weight.device) for layer, weight in weights.items()}
        self.probes: dict[int, Tensor] = {}
        self.directions: dict[int, Tensor] = {}
        self.curves: dict[int, list[tuple[int, float]]] = {layer: [] for layer in layers}
        self.tokens = self.batches = 0
        self.next_look = 4 * max(weight.shape[1] for weight in weights.values())

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
            raise BadSettingsError(f"corpus {self.corpus.name!r} has no tokens: give a file with text")
        self._look()
        for layer, file in self.files.items():
            with locked(file):
                if not _whole(file):  # else a pass for other layers wrote it meanwhile, and ledgers may name its bits
                    self._save(file, layer=layer)
        self.partial.unlink(missing_ok=True)

    def _add(self, ids: Tensor) -> None:
        """Run one batch up to the last wanted projection, adding float32 products KᵀK to the sums."""

        def see(layer: int, _: nn.Module, args: tuple[Tensor, ...]) -> None:
            keys = args[0].reshape(-1, args[0].shape[-1]).float()
            if layer not in self.probes:
                self.probes[layer] = keys[:: max(1, len(keys) // _PROBES)][:_PROBES].cpu().double()
            self.sums[layer].add(keys)

        modules = {layer: self.model.projection(layer) for layer in self.layers}
        with hooks(*(module.register_forward_pre_hook(partial(see, layer)) for layer, module in modules.items())):
            forward_until(self.model, self.model.projection(max(self.layers)), input_ids=ids)
        self.tokens += ids.numel()

    def _look(self) -> None:
        """How far C⁻¹k of the probe keys turned since the last look."""
        for layer in self.layers:
            factor, info = torch.linalg.cholesky_ex(self.sums[layer].symmetric())
            if int(info) or (self.curves[layer] and self.curves[layer][-1][0] == self.tokens):
                continue
            directions = torch.cholesky_solve(self.probes[layer].mT, factor)
            if layer in self.directions:
                cosine = torch.cosine_similarity(directions, self.directions[layer], dim=0).mean()
                self.curves[layer].append((self.tokens, float(cosine)))
            self.directions[layer] = directions.contiguous()  # the layout a checkpoint gives back: same last bits

    # --- on disk ------------------------------------------------------------------------------------------------

    def _save(self, path: Path, *, layer: int | None = None) -> None:
        if layer is None:
            state = {"tokens": self.tokens, "batches": self.batches, "next_look": self.next_look, "curves": self.curves}
            tensors = {f"{i}/sum": one.upper() for i, one in self.sums.items()}
            tensors |= {f"{i}/probes": one for i, one in self.probes.items()}
            tensors |= {f"{i}/directions": one for i, one in self.directions.items()}
        else:
            state = {"tokens": self.tokens, "convergence": self.curves[layer]}
            tensors = {"C": (self.sums[layer].symmetric() / self.tokens).contiguous()}
        write_atomically(path, save(tensors, metadata={"state": json.dumps(state)}))

    def _resume(self) -> None:
        if not _whole(self.partial):
            return
        with safe_open(self.partial, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            for name in file.keys():  # noqa: SIM118 - it is no dict
                layer, _, part = name.partition("/")
                if part == "sum":
                    self.sums[int(layer)].restore(file.get_tensor(name))
                else:
                    (self.probes if part == "probes" else self.directions)[int(layer)] = file.get_tensor(name)
        self.tokens, self.batches, self.next_look = state["tokens"], state["batches"], state["next_look"]
        self.curves = {int(i): [(n, c) for n, c in curve] for i, curve in state["curves"].items()}
        logger.info("moments: going on after %d tokens", self.tokens)


def _whole(file: Path) -> bool:
    """Whether a file of the cache is there and can be read; a damaged one counts as missing."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as stored:
            stored.metadata()
    except SafetensorError:
        logger.warning("%s is damaged: collected anew", file)
        return False
    return True


def _load(file: Path) -> Moments:
    with safe_open(file, framework="pt") as stored:
        state = json.loads(stored.metadata()["state"])
        return Moments(stored.get_tensor("C"), state["tokens"], tuple((n, c) for n, c in state["convergence"]))
