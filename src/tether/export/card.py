"""The README.md of an edited model: what was changed, how, and what nobody measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tether.data import misuse
from tether.facts.fact import Fact


def model_card(
    *,
    base_model: str,
    facts: Sequence[tuple[int, Fact]],
    method: str,
    settings: Mapping[str, object],
    restraint: str,
    weights: Sequence[str],
    versions: Mapping[str, str],
    details: Mapping[str, str] | None = None,
    library: str = "transformers",
) -> str:
    """Markdown with YAML front matter.

    `facts` are (edit number, fact) of the edits the weights carry, `weights` the names of the changed weights,
    `details` further sections, title -> Markdown: one called "Measurements" stands in place of the sentence that
    nothing was measured. A local path in `base_model` is cut to its last part. `library` is "transformers" or "peft".
    """
    base = Path(base_model).name if Path(base_model).is_absolute() or Path(base_model).exists() else base_model
    sections = {
        "Measurements": "Not measured here: neither whether each edit took, nor what else changed. "
        "`tether evaluate` measures both.",
        **(details or {}),
    }
    front = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"library_name: {library}",
        "tags:",
        "- model-editing",
        "- tether",
        *(["- lora"] if library == "peft" else []),
        "---",
    ]
    body = [
        f"# {escape(base)}, edited",
        f"{len(facts)} fact{'s' * (len(facts) != 1)} of {escape(base)} changed with tether." if facts else "",
        "## Edited facts" if facts else "",
        table(
            ("edit", "subject", "prompt", "new answer", "answer before"),
            [(n, f.subject, f.prompt, f.target_new, f.target_true or "not given") for n, f in facts],
        )
        if facts
        else "",
        "## Method",
        f"Method: {escape(method)}. Restraint on the sum of the updates: {escape(restraint)}.",
        f"```json\n{json.dumps(settings, indent=2, ensure_ascii=False, default=str)}\n```" if settings else "",
        "## Weights changed",
        "\n".join(f"- `{name}`" for name in weights) or "None.",
        *(part for title, text in sections.items() for part in (f"## {title}", text)),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "## Misuse",
        misuse(),
    ]
    return "\n".join(front) + "\n\n" + "\n\n".join(part for part in body if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every cell is escaped."""
    lines = [head, ["---"] * len(head), *([escape(str(cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape(text: str) -> str:
    """One line of Markdown that shows `text` and nothing else: no markup, link, HTML or table cell comes out of it."""
    return re.sub(r"([\\`*_\[\]<>&|#~$!])", r"\\\1", " ".join(text.split()))
