"""Which of the paper's findings a grid shows: a stated rule for each, applied to every editor, never a reader's eye."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Literal

import yaml

from tether.experiment.results import StoredGrid
from tether.report.grid import rules
from tether.report.grid.series import Editor, editors

Word = Literal["seen", "not seen", "cannot say"]


@dataclass(frozen=True)
class Claim:
    """A finding of the paper, where it says so, the section of the page that tells it, and the rule that decides on it:
    its words here, its code the function of `rules` that is called as the key."""

    key: str
    name: str
    place: str
    section: str
    rule: str

    def of(self, editor: Editor) -> Finding:
        verdict: Word
        try:
            seen, numbers = getattr(rules, self.key.replace("-", "_"))(editor)
            verdict = "seen" if seen else "not seen"
        except rules.CannotSay as reason:
            verdict, numbers = "cannot say", str(reason)
        return Finding(**vars(self), editor=editor.name, verdict=verdict, numbers=numbers)


@dataclass(frozen=True)
class Finding(Claim):
    """A claim, and whether one editor's data show it."""

    editor: str
    verdict: Word
    numbers: str

    @property
    def sentence(self) -> str:
        return f"{self.verdict.capitalize()} for {self.editor}: {self.numbers}."


def findings(grid: StoredGrid) -> list[Finding]:
    """Every claim of the paper, judged for every editor of the grid."""
    return [claim.of(editor) for claim in CLAIMS for editor in editors(grid)]


def _claims() -> tuple[Claim, ...]:
    """Those of claims.yaml, with numbers and words for what stands in braces."""
    found = yaml.safe_load((resources.files(__package__) / "claims.yaml").read_text(encoding="utf-8"))
    known = vars(rules) | {name: text.format(**vars(rules)) for name, text in found["words"].items()}
    return tuple(Claim(key, **{**said, "rule": said["rule"].format(**known)}) for key, said in found["claims"].items())


CLAIMS = _claims()
