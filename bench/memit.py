"""MEMIT: δ of a batch as one padded batch with a frozen prefix, against one fact after another with whole forwards; and
the solve at the shapes of Llama-2 7B.

python bench/memit.py [--model smollm2] [--facts 10] [--repeat 3] [--threads 1 2]
python bench/memit.py --solve [--keys 100] [--layers 5]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from common import CLOCKS, PLAIN, interleaved, plain_delta, ratios, spread, table, where

from tether.algebra.joint_solve import solve
from tether.algebra.lowrank import LowRank
from tether.cli.demo import demo_facts
from tether.editors.delta import optimise, rows_of, within_memory
from tether.editors.memit import MemitHparams
from tether.editors.moments import Moments
from tether.editors.prompts import encode_contexts
from tether.editors.settings import settings_for
from tether.models.frozen_prefix import align, full_forward
from tether.models.load import load
from tether.models.sampling import sample_prefixes


def deltas(args: argparse.Namespace) -> None:
    model = load(args.model, dtype="float32", device="cpu")
    where(model.id)
    hparams: MemitHparams = settings_for("memit", model, given=PLAIN)[0]
    if not args.early:
        hparams = hparams.model_copy(update={"loss_threshold": 0.0})
    layer = hparams.layers[-1]
    prefixes = sample_prefixes(model, hparams.prefixes, 0)
    groups = [encode_contexts(model, fact, prefixes) for fact in demo_facts(args.facts)]

    def batch(_: int) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for members in within_memory(model, groups, layer, hparams, hparams.memory_gb):
            chosen = [groups[i] for i in members]
            rows = align([prompt for group in chosen for prompt in group], model.device)
            run = full_forward(model, rows, layer)
            h = run.hidden[[first for first, _ in rows_of(chosen)], 0]
            found |= dict(zip(members, optimise(model, chosen, rows, run, h, hparams), strict=True))
        return [found[i].delta for i in range(len(groups))]

    def single(_: int) -> list[torch.Tensor]:
        found = []
        for group in groups:
            run = full_forward(model, align(group, model.device), layer)
            found.append(plain_delta(model, group, layer, hparams, start=run.hidden[0, 0]).delta)
        return found

    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        seconds, results = interleaved({"single": single, "batch": batch}, args.repeat, CLOCKS[args.clock])
        worst = max(
            float((a - b).norm() / b.norm())
            for one, many in zip(results["single"], results["batch"], strict=True)
            for b, a in zip(one, many, strict=True)
        )
        if not worst < 1e-2:
            raise SystemExit(f"the two ways differ by {worst:.1e} of δ: their times cannot be compared")
        each = {way: [s / len(groups) for s in found] for way, found in seconds.items()}
        rows.append([
            str(threads), spread(each["single"]), spread(each["batch"]),
            spread(ratios(seconds["single"], seconds["batch"])), f"{worst:.1e}",
        ])  # fmt: skip
    prompts = len(prefixes) + 1
    steps = f"{'at most ' if args.early else ''}{hparams.v_num_grad_steps} steps"
    print(
        f"Seconds a fact, {len(groups)} facts, {prompts} prompts, layer {layer}, {steps}, {args.clock} time: median "
        f"(range) of {args.repeat}\n"
    )
    table(["threads", "one by one, whole forwards s", "one batch s", "ratio", "δ difference, relative"], rows)


def solves(args: argparse.Namespace) -> None:
    where()
    p, q, n = 4096, 11008, args.keys
    print(f"{args.layers} layers of {p}×{q}, C {q}×{q} in float64, {n} keys, {torch.get_num_threads()} thread(s)\n")
    rows, kept = [], []
    for layer in range(args.layers):
        generator = torch.Generator().manual_seed(layer)
        spread_of = torch.logspace(0, -3, q, dtype=torch.float64)
        sample = torch.randn(q, 256, generator=generator, dtype=torch.float64)
        C = sample @ sample.mT / 256
        C.diagonal().add_(spread_of)
        kept.append(Moments(C, q, ()))
        K = torch.randn(n, q, generator=generator, dtype=torch.float64)
        R = torch.randn(p, n, generator=generator)
        started = time.perf_counter()
        kept[-1].solve(K[0])
        factored = time.perf_counter()
        solution = solve(K, kept[-1].solve(K), weight=15000.0)
        update = LowRank(R, solution.G.float())
        done = time.perf_counter()
        residual = 15000.0 * (C @ solution.G.mT) + K.mT @ (K @ solution.G.mT) - K.mT
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append([
            str(layer), f"{factored - started:.1f}", f"{done - factored:.2f}", str(update.rank),
            f"{float(residual.norm() / K.norm()):.1e}", f"{peak:.1f}",
        ])  # fmt: skip
    table(
        ["layer", "Cholesky of C s (once a run)", "solve of a batch s", "rank", "(λC + KKᵀ)G − K, relative",
         "peak memory so far GiB"],
        rows,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a shared machine, with one thread")
    parser.add_argument("--early", action="store_true", help="stop below the loss threshold; else all steps are made")
    parser.add_argument("--solve", action="store_true", help="the solve at the shapes of Llama-2 7B, all layers kept")
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--layers", type=int, default=5)
    args = parser.parse_args()
    (solves if args.solve else deltas)(args)


if __name__ == "__main__":
    main()
