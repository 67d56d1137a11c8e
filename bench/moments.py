"""Second moments of the keys: five layers in one pass against the last of them alone, on the same text.

python bench/moments.py [--model smollm2] [--corpus FILE|self] [--layers 4 5 6 7 8] [--tokens 16384] [--repeat 3]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import CLOCKS, interleaved, ratios, spread, table, where

from tether.editors.corpus import Corpus
from tether.editors.moments import Moments, moments
from tether.models.load import load
from tether.models.sampling import STARTS, sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpus", default="self", help="a text file; self: text sampled once, not timed")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a shared machine, with one thread")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model = load(args.model, dtype="float32", device="cpu")
    where(model.id)
    last = max(args.layers)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text") if args.corpus == "self" else Path(args.corpus)
        if args.corpus == "self":
            starts = [STARTS[i % len(STARTS)] for i in range(-(-args.tokens // 256) + 8)]
            text.write_text("\n".join(sample(model, starts, 256, seed=0)))
        corpus = Corpus.parse(text, max_tokens=args.tokens)

        def measure(layers: list[int], name: str, repetition: int) -> dict[int, Moments]:
            return moments(model, layers, corpus, cache=Path(folder, f"{name}-{repetition}"))

        measure([last], "first", 0)
        seconds, results = interleaved(
            {"all": lambda i: measure(args.layers, "all", i), "one": lambda i: measure([last], "one", i)},
            args.repeat,
            CLOCKS[args.clock],
        )
    pairs = [(a[last].C, b[last].C) for a, b in zip(results["all"], results["one"], strict=True)]
    if not all(torch.equal(a, b) for a, b in pairs):
        raise SystemExit(f"the two passes disagree on layer {last}: their times cannot be compared")

    tokens = results["one"][0][last].tokens
    print(f"{tokens} tokens, {args.threads} thread(s), {args.clock} time: median (range) of {args.repeat}; "
          f"layer {last} the same bits\n")  # fmt: skip
    table(
        [f"layers {', '.join(map(str, args.layers))} s", f"layer {last} alone s", "ratio"],
        [[spread(seconds["all"]), spread(seconds["one"]), spread(ratios(seconds["all"], seconds["one"]))]],
    )


if __name__ == "__main__":
    main()
