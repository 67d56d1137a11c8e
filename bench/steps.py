"""How δ takes its steps: the papers' Adam against Polyak's step at several numbers of evaluations, on the same facts.

python bench/steps.py facts.json --method memit [--limit 16] [--model smollm2]
python bench/steps.py facts.json --method rome [--limit 12]

The ways take turns; the first is the reference. NLL and KL at the δ that was found are of all contexts, whatever a step
read of them; ‖δ‖ is a share of ‖start‖.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from common import CLOCKS, interleaved, ratios, spread, table, where

from tether.editors.delta import Evaluations, optimise, rows_of, within_memory
from tether.editors.prompts import encode_contexts
from tether.editors.settings import settings_for
from tether.facts import read_facts
from tether.models.frozen_prefix import align, full_forward, head_logits
from tether.models.load import load
from tether.models.sampling import sample_prefixes

ADAM, POLYAK = {"v_step": "adam", "step_prefixes": None}, {"v_step": "polyak", "step_prefixes": None}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "memit": {
        "adam, 20": {**ADAM, "v_num_grad_steps": 20},
        "adam, 9": {**ADAM, "v_num_grad_steps": 9},
        "polyak, 8": {**POLYAK, "v_num_grad_steps": 8},
        "polyak, 9, a prefix a step": {**POLYAK, "v_num_grad_steps": 9, "step_prefixes": 1},
    },
    "rome": {
        "adam, 50": {**ADAM, "v_num_grad_steps": 50},
        "adam, 12": {**ADAM, "v_num_grad_steps": 12},
        "polyak, 8": {**POLYAK, "v_num_grad_steps": 8, "v_longest_step": 0.8},
        "polyak, 12": {**POLYAK, "v_num_grad_steps": 12, "v_longest_step": 0.8},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", choices=sorted(WAYS), default="memit")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model, dtype="float32", device="cpu")
    where(model.id)
    base = settings_for(args.method, model)[0]
    layer, ways = base.layers[-1], WAYS[args.method]
    prefixes = sample_prefixes(model, base.prefixes, 0)
    groups = [encode_contexts(model, fact, prefixes) for fact in read_facts(args.facts)[: args.limit]]
    batches = []
    for members in within_memory(model, groups, layer, base.model_copy(update={"step_prefixes": None}), 0.5):
        chosen = [groups[i] for i in members]
        rows = align([prompt for group in chosen for prompt in group], model.device)
        run = full_forward(model, rows, layer)
        firsts = [first for first, _ in rows_of(chosen)]
        batches.append((chosen, rows, run, (run.hidden[:, 0] if args.method == "memit" else run.values)[firsts]))

    def search(way: str) -> list[Any]:
        hparams = base.model_copy(update=ways[way])
        return [optimise(model, chosen, rows, run, start, hparams) for chosen, rows, run, start in batches]

    seconds, results = interleaved(
        {way: lambda _, way=way: search(way) for way in ways}, args.repeat, CLOCKS[args.clock]
    )
    first, lines = next(iter(ways)), []
    for way in ways:
        nll, kl, size, steps = [], [], [], []
        for (chosen, rows, run, start), found in zip(batches, results[way][0], strict=True):
            whole = Evaluations(model, chosen, rows, run, base.model_copy(update={"step_prefixes": None}))
            objective = whole.objective(0)
            delta = torch.stack([one.delta for one in found])
            with torch.no_grad():
                log_p, log_kl = whole(0, delta)
                last = torch.tensor([stop - 1 for _, stop in rows_of(chosen)])
                before = head_logits(model, run.last[last, objective.kl_column]).float().log_softmax(-1)
            nll += objective.nll(log_p).tolist()
            kl += (log_kl.exp() * (log_kl - before)).sum(1).tolist()
            size += (delta.norm(dim=1) / start.norm(dim=1)).tolist()
            steps += [len(one.losses) for one in found]
        lines.append([
            way, f"{statistics.mean(steps):.1f}", f"{statistics.median(nll):.3f}", f"{statistics.mean(nll):.3f}",
            f"{statistics.mean(kl):.2f}", f"{statistics.mean(size):.2f}",
            spread([s / len(groups) for s in seconds[way]]), spread(ratios(seconds[first], seconds[way])),
        ])  # fmt: skip
    print(f"{len(groups)} facts, {args.method}, layer {layer}, {len(prefixes) + 1} contexts, one thread\n")
    table(["step, evaluations at most", "evaluations", "NLL, median", "NLL, mean", "KL, mean", "‖δ‖ / ‖start‖",
           f"{args.clock} s a fact", f"{first} / this"], lines)  # fmt: skip


if __name__ == "__main__":
    main()
