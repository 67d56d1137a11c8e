"""Editing runs on tiny models, for the tests of the loop and of the guard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import SETTINGS, editable, plain_text, same_bits

from tether.editing.run import edit
from tether.facts.fact import Fact
from tether.ledger import Ledger
from tether.models import EditableModel

BAD = Fact(subject="Eiffel Tower", prompt=300 * "so " + "{} is in", target_new="Paris")  # longer than the model takes


def run(model: EditableModel, facts: Sequence[Fact], out: Path, **more: Any) -> Ledger:
    """`edit` with the settings of these tests; a new ledger unless there is one."""
    if not (out / "ledger.json").exists():
        file = out.parent / f"{out.name}-settings.json"
        file.write_text(json.dumps({**SETTINGS, **more.pop("changes", {})}))
        more = {"settings": file, "corpus": plain_text(), **more}
    return edit(model, facts, out=out, **more)


def kinds(ledger: Ledger) -> list[str]:
    return [event.kind for event in ledger.events]


def assert_says(model: EditableModel, ledger: Ledger, family: str) -> None:
    """The model carries what the ledger on disk says, bit for bit, and the ledger is sound."""
    opened = Ledger.open(ledger.path, model)
    opened.verify(model)
    assert same_bits(opened.apply(editable(family)), model.hf.state_dict())
