"""Where a subject and a target lie among a text's tokens, by the character offsets of a fast tokenizer.

    encode(tokenizer, "The {} is located in the city of", "Eiffel Tower", target="Rome")

Token strings are never compared: what a word's tokens are depends on what stands before and after it.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tether.errors import BadFactError, WrongModelError
from tether.facts.joint import joint, split_prompt

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

    `join` stands before the target (None: as `joint` says). `end` adds the tokenizer's end of text after it. In a
    rendered chat template the prefix goes inside the turn that names the subject. Special tokens are those the
    tokenizer adds by default, without any it puts after the text, and without a start of text that the prompt brings
    itself. Target tokens are those that reach beyond the prompt's end, so the space before the target is theirs. Raises
    BadFactError where the subject or the target has no token of its own, WrongModelError for a tokenizer without
    offsets.
    """
    try:
        before, after = split_prompt(prompt)
    except ValueError as error:
        raise BadFactError(str(error)) from None
    if prefix:
        inside = _start_of_turn(tokenizer, before)
        before = f"{before[:inside]}{prefix}. {before[inside:]}"
    bare = before + subject + after
    continuation = ""
    if target is not None:
        ending = str(tokenizer.eos_token or "") if end else ""
        continuation = (joint(bare, target) if join is None else join) + target + ending
    text = bare + continuation
    [(ids, spans)] = _joined(tokenizer, [(bare, continuation)])
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
    """Ids and character spans of every text, (0, 0) for special tokens that are added. Those after the text are cut
    off, and a start of text is not added to a text that brings it."""
    if not texts:
        return
    if not getattr(tokenizer, "is_fast", False):
        raise WrongModelError(
            f"{type(tokenizer).__name__} gives no character offsets: load a fast tokenizer (a tokenizer.json)"
        )
    encoding = tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    columns = (encoding["input_ids"], encoding["offset_mapping"], encoding["special_tokens_mask"])
    for text, ids, spans, special in zip(texts, *columns, strict=True):
        first, length = int(brings_start(tokenizer, text, ids)), end_of_text(special)
        yield tuple(ids[first:length]), spans[first:length]


def brings_start(tokenizer: PreTrainedTokenizerFast, text: str, ids: Sequence[int]) -> bool:
    """Whether a text itself begins with the start of text that the tokenizer has put before it too: a rendered chat
    template does."""
    start = tokenizer.bos_token
    return bool(start) and text.startswith(str(start)) and list(ids[:2]) == [tokenizer.bos_token_id] * 2


def tokenize(
    tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]], *, join: str | None = None
) -> list[Continuation]:
    """Every prompt with its continuation as ids, with the index of the continuation's first token. `join` stands
    between the two; None: as `joint` says."""
    found = []
    pairs = [(prompt, (joint(prompt, text) if join is None else join) + text) for prompt, text in pairs]
    for (prompt, continuation), (ids, spans) in zip(pairs, _joined(tokenizer, pairs), strict=True):
        start = _first_beyond(spans, len(prompt))
        if start == len(ids):
            raise BadFactError(f"continuation {continuation!r} has no token after {prompt!r}: write another one")
        if start == 0:
            raise BadFactError(f"prompt {prompt!r} has no token before {continuation!r}: a prompt needs at least one")
        found.append(Continuation(ids, start))
    return found


def _joined(
    tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]
) -> Iterator[tuple[tuple[int, ...], Spans]]:
    """`_tokenize` of every prompt followed by its continuation. Where one token would reach over the joint, the prompt
    has the tokens that it has alone, as a reader's prompt has them, if the continuation can be written after those."""
    texts = [prompt + continuation for prompt, continuation in pairs]
    for (prompt, continuation), (ids, spans) in zip(pairs, _tokenize(tokenizer, texts), strict=True):
        over = any(left < len(prompt) < right for left, right in spans)
        if over and not continuation[:1].isspace():
            [(alone, its)] = _tokenize(tokenizer, [prompt])
            rest = tokenizer(continuation, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            if tokenizer.decode(rest["input_ids"], clean_up_tokenization_spaces=False) == continuation:
                after = [(left + len(prompt), right + len(prompt)) for left, right in rest["offset_mapping"]]
                yield (*alone, *rest["input_ids"]), [*its, *after]
                continue
        yield ids, spans


def _start_of_turn(tokenizer: PreTrainedTokenizerFast, before: str) -> int:
    """Where the words of the last turn begin in the text before a subject: after the template's marks and the line that
    names the speaker; 0 in plain text."""
    marks = [str(token) for token in tokenizer.all_special_tokens if str(token)]
    marks += [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ends = [before.rfind(mark) + len(mark) for mark in marks if mark in before]
    if not ends:
        return 0
    speaker = re.match(r"\w*\s*\n+|\s+", before[max(ends) :])
    return max(ends) + (speaker.end() if speaker else 0)


def _first_beyond(spans: Spans, end: int) -> int:
    """Index of the first token that reaches beyond character `end`; the number of tokens where none does."""
    return next((i for i, (_, stop) in enumerate(spans) if stop > end), len(spans))


def _last_over(spans: Spans, text: str, start: int, end: int) -> int:
    if not 0 <= start < end <= len(text):
        raise BadFactError(
            f"characters {start} to {end} are no part of {text!r}: a subject needs at least one character"
        )
    last = end  # a tokenizer that composes characters gives the marks on the last one no token
    while last > start + 1 and unicodedata.combining(text[last - 1]):
        last -= 1
    over = [i for i, (left, right) in enumerate(spans) if left < end and right >= last and left < right]
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
