"""What a hypernetwork is trained on: the texts of every fact, and what the blocks below the edited ones make of them.

Nothing below the first edited block ever changes, so every text runs through those blocks once; what comes out lies
memory-mapped on disk, in the cache, and training runs the blocks above it and the head alone.
"""

import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from tether.algebra.lowrank import LowRank
from tether.errors import TetherError
from tether.facts.chat import render, rendered
from tether.facts.fact import Fact
from tether.facts.tokens import Continuation, encode, padded, tokenize, too_long
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import blocks_return_tuples, entered_at, forward_until, head_logits
from tether.models.upper_blocks import final_hidden
from tether.storage.cache import built_folder, cache_dir

logger = logging.getLogger(__name__)

_VERSION = 1  # part of the cache key: raise it when the same model and texts give other states
_ROWS = 16  # texts a forward

Ids = tuple[int, ...]


class Example(NamedTuple):
    """One fact: the text of the edit, the one that L_e reads (a paraphrase where there is one, else the edit's own),
    and the unrelated one that L_loc reads. The targets of a text are its tokens from `start` on; where there are none
    (`start == len(ids)`), its last token is read."""

    edit: Continuation
    again: Continuation
    loc: Continuation


def examples(model: EditableModel, facts: Sequence[Fact]) -> list[Example]:
    """The examples of facts, in order. A fact without a locality prompt borrows the next fact's prompt. Facts with
    a text the model has no positions for are left out with a warning."""
    pairs: list[tuple[str, str | None]] = []
    facts, text = [rendered(model.tokenizer, fact) for fact in facts], partial(render, model.tokenizer)
    for index, fact in enumerate(facts):
        other = facts[(index + 1) % len(facts)]
        near = fact.locality[0] if fact.locality else None
        again = text(fact.paraphrases[0]) if fact.paraphrases else fact.text
        kept_prompt, kept_answer = (text(near.prompt), near.target) if near else (other.text, other.target_true)
        pairs += [(fact.text, fact.target), (again, fact.continuation(again, fact.target_new))]
        pairs.append((kept_prompt, kept_answer and (fact if near else other).continuation(kept_prompt, kept_answer)))
    texts = iter(_tokenized(model, pairs))
    kept = []
    for fact in facts:
        example = Example(next(texts), next(texts), next(texts))
        problem = too_long(model.limit, fact.text, [text.ids for text in example])
        if problem:
            logger.warning("left out: %s", problem)
        else:
            kept.append(example)
    if not kept:
        raise TetherError("no record is short enough for the model: give other training data")
    return kept


def _tokenized(model: EditableModel, pairs: Sequence[tuple[str, str | None]]) -> list[Continuation]:
    """As `tokenize`, of continuations with their joint. A prompt without a continuation has no target."""
    answered = [(prompt, text) for prompt, text in pairs if text is not None]
    with_target = iter(tokenize(model.tokenizer, [(*pair, "") for pair in answered]))
    bare = (encode(model.tokenizer, "{}", prompt).ids for prompt, text in pairs if text is None)
    return [Continuation(ids := next(bare), len(ids)) if text is None else next(with_target) for _, text in pairs]


class States:
    """Of every text: the input of block `first` at its tokens; of the unrelated texts also the final hidden states
    where the loss reads them. In the model's dtype, memory-mapped from the cache folder, where they are made once."""

    def __init__(
        self, model: EditableModel, first: int, listed: Sequence[Example], *, cache: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        self.first = first
        texts = sorted({text for example in listed for text in example}, key=lambda t: (len(t.ids), t.ids, t.start))
        unrelated = {example.loc for example in listed}
        entries = {text.ids: len(text.ids) for text in texts}
        finals = {text: len(reads(text)) for text in texts if text in unrelated}
        ends = itertools.accumulate([*entries.values(), *finals.values()], initial=0)
        rows = list(itertools.starmap(slice, itertools.pairwise(ends)))
        self._entries = dict(zip(entries, rows, strict=False))
        self._finals = dict(zip(finals, rows[len(entries) :], strict=True))
        described = json.dumps({
            "version": _VERSION, "model": model.fingerprint(), "dtype": str(model.dtype), "first": first,
            "texts": [[text.ids, text.start, text in unrelated] for text in texts],
        })  # fmt: skip
        key = hashlib.sha256(described.encode()).hexdigest()[:32]
        folder = (cache_dir() if cache is None else cache) / "states" / key
        shape = rows[-1].stop, model.hidden_size

        def mapped(into: Path, *, shared: bool) -> Tensor:
            """The file of a folder; `shared`: what is written into the tensor reaches the file, which is then made."""
            file, size = str(into / "states.bin"), math.prod(shape)
            return torch.from_file(file, shared=shared, size=size, dtype=model.dtype).view(shape)

        built_folder(folder, lambda into: self._build(model, mapped(into, shared=True), progress))
        self._all = mapped(folder, shared=False)

    def entry(self, text: Continuation) -> Float[Tensor, "t d"]:
        """The input of block `first` at the text's tokens."""
        return self._all[self._entries[text.ids]]

    def final(self, text: Continuation) -> Float[Tensor, "m d"]:
        """The unedited model's final hidden states where an unrelated text is read."""
        return self._all[self._finals[text]]

    def _build(self, model: EditableModel, held: Tensor, progress: Callable[[int, int], None] | None) -> None:
        finals: dict[Ids, list[Continuation]] = {}
        for text in self._finals:
            finals.setdefault(text.ids, []).append(text)

        def kind(ids: Ids) -> tuple[bool, int]:
            return ids in finals, len(ids)

        done = 0
        for (read, _), alike in itertools.groupby(sorted(self._entries, key=kind), kind):
            while chunk := list(itertools.islice(alike, _ROWS)):
                ids = torch.tensor(chunk, device=model.device)
                entry = last = forward_until(model, model.block(self.first - 1), input_ids=ids)
                if read:
                    with torch.no_grad(), entered_at(model, entry, self.first, blocks_return_tuples(model)):
                        last = final_hidden(model, ids, torch.ones_like(ids))
                for row, each in enumerate(chunk):
                    held[self._entries[each]] = entry[row].cpu()
                    for text in finals.get(each, ()):
                        held[self._finals[text]] = last[row, reads(text)].cpu()
                done += len(chunk)
                if progress:
                    progress(done, len(self._entries))


def reads(text: Continuation) -> list[int]:
    """The positions whose next token a loss reads."""
    return list(range(text.start - 1, len(text.ids) - 1)) or [len(text.ids) - 1]


class Reader:
    """Logits where the losses read texts, of the model with any updates on top: by the upper blocks from `states` and
    the head on the positions read, or, without `states`, by whole forwards with dense W + ΔW (the reference)."""

    def __init__(self, model: EditableModel, states: States | None) -> None:
        self.model, self.states, self._tuples = model, states, blocks_return_tuples(model)

    def logits(
        self, texts: Sequence[Continuation], updates: Mapping[str, LowRank] | None = None
    ) -> list[Float[Tensor, "m vocab"]]:
        """Of every text, at the positions `reads` names; differentiable in the factors of `updates`."""
        model, states = self.model, self.states
        ids, mask = padded([text.ids for text in texts], model.device)
        at = [reads(text) for text in texts]
        row_of = [row for row, read in enumerate(at) for _ in read]
        column_of = [column for read in at for column in read]
        if states is None:
            edited = {}
            for name, update in (updates or {}).items():
                weight = model.weight(name)
                dense = (weight.float() + update.to_dense().to(weight.device)).to(weight.dtype)
                edited[name] = dense.mT if model.is_transposed(name) else dense
            given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
            logits = functional_call(model.hf, edited, kwargs=given).logits[row_of, column_of]
        else:
            entry = pad_sequence([states.entry(text) for text in texts], batch_first=True).to(model.device)
            with entered_at(model, entry, states.first, self._tuples):
                hidden = final_hidden(model, ids, mask, updates)
            logits = head_logits(model, hidden[row_of, column_of])
        return list(logits.split([len(read) for read in at]))

    def before(self, text: Continuation) -> Float[Tensor, "m vocab"]:
        """The unedited model's logits where an unrelated text is read; no gradient."""
        with torch.no_grad():
            if self.states is None:
                return self.logits([text])[0]
            return head_logits(self.model, self.states.final(text).to(self.model.device))
