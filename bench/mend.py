"""A trained MEND editor on facts it has not seen, one edit at a time, against the same editor untrained (statistics
measured, network at its start) and one plain gradient step, each of a size picked on other facts.

python bench/mend.py counterfact-edit.json --editor mend.safetensors --val val-cf.jsonl --limit 60
python bench/mend.py zsre_mend_eval.json --editor mend.safetensors --val val-zsre.jsonl --limit 60

Every fact is edited alone into the unedited model. `efficacy`: target tokens that are the argmax behind the fact's own
prompt, all of them (`all`), and P(new) > P(true) (`compare`); `generalization`: tokens behind the first paraphrase;
`locality`: tokens of the locality prompt's answer whose argmax is the unedited model's. Percent, mean ± standard error
over facts; differences are taken fact by fact.

What the trained editor is compared with: the untrained one at the α its training began with (`its own`) and at 1e-4,
the paper's (`paper's`); and the untrained one and the gradient step at sizes picked on the validation facts (`--val`)
alone: the size of a grid with the highest mean of efficacy and locality (`best mean`), the one with the highest
efficacy, whatever it costs (`best efficacy`), and the one whose locality comes nearest to the trained editor's there
(`equal locality`: efficacy at equal damage). Of sizes equally near, it is the one
with the highest efficacy. A size picked at an end of its grid is marked.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from common import table, where

import tether
from tether.algebra.lowrank import LowRank
from tether.editors.mend.examples import Example, Reader, States, examples
from tether.editors.mend.file import Trained, open_trained
from tether.editors.mend.network import Hypernetwork, Pairs
from tether.editors.mend.train import example_pairs
from tether.evaluation.scores import Continuation, tokenize

PAPERS = 1e-4
ALPHAS = (3e-5, 5e-5, 7e-5, 1e-4, 1.4e-4, 2e-4, 3e-4, 4e-4, 6e-4, 1e-3, 2e-3)
STEPS = (3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 3e-3, 5e-3, 7e-3, 1e-2, 1.4e-2, 2e-2, 3e-2, 5e-2, 0.1)
COLUMNS = ("efficacy", "all", "compare", "generalization", "locality")
Way = Callable[[dict[str, Pairs]], Mapping[str, LowRank]]
Values = Sequence[Mapping[str, float]]  # of every fact, 0 to 1


def plain(size: float) -> Way:
    return lambda pairs: {name: LowRank(-size * its.delta.mT, its.x) for name, its in pairs.items()}


def untrained(trained: Trained) -> Callable[[float], Way]:
    """The editor at the start of its training, by α."""
    measured = {k: v for k, v in trained.network.state_dict().items() if k.startswith(("mean_", "std_"))}

    def way(alpha: float) -> Way:
        settings = trained.record.settings.model_copy(update={"edit_lr": alpha})
        network = Hypernetwork(trained.record.weights, settings)
        network.load_state_dict(measured, strict=False)
        return network

    return way


class Facts:
    """The facts of a file, ready to be edited."""

    def __init__(self, model: tether.EditableModel, trained: Trained, path: Path, skip: int, limit: int) -> None:
        self.model, self.names, self.path, self.skip = model, trained.network.names, path, skip
        self.facts = tether.read_facts(path, limit, on_bad="skip", skip=skip)
        self.examples = examples(model, self.facts)
        self.trues = [
            tokenize(model.tokenizer, [(fact.text, fact.target_true)])[0] if fact.target_true else None
            for fact in self.facts
        ]
        extra = [Example(true, true, self.examples[0].loc) for true in self.trues if true is not None]
        self.reader = Reader(model, States(model, trained.record.settings.layers[0], [*self.examples, *extra]))

    def measured(self, ways: Mapping[str, Way]) -> dict[str, Values]:
        found: dict[str, list[Mapping[str, float]]] = {name: [] for name in ways}
        for example, true in zip(self.examples, self.trues, strict=True):
            pairs = example_pairs(self.reader, self.names, example)
            for name, way in ways.items():
                with torch.no_grad():
                    found[name].append(self._values(example, true, way(pairs)))
        return dict(found)

    def _values(
        self, example: Example, true: Continuation | None, updates: Mapping[str, LowRank]
    ) -> Mapping[str, float]:
        texts = [example.edit, example.again, example.loc] + ([true] if true else [])
        logits = [each.float().cpu() for each in self.reader.logits(texts, updates)]
        before = self.reader.before(example.loc).cpu()

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


def column(values: Values, what: str) -> list[float]:
    return [100 * each[what] for each in values if what in each]


def mean(values: Values, *what: str) -> float:
    return statistics.mean(statistics.mean(column(values, each)) for each in what)


def shown(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "–"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def difference(a: Values, b: Values, what: str) -> str:
    return shown([x - y for x, y in zip(column(a, what), column(b, what), strict=True)])


def picked(values: Mapping[float, Values], wanted: float) -> dict[str, float]:
    """The sizes that the rules pick, by rule; `wanted`: the trained editor's locality."""

    def nearest(size: float) -> tuple[float, float]:
        return abs(mean(values[size], "locality") - wanted), -mean(values[size], "efficacy")

    found = {
        "best mean": max(values, key=lambda size: mean(values[size], "efficacy", "locality")),
        "best efficacy": max(values, key=lambda size: mean(values[size], "efficacy")),
        "equal locality": min(values, key=nearest),
    }  # fmt: skip
    ends = (min(values), max(values))
    return {rule + (", end of the grid" if size in ends else ""): size for rule, size in found.items()}


def rows(found: Mapping[str, Values]) -> list[tuple[str, ...]]:
    return [(name, *(shown(column(values, what)) for what in COLUMNS)) for name, values in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--editor", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True, help="facts that sizes are picked on")
    parser.add_argument("--val-limit", type=int, default=40)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0)
    args = parser.parse_args()
    where(args.model)
    model = tether.load(args.model)
    trained = open_trained(args.editor, model)
    own = trained.record.settings.edit_lr
    grids = {"untrained": (untrained(trained), ALPHAS, "α"), "gradient step": (plain, STEPS, "size")}

    def name(kind: str, size: float, rule: str) -> str:
        return f"{kind}, {grids[kind][2]} {size:.2g} ({rule})"

    seen = Facts(model, trained, args.val, 0, args.val_limit)
    at: dict[str, Way] = {f"trained, step {trained.record.step}": trained.network}
    first = next(iter(at))
    at |= {name(kind, size, "grid"): way(size) for kind, (way, sizes, _) in grids.items() for size in sizes}
    found = seen.measured(at)
    print(f"Validation: {len(seen.facts)} facts of {seen.path.name}\n")
    table(("way", *COLUMNS), rows(found))

    ways: dict[str, Way] = {"unedited": lambda pairs: {}, first: trained.network}
    for alpha, rule in ((own, "its own"), (PAPERS, "paper's")):
        ways[name("untrained", alpha, rule)] = untrained(trained)(alpha)
    for kind, (way, sizes, _) in grids.items():
        values = {size: found[name(kind, size, "grid")] for size in sizes}
        chosen = picked(values, mean(found[first], "locality"))
        ways |= {name(kind, size, rule): way(size) for rule, size in chosen.items()}

    facts = Facts(model, trained, args.facts, args.skip, args.limit)
    found = facts.measured(ways)
    print(f"\n{len(facts.facts)} facts of {facts.path.name} from record {facts.skip}\n")
    table(("way", *COLUMNS), rows(found))
    print(f"\n{first}, minus\n")
    table(
        ("way", *COLUMNS),
        [(it, *(difference(found[first], found[it], what) for what in COLUMNS)) for it in list(ways)[2:]],
    )


if __name__ == "__main__":
    main()
