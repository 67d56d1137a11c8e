"""How δ takes its steps: the papers' Adam against Polyak's step at several numbers of evaluations, on the same facts.

python bench/steps.py facts.json --method memit [--limit 16] [--model smollm2]
python bench/steps.py facts.json --method rome [--limit 12]

The ways take turns; the first is the reference. NLL and KL at the δ that was found are of all contexts, whatever a step
read of them; ‖δ‖ is a share of ‖start‖. "of the peak": the products that torch counts, forward and backward, by the
seconds, as a share of what one thread does in a float32 product of two 2048×2048 matrices in this process (the best of
five).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import CLOCKS, interleaved, ratios, spread, table, where
from torch.utils.flop_counter import FlopCounterMode

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


def peak_of(clock: str) -> float:
    """Operations a second of a float32 product of two 2048×2048 matrices, the best of five."""
    a, b = torch.rand(2, 2048, 2048).unbind()
    now, best = CLOCKS[clock], math.inf
    for _ in range(5):
        start = now()
        a @ b
        best = min(best, now() - start)
    return 2 * 2048**3 / best


def products(work: Callable[[], Any]) -> int:
    """The operations of the matrix products of `work`, which is done once more for it."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


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
    first, lines, peak = next(iter(ways)), [], peak_of(args.clock)
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
        done = products(partial(search, way))
        lines.append([
            way, f"{statistics.mean(steps):.1f}", f"{statistics.median(nll):.3f}", f"{statistics.mean(nll):.3f}",
            f"{statistics.mean(kl):.2f}", f"{statistics.mean(size):.2f}",
            spread([s / len(groups) for s in seconds[way]]), spread(ratios(seconds[first], seconds[way])),
            spread([100 * done / s / peak for s in seconds[way]]),
        ])  # fmt: skip
    print(f"{len(groups)} facts, {args.method}, layer {layer}, {len(prefixes) + 1} contexts, one thread")
    print(f"peak {peak / 1e9:.1f} GFLOP/s\n")
    table(["step, evaluations at most", "evaluations", "NLL, median", "NLL, mean", "KL, mean", "‖δ‖ / ‖start‖",
           f"{args.clock} s a fact", f"{first} / this", "of the peak, %"], lines)  # fmt: skip


if __name__ == "__main__":
    main()
