"""The commands of the guides run as they stand, on a tiny model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from command import run

GUIDES = Path(__file__).parent.parent / "docs" / "guide"
TINY = ("--corpus", "corpus.txt", "--settings", "settings.json")


def commands(guide: str, heading: str) -> list[list[str]]:
    """The lines of `tether` in the code blocks after a heading of a guide, up to the next one."""
    part = (GUIDES / guide).read_text().partition(heading)[2].partition("\n## ")[0]
    assert part, heading
    return [shlex.split(line)[1:] for line in part.splitlines() if line.startswith("tether ")]


def test_from_facts_to_what_a_server_loads(place: Path) -> None:
    """Edit, knowledge tests, export and check, in the guide's own words; the model and its settings are tiny."""
    edit, made, tested, exported = commands("deploy.md", "# From facts to a running server")
    assert [words[0] for words in (edit, made, tested, exported)] == ["edit", "test", "test", "export"]
    done = run(place, *("model" if word == "smollm2" else word for word in edit), *TINY)
    assert done.returncode == 0, done.stderr
    for words in (made, tested, exported):
        done = run(place, *words)
        assert done.returncode == 0 or words == tested, done.stderr  # a random model says little
    assert (place / "for-llama.cpp" / "adapter.gguf").stat().st_size > 0
    facts = json.loads((place / "for-llama.cpp" / "manifest.json").read_text())["facts"]
    assert len(facts) == len((place / "facts.jsonl").read_text().splitlines())
    assert "llama.cpp" in done.stdout and "ollama" in done.stdout


def test_an_adapter_is_checked_as_the_guide_says(place: Path) -> None:
    own, _ = commands("deploy.md", "## Check an adapter, yours or another's")
    done = run(place, *("ledger" if word == "my-edits" else word for word in own))
    assert done.returncode == 0 and "vllm: scale: right" in done.stdout, done.stderr
