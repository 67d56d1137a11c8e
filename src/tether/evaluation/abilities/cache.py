"""What was measured before: one JSON file a model, task and data, so that no point is measured twice, in any ledger."""

import hashlib
import json
import logging
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from tether.evaluation.abilities.task import AbilityResult, AbilityTask
from tether.models.editable import EditableModel
from tether.storage.atomic import seal, write_atomically
from tether.storage.cache import cache_dir, locked

logger = logging.getLogger(__name__)


class AbilityCache:
    """The measured abilities of one model, whatever edits it carries.

    The key of a point is the sha256 of all unedited weights as stored, that of the updates they carry now, the
    tokenizer, the dtype, and what the task is. Only a model that came from a folder is remembered: one made in memory
    has no identity that outlives the process.
    """

    def __init__(self, model: EditableModel) -> None:
        self._model = model
        self._folder = cache_dir() / "abilities"
        self._base: dict[str, Any] | None = None
        self._digests: dict[str, tuple[weakref.ref[Tensor], str]] = {}  # weight -> its update, which it is of

    def get(self, task: AbilityTask) -> AbilityResult | None:
        """What is known of the model as it is now, or None."""
        if self._model.folder is None:
            return None
        _, file = self._place(task)
        try:
            return AbilityResult.model_validate(json.loads(file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            logger.warning("%s is damaged: measured anew", file)
            return None

    def put(self, task: AbilityTask, result: AbilityResult) -> None:
        """Remember what was measured of the model as it is now."""
        if self._model.folder is None:
            return
        key, file = self._place(task)
        with suppress(OSError), locked(file):  # a cache that cannot be written costs time, not the result
            write_atomically(file, json.dumps({"key": key, **result.model_dump()}, ensure_ascii=False).encode())

    def _place(self, task: AbilityTask) -> tuple[dict[str, Any], Path]:
        """The key of a task for the model as it is now, and its file."""
        if self._base is None:
            tokenizer = self._model.tokenizer.backend_tokenizer.to_str()
            self._base = {
                "model": self._model.fingerprint(),
                "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
                "dtype": str(self._model.dtype).removeprefix("torch."),
            }
        of_task = {"task": task.name, "version": task.version, "data": task.data_sha256, "items": task.items}
        key = {**self._base, "updates": self._updates_sha256(), **of_task}
        return key, self._folder / f"{seal(key)}.json"

    def _updates_sha256(self) -> str:
        """Of what the weights carry: names and sha256 of the float32 bytes. An update is read once, however many tasks
        are asked for; a weight that carries another one has another tensor."""
        digest = hashlib.sha256()
        for name in sorted(self._model.edited):
            update = self._model.update(name)
            if update is None:
                continue
            known = self._digests.get(name)
            if known is None or known[0]() is not update:
                found = hashlib.sha256(f"{list(update.shape)}".encode())
                found.update(update.detach().cpu().contiguous().numpy().data)
                known = self._digests[name] = weakref.ref(update), found.hexdigest()
            digest.update(f"{name} {known[1]}\n".encode())
        return digest.hexdigest()
