"""The README.md of an edited model: what was changed, how, and what nobody measured."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tether.data import misuse
from tether.facts.fact import Fact
from tether.models.load import without_place


@dataclass(frozen=True)
class Provenance:
    """Where an exported model comes from: what its card and its manifest say. `facts` are (edit number, fact) of the
    edits that count, `weights` the names of the changed weights; `restraint` is its written form; `head` the hash of
    the journal's last line, `ledger` the name of its folder, `upto` the last edit that was asked for (None: all). Of
    the unedited model: `fingerprint` is the sha256 of the edited weights, `checkpoint` that of all, `model_type` and
    `layers` are what engines ask of an adapter's base."""

    base_model: str
    method: str
    settings: Mapping[str, Any]
    restraint: str
    facts: Sequence[tuple[int, Fact]]
    weights: Sequence[str]
    versions: Mapping[str, str]
    fingerprint: str = ""
    head: str = ""
    ledger: str = ""
    upto: int | None = None
    checkpoint: str = ""
    model_type: str = ""
    layers: int | None = None

    def manifest(self, adapter: Any = None) -> dict[str, Any]:
        """For manifest.json, less what `write_manifest` adds; `adapter` is the report of what an adapter holds."""
        said = [{"edit": edit, **fact.model_dump(mode="json", exclude_defaults=True)} for edit, fact in self.facts]
        base = {"model": without_place(self.base_model), "sha256": self.fingerprint, "checkpoint": self.checkpoint}
        return {
            "ledger": {"head": self.head, "name": self.ledger} if self.head else None,
            "restraint": self.restraint, "upto": self.upto,
            "base": {**base, "model_type": self.model_type, "layers": self.layers},
            "method": self.method, "settings": dict(self.settings), "weights": list(self.weights),
            "versions": dict(self.versions), "facts": said,
            **({} if adapter is None else {"adapter": asdict(adapter)}),
        }  # fmt: skip


def model_card(about: Provenance, *, details: Mapping[str, str] | None = None, library: str = "transformers") -> str:
    """Markdown with YAML front matter.

    `details` are further sections, title -> Markdown: one called "Measurements" stands in place of the sentence that
    nothing was measured. A local path in `base_model` is cut to its last part. `library` is
    "transformers", "peft", "mlx" or "gguf".
    """
    facts, base = about.facts, without_place(about.base_model)
    sections = {
        "Measurements": "Not measured here: neither whether each edit took, nor what else changed. "
        "`tether evaluate` measures both.",
        **(details or {}),
    }
    front = f"---\nbase_model: {json.dumps(base)}\nlibrary_name: {library}\ntags:\n- model-editing\n- tether\n"
    front += "- lora\n---" if library == "peft" or "Adapter" in sections else "---"
    body = [f"# {escape(base)}, edited"]
    if facts:
        head = ("edit", "subject", "prompt", "new answer", "answer before")
        rows = [(n, f.subject, f.prompt, f.target_new, f.target_true or "not given") for n, f in facts]
        count = "1 fact" if len(facts) == 1 else f"{len(facts)} facts"
        body += [f"{count} of {escape(base)} changed with tether.", "## Edited facts", table(head, rows)]
    how = f"Method: {escape(about.method)}. Restraint on the sum of the updates: {escape(about.restraint)}."
    body += ["## Method", how]
    if about.settings:
        body.append(f"```json\n{json.dumps(dict(about.settings), indent=2, ensure_ascii=False, default=str)}\n```")
    body += ["## Weights changed", "\n".join(f"- `{name}`" for name in about.weights) or "None."]
    body += [part for title, text in sections.items() for part in (f"## {title}", text)]
    body += ["## Versions", ", ".join(f"{name} {version}" for name, version in about.versions.items()) + "."]
    body += ["## Misuse", misuse()]
    return "\n\n".join([front, *body]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every cell is escaped."""
    lines = [head, ["---"] * len(head), *([escape(str(cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape(text: str) -> str:
    """One line of Markdown that shows `text` and nothing else: no markup, link, HTML or table cell comes out of it."""
    return re.sub(r"([\\`*_\[\]<>&|#~$!])", r"\\\1", " ".join(text.split()))
