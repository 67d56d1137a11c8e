"""Settings of the editors: frozen, typed, as data files, with a rule for a model that no file describes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tether.errors import TetherError
from tether.models.editable import EditableModel
from tether.models.sampling import PrefixLength

Need = Literal["prefixes", "moments", "editor"]


class Hparams(BaseModel, ABC):
    """What the settings of every method have. `family` names the data files: `<family>-<model>.json`; `needs` says what
    the method's edits look at beside the model and the facts: sampled prefixes, moments of the keys, a trained editor
    (whose file then holds the settings); `resources` names the settings of what an edit may use (memory); they change
    it by rounding at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    family: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    resources: ClassVar[frozenset[str]] = frozenset()

    layers: tuple[int, ...] = Field(min_length=1, description="the edited layers, ascending")

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if list(layers) != sorted(set(layers)):
            raise ValueError("write every layer once, in ascending order")
        return layers

    @classmethod
    @abstractmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """Settings for a model that no file describes."""


class LatentHparams(Hparams):
    """Settings of the methods that optimise δ, under the names of the field (the paper's table of settings)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"prefixes", "moments"})

    v_num_grad_steps: int = Field(ge=1, description="loss evaluations; at most one Adam step fewer")
    v_lr: float = Field(gt=0, description="Adam's learning rate for δ")
    v_weight_decay: float = Field(ge=0, description="factor of ‖δ‖/‖v₀‖²")
    clamp_norm_factor: float = Field(gt=0, description="‖δ‖ ≤ this · ‖v₀‖")
    kl_factor: float = Field(ge=0, description="factor of KL(P_δ ‖ P₀)")
    kl_position: Literal["subject", "end"] = "subject"
    loss_threshold: float = Field(default=0.05, ge=0, description="stop below this total loss")
    prefixes: tuple[PrefixLength, ...] = Field(description="generated contexts beside the bare prompt")
    moments_ridge: float = Field(default=0, ge=0, description="share of the mean of diag(C) added to C; the paper: 0")
    drop_above: float | None = Field(default=None, description="leave out facts whose final loss is above this")
    frozen_prefix: bool = Field(default=True, description="false: whole forwards, the reference")


class RomeHparams(LatentHparams):
    """Settings of ROME and R-ROME."""

    family: ClassVar[str] = "rome"

    layers: tuple[int, ...] = Field(min_length=1, max_length=1, description="the one edited layer")
    delta_dtype: Literal["model", "bfloat16"] = Field(
        default="model", description="of the steps for δ, with a frozen prefix"
    )

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """A gated MLP is edited early and with little decay, as the paper's Llamas; a plain one in the middle third, as
        its GPT-2 XL."""
        gated = _gated(model)
        share = 1 / 6 if gated else 17 / 48
        return {
            "layers": (min(model.n_layers - 2, round(share * model.n_layers)) if model.n_layers > 1 else 0,),
            "v_num_grad_steps": 25 if gated else 20,
            "v_lr": 0.5,
            "v_weight_decay": 1e-3 if gated else 0.5,
            "clamp_norm_factor": 4,
            "kl_factor": 0.0625,
            "prefixes": [{"length": 5, "number": 5}, {"length": 10, "number": 5}],
        }


class MemitHparams(LatentHparams):
    """Settings of MEMIT and EMMET."""

    family: ClassVar[str] = "memit"
    resources: ClassVar[frozenset[str]] = frozenset({"memory_gb"})

    layers: tuple[int, ...] = Field(min_length=1, description="the edited layers, ascending; δ is behind the last")
    mom2_update_weight: float = Field(gt=0, description="λ: the weight of what the model knew")
    equality_ridge: float = Field(default=1e-6, ge=0, description="EMMET: share of the mean of diag(KᵀC⁻¹K)")
    memory_gb: float = Field(default=0.5, gt=0, description="what the steps for δ of a micro-batch may keep")

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """Five layers around ROME's, the decay and clamp of the paper's models of the same kind of MLP."""
        gated = _gated(model)
        last = min(max(0, model.n_layers - 2), round((8 / 32 if gated else 17 / 48) * model.n_layers))
        return {
            "layers": tuple(range(max(0, last - 4), last + 1)),
            "v_num_grad_steps": 25 if gated else 20,
            "v_lr": 0.5,
            "v_weight_decay": 1e-3 if gated else 0.5,
            "clamp_norm_factor": 4 if gated else 0.75,
            "kl_factor": 0.0625,
            "mom2_update_weight": 15000 if model.hidden_size >= 2048 else 200,
            "prefixes": [{"length": 10, "number": 5}],
        }


class MendHparams(Hparams):
    """Settings of MEND: of its network, of its training, and of an edit."""

    family: ClassVar[str] = "mend"
    needs: ClassVar[frozenset[Need]] = frozenset({"editor"})
    of_an_edit: ClassVar[frozenset[str]] = frozenset({"loss_threshold", "drop_rising"})

    layers: tuple[int, ...] = Field(min_length=1, description="the blocks whose MLP weights are edited")
    rank: int = Field(default=1920, ge=1, description="inner dimension of the network's layers, at most their width")
    last_relu: bool = Field(default=True, description="false: the second layer adds its sum as it is, also below zero")
    v_std: float = Field(default=1.0, gt=0, description="standard deviation of V at the start")
    edit_lr: float = Field(default=1e-4, description="α_w at the start")
    lr: float = Field(default=1e-6, gt=0, description="Adam's learning rate for the networks")
    lr_lr: float = Field(default=1e-4, ge=0, description="Adam's learning rate for the α_w")
    lr_end: float = Field(
        default=1.0, ge=0, le=1, description="share of both rates that they fall towards, in a line over `steps`"
    )
    c_edit: float = Field(default=0.1, ge=0, description="weight of L_e")
    c_loc: float = Field(default=1.0, ge=0, description="weight of L_loc")
    clip: float = Field(default=100.0, gt=0, description="largest norm of the gradient of an optimiser's step")
    accumulate: int = Field(default=10, ge=1, description="edits an optimiser's step")
    steps: int = Field(default=100_000, ge=1, description="edits in all")
    validate_every: int = Field(default=1000, ge=1, description="edits between two looks at the validation loss")
    patience: int = Field(default=10, ge=1, description="looks without a better validation loss before it stops")
    validation: int = Field(default=200, ge=1, description="validation edits a look reads, at most")
    statistics: int = Field(default=500, ge=1, description="edits that μ and σ are measured on before the first step")
    seed: int = Field(default=0, description="of the network's start and the order of the edits")
    frozen_blocks: bool = Field(default=True, description="false: whole forwards in training, the reference")
    loss_threshold: float = Field(default=0.05, ge=0, description="a fact with a loss below this is known already")
    drop_rising: bool = Field(default=True, description="leave out facts whose edit does not lower their loss")

    @model_validator(mode="after")
    def _looks_after_steps(self) -> MendHparams:
        if self.validate_every % self.accumulate:
            raise ValueError(f"validate_every {self.validate_every} must be a multiple of accumulate {self.accumulate}")
        return self

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """The last three blocks, as in the paper, whose other settings are the defaults."""
        return {"layers": tuple(range(max(0, model.n_layers - 3), model.n_layers))}


HPARAMS: Mapping[str, type[Hparams]] = MappingProxyType({
    "rome": RomeHparams, "r-rome": RomeHparams, "memit": MemitHparams, "emmet": MemitHparams, "mend": MendHparams,
})  # fmt: skip


def settings_for(
    method: str,
    model: EditableModel,
    *,
    given: Path | Mapping[str, Any] | None = None,
    layers: tuple[int, ...] | None = None,
) -> tuple[Any, str]:
    """Settings of a method for a model (of the method's class in HPARAMS), and in a few words where they come from.

    The values `given`, in a JSON file or as a mapping, go over the bundled ones, `layers` over both. Raises TetherError
    for an unknown key or value.
    """
    if method not in HPARAMS:
        raise TetherError(f"{method!r} is no method: choose one of {', '.join(HPARAMS)}")
    kind = HPARAMS[method]
    chosen, origin = _bundled(kind.family, method, _shape(model))
    if chosen is None:
        chosen, origin = kind.rule(model), "the rule for unknown models (not measured: check the first edits)"
    if given is not None:
        name = given.name if isinstance(given, Path) else "settings given"
        chosen, origin = {**chosen, **read_settings(given)}, f"{name} over {origin}"
    if layers is not None:
        chosen = {**chosen, "layers": layers}
    try:
        hparams = kind.model_validate(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        which = f"setting {place} = {first.get('input')!r}" if place else "settings"
        raise TetherError(f"{which}: {first['msg']}; see `{kind.__name__}`") from None
    for layer in hparams.layers:
        model.block(layer)
    return hparams, origin


def read_settings(file: Path | Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a settings file, or a mapping as it is."""
    if not isinstance(file, Path):
        return dict(file)
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise TetherError(f"settings file {file}: {error}; give a JSON object of settings") from None
    if not isinstance(content, dict):
        raise TetherError(f"settings file {file} holds a {type(content).__name__}: give a JSON object of settings")
    return content


def _shape(model: EditableModel) -> dict[str, int]:
    """What the bundled files know a family by: sizes, never a name."""
    _, q = model.weight(model.weight_name(0)).shape
    vocab = model.hf.config.get_text_config().vocab_size
    return {"n_layers": model.n_layers, "hidden_size": model.hidden_size, "intermediate_size": q, "vocab_size": vocab}


def _bundled(family: str, method: str, shape: Mapping[str, int]) -> tuple[dict[str, Any] | None, str]:
    for entry in sorted(resources.files("tether.editors").joinpath("settings").iterdir(), key=lambda e: e.name):
        if entry.name.startswith(f"{family}-") and entry.name.endswith(".json"):
            content = json.loads(entry.read_text())
            if content["shape"] == shape:
                return {**content["settings"], **content.get(method, {})}, entry.name
    return None, ""


def _gated(model: EditableModel) -> bool:
    """Whether gate and up feed the MLP's output projection (as two modules, or as one of twice the width), not one."""
    *feeding, projection = model.mlp_weight_names(0)
    q = model.weight(projection).shape[1]
    return len(feeding) > 1 or any(model.weight(name).shape[0] == 2 * q for name in feeding)
