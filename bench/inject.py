"""What limits an edit that is asked in other words: the shift that was found, or the weights that write it.

python bench/inject.py bench/data/invented-tune.jsonl --corpus text.txt --limit 8

Facts are edited by MEMIT for all their phrasings. Then, with the unedited model, the same shift is added by hand to the
state after the last edited layer, at the subject's last token; and each fact alone is told in the prompt. "reach": what
the edited weights add there, along the shift and in all, as a share of the shift.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import table, where
from torch import Tensor, nn

import tether
from tether.evaluation.in_context import InContext
from tether.evaluation.metrics.generate import says
from tether.evaluation.scores import greedy
from tether.facts import Fact, read_facts
from tether.facts.bystanders import bystander_subjects
from tether.facts.chat import template
from tether.facts.prompt import Prompt, Turn
from tether.facts.tokens import EncodedPrompt, encode
from tether.models import EditableModel
from tether.models.frozen_prefix import align, full_forward, hooks

SETTINGS = {
    "prefixes": [], "step_prefixes": None, "layers": [1, 2, 3, 4, 5], "v_step": "adam", "v_num_grad_steps": 40,
    "mom2_update_weight": 60,
}  # fmt: skip
TOKENS = 24


def open_prompt(prompt: Prompt, subject: str) -> Prompt | None:
    """A prompt that names its subject, with `{}` there; None where it does not."""
    if isinstance(prompt, Turn):
        user = open_prompt(prompt.user, subject)
        return None if user is None else prompt.model_copy(update={"user": user})
    before, named, after = prompt.rpartition(subject)
    return f"{before}{{}}{after}" if named else None


class Lab:
    def __init__(self, model: EditableModel, facts: Sequence[Fact], layer: int) -> None:
        self.model, self.facts, self.layer = model, facts, layer
        tokenizer = model.tokenizer
        held = [
            (i, prompt)
            for i, fact in enumerate(facts) for one in fact.paraphrases
            if (prompt := open_prompt(one, fact.subject)) is not None
        ]  # fmt: skip
        own = [(i, prompt) for i, fact in enumerate(facts) for prompt in (fact.prompt, *fact.phrasings)]
        self.prompts: dict[str, list[tuple[int, EncodedPrompt]]] = {
            name: [(i, encode(tokenizer, template(tokenizer, prompt), facts[i].subject)) for i, prompt in some]
            for name, some in (("own", own), ("held out", held))
        }
        self.prompts["others"] = [
            (i, encode(tokenizer, template(tokenizer, fact.prompt), name))
            for i, fact in enumerate(facts) for name in bystander_subjects(fact, "measure", 4)
        ]  # fmt: skip

    def states(self, name: str) -> Tensor:
        """After the last edited layer, at the subject's last token, of the model as it is now."""
        prompts = [prompt for _, prompt in self.prompts[name]]
        chunks = [prompts[start : start + 16] for start in range(0, len(prompts), 16)]
        return torch.cat([
            full_forward(self.model, align(chunk, self.model.device), self.layer).hidden[:, 0].float()
            for chunk in chunks
        ])  # fmt: skip

    def said(self, name: str, answer: Callable[[int, EncodedPrompt], str]) -> float:
        """Percent of the prompts whose answer says the new one."""
        return 100 * mean(says(answer(i, one), self.facts[i].target_new) for i, one in self.prompts[name])

    def answer(self, _: int, prompt: EncodedPrompt) -> str:
        ids = torch.tensor([prompt.ids], device=self.model.device)
        found = self.model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
        return str(self.model.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))

    def shifted(self, shifts: Sequence[Tensor], i: int, prompt: EncodedPrompt) -> str:
        """The answer with the shift of fact `i` added by hand."""

        def add(_: nn.Module, __: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            if state.shape[1] > 1:  # the prompt, not a token that was generated
                state[:, prompt.subject_last] += shifts[i]

        with hooks(self.model.blocks[self.layer].register_forward_hook(add)):
            return self.answer(i, prompt)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, every = tether.load(args.model), read_facts(args.facts)
    facts = every[:: max(1, len(every) // args.limit)][: args.limit]
    where(model.id)
    lab = Lab(model, facts, SETTINGS["layers"][-1])  # type: ignore[index]
    before = {name: lab.states(name) for name in lab.prompts}
    said = {"unedited": [lab.said(name, lab.answer) for name in ("own", "held out")]}
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        tether.edit(
            model, facts, out=Path(folder) / "ledger", method="memit", settings=SETTINGS, corpus=args.corpus,
            batch_size=len(facts), health=0,
        )  # fmt: skip
    moved = {name: lab.states(name) - before[name] for name in lab.prompts}
    said["edited weights"] = [lab.said(name, lab.answer) for name in ("own", "held out")]
    firsts = [next(row for row, (i, _) in enumerate(lab.prompts["own"]) if i == fact) for fact in range(len(facts))]
    shifts = [moved["own"][row] for row in firsts]
    model.clear_updates()
    said["the shift by hand"] = [lab.said(name, partial(lab.shifted, shifts)) for name in ("own", "held out")]
    told = []
    for pick in (lambda fact: fact.asked, lambda fact: fact.paraphrases):
        rows = [(fact, InContext(model, [fact])(one)) for fact in facts for one in pick(fact)]
        answers = greedy(model, [text for _, text in rows], TOKENS)
        told.append(100 * mean(says(text, fact.target_new) for (fact, _), text in zip(rows, answers, strict=True)))
    said["the fact told in the prompt"] = told
    numbers = ", ".join(f"{len(lab.prompts[name])} {name}" for name in ("own", "held out"))
    print(f"{len(facts)} facts; prompts: {numbers}; percent said in {TOKENS} tokens\n")
    table(["way", "own", "held out"], [[way, *(f"{one:.0f}" for one in found)] for way, found in said.items()])
    print()
    lines = []
    for name, found in moved.items():
        shift = torch.stack([shifts[i] for i, _ in lab.prompts[name]])
        along = ((found * shift).sum(1) / shift.square().sum(1)).mean()
        lines.append([name, f"{along:.2f}", f"{(found.norm(dim=1) / shift.norm(dim=1)).mean():.2f}"])
    table(["reach at", "along the shift", "in all"], lines)


if __name__ == "__main__":
    main()
