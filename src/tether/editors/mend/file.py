"""The file of a trained editor: safetensors with the network, and as JSON in its header everything it belongs to.

write_tensors(path, network.state_dict(), record.model_dump(mode="json"))
trained = open_trained(path, model)          # refuses another model
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tether.editors.mend.network import Hypernetwork, MendHparams
from tether.editors.settings import read_settings, validated
from tether.errors import BadSettingsError, TetherError, WrongModelError, first_line, pydantic_line
from tether.models.editable import EditableModel
from tether.storage.atomic import write_atomically

_KEY = "tether"  # of the JSON in the file's header


class Look(BaseModel, frozen=True, extra="forbid"):
    """One look during training: edits trained on so far; means over the training edits since the last look and over
    the validation edits; `accuracy` is the share of target tokens that are the argmax after the edit, `kept` of the
    tokens read on unrelated inputs those whose argmax the edit did not change (both of validation)."""

    step: int
    train_edit: float | None
    train_loc: float | None
    loss: float
    edit: float
    loc: float
    accuracy: float
    kept: float


class DataRecord(BaseModel, frozen=True, extra="forbid"):
    """A file that was trained or validated on."""

    name: str
    sha256: str
    records: int


class TrainedRecord(BaseModel, frozen=True, extra="forbid"):
    """What a trained editor belongs to: the model (id, fingerprint of the edited weights), the data, the settings, and
    how the training went. `step` is that of the parameters in the file."""

    format: Literal[1] = 1
    method: Literal["mend"] = "mend"
    model: str
    fingerprint: str
    weights: dict[str, tuple[int, int]]
    settings: MendHparams
    train: DataRecord
    val: DataRecord
    step: int = 0
    curve: tuple[Look, ...] = ()
    versions: dict[str, str]

    def best(self) -> Look:
        """The look with the lowest validation loss, the first of equals."""
        return min(self.curve, key=lambda look: look.loss if math.isfinite(look.loss) else math.inf)


@dataclass(frozen=True)
class Trained:
    """An opened file: the network in float32 on the CPU, what it belongs to, the file's sha256."""

    network: Hypernetwork
    record: TrainedRecord
    sha256: str
    path: Path

    def settings(self, file: Path | Mapping[str, Any] | None) -> MendHparams:
        """The settings it was trained with; a file's values go over those of an edit."""
        kept = self.record.settings
        if file is None:
            return kept
        given = read_settings(file)
        unknown = [key for key in given if key not in kept.of_an_edit]
        if unknown:
            raise BadSettingsError(
                f"setting {unknown[0]} comes with the trained editor {self.path}: a settings file may hold "
                f"{', '.join(sorted(kept.of_an_edit))}; train another editor to change it"
            )
        return validated(MendHparams, {**kept.model_dump(), **given})


def open_trained(path: str | Path, model: EditableModel) -> Trained:
    """Open a trained editor for a model. Raises TetherError for a file that is none, and for another model."""
    path = Path(path)
    tensors, record = read_trained(path, model)
    network = Hypernetwork(record.weights, record.settings)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadSettingsError(
            f"{path} does not hold the network it describes ({first_line(error)}): train it again"
        ) from None
    network.requires_grad_(False)
    return Trained(network, record, hashlib.sha256(path.read_bytes()).hexdigest(), path)


def read_trained(path: Path, model: EditableModel) -> tuple[dict[str, Tensor], TrainedRecord]:
    """The tensors and the record of a trained editor, or of a training. Raises TetherError for a file that is none, and
    where the weights to be edited are not those it was trained for."""
    tensors, content = read_tensors(path)
    try:
        record = TrainedRecord.model_validate(content)
    except ValidationError as error:
        raise BadSettingsError(f"{path} is no trained editor of this tether: {pydantic_line(error)}") from None
    try:
        found = model.fingerprint(list(record.weights))
    except (AttributeError, TetherError):
        found = "another layout"
    if found != record.fingerprint:
        raise WrongModelError(
            f"{model.id} is not the model of {path}: its weights have fingerprint {found[:12]}, the editor "
            f"{record.fingerprint[:12]}; it was trained for {record.model!r}, train one for this model"
        )
    return tensors, record


def write_tensors(path: Path, tensors: Mapping[str, Tensor], content: dict[str, Any]) -> None:
    """Tensors and a JSON object as one safetensors file, whole or not at all; the same bytes for the same content."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata={_KEY: json.dumps(content, ensure_ascii=False)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote."""
    try:
        with safe_open(path, framework="pt") as handle:
            content = json.loads((handle.metadata() or {})[_KEY])
            return {name: torch.clone(handle.get_tensor(name)) for name in handle.keys()}, content  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        what = "has no description in its header" if isinstance(error, KeyError) else first_line(error)
        raise BadSettingsError(
            f"{path} is no trained editor ({what}): name a file that `tether train-mend` wrote"
        ) from None
