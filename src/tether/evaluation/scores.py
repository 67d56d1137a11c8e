"""The one scorer: teacher-forced log-likelihoods of continuations, batched, and greedy continuations.

    score(model, [("The capital of France is", "Paris"), ("The capital of France is", "Rome")])

Texts that start alike share a forward: a model that reads from left to right computes the same for one text and for any
that begins with it, so two one-token candidates of a prompt cost one row, and logits are made only where they are read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tether.errors import TetherError
from tether.facts.tokens import Continuation, padded, prompt_ids, tokenize, too_long
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import head_logits
from tether.models.sampling import end_tokens, plain_generation

BATCH_TOKENS = 4096  # tokens of a forward, padding included
_Row = tuple[
    tuple[int, ...], list[int]
]  # a text without its last token, and the indices of the continuations it serves
_HEAD_ROWS = 256  # positions the head is applied to at once: 256 × 256k logits in float32 are 256 MB


@dataclass(frozen=True)
class Score:
    """A continuation after its prompt: its log-likelihood (natural, summed over `n_tokens`), and at each of its
    positions the model's own choice given the true tokens before it, and whether that is the true token."""

    log_likelihood: float
    n_tokens: int
    argmax_correct: tuple[bool, ...]
    argmax_ids: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The length-normalised log-likelihood."""
        return self.log_likelihood / self.n_tokens


def score(
    model: EditableModel,
    pairs: Sequence[tuple[str, str]],
    *,
    join: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Score]:
    """The Score of every (prompt, continuation), in order, of the model as it is now; float32 log-softmax.

    `join` stands between the two: None for one space, or none where nobody would write one; "" where continuations
    bring their own. Both are tokenised as one text with the tokenizer's default special tokens (those after the text
    are cut off, and none is added that the prompt brings); the tokens that reach beyond the prompt's end are scored.
    Changes nothing. Raises TetherError for a continuation without tokens, a prompt without any, and a tokenizer without
    character offsets.
    """
    unique = list(dict.fromkeys(pairs))
    scores = score_ids(model, tokenize(model.tokenizer, [(*pair, join) for pair in unique]), batch_tokens=batch_tokens)
    by_pair = dict(zip(unique, scores, strict=True))
    return [by_pair[pair] for pair in pairs]


@torch.inference_mode()
def score_ids(
    model: EditableModel, continuations: Sequence[Continuation], *, batch_tokens: int = BATCH_TOKENS
) -> list[Score]:
    """`score` for texts that are token ids already."""
    _check_lengths(model, [text.ids[:-1] for text in continuations])
    scores: dict[int, Score] = {}
    for rows in _batches(_shared_rows(continuations), batch_tokens):
        reads = [(row, index) for row, (_, served) in enumerate(rows) for index in served]
        # Every (row, column) that is read, once, however many continuations read it.
        places: dict[tuple[int, int], int] = {}
        wanted: list[tuple[int, int]] = []  # (place, token) of every scored token, continuation after continuation
        for row, index in reads:
            text = continuations[index]
            for column in range(text.start, len(text.ids)):
                place = places.setdefault((row, column - 1), len(places))
                wanted.append((place, text.ids[column]))
        likelihoods, best = _read(model, [ids for ids, _ in rows], list(places), wanted)
        found = iter(zip(wanted, likelihoods, strict=True))
        for _, index in reads:
            own = list(islice(found, len(continuations[index].ids) - continuations[index].start))
            argmax = tuple(best[place] for (place, _), _ in own)
            correct = tuple(best[place] == token for (place, token), _ in own)
            scores[index] = Score(sum(likelihood for _, likelihood in own), len(own), correct, argmax)
    return [scores[index] for index in range(len(continuations))]


def _check_lengths(model: EditableModel, rows: Sequence[Sequence[int]]) -> None:
    """Raise TetherError where the longest row has more tokens than the model has positions."""
    longest = max(rows, key=len, default=())
    if model.limit and len(longest) > model.limit:
        raise TetherError(too_long(model.limit, model.tokenizer.decode(longest), [longest]))


def _shared_rows(continuations: Sequence[Continuation]) -> list[_Row]:
    """The fewest input rows that serve all. In lexicographic order whatever starts with a row follows it at once, so
    comparing neighbours finds every prefix."""
    served: dict[tuple[int, ...], list[int]] = {}
    for index, text in enumerate(continuations):
        served.setdefault(text.ids[:-1], []).append(index)
    rows: list[_Row] = []
    for ids in sorted(served, reverse=True):
        if rows and rows[-1][0][: len(ids)] == ids:
            rows[-1][1].extend(served[ids])
        else:
            rows.append((ids, list(served[ids])))
    return rows


def _batches(rows: list[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Rows of like length together, at most `batch_tokens` with padding (a longer row comes alone)."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row[0]), reverse=True):
        if batch and (len(batch) + 1) * len(batch[0][0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _read(
    model: EditableModel, rows: list[tuple[int, ...]], places: list[tuple[int, int]], wanted: list[tuple[int, int]]
) -> tuple[list[float], list[int]]:
    """One forward over `rows`: the log-probability of every wanted (place, token), and the argmax at every place."""
    ids, mask = padded(rows, model.device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    hidden = model.base(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]
    at = torch.tensor(places, device=hidden.device)
    hidden = hidden[at[:, 0], at[:, 1]]
    queries = torch.tensor(wanted)
    likelihoods = torch.empty(len(wanted), dtype=torch.float32)
    best: list[int] = []
    for first in range(0, len(places), _HEAD_ROWS):
        logits = head_logits(model, hidden[first : first + _HEAD_ROWS]).float()
        best += logits.argmax(dim=-1).tolist()
        here = (queries[:, 0] >= first) & (queries[:, 0] < first + _HEAD_ROWS)
        place, token = (queries[here] - torch.tensor([first, 0])).to(logits.device).unbind(1)
        likelihoods[here] = (logits[place, token] - logits.logsumexp(dim=-1)[place]).cpu()
    return likelihoods.tolist(), best


@torch.inference_mode()
def next_token(model: EditableModel, prompt: str) -> Float[Tensor, " vocab"]:
    """The probability of every token right after a prompt, of the model as it is now, float32 on the CPU. Changes
    nothing. Raises TetherError for a prompt without tokens, or longer than the model takes."""
    ids = prompt_ids(model.tokenizer, prompt)
    _check_lengths(model, [ids])
    hidden = model.base(input_ids=torch.tensor([ids], device=model.device), use_cache=False)[0]
    return head_logits(model, hidden[0, -1:])[0].float().softmax(-1).cpu()


@torch.inference_mode()
def greedy(
    model: EditableModel, prompts: Sequence[str], max_new_tokens: int, *, batch_tokens: int = BATCH_TOKENS,
    streamer: Any = None,
) -> list[str]:  # fmt: skip
    """The text each prompt is continued with, always by the likeliest token, to the end of text, `max_new_tokens`, or
    the model's last position.

    The tokenizer's special tokens stand before the prompt as in `score`; none are in the result. The checkpoint's own
    generation settings (sampling, penalties, lengths) play no part; they are the model's again afterwards. `streamer`,
    for one prompt alone, is handed every token as transformers' `generate` does; what it raises ends the answer.
    """
    rows = {prompt: prompt_ids(model.tokenizer, prompt) for prompt in dict.fromkeys(prompts)}
    _check_lengths(model, list(rows.values()))
    order = sorted(rows, key=lambda prompt: len(rows[prompt]), reverse=True)
    texts: dict[str, str] = {}
    with plain_generation(model, do_sample=False, eos_token_id=end_tokens(model)) as plain:
        while order:
            room = model.limit - len(rows[order[0]]) + 1 if model.limit else max_new_tokens
            plain.max_new_tokens = min(max_new_tokens, room)
            size = max(1, batch_tokens // (len(rows[order[0]]) + max_new_tokens))
            batch, order = order[:size], order[size:]
            ids, mask = padded([rows[prompt] for prompt in batch], model.device, left=True)
            output = model.hf.generate(input_ids=ids, attention_mask=mask, generation_config=plain, streamer=streamer)
            new = model.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            texts.update(zip(batch, new, strict=True))
    return [texts[prompt] for prompt in prompts]
