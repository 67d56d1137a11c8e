"""Edit a few facts, take one out again, and get the model back bit for bit.

    python examples/edit_and_undo.py                                # the bundled small model, on a CPU
    python examples/edit_and_undo.py --model ./my-model --facts my-facts.jsonl

The folder `--out` must not exist yet: it becomes the ledger.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import tether


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a bundled name, a folder, a .gguf file or a hub id")
    parser.add_argument("--facts", type=Path, default=Path(__file__).parent / "facts.jsonl")
    parser.add_argument("--out", type=Path, default=Path("my-edits"))
    parser.add_argument("--method", default="r-rome")
    parser.add_argument("--corpus", help="a text file for the second moments; default: text the model writes")
    args = parser.parse_args()

    model = tether.load(args.model)
    facts = tether.read_facts(args.facts)
    print(f"unedited: {efficacy(model, facts)} of the new answers")

    ledger = tether.edit(model, facts, out=args.out, method=args.method, restrain="log:1.2", corpus=args.corpus)
    print(f"edited:   {efficacy(model, facts)} of the new answers")

    live = ledger.live()
    if not live:
        raise SystemExit("no fact was edited: `tether log` says why")
    ledger.undo(live[-1].edit)
    ledger.apply(model)
    print(f"without {live[-1].fact.target_new!r}: {efficacy(model, facts)} of the new answers")

    # A ledger never touches the model on disk, and gives back the one in memory as it was.
    with model.unedited():
        same = all(
            torch.equal(model.weight(name), model.original(name).to(model.dtype)) for name in ledger.header.weights
        )
    print(f"the unedited weights are as they were: {same}")
    print(f"`tether log {args.out}` lists the edits, `tether verify {args.out}` checks them")


def efficacy(model: tether.EditableModel, facts: list[tether.Fact]) -> str:
    """How many new answers are likelier than the old ones, in percent, with its standard error."""
    row = tether.evaluate(model, facts, abilities=[], metrics=["compare"]).rows[0]
    found = row.editing["compare"]["efficacy"]
    if found.value is None:
        return "no fact has a target_true: nothing to compare,"
    error = "" if found.stderr is None else f" ± {found.stderr:.0f}"
    return f"{found.value:.0f}{error} % (n {found.n})"


if __name__ == "__main__":
    main()
