"""One ledger under several restraints: every edit is computed once, and each restraint is applied in milliseconds.

    python examples/compare_restraints.py                           # the bundled small model, on a CPU
    python examples/compare_restraints.py --restrain none,log:1.2,log:2,linear:2

The folder `--out` is a ledger, made where it does not exist yet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tether


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a bundled name, a folder, a .gguf file or a hub id")
    parser.add_argument("--facts", type=Path, default=Path(__file__).parent / "facts.jsonl")
    parser.add_argument("--out", type=Path, default=Path("my-edits"))
    parser.add_argument("--method", default="r-rome")
    parser.add_argument("--restrain", default="none,log:1.2,linear:2")
    parser.add_argument("--corpus", help="a text file for the second moments; default: text the model writes")
    args = parser.parse_args()

    model = tether.load(args.model)
    facts = tether.read_facts(args.facts)
    if (args.out / "ledger.json").exists():
        ledger = tether.Ledger.open(args.out, model)
    else:
        ledger = tether.edit(model, facts, out=args.out, method=args.method, corpus=args.corpus)

    results = tether.evaluate_ledger(
        ledger, model, facts, at=[0, ledger.attempts], restraints=args.restrain.split(","), quick=True
    )
    print(f"{'edits':>5}  {'restraint':12} {'κ':>10} {'efficacy':>9} {'locality':>9} {'perplexity':>11}")
    for row in results.rows:
        scores = row.editing["compare"]
        kappa = max((weight.kappa for weight in row.spectrum.values() if weight.kappa), default=None)
        numbers = (kappa, scores["efficacy"].value, scores["locality"].value, row.abilities["perplexity"].value)
        cells = ["–" if value is None else f"{value:.1f}" for value in numbers]
        print(f"{row.edits:>5}  {row.restraint:12} {cells[0]:>10} {cells[1]:>9} {cells[2]:>9} {cells[3]:>11}")
    print(f"to export one: tether export {args.out} --to edited --as lora --restrain log:1.2")


if __name__ == "__main__":
    main()
