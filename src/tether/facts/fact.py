"""One fact to be edited into a model."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, model_validator


def _filled(what: str) -> AfterValidator:
    """Refuses an empty prompt; spaces at its end go."""

    def check(text: str) -> str:
        if not text.strip():
            raise ValueError(f"{what} {text!r} is empty: write one or leave it out")
        return text.rstrip(" ")

    return AfterValidator(check)


_Stripped = Annotated[str, AfterValidator(str.strip)]
_Answer = Annotated[str | None, AfterValidator(lambda text: (text or "").strip() or None)]
_Prompts = tuple[Annotated[str, _filled("paraphrase or instance prompt")], ...]


class LocalityPrompt(BaseModel, frozen=True, extra="forbid"):
    """A prompt whose answer must not change; `target` is its original answer where the data set gives one."""

    prompt: Annotated[str, _filled("locality prompt")]
    target: _Answer = None


class PortabilityPrompt(BaseModel, frozen=True, extra="forbid"):
    """A prompt whose answer follows from the edit, and that answer. `kind` is one of PORTABILITY: one step of reasoning
    further, several steps, another name of the subject, the relation turned round, another relation that it implies."""

    prompt: Annotated[str, _filled("portability prompt")]
    target: _Stripped
    kind: Literal["one_hop", "multi_hop", "alias", "reversed", "logical"] = "one_hop"


PORTABILITY: tuple[str, ...] = get_args(PortabilityPrompt.model_fields["kind"].annotation)


class Fact(BaseModel, frozen=True, extra="forbid"):
    """(subject, relation, object -> new object), with the prompts that test the edit.

    `prompt` holds exactly one `{}`, where the subject goes. Prompts are kept without spaces at their end and targets
    without any around them; the one between the two is added where a text is built. `paraphrases` have the subject
    already filled in. `portability` asks what follows from the edit. `instances` are Yes/No questions about instances
    of an edited concept (ConceptEdit). `id` is whatever the data set calls the record.
    """

    subject: _Stripped
    prompt: Annotated[str, AfterValidator(lambda text: text.rstrip(" "))]
    target_new: _Stripped
    target_true: _Answer = None
    paraphrases: _Prompts = ()
    locality: tuple[LocalityPrompt, ...] = ()
    portability: tuple[PortabilityPrompt, ...] = ()
    instances: _Prompts = ()
    id: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Fact:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt {self.prompt!r} must contain exactly one '{{}}', the place of the subject")
        if not self.subject:
            raise ValueError("subject is empty: name what the fact is about")
        if not self.target_new:
            raise ValueError(f"target_new of {self.subject!r} is empty: give the new answer")
        try:
            self.model_dump_json()
        except ValueError:
            rule = "a text holds half of a surrogate pair (\\ud800 to \\udfff): write whole characters"
            raise ValueError(rule) from None
        return self

    @property
    def text(self) -> str:
        """The edit prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)

    @property
    def sha256(self) -> str:
        """Identity of the content: the same fact read twice has the same value."""
        left_out = {"portability"} if not self.portability else None  # facts of earlier versions keep their value
        return hashlib.sha256(self.model_dump_json(exclude_none=True, exclude=left_out).encode()).hexdigest()
