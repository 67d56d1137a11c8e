"""What pytest finds by itself: a folder to run the command in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import run
from core import FACTS, SETTINGS
from tiny import save, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, facts, settings, a corpus, and a ledger of four edits made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    save(*tiny_model("llama"), folder / "model")
    lines = [fact.model_dump_json(exclude_none=True) for fact in FACTS]
    (folder / "facts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "corpus.txt").write_text("The Eiffel Tower is in the city of Paris, and you know that. " * 200)
    done = run(
        folder, "edit", "facts.jsonl", "--model", "model", "--method", "r-rome", "--out", "ledger", "--limit", "4",
        "--restrain", "log:1.2", "--corpus", "corpus.txt", "--settings", "settings.json", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout)["events"][kind] for kind in ("edit", "failed", "skipped")) == 4
    return folder
