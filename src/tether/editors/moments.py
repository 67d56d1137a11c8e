"""Second moments C = E[k kᵀ] of the keys of any set of layers, in one pass over a text.

Cached by content (weights, text, tokens, window, dtype) and resumable: a killed pass goes on where its last checkpoint
stands. `convergence` says whether the text was enough: how far the directions C⁻¹k of some real keys still turned when
the text doubled.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tether.algebra.null_space import null_space
from tether.algebra.precision import has_float64
from tether.editors.corpus import Corpus
from tether.engine import LOCAL, Engine
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
_CHECKPOINT_EVERY = 32  # batches
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Moments:
    """C of one layer: q×q float64 on the CPU, over `tokens` keys; `convergence` lists (tokens, mean cosine of C⁻¹k with
    the one before). Solves are done on `device`, which then keeps a factor of C (8q² bytes); keys may come from any
    device, and what is found is on the CPU."""

    C: Float[Tensor, "q q"]
    tokens: int
    convergence: tuple[tuple[int, float], ...]
    device: torch.device = _CPU
    _factors: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _bases: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def on(self, device: torch.device) -> "Moments":
        """The same with its solves on `device`, or on the CPU where that has no float64."""
        return replace(self, device=device if has_float64(device) else _CPU)

    def solve(self, k: Float[Tensor, "*n q"], *, ridge: float = 0.0) -> Float[Tensor, "*n q"]:
        """(C + `ridge` · mean(diag C) · I)⁻¹k of one key or of each of many, float64. Raises TetherError for a
        singular matrix."""
        if ridge not in self._factors:
            regular = self.C.to(self.device, copy=True)
            regular.diagonal().add_(ridge * self.C.diagonal().mean())
            factor, info = torch.linalg.cholesky_ex(regular)
            if int(info):
                raise BadSettingsError(
                    f"the moments of {self.tokens} tokens are singular for keys of size {len(self.C)}: give more text"
                )
            self._factors[ridge] = factor
        keys = k.to(self.device).double()
        found = torch.cholesky_solve(keys.reshape(-1, keys.shape[-1]).mT, self._factors[ridge])
        return found.mT.reshape(keys.shape).cpu()

    def project(self, k: Float[Tensor, "*n q"], *, threshold: float) -> Float[Tensor, "*n q"]:
        """P k / mean(diag C) of one key or of each of many, float64: C⁻¹k, were C its mean diagonal on its null space
        (`tether.algebra.null_space`, with P) and infinite elsewhere. Raises BadSettingsError for an empty null space.
        """
        if threshold not in self._bases:
            self._bases[threshold] = null_space(self.C.to(self.device), threshold)
        basis = self._bases[threshold]
        return (k.to(self.device).double() @ basis @ basis.mT).cpu() / self.C.diagonal().mean()

    def sha256(self) -> str:
        """Of the bits of C."""
        return hashlib.sha256(self.C.numpy().tobytes()).hexdigest()


def moments(
    model: EditableModel,
    layers: Sequence[int],
    corpus: Corpus,
    *,
    cache: Path | None = None,
    batch_tokens: int = 4096,
    progress: Callable[[int, int | None], None] | None = None,
    engine: Engine = LOCAL,
) -> dict[int, Moments]:
    """C of every wanted layer, of the unedited model, from the cache or in one pass that stops after the last layer.

    The model is not changed. `progress(tokens so far, total or None)` is called after each batch. Files go to `cache`
    (by default tether's cache folder), one a layer. Text that is sampled for them always goes to tether's cache folder.
    Solves are done where the weights are. Of an `engine` with workers, each sums blocks of the text.
    """
    corpus = sized(model, layers, corpus)
    with model.unedited():
        keys = moments_keys(model, sorted(set(layers)), corpus)
        files = _files(keys, cache)
        missing = {layer: file for layer, file in files.items() if not _whole(file)}
        if missing:
            together = hashlib.sha256("".join(keys[layer] for layer in missing).encode()).hexdigest()[:32]
            unfinished = next(iter(missing.values())).with_name(f"{together}.partial")
            with locked(unfinished):
                if not all(map(_whole, missing.values())):
                    _collect(model, missing, corpus, unfinished, batch_tokens, progress, engine)
    return placed(model, _loaded(files))


def sized(model: EditableModel, layers: Sequence[int], corpus: Corpus) -> Corpus:
    """The corpus with its number of tokens, where it is text to be sampled."""
    return corpus.sized(max(model.weight(model.weight_name(layer)).shape[1] for layer in layers))


def placed(model: EditableModel, found: Mapping[int, Moments]) -> dict[int, Moments]:
    """The moments with their solves on the device of each layer's weight."""
    return {layer: one.on(model.weight(model.weight_name(layer)).device) for layer, one in found.items()}


def cached_moments(keys: Mapping[int, str], cache: Path | None = None) -> dict[int, Moments] | None:
    """The moments with these `moments_keys`, one a layer, where the cache holds them all; the text is not needed."""
    files = _files(keys, cache)
    return _loaded(files) if all(map(_whole, files.values())) else None


def moments_keys(model: EditableModel, layers: Sequence[int], corpus: Corpus) -> dict[int, str]:
    """Identity of the moments of every layer: weights of the checkpoint, text, tokens, window, dtype. Weights and text,
    which take long to hash, are hashed once."""
    shared = {**sized(model, layers, corpus).identity(), "weights": model.fingerprint(), "dtype": str(model.dtype)}
    described = {layer: json.dumps({**shared, "name": model.weight_name(layer)}, sort_keys=True) for layer in layers}
    return {layer: hashlib.sha256(text.encode()).hexdigest()[:32] for layer, text in described.items()}


def _files(keys: Mapping[int, str], cache: Path | None) -> dict[int, Path]:
    """Where the cache keeps the moments with these keys."""
    folder = (cache or cache_dir()) / "moments"
    return {layer: folder / f"{key}.safetensors" for layer, key in keys.items()}


def _collect(
    model: EditableModel, files: Mapping[int, Path], corpus: Corpus, partial: Path, batch_tokens: int,
    progress: Callable[[int, int | None], None] | None, engine: Engine,
) -> None:  # fmt: skip
    """One pass over the corpus, up to the last wanted projection, for the layers of `files`; needs the lock of
    `partial`, its checkpoint."""
    sums = {layer: _Sums(model.weight(model.weight_name(layer))) for layer in files}
    tokens, batches, next_look = 0, 0, 4 * max(len(one.total) for one in sums.values())
    if _whole(partial):
        state, tensors = _read(partial)
        tokens, batches, next_look = state["tokens"], state["batches"], state["next_look"]
        for layer, one in sums.items():
            one.curve = [(n, cosine) for n, cosine in state["curves"][str(layer)]]
            kept = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{layer}/")}
            one.total.copy_(kept.pop("sum"))
            one.kept = {name: tensor.to(one.total.device) for name, tensor in kept.items()}
        logger.info("moments: going on after %d tokens", tokens)
    rows = max(1, batch_tokens // corpus.window)
    windows = itertools.islice(corpus.windows(model), batches * rows, None)
    waiting = iter(lambda: list(itertools.islice(windows, rows)), [])
    for block in _summed(model, sums, waiting, rows * corpus.window, tokens, next_look, engine):
        before, batches = batches, batches + len(block)
        tokens += sum(map(_tokens, block))
        if tokens >= next_look:
            for one in sums.values():
                one.look(tokens)
            next_look = 2 * tokens
        if batches // _CHECKPOINT_EVERY > before // _CHECKPOINT_EVERY:
            curves = {layer: one.curve for layer, one in sums.items()}
            state = {"tokens": tokens, "batches": batches, "next_look": next_look, "curves": curves}
            parts = {layer: {"sum": one.upper(), **one.kept} for layer, one in sums.items()}
            _write(partial, state, {f"{i}/{part}": kept for i, its in parts.items() for part, kept in its.items()})
        if progress:
            progress(tokens, corpus.max_tokens)
    if not tokens:
        raise BadSettingsError(f"corpus {corpus.name!r} has no tokens: give a file with text")
    for layer, file in files.items():
        sums[layer].look(tokens)
        with locked(file):
            if not _whole(file):  # else a pass for other layers wrote it meanwhile, and ledgers may name its bits
                C = (sums[layer].symmetric() / tokens).cpu().contiguous()
                _write(file, {"tokens": tokens, "convergence": sums[layer].curve}, {"C": C})
    partial.unlink(missing_ok=True)


class _Sums:
    """What a pass keeps of the keys of one weight (p×q): ΣKᵀK, the upper panels alone; some keys as probes, C⁻¹ of them
    at the last look, and how far they turned.

    The sum is float64 on the device of the keys, and so is all that is made of it. Where that device has no float64,
    float32 blocks there are added to float64 on the CPU.
    """

    def __init__(self, weight: Float[Tensor, "p q"]) -> None:
        q, device = weight.shape[1], weight.device
        exact = has_float64(device)
        self.total = torch.zeros(q, q, dtype=torch.float64, device=device if exact else _CPU)
        self.kept: dict[str, Tensor] = {}  # probes (n×q) and directions (q×n), float64
        self.curve: list[tuple[int, float]] = []
        self._block = self.total if exact else torch.zeros(q, q, device=device)
        self._panels = list(itertools.pairwise(q * i // _PANELS for i in range(_PANELS + 1)))
        self._batches = 0

    def see(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """A hook before the projection: add the float32 products of one batch."""
        keys = args[0].reshape(-1, args[0].shape[-1]).float()
        if "probes" not in self.kept:
            self.kept["probes"] = keys[:: max(1, len(keys) // _PROBES)][:_PROBES].to(self.total.device).double()
        for left, right in self._panels:
            self._block[left:right, left:] += keys[:, left:right].mT @ keys[:, left:]
        self._batches += 1
        if self._batches % _BLOCK == 0:
            self.upper()

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Take in the sum of a block of text, and its probes where there are none yet."""
        self.total += part["sum"].to(self.total.device)
        self.kept.setdefault("probes", part["probes"].to(self.total.device))

    def look(self, tokens: int) -> None:
        """How far C⁻¹k of the probe keys turned since the last look."""
        factor, info = torch.linalg.cholesky_ex(self.symmetric())
        if int(info) or (self.curve and self.curve[-1][0] == tokens):
            return
        directions = torch.cholesky_solve(self.kept["probes"].mT, factor)
        if "directions" in self.kept:
            cosine = torch.cosine_similarity(directions, self.kept["directions"], dim=0).mean()
            self.curve.append((tokens, float(cosine)))
        self.kept["directions"] = directions.contiguous()  # the layout a checkpoint gives back: same last bits

    def upper(self) -> Float[Tensor, "q q"]:
        """The sum so far, upper panels, not a copy."""
        if self._block is not self.total:
            self.total += self._block.to(self.total.device)
            self._block.zero_()
        return self.total

    def symmetric(self) -> Float[Tensor, "q q"]:
        """A copy of the sum so far."""
        upper = self.upper().triu()
        upper += upper.triu(1).mT
        return upper


_Batch = list[list[int]]  # windows of tokens


def _summed(
    model: EditableModel, sums: Mapping[int, _Sums], batches: Iterable[_Batch], size: int, tokens: int, look: int,
    engine: Engine,
) -> Iterator[list[_Batch]]:  # fmt: skip
    """Add the keys of all batches (of about `size` tokens) to the sums of their layers; yields the batches that are in
    them now: one by one, or of an engine with workers in blocks. A block ends where `look` tokens, then twice those,
    have been seen since the start, the first `tokens` of them before."""
    if engine.parts == 1:
        for batch in batches:
            _see(model, sums, batch)
            yield [batch]
        return
    most = max(1, 4 * max(len(one.total) for one in sums.values()) // size)  # as a sum that is sent is not small

    def blocks() -> Iterator[list[_Batch]]:
        seen, limit = tokens, look
        block: list[_Batch] = []
        for batch in batches:
            block.append(batch)
            seen += _tokens(batch)
            if seen >= limit or len(block) == most:
                limit = 2 * seen if seen >= limit else limit
                yield block
                block = []
        if block:
            yield block

    given, taken = itertools.tee(blocks())
    for found, block in zip(engine.map(partial(_sums_of, tuple(sums)), given, model), taken, strict=True):
        for layer, part in found.items():
            sums[layer].add(part)
        yield block


def _sums_of(layers: Sequence[int], model: EditableModel, block: Sequence[_Batch]) -> dict[int, dict[str, Tensor]]:
    """Of a block of text alone: the sum of every layer, upper panels, and its probes, float64 on the CPU."""
    sums = {layer: _Sums(model.weight(model.weight_name(layer))) for layer in layers}
    for batch in block:
        _see(model, sums, batch)
    return {layer: {"sum": one.upper().cpu(), "probes": one.kept["probes"].cpu()} for layer, one in sums.items()}


def _see(model: EditableModel, sums: Mapping[int, _Sums], batch: _Batch) -> None:
    """Add the keys of one batch to the sums of their layers, in one pass up to the last of them."""
    ids = torch.tensor(batch, device=model.device)
    with hooks(*(model.projection(layer).register_forward_pre_hook(one.see) for layer, one in sums.items())):
        forward_until(model, model.projection(max(sums)), input_ids=ids)


def _tokens(batch: _Batch) -> int:
    return sum(map(len, batch))


# --- on disk ----------------------------------------------------------------------------------------------------------


def _write(file: Path, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    write_atomically(
        file, save({name: tensor.cpu() for name, tensor in tensors.items()}, metadata={"state": json.dumps(state)})
    )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(file, framework="pt") as stored:
        names = stored.keys()
        return json.loads(stored.metadata()["state"]), {name: stored.get_tensor(name) for name in names}


def _whole(file: Path) -> bool:
    """Whether a file of the cache is there and can be read; a damaged one counts as missing."""
    try:
        return file.is_file() and bool(_read(file))
    except SafetensorError:
        logger.warning("%s is damaged: collected anew", file)
        return False


def _loaded(files: Mapping[int, Path]) -> dict[int, Moments]:
    found = {}
    for layer, file in files.items():
        state, tensors = _read(file)
        found[layer] = Moments(tensors["C"], state["tokens"], tuple((n, c) for n, c in state["convergence"]))
    return found
