"""PRUNE of a sum of 200 edits: on its factors, and by the singular values of the dense sum.

    python bench/prune.py [--small] [--edits 200] [--repeat 6] [--threads 1]

The dense way takes about a minute and a half and 3 GB; it runs once, between the repetitions of the factored one.
"""

from __future__ import annotations

import argparse

import torch
from common import CLOCKS, interleaved, spread, table, where
from torch import Tensor

from tether import restraint
from tether.algebra.lowrank import LowRank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="1024×2048 in place of 4096×11008")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a shared machine, with one thread")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    p, q = (1024, 2048) if args.small else (4096, 11008)

    where()
    random = torch.Generator().manual_seed(0)
    sigma_max = 8.0  # m, as in an early layer of a 7B model
    weight = torch.randn(p, q, generator=random) * (sigma_max / (p**0.5 + q**0.5))
    # Keys and values share a direction each, as those of real edits do: the sum then has σ̂ far above the others.
    values = torch.randn(p, args.edits, generator=random) + 0.5 * torch.randn(p, 1, generator=random)
    keys = torch.randn(args.edits, q, generator=random) + 0.5 * torch.randn(1, q, generator=random)
    middle = LowRank(values, keys).singular_values()[args.edits // 4]
    values *= sigma_max / middle  # a quarter of the values lies above m
    updates = [LowRank(values[:, i : i + 1], keys[i : i + 1]) for i in range(args.edits)]
    above = int((LowRank.sum(updates).singular_values() > sigma_max).sum())
    log = restraint.log(1.2)

    def factored(_: int) -> Tensor:
        """W + F(Σ) from the factors of the edits."""
        restrained = restraint.restrain(LowRank.sum(updates), sigma_max, log)
        return torch.addmm(weight, restrained.A, restrained.B)

    def dense(_: int) -> Tensor:
        """W + F(Σ) from the dense Σ."""
        u, s, vh = torch.linalg.svd(total, full_matrices=False)
        return torch.addmm(weight, u * log(s, sigma_max), vh)

    total = LowRank.sum(updates).to_dense()
    factored(0)  # the first call loads what LAPACK needs
    before, _ = interleaved({"factored": factored}, args.repeat - args.repeat // 2, CLOCKS[args.clock])
    slow, (reference,) = (found["dense"] for found in interleaved({"dense": dense}, 1, CLOCKS[args.clock]))
    after, results = interleaved({"factored": factored}, args.repeat // 2, CLOCKS[args.clock])
    fast = before["factored"] + after["factored"]
    difference = float(((results["factored"][-1] - weight) - (reference - weight)).norm() / (reference - weight).norm())
    if not difference < 1e-4:
        raise SystemExit(f"the two ways differ by {difference:.1e} of F(Σ): their times cannot be compared")

    print(f"W + F(Σ), {p}×{q}, {args.edits} edits, {above} values above m, {args.threads} thread(s), "
          f"{args.clock} time: median (range) of {args.repeat}\n")  # fmt: skip
    table(
        ["factored s", "dense SVD s (once)", "dense/factored", "F(Σ) factored − dense, relative"],
        [[spread(fast), spread(slow), spread([slow[0] / t for t in fast]), f"{difference:.1e}"]],
    )


if __name__ == "__main__":
    main()
