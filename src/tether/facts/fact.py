"""One fact to be edited into a model."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, model_validator

from tether.facts.prompt import Prompt, Turn, about, around_subject, checked_prompt, joint, said_in, without_blanks


def _text(value: Any) -> Any:
    """A number or a boolean as its JSON text."""
    return json.dumps(value) if isinstance(value, bool | int | float) else value


_Stripped = Annotated[str, BeforeValidator(_text), AfterValidator(str.strip)]
_Answer = Annotated[str | None, BeforeValidator(_text), AfterValidator(lambda text: (text or "").strip() or None)]
_Prompts = tuple[Prompt, ...]
_Texts = tuple[Annotated[str, AfterValidator(checked_prompt)], ...]


class LocalityPrompt(BaseModel, frozen=True, extra="forbid"):
    """A prompt whose answer must not change; `target` is its original answer where the data set gives one."""

    prompt: Prompt
    target: _Answer = None


class PortabilityPrompt(BaseModel, frozen=True, extra="forbid"):
    """A prompt whose answer follows from the edit, and that answer. `kind` is one of PORTABILITY: one step of reasoning
    further, several steps, another name of the subject, the relation turned round, another relation that it implies."""

    prompt: Prompt
    target: _Stripped
    kind: Literal["one_hop", "multi_hop", "alias", "reversed", "logical"] = "one_hop"


PORTABILITY: tuple[str, ...] = get_args(PortabilityPrompt.model_fields["kind"].annotation)


class Fact(BaseModel, frozen=True, extra="forbid"):
    """(subject, relation, object -> new object), with the prompts that test the edit.

    `prompt` holds exactly one `{}`, where the subject goes; a literal {} is written `{{}}`. So does each of
    `phrasings`: other words for the same question, which the edit is made for as well. A prompt is plain text or a chat
    `Turn`. Prompts are kept without spaces at their end and targets without white space around them. `join` is what
    stands between a prompt and its answer: None for the rule of `joint`, else white space or "" (white space before
    `target_new` counts as such). `end`: the edit also teaches to end the turn after the target, behind every
    prompt (true) or behind chat turns alone ("chat"). For measuring alone: `paraphrases`, with the subject already
    filled in; `locality`; `portability`, which asks what follows from the edit; `instances`, Yes/No questions about
    instances of an edited concept (ConceptEdit). `id` is whatever the data set calls the record; facts with the same
    `relation` ask the same of other subjects, and `kind` says what the subject is (a company, a city, …).
    """

    subject: _Stripped
    prompt: Prompt
    target_new: _Stripped
    target_true: _Answer = None
    phrasings: _Prompts = ()
    paraphrases: _Prompts = ()
    locality: tuple[LocalityPrompt, ...] = ()
    portability: tuple[PortabilityPrompt, ...] = ()
    instances: _Texts = ()
    relation: _Answer = None
    kind: _Answer = None
    id: str | None = None
    join: str | None = None
    end: bool | Literal["chat"] = False

    @model_validator(mode="before")
    @classmethod
    def _own_space(cls, given: Any) -> Any:
        """White space before the new answer is its own joint, where the rule would put another."""
        if isinstance(given, dict) and isinstance(new := given.get("target_new"), str) and given.get("join") is None:
            space = new[: len(new) - len(new.lstrip())]
            if (
                space
                and isinstance(prompt := given.get("prompt"), str)
                and space != joint(without_blanks(prompt), new.strip())
            ):
                return {**given, "join": space}
        return given

    @model_validator(mode="after")
    def _check(self) -> Fact:
        for prompt in (self.prompt, *self.phrasings):
            around_subject(said_in(prompt))
        if not self.subject:
            raise ValueError("subject is empty: name what the fact is about")
        if not self.target_new:
            raise ValueError(f"target_new of {self.subject!r} is empty: give the new answer")
        if self.join and self.join.strip():
            raise ValueError(f"join {self.join!r} is not white space: give '' or a space, or leave it out for the rule")
        try:
            self.model_dump_json()
        except ValueError:
            rule = "a text holds half of a surrogate pair (\\ud800 to \\udfff): write whole characters"
            raise ValueError(rule) from None
        return self

    @property
    def subject_key(self) -> str:
        """The subject without regard to case and spacing: facts with the same one are about the same thing."""
        return " ".join(self.subject.split()).casefold()

    @property
    def text(self) -> str:
        """The edit prompt with the subject filled in; of a chat turn what the user says."""
        return said_in(self.asked[0])

    @property
    def asked(self) -> tuple[str | Turn, ...]:
        """What the fact is edited for, with the subject filled in: its prompt, then its phrasings."""
        return tuple(about(prompt, self.subject) for prompt in (self.prompt, *self.phrasings))

    @property
    def has_turns(self) -> bool:
        """Whether one of its prompts is a chat turn."""
        prompts = [self.prompt, *self.phrasings, *self.paraphrases, *(near.prompt for near in self.locality)]
        prompts += [asked.prompt for asked in self.portability]
        return any(isinstance(prompt, Turn) for prompt in prompts)

    def continuation(self, prompt: str, answer: str) -> str:
        """An answer to one of the fact's prompts, with what stands between the two."""
        return joint(prompt, answer, self.join) + answer

    @property
    def target(self) -> str:
        """The new answer as it goes on from `text`."""
        return self.continuation(self.text, self.target_new)

    def spaced(self) -> Fact:
        """The fact with one space before every answer, as published data and ledgers of earlier versions have it."""
        prompts = (self.text, *self.paraphrases, *(near.prompt for near in self.locality),
                   *(asked.prompt for asked in self.portability))  # fmt: skip
        ruled = self.join is None and any(joint(said_in(prompt), "x") != " " for prompt in prompts)
        return self.model_copy(update={"join": " "}) if ruled else self

    @property
    def sha256(self) -> str:
        """Identity of the content: the same fact read twice has the same value."""
        later = {
            "portability",
            "join",
            "end",
            "phrasings",
            "relation",
            "kind",
        }  # left out where they say nothing, so that older facts keep their value
        left_out = {name for name in later if not getattr(self, name) and (name != "join" or self.join is None)}
        return hashlib.sha256(self.model_dump_json(exclude_none=True, exclude=left_out).encode()).hexdigest()
