"""How near a prompt comes to the edits of a ledger.

An edit adds ΔW = r (C⁻¹k)ᵀ to a weight, so it acts on an input k' by kᵀC⁻¹k'. How near k' is to k is therefore their
cosine in the metric of C: kᵀC⁻¹k' / √(kᵀC⁻¹k · k'ᵀC⁻¹k').
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.editors.metric import cosines
from tether.editors.moments import Moments, cached_moments
from tether.facts.chat import render, said_at
from tether.facts.fact import Fact
from tether.facts.prompt import Turn
from tether.facts.tokens import prompt_ids, spans_of
from tether.ledger.ledger import Ledger
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import hooks

NEAR = 3  # edits that are named


@dataclass(frozen=True)
class Near:
    """An edit, and how near a prompt comes to it: the cosine of its key with the input of `weight` at `token`."""

    edit: int
    subject: str
    target_new: str
    cosine: float
    token: str
    weight: str


@dataclass(frozen=True)
class _Keys:
    """The keys K (n×q, float64, CPU) of one weight, the edit of each as its place among the live ones, and what C⁻¹
    makes of keys."""

    K: Float[Tensor, "n q"]
    rows: Tensor
    solve: Callable[[Tensor], Tensor]
    solved: Float[Tensor, "n q"]

    def cosines(self, inputs: Float[Tensor, "t q"]) -> Float[Tensor, "t n"]:
        """The cosine of every input with every key."""
        return cosines(inputs, self.solve(inputs), self.K, self.solved)


class Nearness:
    """How near a text comes to the keys that the live edits of a ledger were made for.

    `metric` is "C" where the cache holds the moments that the ledger records (with the ridge of its settings), "plain"
    for the cosine without them. None: no live edit keeps a key, and no text is near one.
    """

    def __init__(self, ledger: Ledger, model: EditableModel, upto: int | None = None) -> None:
        self._model = model
        self._edits: list[tuple[int, Fact]] = []
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for event in ledger.live(upto):
            if event.edit is not None and event.fact is not None:
                for name, K in ledger.vectors(event, "K").items():
                    found.setdefault(name, []).append((len(self._edits), K.double()))
                self._edits.append((event.edit, event.fact))
        moments = _moments(ledger, model, list(found))
        ridge = ledger.header.settings.get("moments_ridge", 0.0)
        self._keys: dict[str, _Keys] = {}
        for name, pairs in found.items():
            solve = _same if moments is None else partial(moments[name].solve, ridge=ridge)
            K = torch.cat([K for _, K in pairs])
            rows = torch.tensor([place for place, K in pairs for _ in range(len(K))])
            self._keys[name] = _Keys(K, rows, solve, solve(K))
        self.metric: Literal["C", "plain"] | None = None if not found else "plain" if moments is None else "C"
        kept = "no live edit" if not ledger.live(upto) else f"{ledger.header.method} keeps no keys of its edits"
        self.words = {
            "C": "near: cosine of keys in the metric of C, the ledger's moments",
            "plain": "near: plain cosine of keys, since the cache holds no moments of the ledger",
            None: f"near: left out, {kept}",
        }[self.metric]

    @torch.inference_mode()
    def of(self, prompt: str | Turn, number: int = NEAR) -> tuple[Near, ...]:
        """The `number` edits nearest to a prompt, nearest first: of each its best over weights and tokens, in a chat
        turn over the tokens of what is said in it.

        The inputs are those of the model as it is now. Ask the edited one: its inputs are what the edits act on, and
        what the keys of later layers and later edits were taken from. The first token does not count, since attention
        makes much the same of it in every text.
        """
        tokenizer = self._model.tokenizer
        text = render(tokenizer, prompt)
        ids = prompt_ids(tokenizer, text)
        counted = list(range(1, len(ids)))
        if isinstance(prompt, Turn):
            spans = spans_of(tokenizer, text)
            counted = [
                at for at in counted if any(a < spans[at][1] and spans[at][0] < b for a, b in said_at(text, prompt))
            ]
        best: dict[int, Near] = {}
        for name, inputs in self._inputs(ids).items() if counted else ():
            keys = self._keys[name]
            cosines, tokens = keys.cosines(inputs[counted]).max(dim=0)
            for place, cosine, token in zip(keys.rows.tolist(), cosines.tolist(), tokens.tolist(), strict=True):
                if place not in best or cosine > best[place].cosine:
                    edit, fact = self._edits[place]
                    said = str(tokenizer.decode([ids[counted[token]]]))
                    best[place] = Near(edit, fact.subject, fact.target_new, cosine, said, name)
        return tuple(sorted(best.values(), key=lambda near: -near.cosine)[:number])

    def _inputs(self, ids: Sequence[int]) -> dict[str, Float[Tensor, "t q"]]:
        """The inputs of every weight with keys, at every token, from one forward; float64 on the CPU."""
        seen: dict[str, Tensor] = {}

        def see(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
            seen[name] = args[0].reshape(len(ids), -1).cpu().double()

        with ExitStack() as stack:
            for name in self._keys:
                module = self._model.hf.get_submodule(name.removesuffix(".weight"))
                stack.enter_context(hooks(module.register_forward_pre_hook(partial(see, name))))
            self._model.base(input_ids=torch.tensor([list(ids)], device=self._model.device), use_cache=False)
        return seen


def _moments(ledger: Ledger, model: EditableModel, names: Sequence[str]) -> dict[str, Moments] | None:
    """The ledger's moments of every one of these weights, by name; None where the cache does not hold them all."""
    records = {model.weight_name(layer): (layer, one.key) for layer, one in ledger.header.moments.items()}
    if not names or not records.keys() >= set(names):
        return None
    found = cached_moments(dict(records[name] for name in names))
    return None if found is None else {name: found[records[name][0]] for name in names}


def _same(keys: Tensor) -> Tensor:
    return keys
