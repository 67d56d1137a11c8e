"""Where a subject and a target lie among a text's tokens, by the character offsets of a fast tokenizer.

    encode(tokenizer, "The {} is located in the city of", "Eiffel Tower", target="Rome")

Token strings are never compared: what a word's tokens are depends on what stands before and after it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tether.errors import BadFactError, WrongModelError

Spans = Sequence[tuple[int, int]]  # first character of every token, and the one after its last


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a text, the index of the subject's last token in them, and that of the target's first token:
    `target_start == len(ids)` where there is no target."""

    ids: tuple[int, ...]
    subject_last: int
    target_start: int


@dataclass(frozen=True)
class Continuation:
    """Token ids of a text, and the index (at least 1) from which on they are scored."""

    ids: tuple[int, ...]
    start: int


def locate(tokenizer: PreTrainedTokenizerFast, text: str, start: int, end: int) -> int:
    """Index, among the ids `tokenizer(text)` gives, of the last token that overlaps the last of the characters
    text[start:end]. Raises BadFactError where no token does, WrongModelError for a tokenizer without offsets."""
    [(_, spans)] = _tokenize(tokenizer, [text])
    return _last_over(spans, text, start, end)


def encode(
    tokenizer: PreTrainedTokenizerFast, prompt: str, subject: str, *, prefix: str = "", target: str | None = None
) -> EncodedPrompt:
    """Tokens of "prefix. prompt target", with the subject at the place of the `{}` in the prompt: there alone, also
    where the prefix or the rest of the prompt names it again. `encode(tokenizer, "{} is a", subject)` is the KL prompt.

    Special tokens are those the tokenizer adds by default, without any it puts after the text. Target tokens are
    those that reach beyond the prompt's end, so the space before the target is theirs. Raises BadFactError where the
    subject or the target has no token of its own, WrongModelError for a tokenizer without offsets.
    """
    if prompt.count("{}") != 1:
        raise BadFactError(f"prompt {prompt!r} must contain exactly one '{{}}', the place of the subject")
    before, _, after = prompt.partition("{}")
    if prefix:
        before = f"{prefix}. {before}"
    bare = before + subject + after
    text = bare if target is None else f"{bare} {target}"
    [(ids, spans)] = _tokenize(tokenizer, [text])
    target_start = _first_beyond(spans, len(bare))
    if target is not None and target_start == len(ids):
        raise BadFactError(f"target {target!r} has no token after {bare!r}: write another target")
    subject_last = _last_over(spans, text, len(before), len(before) + len(subject))
    if subject_last >= target_start:
        raise BadFactError(
            f"{text!r}: one token joins subject {subject!r} and target {target!r}; put words between them"
        )
    return EncodedPrompt(ids, subject_last, target_start)


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


def _tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Iterator[tuple[tuple[int, ...], Spans]]:
    """Ids and character spans of every text, (0, 0) for special tokens; those after the text are cut off."""
    if not texts:
        return
    if not getattr(tokenizer, "is_fast", False):
        raise WrongModelError(
            f"{type(tokenizer).__name__} gives no character offsets: load a fast tokenizer (a tokenizer.json)"
        )
    encoding = tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    columns = (encoding["input_ids"], encoding["offset_mapping"], encoding["special_tokens_mask"])
    for ids, spans, special in zip(*columns, strict=True):
        length = end_of_text(special)
        yield tuple(ids[:length]), spans[:length]


def tokenize(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """Every "prompt continuation" as ids, with the index of the continuation's first token."""
    found = []
    texts = [f"{prompt} {continuation}" for prompt, continuation in pairs]
    for (prompt, continuation), (ids, spans) in zip(pairs, _tokenize(tokenizer, texts), strict=True):
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
    if not 0 <= start < end <= len(text):
        raise BadFactError(
            f"characters {start} to {end} are no part of {text!r}: a subject needs at least one character"
        )
    over = [i for i, (left, right) in enumerate(spans) if left < end and right >= end and left < right]
    if not over:
        raise BadFactError(
            f"subject {text[start:end]!r} has no token in {text!r}: the tokenizer drops its last character; rewrite it"
        )
    return over[-1]


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
