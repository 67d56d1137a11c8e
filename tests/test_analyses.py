"""The analyses of a ledger, against dense computations and forwards of their own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from core import FACTS, SETTINGS, bits, editable, plain_text, random_update, reciter, same_bits
from test_cli import run
from test_ledger import new_ledger
from test_perturbation_bound import fill
from torch import Tensor

import tether
from tether.algebra.lowrank import LowRank
from tether.analyses.analyse import WANTED, analyse
from tether.analyses.bound import bound_rows
from tether.analyses.copies import COPIES
from tether.analyses.points import Values
from tether.constraints.prune import parse
from tether.errors import TetherError
from tether.evaluation import Results, builtin_text, evaluate_editing, evaluate_ledger, perplexity, write
from tether.facts.fact import Fact
from tether.facts.tokens import encode
from tether.ledger import Attempt, Event, Ledger
from tether.models import EditableModel

FAMILIES = ("llama", "gpt2")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path_factory.getbasetemp() / "analyses-cache"))


@pytest.fixture(scope="module", params=FAMILIES)
def edited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EditableModel, Ledger]:
    """Five facts edited by ROME into one layer, linear:1.1 on the sum after every two; the model carries nothing."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    model = editable(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TETHER_CACHE", str(folder / "cache"))
        ledger = tether.edit(
            model, FACTS[:5], out=folder / "ledger", method="rome", settings=folder / "settings.json",
            corpus=plain_text(), restrain="linear:1.1", every=2,
        )  # fmt: skip
    model.clear_updates()
    assert len(ledger.live()) == 5 and [event.kind for event in ledger.events].count("restrain") >= 2
    return model, ledger


def dense(update: LowRank) -> Tensor:
    return update.A.double() @ update.B.double()


def extremes(matrix: Tensor) -> tuple[float, float]:
    values = torch.linalg.svdvals(matrix.double())
    return float(values[0]), float(values[-1])


# --- spectrum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spectrum_is_that_of_dense_matrices(family: str, tmp_path: Path) -> None:
    model = editable(family)
    ledger = new_ledger(tmp_path / "ledger", model)
    fill(ledger, "11f2r12")  # the same update again and again: above m
    restraints = ["none", "log:1.2", "as recorded"]
    points = analyse(model, ledger, ["spectrum"], restraints=restraints, at=[3]).spectrum
    assert {(p.edits, p.restraint, p.weight) for p in points} == {
        (n, r, w) for n in range(7) for r in restraints for w in ledger.header.weights
    }
    assert len(points) == 7 * 3 * 2
    for point in points:
        upto = None if point.restraint == "as recorded" else point.restraint
        update = dense(ledger.sums(point.edits, upto).of[point.weight].factors)
        W = model.original(point.weight).double()
        top, low = extremes(W + update)
        assert point.m == pytest.approx(extremes(W)[0], rel=1e-6)
        assert (point.sigma_max, point.sigma_min) == (pytest.approx(top, rel=1e-6), pytest.approx(low, rel=1e-4))
        assert point.kappa == pytest.approx(top / low, rel=1e-4)
        assert point.update_sigma_max == pytest.approx(extremes(update)[0] if point.edits else 0.0, rel=1e-5)
    assert any(p.edits == 6 and p.update_sigma_max > p.m for p in points if p.restraint == "none")


# --- values -------------------------------------------------------------------------------------------------------


def own_outputs(model: EditableModel, layer: int, facts: Sequence[Fact]) -> tuple[Tensor, Tensor]:
    """Input and output (n×q, n×p, float64) of a projection at the subject's last token, of plain forwards."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.projection(layer).register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    for fact in facts:
        prompt = encode(model.tokenizer, fact.prompt, fact.subject)
        model.hf(input_ids=torch.tensor([prompt.ids]))
        seen[-1] = tuple(one.view(len(prompt.ids), -1)[prompt.subject_last].double() for one in seen[-1])  # type: ignore[assignment]
    handle.remove()
    return torch.stack([k for k, _ in seen]), torch.stack([v for _, v in seen])


def check_values(found: Values, states: dict[tuple[str, str], Tensor], edits: Sequence[int]) -> None:
    """The plane and the shifts of states (each n×p), by an SVD of their own."""
    everything = torch.cat(list(states.values()))
    centred = everything - everything.mean(dim=0)
    U, s, _ = torch.linalg.svd(centred, full_matrices=False)
    plane = (U * s)[:, :2]
    assert found.explained == pytest.approx((s[:2] ** 2 / (s**2).sum()).tolist(), rel=1e-4)
    assert [(p.when, p.restraint, p.edit) for p in found.points] == [(*key, edit) for key in states for edit in edits]
    points = torch.tensor([(p.x, p.y) for p in found.points])
    for axis in range(2):  # up to its sign
        sign = 1.0 if float(points[:, axis] @ plane[:, axis].float()) > 0 else -1.0
        assert (sign * points[:, axis] - plane[:, axis]).abs().max() < 1e-4 * s[0]
    start = next(state for (when, _), state in states.items() if when == "edited")
    for (when, label), state in states.items():
        if when != "edited":
            shift = float((state - start).norm(dim=1).mean() / start.norm(dim=1).mean())
            assert found.shift[label] == pytest.approx(shift, rel=1e-4, abs=1e-7)
    assert found.shift.keys() == {label for when, label in states if when != "edited"}


def test_values_of_one_layer_are_the_weight_times_the_key(edited: tuple[EditableModel, Ledger]) -> None:
    model, ledger = edited
    [name] = ledger.header.weights
    facts = [event.fact for event in ledger.live() if event.fact is not None]
    keys, before = own_outputs(model, 1, facts)  # of the only edited layer: its input is that of the unedited model
    bias = getattr(model.projection(1), "bias", None)
    W, b = model.original(name).double(), 0 if bias is None else bias.double()
    assert torch.allclose(keys @ W.mT + b, before, atol=1e-5)

    def state(update: Tensor) -> Tensor:
        return keys @ (W + update).mT + b

    right_after = [
        dense(ledger.sums(n - 1).of[name].factors) + dense(ledger.factors(event)[name])
        for n, event in enumerate(ledger.live(), 1)
    ]
    states = {
        ("edited", "none"): torch.stack([state(update)[i] for i, update in enumerate(right_after)]),
        ("end", "none"): state(dense(ledger.sums(restrain="none").of[name].factors)),
        ("restrained", "log:1.2"): state(dense(ledger.sums(restrain="log:1.2").of[name].factors)),
    }
    assert (states["edited", "none"] - states["end", "none"]).norm() > 1e-2
    found = analyse(model, ledger, ["values"], restraints=["none", "log:1.2"], at=[]).values
    assert found is not None and found.weight == name
    check_values(found, states, [1, 2, 3, 4, 5])

    replayed = {("edited", "as recorded"): states["edited", "none"]}
    replayed["restrained", "as recorded"] = state(dense(ledger.sums().of[name].factors))
    found = analyse(model, ledger, ["values"], restraints=["as recorded"], at=[]).values
    assert found is not None
    check_values(found, replayed, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("family", FAMILIES)
def test_values_of_two_layers_are_read_off_forwards(family: str, tmp_path: Path) -> None:
    model = editable(family)
    ledger = new_ledger(tmp_path / "ledger", model)
    fill(ledger, "12f3")
    ledger.undo(2)
    live = ledger.live()
    facts = [event.fact for event in live if event.fact is not None]
    parts = []
    for i, event in enumerate(live):
        ledger.apply(model, upto=event.edit, restrain="none")
        parts.append(own_outputs(model, 2, facts)[1][i])
    states = {("edited", "none"): torch.stack(parts)}
    for when, restraint in (("end", "none"), ("restrained", "linear:1.5")):
        ledger.apply(model, restrain=restraint)
        states[when, restraint] = own_outputs(model, 2, facts)[1]
    model.clear_updates()
    found = analyse(model, ledger, ["values"], restraints=["none", "linear:1.5"], at=[]).values
    assert found is not None and found.weight == model.weight_name(2)
    check_values(found, states, [1, 4])


# --- copies -------------------------------------------------------------------------------------------------------


def said(model: EditableModel, event: Event, carried: dict[str, LowRank]) -> float | None:
    """Share of the tokens of the event's fact that the model says with `carried`."""
    assert event.fact is not None and event.edit is not None
    with model.provisional(carried):
        summary = evaluate_editing(model, [(event.edit, event.fact)], metrics=["match"]).summary
    return summary["match_tokens"]["efficacy"]["value"]


def test_copies_are_so_many_times_one_update(edited: tuple[EditableModel, Ledger]) -> None:
    model, ledger = edited
    [name] = ledger.header.weights
    by_norm = sorted(ledger.live(), key=lambda event: float(dense(ledger.factors(event)[name]).norm()))
    event = by_norm[len(by_norm) // 2]
    one, W, m = dense(ledger.factors(event)[name]), model.original(name).double(), ledger.header.weights[name].sigma_max
    points = analyse(model, ledger, ["copies"], restraints=["as recorded", "log:1.2", "none"], at=[]).copies
    assert [(p.copies, p.restraint) for p in points] == [(n, r) for n in COPIES for r in ("none", "log:1.2")]
    for point in points:
        assert point.delta_max == pytest.approx(extremes(one)[0], rel=1e-5)
        U, s, Vh = torch.linalg.svd(point.copies * one, full_matrices=False)
        s = parse(point.restraint)(s, m)
        if point.restraint == "none":
            assert point.update_sigma_max == pytest.approx(point.copies * point.delta_max, rel=1e-6)
        assert point.update_sigma_max == pytest.approx(float(s[0]), rel=1e-5)
        top, low = extremes(W + (U * s) @ Vh)
        assert point.kappa == pytest.approx(top / low, rel=1e-3)
    last = next(p for p in points if (p.copies, p.restraint) == (COPIES[-1], "none"))
    assert event.fact is not None and event.edit is not None
    many = {name: LowRank(COPIES[-1] * ledger.factors(event)[name].A, ledger.factors(event)[name].B)}
    assert last.efficacy == said(model, event, many)
    with model.provisional(many):
        assert last.perplexity == pytest.approx(perplexity(model, builtin_text()).value, rel=1e-5)
    assert last.update_sigma_max > m and points[-1].update_sigma_max < last.update_sigma_max


def test_the_copied_edit_is_one_that_is_said_with_one_copy(tmp_path: Path) -> None:
    """Five updates, 1 to 5 by norm, too small to change an answer: the second's and the fifth's facts are said, the
    middle one's is not."""
    known = reciter()
    model = EditableModel(known.hf, known.tokenizer)
    ledger = new_ledger(tmp_path / "ledger", model)
    with ledger.writing():
        for number, fact in enumerate(known.facts[:5], start=1):
            target = fact.target_true if number in (2, 5) else fact.target_new
            made = {
                name: random_update(*weight.shape, 1, seed=number, scale=1e-5 * number)
                for name, weight in ledger.header.weights.items()
            }
            ledger.append([Attempt("edit", fact.model_copy(update={"target_new": target}), {})], made, {})
    held = [said(model, event, ledger.factors(event)) for event in ledger.live()]
    assert [place for place, share in enumerate(held, start=1) if share == 100] == [2, 5]
    points = analyse(model, ledger, ["copies"], restraints=["none"], at=[]).copies
    assert points[0].copies == 1 and points[0].efficacy == 100
    assert points[0].delta_max == pytest.approx(2e-5, rel=1e-4)


# --- bound --------------------------------------------------------------------------------------------------------


def test_the_bound_is_that_of_the_command(edited: tuple[EditableModel, Ledger]) -> None:
    model, ledger = edited
    points = analyse(model, ledger, ["bound"], restraints=["none", "as recorded"], at=[]).bound
    rows = [row for restrain in ("none", None) for row in bound_rows(ledger, model, restrain=restrain)]
    assert len(points) == len(rows) > 10
    for point, row in zip(points, rows, strict=True):
        for field in ("edits", "restraint", "weight", "of", "gamma", "kappa", "kappa_hat", "bound", "bound_from_kappa"):
            assert getattr(point, field) == getattr(row, field)
        assert point.holds and 0 <= point.error_median <= point.error_max <= point.bound + 1e-9
        assert point.error_max == max(e.max for e in (row.edited, row.others) if e is not None)
    [name] = ledger.header.weights
    keys = torch.cat([ledger.vectors(event, "K")[name] for event in ledger.live()]).double()
    W = model.original(name).double()
    after = W + dense(ledger.sums(restrain="none").of[name].factors)
    x = torch.linalg.pinv(W) @ (W @ keys.mT)
    errors = (torch.linalg.pinv(after) @ (W @ keys.mT) - x).norm(dim=0) / x.norm(dim=0)
    [last] = [p for p in points if (p.of, p.edits, p.restraint) == ("sum", 5, "none")]
    assert last.error_max == pytest.approx(float(errors.max()), rel=1e-3)
    assert last.error_median == pytest.approx(float(errors.median()), rel=1e-3)


def test_of_many_weights_the_worst_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_ledger.LAYERS", (0, 1, 2))
    model = editable("llama")
    ledger = new_ledger(tmp_path / "ledger", model)
    names = list(ledger.header.weights)
    with ledger.writing():
        for number in (1, 2):
            made = {
                name: random_update(*weight.shape, 1, seed=number, scale=(0.1, 0.5, 0.2)[i] * weight.sigma_max)
                for i, (name, weight) in enumerate(ledger.header.weights.items())
            }
            keys = {f"{name}/K": torch.randn(weight.shape[1]) for name, weight in ledger.header.weights.items()}
            ledger.append([Attempt("edit", FACTS[number], {})], made, keys)
    points = analyse(model, ledger, ["bound"], restraints=["none"], at=[]).bound
    assert {point.weight for point in points} == {names[1]}


def test_no_keys_no_bound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = editable("llama")
    ledger = new_ledger(tmp_path / "ledger", model)
    found = analyse(model, ledger, ["bound", "values", "copies"], restraints=["none"], at=[])
    assert (found.bound, found.values, found.copies) == ([], None, []) and "no bound" in caplog.text


# --- differences --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[EditableModel, Ledger, Results]:
    """A model that knows two dozen facts, under twelve random updates: rows of 0 and 12 edits, two restraints."""
    known = reciter()
    model = EditableModel(known.hf, known.tokenizer)
    ledger = new_ledger(tmp_path_factory.mktemp("reciter") / "ledger", model)
    with ledger.writing():
        for number, fact in enumerate(known.facts[::2]):
            made = {
                name: random_update(*weight.shape, 1, seed=10 * number + i, scale=12 * weight.sigma_max)
                for i, (name, weight) in enumerate(ledger.header.weights.items())
            }
            ledger.append([Attempt("edit", fact, {})], made, {})
    text = " ".join(f"{fact.text} {fact.target_true}." for fact in known.facts) * 4
    results = evaluate_ledger(
        ledger, model, at=[0, 12], restraints=["none", "linear:6"], text=text, metrics=["compare", "match"]
    )
    return model, ledger, results


def by_fact(results: Results, row: tuple[int, str], measure: str) -> dict[int, float]:
    metric, kind = measure.split()
    values: dict[int, list[float]] = {}
    for item in results.items:
        if (item["edits"], item["restraint"]) == row and (item.get("metric"), item.get("kind")) == (metric, kind):
            values.setdefault(item["edit"], []).append(100 * item["value"])
    return {edit: float(np.mean(found)) for edit, found in values.items()}


def test_differences_are_paired_t_tests_over_facts(measured: tuple[EditableModel, Ledger, Results]) -> None:
    model, ledger, results = measured
    found = analyse(model, ledger, ["differences"], restraints=["none"], at=[], results=results).differences
    pairs = {((12, "none"), (0, "none")), ((12, "linear:6"), (12, "none"))}
    measures = {f"{m} {k}" for m in ("compare", "match_tokens", "match_all") for k in
                ("efficacy", "generalization", "locality")}  # fmt: skip
    assert {(d.row, d.baseline) for d in found} == pairs and {d.measure for d in found} == measures | {"perplexity"}
    assert len(found) == 20
    tested = 0
    for difference in found:
        if difference.measure == "perplexity":
            assert difference.unit == "ppl" and difference.n > 1
            continue
        mine, theirs = (by_fact(results, row, difference.measure) for row in (difference.row, difference.baseline))
        first, second = list(mine.values()), [theirs[edit] for edit in mine]
        assert difference.n == 12 and difference.unit == "percent"
        assert difference.mean == pytest.approx(float(np.mean(np.subtract(first, second))))
        assert (difference.value, difference.baseline_value) == (
            pytest.approx(np.mean(first)), pytest.approx(np.mean(second)),
        )  # fmt: skip
        if np.ptp(np.subtract(first, second)) > 1e-9:
            tested += 1
            assert difference.p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue)
    assert tested >= 8
    ranked = sorted((d for d in found if d.p is not None), key=lambda d: d.p or 0.0)
    largest = 0.0
    for rank, difference in enumerate(ranked):  # Holm, over all twenty
        largest = max(largest, min(1.0, (len(ranked) - rank) * (difference.p or 0.0)))
        assert difference.p_holm == pytest.approx(largest)
    assert any(d.p_holm is not None and d.p_holm < 0.05 for d in found)
    assert analyse(model, ledger, ["differences"], restraints=["none"], at=[]).differences == []


def test_the_command_compares_editing_metrics(measured: tuple[EditableModel, Ledger, Results], tmp_path: Path) -> None:
    write(measured[2], tmp_path / "results.json")
    without = json.loads(run(tmp_path, "compare", "results.json", "--json").stdout)["comparisons"]
    assert {one["ability"] for one in without} == {"perplexity"}
    with_it = json.loads(run(tmp_path, "compare", "results.json", "--editing", "--json").stdout)["comparisons"]
    assert {"perplexity", "compare locality", "match_all efficacy"} <= {one["ability"] for one in with_it}
    assert len(with_it) == 10
    said = run(tmp_path, "compare", "results.json", "--editing")
    assert said.returncode == 0 and "compare locality, 12 edits: linear:6" in said.stdout


# --- the whole ----------------------------------------------------------------------------------------------------


def test_the_model_carries_what_it_carried(edited: tuple[EditableModel, Ledger], tmp_path: Path) -> None:
    model, ledger = edited
    weight = model.weight_name(1)
    p, q = model.original(weight).shape
    asked: dict[str, Any] = {"restraints": ["none", "log:1.2"], "at": [5]}
    with model.provisional({weight: random_update(p, q, 2, 0), model.weight_name(0): random_update(p, q, 1, 1)}):
        before = bits(model)
        found = analyse(model, ledger, WANTED, **asked)
        assert same_bits(model, before) and set(model.edited) == {weight, model.weight_name(0)}
        alone = analyse(model, ledger, ["copies"], **asked)
        assert alone.copies == found.copies and alone.spectrum == [] and alone.values is None

        damaged = tmp_path / "ledger"
        shutil.copytree(ledger.path, damaged)
        sorted((damaged / "factors").iterdir())[-1].write_bytes(b"")
        for name in ("values", "spectrum", "copies"):
            with pytest.raises(TetherError, match=r"does not match its sha256"):
                analyse(model, Ledger.open(damaged), [name], **asked)
            assert same_bits(model, before)
    assert model.edited == ()
    assert math.isfinite(found.spectrum[-1].sigma_max)


def test_refusals_are_one_line(edited: tuple[EditableModel, Ledger]) -> None:
    model, ledger = edited
    for wanted, more, words in (
        (["spectra"], {}, r"^spectra: no such analysis; choose from spectrum, values, copies, bound, differences$"),
        (["spectrum"], {"at": [99]}, r"^99 edits: .* has edits 1 to 5$"),
        (["values"], {"restraints": ["cubic:2"]}, r"^[^\n]*cubic[^\n]*$"),
    ):
        with pytest.raises(TetherError, match=words):
            analyse(model, ledger, wanted, **{"restraints": ["none"], "at": [], **more})  # type: ignore[arg-type]
    own, other = sorted(FAMILIES, key=lambda family: model.hf.config.model_type != family)
    more = {"restraints": ["none"], "at": []}
    with pytest.raises(TetherError, match="is not the model of"):
        analyse(editable(own, seed=5), ledger, ["spectrum"], **more)  # type: ignore[arg-type]
    with pytest.raises(TetherError, match=r"^'[^\n]* is no weight of [^\n]*$"):
        analyse(editable(other), ledger, ["spectrum"], **more)  # type: ignore[arg-type]
