"""What is wrong with a list of facts, found before a minute is spent on editing."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tether.errors import BadFactError
from tether.facts.bystanders import kinds
from tether.facts.chat import render, rendered
from tether.facts.fact import Fact
from tether.facts.prompt import Turn, said_in
from tether.facts.tokens import EncodedPrompt, brought, encode_fact, too_long


@dataclass(frozen=True)
class FactCheck:
    """One fact as an editor will see it. `index` counts from 0 in the list checked; `tokens` are the prompt's, special
    tokens included, and `read_at` the place in them where the edit is read and written (None, and no tokens, where the
    subject or the target has none, or the text too many). `phrasings`: the text of each and the token it is read at.
    No `problems`: fit to edit. `notes`: what else to know."""

    index: int
    fact: Fact
    tokens: tuple[str, ...]
    read_at: int | None
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    phrasings: tuple[tuple[str, str | None], ...] = ()

    @property
    def read_token(self) -> str | None:
        """The token the edit is read at: the subject's last."""
        return None if self.read_at is None else self.tokens[self.read_at]


def check_encoded(
    tokenizer: PreTrainedTokenizerFast,
    facts: Sequence[Fact],
    known: Sequence[Fact] | Mapping[str, Fact] = (),
    *,
    limit: int | None,
    answers: Callable[[Sequence[EncodedPrompt]], Iterable[bool]],
) -> list[FactCheck]:
    """One FactCheck a fact, in order. `known` are facts edited before, those of a ledger, by what a message calls them
    ("known fact 0", … in a sequence).

    Problems: no token for the subject or the target, in the prompt or a phrasing; more tokens than `limit`, the model's
    positions; a target the model already answers greedily, which `answers` tells for every prompt with its target; a
    target_new equal to target_true; a prompt asked before, in `facts` or `known` (compared without regard to case and
    spacing), with the same target (duplicate) or another (contradiction). Notes: a subject that other facts have too; a
    paraphrase that the fact is edited for; a prompt that brings the tokenizer's start of text; a joint other than one
    space. Records that could not become a Fact are `scan_facts`' to name.
    """
    if not isinstance(known, Mapping):
        known = {f"known fact {place}": fact for place, fact in enumerate(known)}
    encoded = [_encode(tokenizer, fact, limit) for fact in facts]
    phrasings = [list(_phrasings(tokenizer, fact, limit)) for fact in facts]
    answered = iter(answers([e for e in encoded if isinstance(e, EncodedPrompt)]))
    repeated = dict(repeats(facts, known))
    places: dict[str, list[str]] = {}
    for where, fact in [*known.items(), *((f"fact {i}", fact) for i, fact in enumerate(facts))]:
        places.setdefault(fact.subject_key, []).append(where)
    checks = []
    for index, (fact, found) in enumerate(zip(facts, encoded, strict=True)):
        problems: list[str] = []
        tokens: tuple[str, ...] = ()
        read_at = None
        if isinstance(found, EncodedPrompt):
            tokens = tuple(str(tokenizer.decode([i])) for i in found.ids[: found.target_start])
            read_at = found.subject_last
            if next(answered):
                problems.append(f"the model already answers {fact.target_new!r} to {fact.text!r}: nothing to edit")
        else:
            problems.append(found)
        if fact.target_true is not None and _key(fact.target_true) == _key(fact.target_new):
            problems.append(f"target_new equals target_true {fact.target_true!r}: give another new answer")
        if index in repeated:
            problems.append(repeated[index])
        problems += [found for found in phrasings[index] if isinstance(found, str) and found not in problems]
        problems += [found for found in _unrendered(tokenizer, fact) if found not in problems]
        read = tuple(found for found in phrasings[index] if not isinstance(found, str))
        others = [where for where in places[fact.subject_key] if where != f"fact {index}"]
        notes = tuple(_notes(tokenizer, fact, others))
        checks.append(FactCheck(index, fact, tokens, read_at, tuple(problems), notes, read))
    return checks


def _notes(tokenizer: PreTrainedTokenizerFast, fact: Fact, others: Sequence[str]) -> Iterator[str]:
    """What to know of a fact; `others` have the same subject."""
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        yield f"same subject as {', '.join(others[:3])}{more}: the edits share what the subject's last token says"
    edited = [_asked(prompt) for prompt in fact.asked]
    for prompt, key in zip(fact.asked, edited, strict=True):
        if edited.count(key) > 1:
            yield f"{said_in(prompt)!r} is more than one of the fact's phrasings: once is enough"
            break
    for prompt in fact.paraphrases:
        if _asked(prompt) in edited:
            yield f"paraphrase {said_in(prompt)!r} is one the fact is edited for: measure it in other words"
    if fact.kind is not None and fact.kind not in kinds():
        yield f"kind {fact.kind!r} is none of tether's list: its bystanders are of the likeliest kind"
    if isinstance(fact.prompt, Turn):
        return
    if start := brought(tokenizer, fact.text):
        yield f"the prompt brings {start}: the tokenizer's own is not added, and prefixes stand inside the turn"
    if not fact.target.startswith(" "):
        between = fact.target[: len(fact.target) - len(fact.target_new)]
        yield f"the target follows the prompt after {between!r}; write `join` for another"


def repeats(facts: Sequence[Fact], known: Mapping[str, Fact] | None = None) -> Iterator[tuple[int, str]]:
    """(index, problem) of every fact that is edited for a prompt which one of `known` (by what a message calls it) or
    an earlier one of the list is edited for: a duplicate, or a contradiction."""
    earlier: dict[Hashable, tuple[str, Fact]] = {}
    for where, fact in (known or {}).items():
        earlier |= {_asked(prompt): (where, fact) for prompt in fact.asked}
    for index, fact in enumerate(facts):
        here = f"fact {index}"
        found = [(prompt, *earlier.setdefault(_asked(prompt), (here, fact))) for prompt in fact.asked]
        again = next(((prompt, where, other) for prompt, where, other in found if where != here), None)
        if again is None:
            continue
        prompt, where, other = again
        if _key(other.target_new) == _key(fact.target_new):
            yield index, f"{said_in(prompt)!r} is a duplicate of {where}: remove one of the two"
        else:
            targets = f"whose target is {other.target_new!r} and not {fact.target_new!r}"
            yield index, f"{said_in(prompt)!r} contradicts {where}, {targets}: keep one of the two"


def _asked(prompt: str | Turn) -> Hashable:
    """What is the same for prompts that differ in case and spacing alone."""
    return (_key(prompt),) if isinstance(prompt, str) else (_key(prompt.user), _key(prompt.system or ""))


def _encode(tokenizer: PreTrainedTokenizerFast, fact: Fact, limit: int | None) -> EncodedPrompt | str:
    """The edit prompt with its target, or what is wrong with it."""
    try:
        found = encode_fact(tokenizer, fact)
    except BadFactError as error:
        return str(error)
    return too_long(limit, fact.text, [found.ids]) or found


def _unrendered(tokenizer: PreTrainedTokenizerFast, fact: Fact) -> list[str]:
    """What is wrong with the chat turns of a fact."""
    try:
        rendered(tokenizer, fact)
    except BadFactError as error:
        return [str(error)]
    return []


def _phrasings(
    tokenizer: PreTrainedTokenizerFast, fact: Fact, limit: int | None
) -> Iterator[tuple[str, str | None] | str]:
    """Text and read token of every phrasing, or what is wrong with it."""
    for phrasing, asked in zip(fact.phrasings, fact.asked[1:], strict=True):
        found = _encode(tokenizer, fact.model_copy(update={"prompt": phrasing, "phrasings": ()}), limit)
        if isinstance(found, str):
            yield found
        else:
            yield render(tokenizer, asked), str(tokenizer.decode([found.ids[found.subject_last]]))


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()
