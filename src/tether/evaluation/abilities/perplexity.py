"""Perplexity on plain text: what is left of the model's language."""

import hashlib
import math

from tether.data import text
from tether.errors import TetherError
from tether.evaluation.abilities.task import AbilityResult, AbilityTask, Work
from tether.evaluation.scores import score_ids
from tether.evaluation.statistics.mean import Record
from tether.facts.tokens import Continuation, end_of_text
from tether.models.editable import EditableModel

PERPLEXITY = "perplexity"
_VERSION = 1  # raise it with every change of how a text is read or scored: cached results are then measured anew


def builtin_text() -> str:
    """The plain text that comes with the package."""
    return text("plain_text.txt")


def perplexity(model: EditableModel, text: str, window: int = 512) -> AbilityResult:
    """Token-level perplexity of `text` for the model as it is now; the model is unchanged. `value` = exp(mean negative
    log-likelihood) over `n` tokens; one record a window: its `nll` (summed) and `n_tokens`.

    The text is cut into windows of `window` tokens that do not overlap (fewer where the model takes fewer), each read
    on its own after the special tokens the tokenizer puts before a text; a window's first token is not predicted.

    stderr by the delta method, windows being the sampling unit: with L_w and n_w the summed negative log-likelihood and
    tokens of window w of k, r = ΣL_w/Σn_w, var(r) = k/(k−1) · Σ(L_w − r·n_w)² / (Σn_w)², stderr = exp(r)·√var(r); None
    for one window.

    Raises TetherError for a window below 2 and a text without a token to predict.
    """
    if window < 2:
        raise TetherError(f"window {window}: the first token of a window is not predicted; take at least 2")
    encoding = model.tokenizer(text, return_special_tokens_mask=True, verbose=False)
    every, special = tuple(encoding["input_ids"]), encoding["special_tokens_mask"]
    first = next((i for i, mark in enumerate(special) if not mark), len(every))
    prefix, ids = every[:first], every[first : end_of_text(special, at_least=first)]
    window = min(window, (model.limit or window + len(prefix)) - len(prefix))
    windows = [ids[start : start + window] for start in range(0, len(ids), window)]
    texts = [Continuation(prefix + part, len(prefix) + 1) for part in windows if len(part) > 1]
    if not texts:
        raise TetherError(f"text {text[:30]!r} has {len(ids)} tokens: perplexity needs at least 2")
    records: list[Record] = [
        {"ability": PERPLEXITY, "item": item, "nll": -found.log_likelihood, "n_tokens": found.n_tokens}
        for item, found in enumerate(score_ids(model, texts))
    ]
    k, n = len(records), sum(record["n_tokens"] for record in records)
    rate = math.fsum(record["nll"] for record in records) / n
    value = math.exp(rate) if rate < 700 else math.inf
    spread = math.fsum((record["nll"] - rate * record["n_tokens"]) ** 2 for record in records)
    stderr = value * math.sqrt(k / (k - 1) * spread) / n if k > 1 else None
    return AbilityResult(value=value, n=n, stderr=stderr, unit="ppl", records=records)


class PerplexityTask(AbilityTask):
    """`perplexity` of a text."""

    def __init__(self, text: str) -> None:
        super().__init__(PERPLEXITY, str(_VERSION), hashlib.sha256(text.encode()).hexdigest(), 0)
        self._text = text

    def work(self, model: EditableModel) -> Work:
        return Work(read=len(model.tokenizer(self._text, verbose=False)["input_ids"]))

    def measure(self, model: EditableModel) -> AbilityResult:
        return perplexity(model, self._text)
