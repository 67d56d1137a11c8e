"""Settings of the editors: frozen, typed, as data files, with a rule for a model that no file describes."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tether.editors.base import Method
from tether.editors.registry import EDITORS
from tether.errors import BadSettingsError, pydantic_line
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

    def used(self) -> frozenset[str]:
        """The names of the settings that change an edit, as the others stand."""
        return frozenset(type(self).model_fields)


Settings = TypeVar("Settings", bound=Hparams)


class LatentHparams(Hparams):
    """Settings of the methods that optimise δ, under the names of the field (the paper's table of settings)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"prefixes", "moments"})

    @classmethod
    def rule(cls, model: EditableModel) -> dict[str, Any]:
        """What the papers' models of the same kind of MLP have in common."""
        if is_gated(model):
            return {"v_num_grad_steps": 25, "v_lr": 0.5, "v_weight_decay": 1e-3, "kl_factor": 0.0625}
        return {"v_num_grad_steps": 20, "v_lr": 0.5, "v_weight_decay": 0.5, "kl_factor": 0.0625}

    v_num_grad_steps: int = Field(ge=1, description="loss evaluations; at most one step fewer")
    v_step: Literal["adam", "polyak"] = Field(default="adam", description="how δ takes a step; the papers: adam")
    v_lr: float = Field(gt=0, description="adam: the learning rate for δ")
    v_longest_step: float = Field(default=0.5, gt=0, description="polyak: no step is longer than this · ‖v₀‖")
    step_prefixes: int | None = Field(
        default=None, ge=0, description="prefixes beside the bare prompt that a step reads, in turns; null: all"
    )
    v_weight_decay: float = Field(ge=0, description="factor of ‖δ‖/‖v₀‖²")
    clamp_norm_factor: float = Field(gt=0, description="‖δ‖ ≤ this · ‖v₀‖")
    kl_factor: float = Field(ge=0, description="factor of KL(P_δ ‖ P₀)")
    kl_position: Literal["subject", "end"] = "subject"
    loss_threshold: float = Field(default=0.05, ge=0, description="stop below this total loss")
    most_probable: int = Field(
        default=0, ge=0, description="stop at the n-th evaluation that finds the target the most probable; 0: off"
    )
    target_norm: Annotated[float, Field(gt=0)] | Literal["nas"] | None = Field(
        default=None, description="NAS: v* is scaled to this norm; nas: to that of a pilot"
    )
    prefixes: tuple[PrefixLength, ...] = Field(description="generated contexts beside the bare prompt")
    moments_ridge: float = Field(default=0, ge=0, description="share of the mean of diag(C) added to C; the paper: 0")
    same_subject: Literal["together", "apart"] = Field(
        default="together", description="facts edited before of the same subject: kept by the loss, or left alone"
    )
    phrasing_keys: Literal["each", "mean", "none"] = Field(
        default="each", description="a fact's phrasings: a key and a column each, their mean alone, or the prompt alone"
    )
    bystanders: int = Field(default=0, ge=0, description="other subjects a phrasing whose keys must not move")
    bystander_weight: float = Field(default=1, ge=0, description="weight of their E[b bᵀ] beside C")
    history: bool = Field(default=False, description="whether a solve carries the keys of the live edits before it")
    drop_above: float | None = Field(default=None, description="leave out facts whose final loss is above this")
    frozen_prefix: bool = Field(default=True, description="false: whole forwards, the reference")

    @model_validator(mode="after")
    def _one_memory(self) -> Self:
        if self.history and self.bystanders:
            raise ValueError("history true asks for bystanders 0: one sum of all solves has one metric to start from")
        return self

    def used(self) -> frozenset[str]:
        return super().used() - {"v_lr" if self.v_step == "polyak" else "v_longest_step"}


def settings_for(
    method: str | Method,
    model: EditableModel,
    *,
    given: Path | Mapping[str, Any] | None = None,
    layers: tuple[int, ...] | None = None,
) -> tuple[Any, str]:
    """Settings of a method for a model (of the method's class), and in a few words where they come from.

    The values `given`, in a JSON file or as a mapping, go over the bundled ones, `layers` over both. Raises
    BadSettingsError for an unknown method, key or value.
    """
    chosen_method = EDITORS[method] if isinstance(method, str) else method
    kind = chosen_method.settings
    chosen, origin = kind.rule(model), "the rule for unknown models (not measured: check the first edits)"
    for entry in sorted(resources.files("tether.editors").joinpath("settings").iterdir(), key=lambda e: e.name):
        if entry.name.startswith(f"{kind.family}-") and entry.name.endswith(".json"):
            content = json.loads(entry.read_text())
            if content["shape"] == _shape(model):
                chosen, origin = {**content["settings"], **content.get(chosen_method.name, {})}, entry.name
    if given is not None:
        name = given.name if isinstance(given, Path) else "settings given"
        chosen, origin = {**chosen, **read_settings(given)}, f"{name} over {origin}"
    if layers is not None:
        chosen = {**chosen, "layers": layers}
    hparams = validated(kind, chosen)
    for layer in hparams.layers:
        model.block(layer)
    return hparams, origin


def validated(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The settings of a class with these values. Raises BadSettingsError that names the first value at fault."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise BadSettingsError(f"setting {pydantic_line(error)}; see `{kind.__name__}`") from None


def read_settings(file: Path | Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a settings file, or a mapping as it is."""
    if not isinstance(file, Path):
        return dict(file)
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadSettingsError(f"settings file {file}: {error}; give a JSON object of settings") from None
    if isinstance(content, dict):
        return content
    raise BadSettingsError(f"settings file {file} holds a {type(content).__name__}: give a JSON object of settings")


def _shape(model: EditableModel) -> dict[str, int]:
    """What the bundled files know a family by: sizes, never a name."""
    _, q = model.weight(model.weight_name(0)).shape
    vocab = model.hf.config.get_text_config().vocab_size
    return {"n_layers": model.n_layers, "hidden_size": model.hidden_size, "intermediate_size": q, "vocab_size": vocab}


def is_gated(model: EditableModel) -> bool:
    """Whether gate and up feed the MLP's output projection (as two modules, or as one of twice the width), not one."""
    *feeding, projection = model.mlp_weight_names(0)
    q = model.weight(projection).shape[1]
    return len(feeding) > 1 or any(model.weight(name).shape[0] == 2 * q for name in feeding)
