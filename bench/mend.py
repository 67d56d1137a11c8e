"""A trained MEND editor on facts it has not seen, one edit at a time, against the same editor untrained (statistics
measured, network at its start) and one plain gradient step, both of every size of a grid.

python bench/mend.py DATA/zsre/zsre_mend_eval.json --editor mend.safetensors --limit 100

Every fact is edited alone into the unedited model. `efficacy`: target tokens that are the argmax behind the fact's own
prompt, all of them (`all`), and P(new) > P(true) (`compare`); `generalization`: tokens behind the first paraphrase;
`locality`: tokens of the locality prompt's answer whose argmax is the unedited model's. Percent, mean ± standard error
over facts. The best size is the one with the highest mean of efficacy and locality, picked on the facts it is reported
on, in favour of those it is compared with.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from common import table, where

import tether
from tether.editors.mend import Hypernetwork, Pairs, edited_weights
from tether.editors.trained import open_trained
from tether.evaluate.scores import Continuation, tokenize
from tether.lowrank import LowRank
from tether.training.examples import Example, Reader, States, examples
from tether.training.mend import example_pairs

ALPHAS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
STEPS = (0.03, 0.1, 0.3, 1.0, 3.0)
COLUMNS = ("efficacy", "all", "compare", "generalization", "locality")
Way = Callable[[dict[str, Pairs]], Mapping[str, LowRank]]


def plain(size: float) -> Way:
    return lambda pairs: {name: LowRank(-size * its.delta.mT, its.x) for name, its in pairs.items()}


def measured(
    reader: Reader,
    model: tether.EditableModel,
    example: Example,
    true: Continuation | None,
    updates: Mapping[str, LowRank],
) -> dict[str, float]:
    """One fact's values, 0 to 1."""
    texts = [example.edit, example.again, example.loc] + ([true] if true else [])
    with torch.no_grad():
        logits = [each.float().cpu() for each in reader.logits(texts, edited_weights(model, updates))]
        before = reader.before(example.loc).cpu()

    def targets(text: Continuation) -> torch.Tensor:
        return torch.tensor(text.ids[text.start :])

    right = [logits[i].argmax(-1) == targets(text) for i, text in enumerate(texts[:2])]
    found = {
        "efficacy": float(right[0].float().mean()), "all": float(right[0].all()),
        "generalization": float(right[1].float().mean()),
        "locality": float((logits[2].argmax(-1) == before.argmax(-1)).float().mean()),
    }  # fmt: skip
    if true is not None:
        new, old = (
            -float(torch.nn.functional.cross_entropy(logits[i], targets(text)))
            for i, text in ((0, example.edit), (3, true))
        )
        found["compare"] = float(new > old)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--editor", type=Path, action="append", required=True, help="may be given more than once")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--skip", type=int, default=0)
    args = parser.parse_args()
    where(args.model)
    model = tether.load(args.model)
    every = [open_trained(path, model) for path in args.editor]
    trained = every[0]
    chosen, names = trained.record.settings, trained.network.names
    facts = tether.read_facts(args.facts, args.skip + args.limit, on_bad="skip")[args.skip :]
    listed = examples(model, facts)
    trues = [
        tokenize(model.tokenizer, [(fact.text, fact.target_true)])[0] if fact.target_true else None for fact in facts
    ]
    extra = [Example(true, true, listed[0].loc) for true in trues if true is not None]
    reader = Reader(model, States(model, chosen.layers[0], [*listed, *extra]))

    ways: dict[str, Way] = {"unedited": lambda pairs: {}}
    ways |= {f"{each.path.name}, step {each.record.step}": each.network for each in every}
    first = list(ways)[1]
    for alpha in ALPHAS:
        network = Hypernetwork(trained.record.weights, chosen.model_copy(update={"edit_lr": alpha}))
        network.load_state_dict(
            {k: v for k, v in trained.network.state_dict().items() if k[:4] in ("mean", "std_")}, strict=False
        )
        ways[f"untrained, α = {alpha:g}"] = network
    for size in STEPS:
        ways[f"gradient step of {size:g}"] = plain(size)

    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for example, true in zip(listed, trues, strict=True):
        pairs = example_pairs(model, names, reader, example)
        for name, way in ways.items():
            with torch.no_grad():
                found[name].append(measured(reader, model, example, true, way(pairs)))

    def column(name: str, what: str) -> list[float]:
        return [100 * values[what] for values in found[name] if what in values]

    def shown(values: list[float]) -> str:
        if len(values) < 2:
            return "–"
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"

    def score(name: str) -> list[float]:
        return [(a + b) / 2 for a, b in zip(column(name, "efficacy"), column(name, "locality"), strict=True)]

    print(f"{len(facts)} facts of {args.facts.name} from record {args.skip}, each edited alone\n")
    table(("way", *COLUMNS), [(name, *(shown(column(name, what)) for what in COLUMNS)) for name in ways])
    print()
    for kind in ("untrained", "gradient"):
        best = max((name for name in ways if name.startswith(kind)), key=lambda name: statistics.mean(score(name)))
        for what in ("efficacy", "generalization", "locality"):
            pairs = zip(column(first, what), column(best, what), strict=True)
            print(f"{first} − {best}, {what}: {shown([a - b for a, b in pairs])} points, fact by fact")


if __name__ == "__main__":
    main()
