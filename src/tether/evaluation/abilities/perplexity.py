"""Perplexity on plain text: what is left of the model's language."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tether.data import text
from tether.errors import TetherError
from tether.evaluation.scores import BATCH_TOKENS, score_ids
from tether.evaluation.statistics.mean import Record
from tether.facts.tokens import Continuation, end_of_text
from tether.models.editable import EditableModel

VERSION = 1  # raise it with every change of how a text is read or scored: cached results are then measured anew


@dataclass(frozen=True)
class Perplexity:
    """`value` = exp(mean negative log-likelihood) over `n` tokens, its standard error (None for one window), and one
    record a window: its `nll` (summed) and `n_tokens`."""

    value: float
    n: int
    stderr: float | None
    records: list[Record]


def builtin_text() -> str:
    """The plain text that comes with the package."""
    return text("plain_text.txt")


def perplexity(model: EditableModel, text: str, window: int = 512, *, batch_tokens: int = BATCH_TOKENS) -> Perplexity:
    """Token-level perplexity of `text` for the model as it is now; the model is unchanged.

    The text is cut into windows of `window` tokens that do not overlap (fewer where the model takes fewer), each read
    on its own behind the special tokens the tokenizer puts before a text; a window's first token is not predicted.

    stderr by the delta method, windows being the sampling unit: with L_w and n_w the summed negative log-likelihood and
    tokens of window w of k, r = ΣL_w/Σn_w, var(r) = k/(k−1) · Σ(L_w − r·n_w)² / (Σn_w)², stderr = exp(r)·√var(r).

    Raises TetherError for a window below 2 and a text without a token to predict.
    """
    if window < 2:
        raise TetherError(f"window {window}: the first token of a window is not predicted; take at least 2")
    prefix, ids = _tokens(model, text)
    longest = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None) or window + len(prefix)
    window = min(window, longest - len(prefix))
    windows = [ids[start : start + window] for start in range(0, len(ids), window)]
    texts = [Continuation(prefix + part, len(prefix) + 1) for part in windows if len(part) > 1]
    if not texts:
        raise TetherError(f"text {text[:30]!r} has {len(ids)} tokens: perplexity needs at least 2")
    records: list[Record] = [
        {"item": item, "nll": -found.log_likelihood, "n_tokens": found.n_tokens}
        for item, found in enumerate(score_ids(model, texts, batch_tokens=batch_tokens))
    ]
    n = sum(record["n_tokens"] for record in records)
    rate = math.fsum(record["nll"] for record in records) / n
    value = math.exp(rate) if rate < 700 else math.inf
    stderr = None
    k = len(records)
    if k > 1:
        spread = math.fsum((record["nll"] - rate * record["n_tokens"]) ** 2 for record in records)
        stderr = value * math.sqrt(k / (k - 1) * spread) / n
    return Perplexity(value, n, stderr, records)


def _tokens(model: EditableModel, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens before a text, and the text's own tokens."""
    encoding = model.tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
    first = next((i for i, mark in enumerate(special) if not mark), len(ids))
    return tuple(ids[:first]), tuple(ids[first : end_of_text(special, at_least=first)])
