"""How tight the bound of theorem 3.1 is on random acute perturbations, and what it costs along a sequence of edits.

    python bench/bound.py [--cases 500] [--edits 200] [--every 20] [--threads 1] [--clock wall]

Perturbations are acute by construction, of A with rank r, ‖A‖ = 1 and κ up to 100; "size" is the norm of each of E₁₁,
E₁₂, E₂₁. Every case is also a check: the script stops where an error is above its bound.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import torch
from common import CLOCKS, spread, table, where
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.algebra.perturbation_bound import Span, bound, reduced_form, walk

SHAPES = (
    ("p<q", 8, 20, 8),
    ("p=q", 12, 12, 12),
    ("p>q", 20, 8, 8),
    ("p<q, rank p/2", 8, 20, 4),
    ("p>q, rank q/2", 20, 8, 4),
    ("p=q, rank p/2", 12, 12, 6),
)
SIZES = (0.001, 0.1, 1.0, 10.0)


def acute(p: int, q: int, r: int, size: float, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A, E with E₂₂ = E₂₁Ã₁₁⁻¹E₁₂, and one right-hand side: random, so with b₂ where r < p."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def block(m: int, n: int) -> Tensor:
        made = normal(m, n)
        return made * (size / float(torch.linalg.matrix_norm(made, 2))) if made.numel() else made

    U, V = (torch.linalg.qr(normal(n, n)).Q for n in (p, q))
    low = 10 ** (-2 * float(torch.rand(1, generator=random)))
    s = low ** torch.linspace(0, 1, r, dtype=torch.float64)
    A11 = torch.diag(s)
    E11, E12, E21 = block(r, r), block(r, q - r), block(p - r, r)
    E22 = E21 @ torch.linalg.solve(A11 + E11, E12)
    E = U @ torch.cat([torch.cat([E11, E12], 1), torch.cat([E21, E22], 1)]) @ V.mT
    return U[:, :r] @ A11 @ V[:, :r].mT, E, normal(p, 1)


def tightness(cases: int) -> Iterator[list[str]]:
    """A row a shape and size: quantiles of error/bound, and where the second theorem says something."""
    random = torch.Generator().manual_seed(0)
    for label, p, q, r in SHAPES:
        for size in SIZES:
            ratios, speaks, worst = [], 0, 0.0
            for _ in range(cases):
                A, E, b = acute(p, q, r, size, random)
                found = bound(reduced_form(A), E, b)
                error, total = float(found.error), float(found.total)
                if error > total * (1 + 1e-7) + 1e-9:
                    raise SystemExit(f"{label}, size {size}: error {error} above its bound {total}")
                ratios.append(error / total)
                speaks += found.constants.gamma > 0
                worst = max(worst, float(found.error))
            points = torch.tensor(ratios).quantile(torch.tensor([0.05, 0.5, 0.95, 1.0])).tolist()
            yield [label, f"{size:g}", *(f"{x:.2g}" for x in points), f"{speaks / cases:.0%}", f"{worst:.2g}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500, help="of each shape and size")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a shared machine, with one thread")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]

    where()
    print(f"error/bound, {args.cases} random acute perturbations a row\n")
    table(["shape", "size", "5 %", "median", "95 %", "largest", "γ > 0", "largest error"], list(tightness(args.cases)))

    random = torch.Generator().manual_seed(0)
    p, q = 576, 1536
    weight = torch.randn(p, q, generator=random) / q**0.5
    keys = torch.randn(args.edits, q, generator=random) + 0.5 * torch.randn(1, q, generator=random)
    values = torch.randn(p, args.edits, generator=random) + 0.5 * torch.randn(p, 1, generator=random)
    scale = float(torch.linalg.matrix_norm(weight, 2)) / float(LowRank(values, keys).singular_values()[0])
    updates = [LowRank(values[:, i : i + 1] * scale, keys[i : i + 1]) for i in range(args.edits)]
    rows = []
    states = [LowRank.sum([LowRank.zeros(p, q), *updates[:n]]) for n in range(args.edits + 1)]
    sums = [Span(n, states[0], states[n]) for n in range(args.every, args.edits + 1, args.every)]
    edits = [Span(n, states[n - 1], states[n]) for n in range(1, args.edits + 1)]
    for of, spans in (("sum", sums), ("edit", edits)):
        steps = walk(weight, spans, keys)
        ticks, taken = [clock()], []
        for step in steps:
            taken.append(step)
            ticks.append(clock())
        seconds = [after - before for before, after in itertools.pairwise(ticks)]
        last = taken[-1]
        c, error = last.bound.constants, last.bound.error
        rows.append([of, str(len(seconds)), f"{seconds[0]:.2g}", spread(seconds[1:]), f"{c.kappa:.3g}",
                     f"{c.kappa_hat:.3g}", f"{c.gamma:.3g}", f"{float(error.median()):.2g}",
                     f"{float(last.bound.total.max()):.3g}"])  # fmt: skip
    print(f"\n{args.edits} random edits of a {p}×{q} weight, their sum of its norm, {len(keys)} keys, {args.threads} "
          f"thread(s), {args.clock} time; the numbers are of the last step\n")  # fmt: skip
    table(["of", "steps", "first step s (with W₀)", "other steps s: median (range)", "κ", "κ̂", "γ", "median error",
           "bound"], rows)  # fmt: skip


if __name__ == "__main__":
    main()
