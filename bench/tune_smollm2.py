"""How the bundled settings for SmolLM2 were chosen: a few settings on facts that no reported figure uses.

python bench/tune_smollm2.py DATA/counterfact/counterfact.json --corpus moments.txt --skip 200 --limit 60
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import tether
from tether.cli.evaluate import table

START = {
    "layers": [5], "prefixes": [{"length": 10, "number": 5}], "v_num_grad_steps": 20, "loss_threshold": 0.05,
    "moments_ridge": 0.0,
}  # fmt: skip
CANDIDATES = {
    "layer 5, 6 prompts": {},
    "layer 4": {"layers": [4]},
    "layer 6": {"layers": [6]},
    "layer 7": {"layers": [7]},
    "layer 3": {"layers": [3]},
    "11 prompts": {"prefixes": [{"length": 5, "number": 5}, {"length": 10, "number": 5}]},
    "4 prompts": {"prefixes": [{"length": 10, "number": 3}]},
    "3 prompts": {"prefixes": [{"length": 10, "number": 2}]},
    "4 prompts, 30 steps": {"prefixes": [{"length": 10, "number": 3}], "v_num_grad_steps": 30},
    "layer 4, 4 prompts": {"layers": [4], "prefixes": [{"length": 10, "number": 3}]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--methods", default="r-rome,rome")
    parser.add_argument("--only", default=None)
    parser.add_argument("--skip", type=int, default=200)
    parser.add_argument("--limit", type=int, default=60)
    args = parser.parse_args()
    facts = tether.read_facts(args.facts, args.limit, skip=args.skip)
    model = tether.load(args.model)
    print(f"{len(facts)} facts from record {args.skip}, two paraphrases and three locality prompts each")
    for method in args.methods.split(","):
        for name, settings in CANDIDATES.items():
            if args.only and name not in args.only.split(";"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "settings.json"
                file.write_text(json.dumps({**START, **settings}))
                started = time.monotonic()
                ledger = tether.edit(
                    model, facts, method=method, out=Path(folder) / "ledger", corpus=args.corpus, settings=file
                )
                seconds = (time.monotonic() - started) / len(facts)
                results = tether.evaluate_ledger(
                    ledger, model, restraints=["none", "log:1.2"], metrics=("compare", "match"), max_locality=3
                )
                model.clear_updates()
            print(f"\n{method}, {name}: {seconds:.1f} s an edit\n{table(results)}", flush=True)


if __name__ == "__main__":
    main()
