"""What is wrong with a list of facts, found before a minute is spent on editing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tether.errors import BadFactError
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, encode, too_long


@dataclass(frozen=True)
class FactCheck:
    """One fact as an editor will see it. `index` counts from 0 in the list checked; `tokens` are the prompt's, special
    tokens included, and `read_at` the place in them where the edit is read and written (None, and no tokens, where the
    subject or the target has none, or the text too many). No `problems`: fit to edit."""

    index: int
    fact: Fact
    tokens: tuple[str, ...]
    read_at: int | None
    problems: tuple[str, ...]

    @property
    def read_token(self) -> str | None:
        """The token the edit is read at: the subject's last."""
        return None if self.read_at is None else self.tokens[self.read_at]


def check_encoded(
    tokenizer: PreTrainedTokenizerFast,
    facts: Sequence[Fact],
    known: Iterable[Fact] = (),
    *,
    limit: int | None,
    answers: Callable[[Sequence[EncodedPrompt]], Iterable[bool]],
) -> list[FactCheck]:
    """One FactCheck a fact, in order. `known` are facts edited before, those of a ledger.

    Problems: no token for the subject or the target; more tokens than `limit`, the model's positions; a target the
    model already answers greedily, which `answers` tells for every prompt with its target; a target_new equal to
    target_true; a prompt asked before, in `facts` or `known` (compared without regard to case and spacing), with the
    same target (duplicate) or another (contradiction). Records that could not become a Fact are `scan_facts`' to name.
    """
    encoded = [_encode(tokenizer, fact, limit) for fact in facts]
    answered = iter(answers([e for e in encoded if isinstance(e, EncodedPrompt)]))
    earlier = {_key(fact.text): (f"known fact {i}", fact) for i, fact in enumerate(known)}
    checks = []
    for index, (fact, found) in enumerate(zip(facts, encoded, strict=True)):
        problems = []
        tokens: tuple[str, ...] = ()
        read_at = None
        if isinstance(found, EncodedPrompt):
            tokens = tuple(str(tokenizer.decode([i])) for i in found.ids[: found.target_start])
            read_at = found.subject_last
            if next(answered):
                problems.append(f"the model already answers {fact.target_new!r} to {fact.text!r}: nothing to edit")
        else:
            problems.append(str(found))
        if fact.target_true is not None and _key(fact.target_true) == _key(fact.target_new):
            problems.append(f"target_new equals target_true {fact.target_true!r}: give another new answer")
        problems += _repeated(fact, earlier)
        earlier.setdefault(_key(fact.text), (f"fact {index}", fact))
        checks.append(FactCheck(index, fact, tokens, read_at, tuple(problems)))
    return checks


def repeats(facts: Sequence[Fact]) -> Iterator[tuple[int, str]]:
    """(index, problem) of every fact whose prompt an earlier one of the list has: a duplicate, or a contradiction."""
    earlier: dict[str, tuple[str, Fact]] = {}
    for index, fact in enumerate(facts):
        for problem in _repeated(fact, earlier):
            yield index, problem
        earlier.setdefault(_key(fact.text), (f"fact {index}", fact))


def _encode(tokenizer: PreTrainedTokenizerFast, fact: Fact, limit: int | None) -> EncodedPrompt | BadFactError:
    try:
        found = encode(tokenizer, fact.prompt, fact.subject, target=fact.target_new)
    except BadFactError as error:
        return error
    problem = too_long(limit, fact.text, [found.ids])
    return BadFactError(problem) if problem else found


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


def _repeated(fact: Fact, earlier: dict[str, tuple[str, Fact]]) -> Iterator[str]:
    if _key(fact.text) in earlier:
        where, other = earlier[_key(fact.text)]
        if _key(other.target_new) == _key(fact.target_new):
            yield f"{fact.text!r} is a duplicate of {where}: remove one of the two"
        else:
            yield (
                f"{fact.text!r} contradicts {where}, whose target is {other.target_new!r} and not "
                f"{fact.target_new!r}: keep one of the two"
            )
