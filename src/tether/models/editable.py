"""A causal language model whose weights can carry updates, and give them back bit for bit."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from tether.algebra.lowrank import LowRank
from tether.algebra.precision import has_float64
from tether.errors import BadSettingsError, WrongModelError
from tether.models.checkpoint_files import Stored, kept_digest, stored_tensors
from tether.models.layout import Anatomy, feeders, find_anatomy

if TYPE_CHECKING:  # it takes seconds, and much that edits no model needs this file
    from transformers import PreTrainedModel

_LIMITS = ("max_position_embeddings", "max_seq_len", "seq_length")  # names that configurations give the same thing


class EditableModel:
    """A transformers model, its fast tokenizer, and where its MLP output projections are.

    Weights are named as in `hf.named_parameters()` and always seen as out×in (p×q), whatever the layout stores. One
    that carries an update S is `round(W₀ + S)` in the model's dtype, computed in float32 from the kept W₀, so that
    changing S never accumulates rounding. Only the weights that were touched are kept a second time.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        id: str = "in memory",  # noqa: A002 - the ledger's word for it
        folder: Path | None = None,
        anatomy: Anatomy | None = None,
    ) -> None:
        """`id` is what `tether.load` takes to load the model again; `folder` holds the safetensors it came from. Raises
        WrongModelError for a model in float64, or quantised, or with weights that are not in memory."""
        if hf.dtype == torch.float64:
            raise WrongModelError(f"{id} is in float64, but W₀ is kept in float32: load it with dtype float32")
        away = [name for name, parameter in hf.named_parameters() if parameter.is_meta]
        if away:
            raise WrongModelError(
                f"{id}: {len(away)} weights such as {away[0]} are offloaded, where no edit reaches them: load it on "
                "devices that hold it whole, in bfloat16, or on the CPU"
            )
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.id = id
        self.folder = folder
        self.anatomy = anatomy or find_anatomy(hf)
        self.residual: dict[int, bool] = {}  # by layer, what `frozen_prefix.is_residual` measured
        self.keeps_keys: bool | None = None  # what `frozen_prefix.keeps_keys` measured
        self.kinds: dict[str, str] = {}  # by subject, what `kinds.likeliest_kind` found
        self.kind_centres: Tensor | None = None  # what `kinds` holds subjects against
        self._originals: dict[str, Tensor] = {}
        self._updates: dict[str, Tensor] = {}
        self._factors: dict[str, Callable[[], LowRank]] = {}  # of those of `_updates` whose factors are known
        self._fingerprints: dict[Hashable, str] = {}

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embeddings."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def base(self) -> PreTrainedModel:
        """The transformer without its head: the module that holds the blocks."""
        return self.hf.base_model

    @property
    def blocks(self) -> nn.ModuleList:
        return self.hf.get_submodule(self.anatomy.blocks)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        return self.hf.config.get_text_config().hidden_size

    @property
    def limit(self) -> int | None:
        """How many positions the model has; None where it names no limit."""
        config = self.hf.config.get_text_config()
        return next((limit for name in _LIMITS if (limit := getattr(config, name, None))), None)

    def block(self, layer: int) -> nn.Module:
        if not 0 <= layer < self.n_layers:
            raise BadSettingsError(f"layer {layer}: the model has layers 0 to {self.n_layers - 1}")
        return self.blocks[layer]

    def projection(self, layer: int) -> nn.Module:
        """The MLP output projection of a block."""
        return self.block(layer).get_submodule(self.anatomy.projection)

    def weight_name(self, layer: int) -> str:
        """The parameter name of that projection's weight."""
        self.block(layer)
        return f"{self.anatomy.blocks}.{layer}.{self.anatomy.projection}.weight"

    def mlp_weight_names(self, layer: int) -> list[str]:
        """The parameter names of all weights of a block's MLP: those that feed the output projection, then its own."""
        start = f"{self.anatomy.blocks}.{layer}"
        feeding = feeders(self.block(layer), self.anatomy.projection)
        return [*(f"{start}.{path}.weight" for path in feeding), self.weight_name(layer)]

    # --- weights ------------------------------------------------------------------------------------------------

    def is_transposed(self, name: str) -> bool:
        """True where the layout stores in×out (GPT-2's Conv1D)."""
        return isinstance(self.hf.get_submodule(name.removesuffix(".weight")), Conv1D)

    def weight(self, name: str) -> Float[Tensor, "p q"]:
        """The weight as it is now, out×in, a view of the parameter in the model's dtype."""
        parameter = self._parameter(name)
        return parameter.mT if self.is_transposed(name) else parameter

    def _parameter(self, name: str) -> Tensor:
        """As the layout stores it."""
        try:
            return self.hf.get_parameter(name).detach()
        except AttributeError:
            raise WrongModelError(f"{name!r} is no weight of {self.id}: name a parameter of the model") from None

    def original(self, name: str) -> Float[Tensor, "p q"]:
        """W₀, the unedited weight, float32, kept from its first use on. Do not change it."""
        if name not in self._originals:
            self._originals[name] = self.weight(name).to(torch.float32, copy=True).contiguous()
        return self._originals[name]

    def update(self, name: str) -> Float[Tensor, "p q"] | None:
        """The dense float32 update the weight carries now; None for none."""
        return self._updates.get(name)

    def set_update(
        self, name: str, update: Float[Tensor, "p q"] | None, factors: Callable[[], LowRank] | None = None
    ) -> None:
        """Make the weight round(W₀ + update); None gives W₀ back. Changes the model in place, keeps `update`. `factors`
        gives the same update as factors, for `carried`."""
        original = self.original(name)
        self._factors.pop(name, None)
        if update is None:
            self._updates.pop(name, None)
            self.weight(name).copy_(original)
            return
        if update.shape != original.shape:
            raise ValueError(f"update {tuple(update.shape)} does not fit {name}, which is {tuple(original.shape)}")
        self._updates[name] = update
        if factors is not None:
            self._factors[name] = factors
        self.weight(name).copy_(original + update.to(original))

    def carried(self) -> dict[str, LowRank | Tensor]:
        """The updates that the weights carry now, on the CPU: as factors where these are known, else p×q, float32."""
        return {
            name: self._factors[name]().to("cpu") if name in self._factors else update.cpu()
            for name, update in self._updates.items()
        }

    def rounding(self, name: str, update: LowRank) -> float | None:
        """‖round(W₀ + S) − (W₀ + S)‖_F / ‖S‖_F for the update S; None where the weight is float32 or S is zero. Changes
        nothing."""
        norm = update.norm()
        if self.weight(name).dtype == torch.float32 or norm == 0:
            return None
        original = self.original(name)
        exact = original + update.to(original.device).to_dense().to(original)
        lost = exact.to(self.weight(name).dtype) - exact
        return float((lost if has_float64(lost.device) else lost.cpu()).norm(dtype=torch.float64)) / norm

    def clear_updates(self) -> None:
        """Give every touched weight its original bits back."""
        for name in list(self._updates):
            self.set_update(name, None)

    @property
    def edited(self) -> tuple[str, ...]:
        """Names of the weights that carry an update now."""
        return tuple(self._updates)

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        before, factors = dict(self._updates), dict(self._factors)
        try:
            yield
        finally:
            for name in [n for n in self._updates if n not in before]:
                self.set_update(name, None)
            for name, update in before.items():
                if self._updates.get(name) is not update:
                    self.set_update(name, update, factors.get(name))

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The unedited model inside the block; the edits are back after it, also on an error or Ctrl-C."""
        with self._restoring():
            self.clear_updates()
            yield

    @contextmanager
    def provisional(self, updates: Mapping[str, LowRank]) -> Iterator[None]:
        """The model with `updates` on top of what it carries, inside the block only."""
        with self._restoring():
            for name, update in updates.items():
                extra = update.to(self.original(name).device, torch.float32).to_dense()
                carried = self._updates.get(name)
                if carried is None:
                    self.set_update(name, extra, partial(_itself, update))
                    continue
                known = self._factors.get(name)
                factors = None if known is None else partial(_added, known, update)
                self.set_update(name, carried.to(extra) + extra, factors)
            yield

    def unedited_copy(self, *names: str) -> PreTrainedModel:
        """The unedited transformers model with modules of its own, which others may wrap or replace. It shares every
        tensor with this model, which stays as it is, but for the weights `names` and those that carry an update: they
        are copies of W₀."""
        kept: dict[int, Any] = {id(one): one for one in (*self.hf.parameters(), *self.hf.buffers())}
        for name in {*names, *self.edited}:
            original = self.original(name).to(self.weight(name).dtype, copy=True)
            stored = original.mT.contiguous() if self.is_transposed(name) else original
            kept[id(self.hf.get_parameter(name))] = nn.Parameter(stored, requires_grad=False)
        return copy.deepcopy(self.hf, kept)

    # --- identity -----------------------------------------------------------------------------------------------

    def fingerprint(self, names: Sequence[str] | None = None) -> str:
        """sha256 of weights (names, shapes, dtypes, bytes) as the checkpoint stores them, before any cast; of the
        in-memory unedited ones where the model came from no folder. `names` None: every weight of the checkpoint.

        Computed once: again only after a weight in memory was changed by others than this class. The one of a whole
        folder is kept in the cache, by the names, sizes and times of its files.
        """
        key = (None if names is None else tuple(names), self._state(names))
        if key not in self._fingerprints:
            if self.folder and names is None:
                self._fingerprints[key] = kept_digest(self.folder, self._digest)
            else:
                self._fingerprints[key] = self._digest(names)
        return self._fingerprints[key]

    def _digest(self, names: Sequence[str] | None = None) -> str:
        digest = hashlib.sha256()
        stored = stored_tensors(self.folder) if self.folder else {}
        if names is None:
            names = sorted(stored) if stored else [n for n, _ in self.hf.named_parameters()]
        for name in sorted(names):
            entry = _match(stored, name)
            digest.update(name.encode())
            for part in _parts(entry) if entry else self._parts_in_memory(name):
                digest.update(part)
        return digest.hexdigest()

    def _state(self, names: Sequence[str] | None) -> tuple[Hashable, ...]:
        """What changes when an unedited weight in memory does: where it lies, how often it was written, and the sum of
        its bits, for a write through `.data` is not counted. Nothing for a model from a folder."""
        if self.folder:
            return ()
        return tuple(
            name if name in self._originals else _written(self._parameter(name))
            for name in (names if names is not None else [n for n, _ in self.hf.named_parameters()])
        )

    def _parts_in_memory(self, name: str) -> Iterator[bytes]:
        parameter = self._parameter(name)
        if name in self._originals:
            original = self._originals[name]
            parameter = (original.mT if self.is_transposed(name) else original).to(parameter.dtype)
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
        yield f"{dtype.get(parameter.dtype, parameter.dtype)}{list(parameter.shape)}".encode()
        yield parameter.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _itself(update: LowRank) -> LowRank:
    return update


def _added(known: Callable[[], LowRank], update: LowRank) -> LowRank:
    return LowRank.sum((known().to("cpu", torch.float32), update.to("cpu", torch.float32)))


def _written(parameter: Tensor) -> tuple[int, ...]:
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    version = 0 if parameter.is_inference() else parameter._version
    return parameter.data_ptr(), version, int(parameter.contiguous().view(bits).sum())


def _match(stored: Mapping[str, Stored], name: str) -> Stored | None:
    """The stored tensor of a parameter; base-model checkpoints have the name without its first part."""
    if name in stored:
        return stored[name]
    matches = [key for key in stored if name.endswith("." + key) or key.endswith("." + name)]
    return stored[matches[0]] if len(matches) == 1 else None


def _parts(stored: Stored) -> Iterator[bytes]:
    yield f"{stored.dtype}{list(stored.shape)}".encode()
    yield from stored.chunks()
