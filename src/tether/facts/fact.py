"""One fact to be edited into a model."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, field_validator, model_validator


class LocalityPrompt(BaseModel):
    """A prompt whose answer must not change; `target` is its original answer where the data set gives one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    target: str | None = None

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str) -> str:
        return _not_empty(value, "locality prompt")

    @field_validator("target")
    @classmethod
    def _target(cls, value: str | None) -> str | None:
        return (value or "").strip() or None


class Fact(BaseModel):
    """(subject, relation, object -> new object), with the prompts that test the edit.

    `prompt` holds exactly one `{}`, where the subject goes. Prompts are kept without spaces at their end and targets
    without any around them; the one between the two is added where a text is built. `paraphrases` have the subject
    already filled in. `instances` are Yes/No questions about instances of an edited concept (ConceptEdit). `id` is
    whatever the data set calls the record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    locality: tuple[LocalityPrompt, ...] = ()
    instances: tuple[str, ...] = ()
    id: str | None = None

    @field_validator("subject", "target_new")
    @classmethod
    def _strip(cls, value: str) -> str:
        return value.strip()

    @field_validator("target_true")
    @classmethod
    def _target_true(cls, value: str | None) -> str | None:
        return (value or "").strip() or None

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str) -> str:
        return value.rstrip(" ")

    @field_validator("paraphrases", "instances")
    @classmethod
    def _prompts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_not_empty(text, "paraphrase or instance prompt") for text in value)

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
            raise ValueError(
                "a text holds half of a surrogate pair (\\ud800 to \\udfff): write whole characters"
            ) from None
        return self

    @property
    def text(self) -> str:
        """The edit prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)

    @property
    def sha256(self) -> str:
        """Identity of the content: the same fact read twice has the same value."""
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()


def _not_empty(text: str, what: str) -> str:
    if not text.strip():
        raise ValueError(f"{what} {text!r} is empty: write one or leave it out")
    return text.rstrip(" ")
