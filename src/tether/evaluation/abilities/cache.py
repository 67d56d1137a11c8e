"""What was measured before: one JSON file a model, task and data, so that no point is measured twice, in any ledger."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tether.evaluation.abilities.task import AbilityResult, AbilityTask, Unit
from tether.evaluation.statistics.mean import Record
from tether.models.editable import EditableModel
from tether.storage.atomic import write_atomically
from tether.storage.cache import cache_dir, locked

logger = logging.getLogger(__name__)


class _Entry(BaseModel):
    """A file of the cache. Read with numbers that are not finite, which an explosion of perplexity has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: dict[str, str | int]
    value: float
    n: int
    stderr: float | None
    unit: Unit
    records: list[Record]


class AbilityCache:
    """The measured abilities of one model, whatever edits it carries.

    The key of a point is the sha256 of all unedited weights as stored, that of the updates they carry now, the
    tokenizer, the dtype, and the task's name, version, data and number of items. Only a model that came from a folder
    is remembered: one made in memory has no identity that outlives the process.
    """

    def __init__(self, model: EditableModel, folder: Path | None = None) -> None:
        self._model = model
        self._folder = (folder or cache_dir()) / "abilities"
        self._base: dict[str, str | int] | None = None

    def get(self, task: AbilityTask) -> AbilityResult | None:
        """What is known of the model as it is now, or None."""
        if self._model.folder is None:
            return None
        key = self._key(task)
        file = self._file(key)
        try:
            entry = _Entry.model_validate(json.loads(file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError):
            logger.warning("%s is damaged: measured anew", file)
            return None
        return (
            AbilityResult(entry.value, entry.n, entry.stderr, entry.unit, entry.records) if entry.key == key else None
        )

    def put(self, task: AbilityTask, result: AbilityResult) -> None:
        """Remember what was measured of the model as it is now."""
        if self._model.folder is None:
            return
        key = self._key(task)
        entry = _Entry(
            key=key, value=result.value, n=result.n, stderr=result.stderr, unit=result.unit, records=result.records
        )
        file = self._file(key)
        with locked(file):
            write_atomically(file, json.dumps(entry.model_dump(), ensure_ascii=False).encode())

    def _file(self, key: Mapping[str, str | int]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest}.json"

    def _key(self, task: AbilityTask) -> dict[str, str | int]:
        if self._base is None:
            tokenizer = self._model.tokenizer.backend_tokenizer.to_str()
            self._base = {
                "model": self._model.fingerprint(),
                "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
                "dtype": str(self._model.dtype).removeprefix("torch."),
            }
        return {
            **self._base,
            "updates": _updates_sha256(self._model),
            "task": task.name,
            "version": task.version,
            "data": task.data_sha256,
            "items": task.items,
        }


def _updates_sha256(model: EditableModel) -> str:
    """Of what the weights carry: names and bytes, float32."""
    digest = hashlib.sha256()
    for name in sorted(model.edited):
        update = model.update(name)
        if update is not None:
            digest.update(f"{name}{list(update.shape)}".encode())
            digest.update(update.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
