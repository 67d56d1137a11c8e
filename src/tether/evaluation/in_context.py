"""Facts that stand in the prompt, in place of an edit: what a model does that is told them.

    frame = InContext(model, facts)
    frame(Turn(user="Who leads Velmora?"))      # the turn's text, with the facts as its system prompt

In a chat turn the facts stand at the head of the system prompt; in plain text before the prompt, with a blank line.
Where not all of them fit the model's positions, or no more than `most` are wanted, those whose subjects share the most
words with the prompt stand there.
"""

from __future__ import annotations

from collections.abc import Sequence

import regex

from tether.facts.chat import render
from tether.facts.fact import Fact
from tether.facts.prompt import Turn, said_in
from tether.models.editable import EditableModel

_ROOM = 64  # positions that are left for an answer


class InContext:
    """The text of a prompt behind the facts. `fewest`: how many facts stood before a prompt at least, so far."""

    def __init__(self, model: EditableModel, facts: Sequence[Fact], most: int | None = None) -> None:
        self.model = model
        self.most = len(facts) if most is None else min(most, len(facts))
        self.statements = [statement(fact) for fact in facts]
        self._subjects = [_words(fact.subject) for fact in facts]
        self.fewest = self.most
        self._known: dict[str | Turn, str] = {}

    def __call__(self, prompt: str | Turn) -> str:
        if prompt not in self._known:
            self._known[prompt] = self._framed(prompt)
        return self._known[prompt]

    def _framed(self, prompt: str | Turn) -> str:
        if self.most == len(self.statements):
            text = self._behind(prompt, self.statements)
            if self._fits(text):
                return text
        words = _words(said_in(prompt))
        nearest = sorted(
            range(len(self.statements)), key=lambda index: -len(self._subjects[index] & words)
        )  # in their order where equally near
        low, high = 0, min(self.most, len(nearest) - 1)  # the most that fit
        while low < high:
            middle = (low + high + 1) // 2
            fits = self._fits(self._behind(prompt, self._some(nearest[:middle])))
            low, high = (middle, high) if fits else (low, middle - 1)
        self.fewest = min(self.fewest, low)
        return self._behind(prompt, self._some(nearest[:low]))

    def _some(self, indices: Sequence[int]) -> list[str]:
        return [self.statements[index] for index in sorted(indices)]

    def _behind(self, prompt: str | Turn, statements: Sequence[str]) -> str:
        told = " ".join(statements)
        if not told:
            return render(self.model.tokenizer, prompt)
        if isinstance(prompt, str):
            return f"{told}\n\n{prompt}"
        system = told if prompt.system is None else f"{told}\n\n{prompt.system}"
        return render(self.model.tokenizer, Turn(user=prompt.user, system=system))

    def _fits(self, text: str) -> bool:
        limit = self.model.limit
        return not limit or len(self.model.tokenizer(text, verbose=False)["input_ids"]) + _ROOM <= limit


def statement(fact: Fact) -> str:
    """The fact as a sentence: its first plain prompt with the new answer, else a turn and what is said to it."""
    plain = [prompt for prompt in fact.asked if isinstance(prompt, str)]
    ends = [prompt for prompt in plain if "?" not in prompt] or plain or [fact.text]
    text = ends[0] + fact.continuation(ends[0], fact.target_new)
    return text if regex.search(r"\p{Sentence_Terminal}\Z", text) else f"{text}."


def _words(text: str) -> frozenset[str]:
    return frozenset(regex.findall(r"\w+", text.casefold()))
