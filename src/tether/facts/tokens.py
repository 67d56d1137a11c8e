"""Where a subject and a target lie among a text's tokens, by the character offsets of a fast tokenizer.

    encode(tokenizer, "The {} is located in the city of", "Eiffel Tower", target="Rome")

Token strings are never compared: what a word's tokens are depends on what stands before and after it.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import regex
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tether.errors import BadFactError, WrongModelError
from tether.facts.chat import start_of_turn, template, with_end
from tether.facts.fact import Fact
from tether.facts.prompt import Turn, around_subject, joint

Spans = Sequence[tuple[int, int]]  # first character of every token, and the one after its last


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a text, the index of the subject's last token in them, and that of the target's first token:
    `target_start == len(ids)` where there is no target."""

    ids: tuple[int, ...]
    subject_last: int
    target_start: int

    @property
    def asked(self) -> tuple[int, ...]:
        """The ids before the target."""
        return self.ids[: self.target_start]


@dataclass(frozen=True)
class Continuation:
    """Token ids of a text, and the index (at least 1) from which on they are scored."""

    ids: tuple[int, ...]
    start: int


class Pair(NamedTuple):
    """A prompt, what follows it, and what stands between them as `joint` takes it."""

    prompt: str
    continuation: str
    join: str | None = None


AnyPair = tuple[str, str] | tuple[str, str, str | None]


def locate(tokenizer: PreTrainedTokenizerFast, text: str, start: int, end: int) -> int:
    """Index, among the ids `tokenizer(text)` gives, of the last token that overlaps the last of the characters
    text[start:end]. Raises BadFactError where no token does, WrongModelError for a tokenizer without offsets."""
    [(_, spans)] = _tokenize(tokenizer, [text])
    return _last_over(spans, text, start, end)


def encode(
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    subject: str,
    *,
    prefix: str = "",
    target: str | None = None,
    join: str | None = None,
    end: bool = False,
) -> EncodedPrompt:
    """Tokens of "prefix. prompt target", with the subject at the place of the `{}` in the prompt: there alone, also
    where the prefix or the rest of the prompt names it again. `encode(tokenizer, "{} is a", subject)` is the KL prompt.

    What stands before the target is `joint`'s to say. In a rendered chat template the prefix stands inside the turn of
    the subject. With `end` the token that ends a turn follows the target.

    Special tokens are those the tokenizer adds by default and the prompt does not bring, without any it puts after the
    text. Target tokens are those that reach beyond the prompt's end, so the space before the target is theirs. Raises
    BadFactError where the subject or the target has no token of its own, WrongModelError for a tokenizer without
    offsets.
    """
    try:
        before, after = around_subject(prompt)
    except ValueError as error:
        raise BadFactError(str(error)) from None
    if prefix:
        start = start_of_turn(tokenizer, before)
        before = f"{before[:start]}{prefix}. {before[start:]}"
    bare = before + subject + after
    between = "" if target is None else joint(bare, target, join)
    text = bare + between + (target or "")
    [(ids, spans)] = _joined(tokenizer, [(bare, between, target or "")])
    target_start = _first_beyond(spans, len(bare))
    if target is not None and target_start == len(ids):
        raise BadFactError(f"target {target!r} has no token after {bare!r}: write another target")
    subject_last = _last_over(spans, text, len(before), len(before) + len(subject))
    if subject_last >= target_start:
        raise BadFactError(
            f"{text!r}: one token joins subject {subject!r} and target {target!r}; put words between them"
        )
    return EncodedPrompt(with_end(tokenizer, ids) if end else ids, subject_last, target_start)


def encode_fact(tokenizer: PreTrainedTokenizerFast, fact: Fact, prefix: str = "") -> EncodedPrompt:
    """What a fact is edited with: its prompt, behind a prefix, with its new target."""
    prompt = template(tokenizer, fact.prompt)
    end = isinstance(fact.prompt, Turn) if fact.end == "chat" else fact.end
    return encode(tokenizer, prompt, fact.subject, prefix=prefix, target=fact.target_new, join=fact.join, end=end)


def encode_asked(tokenizer: PreTrainedTokenizerFast, fact: Fact) -> list[EncodedPrompt]:
    """Every prompt that a fact is edited for, with its new target: its own first."""
    others = (fact.model_copy(update={"prompt": phrasing}) for phrasing in fact.phrasings)
    return [encode_fact(tokenizer, one) for one in (fact, *others)]


def too_long(limit: int | None, text: str, ids: Iterable[Sequence[int]]) -> str | None:
    """What is wrong with a fact's `text` where the longest of its `ids` has more tokens than `limit`, the model's
    positions; None where they fit, or the model names no limit."""
    longest = max(map(len, ids))
    if not limit or longest <= limit:
        return None
    return f"{text[:60]!r}: {longest} tokens, the model takes {limit}; shorten the prompt"


def end_of_text(special: Sequence[int], at_least: int = 0) -> int:
    """How many tokens a text has without the special ones after it, and no fewer than `at_least`. `special` is 1 where
    a token is special (the tokenizer's `special_tokens_mask`)."""
    length = len(special)
    while length > at_least and special[length - 1]:
        length -= 1
    return length


def of_text(ids: Sequence[int], special: Sequence[int], at_least: int = 0) -> slice:
    """Which tokens of a text count: as `end_of_text` says, and without the special ones added before it where the text
    itself begins with them."""
    stop = end_of_text(special, at_least)
    added = next((index for index, one in enumerate(special[:stop]) if not one), stop)
    return slice(added if added and ids[added : 2 * added] == ids[:added] else 0, stop)


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The tokens of a prompt that is to be gone on from, special ones before it included as `of_text` says. Raises
    BadFactError where there is none."""
    encoding = tokenizer(prompt, return_special_tokens_mask=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    found = ids[of_text(ids, encoding["special_tokens_mask"], at_least=1)]
    if not found:
        raise BadFactError(f"prompt {prompt!r} has no token: write a prompt")
    return found


def spans_of(tokenizer: PreTrainedTokenizerFast, text: str) -> Spans:
    """Where in the text each of its `prompt_ids` stands, in characters; (0, 0) for a special token before it."""
    encoding = tokenizer(text, return_special_tokens_mask=True, return_offsets_mapping=True, verbose=False)
    found: Spans = encoding["offset_mapping"]
    return found[of_text(encoding["input_ids"], encoding["special_tokens_mask"], at_least=1)]


def brought(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """The special tokens a text begins with that the tokenizer would add before it; empty where it brings none."""
    encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids = encoding["input_ids"]
    return str(tokenizer.decode(ids[: of_text(ids, encoding["special_tokens_mask"]).start]))


def _tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Iterator[tuple[tuple[int, ...], Spans]]:
    """Ids and character spans of every text, as `of_text` says; (0, 0) for special tokens that were added."""
    if not texts:
        return
    if not getattr(tokenizer, "is_fast", False):
        raise WrongModelError(
            f"{type(tokenizer).__name__} gives no character offsets: load a fast tokenizer (a tokenizer.json)"
        )
    encoding = tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    columns = (encoding["input_ids"], encoding["offset_mapping"], encoding["special_tokens_mask"])
    for ids, spans, special in zip(*columns, strict=True):
        counted = of_text(ids, special)
        yield tuple(ids[counted]), spans[counted]


def _joined(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, str, str]]
) -> Iterator[tuple[tuple[int, ...], Spans]]:
    """Ids and character spans of every (prompt, joint, continuation) as one text.

    Where nothing stands between, no token reaches across: the model is asked behind the tokens of the prompt. A
    tokenizer that begins every text with a space cannot take the two apart, so there one may.
    """
    found = _tokenize(tokenizer, ["".join(parts) for parts in texts])
    for (prompt, between, continuation), (ids, spans) in zip(texts, found, strict=True):
        first, end = _first_beyond(spans, len(prompt)), len(prompt)
        if not (between or continuation[:1].isspace()) and first < len(spans) and spans[first][0] < end:
            [(head, before)] = _tokenize(tokenizer, [prompt])
            rest = tokenizer(continuation, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            apart = (*head, *rest["input_ids"])
            if tokenizer.decode(apart) == tokenizer.decode(ids):
                ids, spans = apart, [*before, *((a + end, b + end) for a, b in rest["offset_mapping"])]
        yield ids, spans


def tokenize(tokenizer: PreTrainedTokenizerFast, pairs: Iterable[AnyPair]) -> list[Continuation]:
    """Every prompt with its continuation as ids, with the index of the continuation's first token."""
    found = []
    texts = [(pair.prompt, joint(*pair), pair.continuation) for pair in itertools.starmap(Pair, pairs)]
    for (prompt, _, continuation), (ids, spans) in zip(texts, _joined(tokenizer, texts), strict=True):
        start = _first_beyond(spans, len(prompt))
        if start == len(ids):
            raise BadFactError(f"continuation {continuation!r} has no token after {prompt!r}: write another one")
        if start == 0:
            raise BadFactError(f"prompt {prompt!r} has no token before {continuation!r}: a prompt needs at least one")
        found.append(Continuation(ids, start))
    return found


def _first_beyond(spans: Spans, end: int) -> int:
    """Index of the first token that reaches beyond character `end`; the number of tokens where none does."""
    return next((i for i, (_, stop) in enumerate(spans) if stop > end), len(spans))


def _last_over(spans: Spans, text: str, start: int, end: int) -> int:
    """Index of the last token over the last character of text[start:end], as a reader counts characters: a tokenizer
    that composes a letter and its marks gives their tokens the place of the letter alone."""
    if not 0 <= start < end <= len(text):
        raise BadFactError(
            f"characters {start} to {end} are no part of {text!r}: a subject needs at least one character"
        )
    cluster = regex.findall(r"\X", text[start:end])[-1]
    for stop in range(end, end - len(cluster), -1):
        over = [i for i, (left, right) in enumerate(spans) if left < stop and right >= stop and left < right]
        if over:
            return over[-1]
    raise BadFactError(
        f"subject {text[start:end]!r} has no token in {text!r}: the tokenizer drops its last character; rewrite it"
    )


def padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, n×t int64, padded with token 0 on the right, where a causal model cannot see it, or on
    the left."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, columns] = torch.tensor(row)
        mask[index, columns] = 1
    return ids.to(device), mask.to(device)
