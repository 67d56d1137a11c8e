"""Keeping what a model says beside a batch of edits: KL(P_before ‖ P_now) on bystanders and on plain text.

keeper = Keeper(model, facts, hparams, seed, texts=sampled_texts(model, hparams))     # reads the model as it is now
with changed(model):                                # hooks, replaced forwards, other weights: whatever is being trained
    loss = nll + hparams.keep * keeper.loss(step)   # a scalar, differentiable in what the forward depends on

`before` is the model when the keeper is made. Of it the final hidden states are kept where the loss reads them, not
its log-probabilities: the head gives those again at every step, over the whole vocabulary and exactly, and a read
position takes d numbers, not |V|. So the head must not be among what is trained.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tether.editors.bystanders import bystander_prompts
from tether.editors.corpus import Corpus
from tether.editors.settings import Hparams
from tether.facts.fact import Fact
from tether.facts.tokens import padded
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import head_logits
from tether.models.upper_blocks import final_hidden

_MOST = 512  # bystander prompts that are kept for a batch of facts
_CHUNK = 16  # rows of a forward without gradient


class KeepHparams(Hparams, ABC):
    """The settings of the keep term, for the methods that have one."""

    keep: float = Field(default=0, ge=0, description="weight of KL(P_before ‖ P_now); 0: no such term")
    keep_rows: int = Field(default=8, ge=0, description="bystander prompts a step")
    keep_texts: int = Field(default=2, ge=0, description="pieces of plain text a step")
    keep_subjects: int = Field(default=8, ge=1, description="bystanders a fact (16 of a kind are there)")
    keep_pieces: int = Field(default=32, ge=1, description="pieces of plain text in all, sampled from the model")
    keep_length: int = Field(default=64, ge=8, description="tokens of a piece")


def seed_of(facts: Sequence[Fact]) -> int:
    """The seed of a batch: it follows from the facts and their order alone."""
    return int.from_bytes(sha256("".join(fact.sha256 for fact in facts).encode()).digest()[:7], "big")


def sampled_texts(model: EditableModel, hparams: KeepHparams) -> list[tuple[int, ...]]:
    """Token ids of `keep_pieces` pieces of text, sampled from the unedited model. The same for every batch: sample once
    a run. Not the built-in text, which health and perplexity measure. The model and the random state stay as they
    were."""
    if not hparams.keep_texts:
        return []
    corpus = Corpus.parse(None, max_tokens=hparams.keep_pieces * hparams.keep_length, window=hparams.keep_length)
    return [tuple(window) for window in corpus.windows(model)]


class KeptTexts:
    """`sampled_texts` of a model, made once."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[EditableModel, tuple[KeepHparams, list[tuple[int, ...]]]] = WeakKeyDictionary()

    def of(self, model: EditableModel, hparams: KeepHparams) -> list[tuple[int, ...]]:
        known = self._of.get(model)
        if known is None or known[0] != hparams:
            known = self._of[model] = hparams, sampled_texts(model, hparams)
        return known[1]


@dataclass(frozen=True)
class _Kept:
    """Rows of one kind, in the order in which the steps read them: their ids, the first read position, and the final
    hidden states of the model before at the read positions (m×d each, in its dtype and on its device)."""

    ids: list[tuple[int, ...]]
    first: list[int]
    before: list[Float[Tensor, "m d"]]

    def loss(self, model: EditableModel, step: int, rows: int) -> Float[Tensor, ""]:
        """Mean KL over the read positions of the rows of a step; they follow one another, round and round."""
        chosen = [(step * rows + place) % len(self.ids) for place in range(min(rows, len(self.ids)))]
        now = _read(model, [self.ids[i] for i in chosen], [self.first[i] for i in chosen])
        with torch.no_grad():
            before = head_logits(model, torch.cat([self.before[i] for i in chosen])).float().log_softmax(-1)
        after = head_logits(model, torch.cat(now)).float().log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1).mean()


class Keeper:
    """What a model says before a batch of edits, and how far it is from that now.

    Making one runs the model over the rows and keeps m·d numbers a row (at most 512 bystander prompts, `keep_pieces`
    pieces). Bystanders are read from the subject's last token on, so the first read prediction is what follows the
    subject; pieces of text at every token. `texts` are token ids (`sampled_texts`; none: bystanders alone). `seed`
    (`seed_of(facts)`) orders the rows. Nothing of the model is changed. Raises BadFactError for a kind of subject that
    is not in the list.
    """

    def __init__(
        self, model: EditableModel, facts: Sequence[Fact], hparams: KeepHparams, seed: int, *,
        texts: Sequence[tuple[int, ...]] = (),
    ) -> None:  # fmt: skip
        self._model, self._hparams = model, hparams
        generator = torch.Generator().manual_seed(seed)
        asked = bystander_prompts(model, facts, hparams.keep_subjects if hparams.keep_rows else 0)
        prompts = [(one.ids, one.subject_last) for one in asked]
        pieces = [(ids, 0) for ids in texts] if hparams.keep_texts else []
        self._prompts, self._pieces = (_kept(model, rows, generator) for rows in (prompts, pieces))

    @property
    def rows(self) -> tuple[int, int]:
        """How many bystander prompts and pieces of text are kept."""
        return len(self._prompts.ids), len(self._pieces.ids)

    def loss(self, step: int) -> Float[Tensor, ""]:
        """Mean KL(P_before ‖ P_now) over the read positions of `keep_rows` bystanders, plus that of `keep_texts` pieces
        of text; float32, differentiable in whatever the model's forward depends on now. `step` (from 0) says which."""
        parts = ((self._prompts, self._hparams.keep_rows), (self._pieces, self._hparams.keep_texts))
        losses = [kept.loss(self._model, step, rows) for kept, rows in parts if kept.ids]
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self._model.device)


def _kept(model: EditableModel, rows: Sequence[tuple[tuple[int, ...], int]], generator: torch.Generator) -> _Kept:
    order = torch.randperm(len(rows), generator=generator).tolist()[:_MOST]
    ids, first = [rows[i][0] for i in order], [rows[i][1] for i in order]
    before: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(ids), _CHUNK):
            before += _read(model, ids[start : start + _CHUNK], first[start : start + _CHUNK])
    return _Kept(ids, first, [one.clone() for one in before])


def _read(model: EditableModel, ids: Sequence[tuple[int, ...]], first: Sequence[int]) -> list[Float[Tensor, "m d"]]:
    """Final hidden states of every row from its first read position on."""
    hidden = final_hidden(model, *padded(ids, model.device))
    return [row[start : len(one)] for row, one, start in zip(hidden, ids, first, strict=True)]
