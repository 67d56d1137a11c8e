"""A live page on a tiny model, for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import FACTS, SETTINGS, editable, plain_text
from edits import run as edit_facts

from tether.editing.plan import EditPlan
from tether.models import EditableModel
from tether.web.app import Live
from tether.web.studio import Studio

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def chatty(family: str) -> EditableModel:
    """A random model with a chat template."""
    model = editable(family)
    model.tokenizer.chat_template = CHAT
    return model


def as_json(*facts: Any) -> list[dict[str, Any]]:
    return [fact.model_dump(mode="json", exclude_defaults=True) for fact in facts]


def studio(folder: Path, family: str = "llama", edits: int = 3) -> Studio:
    """Of a ledger of the first few FACTS; of a new one where `edits` is 0."""
    model = chatty(family)
    if edits:
        edit_facts(model, FACTS[:edits], folder / "ledger", method="rome", restrain="log:1.2")
    plan = EditPlan(method="rome", settings=dict(SETTINGS), corpus=plain_text())
    return Studio(model, folder / "ledger", EditPlan() if edits else plan)


def live(folder: Path, family: str = "llama", edits: int = 3, **more: Any) -> Live:
    return Live(studio(folder, family, edits), **more)
