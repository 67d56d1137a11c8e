"""A grid made up for the tests of its report: two editors, of which one behaves as the paper says and one does not."""

from __future__ import annotations

import math
from typing import Any

from tether.analyses.points import Analyses
from tether.evaluation.results import Row
from tether.experiment.results import Run, StoredGrid, StoredRun

AT = (0, 10, 25, 50, 100, 200)
ONCE = ("none", "log:1.2", "log:e", "linear:2")
WEIGHT = "model.layers.1.mlp.down_proj.weight"


def made_grid() -> StoredGrid:
    """Everything measured: rome breaks the model and PRUNE mends it; memit does no harm; rome also every 10 edits."""
    runs = [
        made_run("rome", "counterfact", 1.0),
        made_run("memit", "zsre", 0.0),
        made_run("rome", "counterfact", 1.0, every=10),
    ]
    return StoredGrid(name="made-up", title="A grid <made up> & $drawn$", command="tether grid made-up.yaml", runs=runs)


def made_run(method: str, dataset: str, harm: float, *, seed: int = 0, every: int | None = None) -> StoredRun:
    """`harm` 1: what editing does to the model; 0: nothing."""
    run = Run(
        id=f"{method}-{dataset}-{seed}-{every}", model="some/model", method=method, dataset=dataset, seed=seed,
        edits=AT[-1], restrain="none" if every is None else "log:1.2", every=every,
    )  # fmt: skip
    metric = "compare" if dataset == "counterfact" else "match_all"
    names = ONCE if every is None else ("as recorded",)
    keys = [(0, "none"), *((edits, name) for edits in AT[1:] for name in names)]
    return StoredRun(
        run=run, rows=[_row(edits, name, harm, metric) for edits, name in keys],
        analyses=_analyses(keys, names, harm) if every is None else Analyses(),
        counts={"edit": 197, "failed": 2, "skipped": 1}, versions={"tether": "0", "torch": "2"},
        hashes={"journal": "a" * 64, "facts": "b" * 64},
    )  # fmt: skip


def _damage(edits: int, name: str, harm: float) -> float:
    """From 0 to 1."""
    part = {"none": 1.0, "linear:2": 0.6, "log:e": 0.3, "log:1.2": 0.2}.get(name, 0.05)
    return harm * part * edits / AT[-1]


def _row(edits: int, name: str, harm: float, metric: str) -> Row:
    hurt = _damage(edits, name, harm)
    editing = {"efficacy": 98 - 40 * hurt, "generalization": 90 - 40 * hurt, "locality": 75 - 50 * hurt}
    return Row.model_validate({
        "edits": edits, "restraint": name, "replayed": name == "as recorded",
        "editing": {
            metric: {kind: {"value": v, "n": 200, "stderr": 1.0, "prompts": 400} for kind, v in editing.items()},
            "instance_change": {"change": {"value": 5 + 40 * hurt, "n": 200, "stderr": 1.0, "prompts": 200}},
        },
        "abilities": {
            "perplexity": {"value": 30 * math.exp(5 * hurt), "n": 9000, "stderr": 0.2, "unit": "ppl"},
            "nli": {"value": 60 - 50 * hurt, "n": 300, "stderr": 1.5, "unit": "percent"},
            "summarization": {"value": 40 - 38 * hurt, "n": 300, "stderr": 1.5, "unit": "percent"},
        },
        "spectrum": {WEIGHT: _singular(edits, name, harm)},
    })  # fmt: skip


def _singular(edits: int, name: str, harm: float) -> dict[str, Any]:
    largest = 24 * (1 + 20 * _damage(edits, name, harm))
    return {
        "sigma_max": largest,
        "sigma_min": 1.0,
        "kappa": largest,
        "update_sigma_max": largest - 23.5 if edits else 0,
    }


def _analyses(keys: list[tuple[int, str]], names: tuple[str, ...], harm: float) -> Analyses:
    spectrum = [
        {"edits": edits, "restraint": name, "weight": WEIGHT, "m": 24, **_singular(edits, name, harm)}
        for edits, name in keys
    ]  # fmt: skip
    points = [
        {"edit": i, "when": when, "restraint": "log:1.2" if when == "restrained" else "none",
         "x": math.cos(i) + far, "y": math.sin(i) + far}
        for when, far in (("edited", 0), ("end", 3), ("restrained", 1)) for i in range(1, 30)
    ]  # fmt: skip
    copies = [
        {"copies": k, "restraint": name, "update_sigma_max": (5.0 * k if name == "none" else 5 + math.log(k)),
         "delta_max": 5.0, "kappa": 20.0 + k, "perplexity": (30.0 + k if name == "none" else 30), "efficacy": 100.0}
        for k in (1, 10, 100) for name in ("none", "log:1.2")
    ]  # fmt: skip
    bound = [
        {"edits": edits, "restraint": name, "weight": WEIGHT, "of": of, "gamma": 1 - 2 * _damage(edits, name, harm),
         "kappa": 24, "kappa_hat": 12, "error_median": 0.01, "error_max": 0.02,
         "bound": 0.1 + 3 * _damage(edits, name, harm),
         "bound_from_kappa": None if 2 * _damage(edits, name, harm) >= 1 else 4.0, "holds": True}
        for edits, name in keys if edits for of in ("sum", "edit") if of == "sum" or name == "none"
    ]  # fmt: skip
    return Analyses.model_validate({
        "spectrum": spectrum, "copies": copies, "bound": bound,
        "values": {"weight": WEIGHT, "points": points, "explained": (0.5, 0.2),
                   "shift": {"none": 0.4, **{name: 0.1 for name in names if name != "none"}}},
    })  # fmt: skip
