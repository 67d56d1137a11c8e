"""Paired comparisons: their statistics, and the verdict over rows of a results file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from command import run
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tether.errors import TetherError
from tether.evaluation import Results, Row, compare, write
from tether.evaluation.results import Ability
from tether.evaluation.statistics.paired import holm, kept, paired

# --- statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
def test_the_paired_test_is_scipys_and_the_bootstrap_agrees(shift: float) -> None:
    generator = np.random.default_rng(1)
    before = generator.normal(size=200)
    after = before - shift + 0.3 * generator.normal(size=200)
    found, expected = paired(list(after), list(before)), stats.ttest_rel(after, before)
    assert found.p == pytest.approx(expected.pvalue) and found.n == 200
    interval = expected.confidence_interval()
    assert found.ci == pytest.approx((interval.low, interval.high))
    assert found.bootstrap_ci == pytest.approx(found.ci, abs=0.01) and found.agrees
    assert found.bootstrap_p is not None and abs(found.bootstrap_p - expected.pvalue) < 0.03
    assert paired(list(after), list(before)) == found
    swapped = paired(list(before), list(after))
    assert swapped.difference == -found.difference and swapped.p == pytest.approx(found.p)


def test_no_spread_and_no_pairs() -> None:
    same = paired([0.5] * 12, [0.5] * 12)
    assert (same.difference, same.p, same.ci, same.bootstrap_p) == (0, 1, (0, 0), 1)
    few = paired([0.5] * 9, [0.4] * 9)
    assert few.p is not None and few.bootstrap_p is None and few.agrees
    apart = paired([1.0] * 12, [0.0] * 12)
    assert (apart.difference, apart.p, apart.ci) == (1, 0, (1, 1)) and apart.agrees
    single = paired([1.0], [0.0])
    assert (single.n, single.p, single.ci) == (1, None, None) and single.agrees
    for first in ([], [1.0, 2.0]):
        with pytest.raises(ValueError, match="pairs are needed"):
            paired(first, [1.0] if first else [])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm(ps: list[float]) -> None:
    corrected = holm(ps)
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    for i, p in enumerate(ps):
        assert p <= corrected[i] <= min(1.0, len(ps) * p)
    for rank, index in enumerate(order):  # what it is: the largest of the products up to here
        products = [(len(ps) - r) * ps[i] for r, i in enumerate(order[: rank + 1])]
        assert corrected[index] == pytest.approx(min(1.0, max(products)))


def test_what_is_kept() -> None:
    assert kept([1.0, 0.5], [1.0, 0.5]) == (1.0, 0.0)
    assert kept([1.0, 1.0], [0.0, 0.0]) is None and kept([1.0], [1.0]) is None
    generator = np.random.default_rng(0)
    before = generator.uniform(size=400)
    after = np.clip(0.6 * before + 0.1 * generator.normal(size=400), 0, 1)
    found = kept(list(after), list(before))
    assert found is not None
    draws = generator.integers(0, 400, (2000, 400))
    ratios = after[draws].mean(axis=1) / before[draws].mean(axis=1)
    assert found == pytest.approx((float(ratios.mean()), float(ratios.std())), rel=0.1)


# --- rows -------------------------------------------------------------------------------------------------------

Scores = Mapping[tuple[int, str], Sequence[float]]


def made(scores: Scores, nll: Mapping[tuple[int, str], Sequence[float]] | None = None) -> Results:
    """Results with the ability `paper_nli` of these item values (0 to 1), and the perplexity of these nats a token."""
    results = Results(model="m", ledger=None, facts_sha256="", versions={}, settings={})
    for (edits, restraint), values in scores.items():
        percent = 100 * sum(values) / len(values)
        abilities = {"paper_nli": Ability(value=percent, n=len(values), stderr=1.0, unit="percent")}
        items = [{"ability": "paper_nli", "item": i, "value": value} for i, value in enumerate(values)]
        if nll is not None:
            nats = nll[edits, restraint]
            mean = math.exp(sum(nats) / len(nats))
            abilities["perplexity"] = Ability(value=mean, n=10 * len(nats), stderr=1.0, unit="ppl")
            items += [{"ability": "perplexity", "item": i, "nll": 10 * v, "n_tokens": 10} for i, v in enumerate(nats)]
        row = Row(edits=edits, restraint=restraint, replayed=False, abilities=abilities)
        results.add(row, items)
    return results


def shares(hundred: float) -> list[float]:
    """A hundred items, so many of which are right."""
    return [1.0] * round(hundred) + [0.0] * (100 - round(hundred))


KEYS = ((0, "none"), (50, "none"), (100, "none"), (100, "log:1.2"))
FOUR = dict(zip(KEYS, map(shares, (80, 70, 32, 76)), strict=True))
NATS = dict(zip(KEYS, ([3.0, 3.2, 3.4], [3.1, 3.31, 3.5], [3.9, 4.2, 4.4], [3.1, 3.3, 3.5]), strict=True))


def test_the_verdict_on_a_restraint() -> None:
    [found] = compare(made(FOUR))
    assert (found.row, found.baseline) == ((100, "log:1.2"), (100, "none"))
    assert (found.value, found.baseline_value, found.test.difference) == (76, 32, pytest.approx(44))
    assert found.significant and found.test.agrees
    assert found.verdict == (
        "paper_nli, 100 edits: log:1.2 keeps 95 ± 2 % of the unedited score; unrestrained keeps 40 ± 6 %; "
        "p < 0.001"
    )  # fmt: skip
    json.dumps(found.document())


def test_the_verdict_on_checkpoints_and_perplexity() -> None:
    first, *_ = compare(made(FOUR, NATS), "50")
    assert (first.row, first.baseline) == ((100, "none"), (50, "none"))
    assert first.verdict.startswith("paper_nli, unrestrained: the 100-edit model keeps 40 ± 6 %")
    unedited = compare(made(FOUR, NATS), "0")
    assert [(c.row, c.ability) for c in unedited if c.ability == "perplexity"] == [
        ((50, "none"), "perplexity"), ((100, "none"), "perplexity"), ((100, "log:1.2"), "perplexity"),
    ]  # fmt: skip
    assert {c.baseline for c in unedited} == {(0, "none")}
    last = unedited[-1]
    assert last.kept is not None and last.kept.percent == pytest.approx(100 * math.exp(0.1))
    assert last.verdict == (
        "perplexity, log:1.2: the 100-edit model has 110.5 ± 0.0 % of the unedited perplexity; the unedited model: "
        "perplexity 24.5; p < 0.001"
    )


def test_many_comparisons_are_corrected() -> None:
    one = made({(100, "none"): shares(50), (100, "log:e"): shares(54)})
    [alone] = compare(one)
    assert alone.p_holm == alone.test.p and alone.kept is None
    assert "log:e: score 54.0; unrestrained: score 50.0" in alone.verdict
    many = compare(made({(100, "none"): shares(50)} | {(100, f"linear:{b}"): shares(54) for b in range(2, 9)}))
    assert [c.p_holm for c in many] == [pytest.approx(7 * (alone.test.p or 0))] * 7
    assert "no significant difference (p = " in many[0].verdict


def test_only_items_both_have_are_compared() -> None:
    results = made({(9, "none"): [1.0, 0.0, 1.0, 0.0], (9, "log:e"): [1.0, 1.0, 1.0, 0.0]})
    results.items = [
        *(i for i in results.items if (i["restraint"], i["item"]) not in {("none", 3), ("log:e", 0)}),
        {"edits": 9, "restraint": "none", "ability": "paper_nli", "item": 2, "value": None},
    ]
    [found] = compare(results)
    assert found.test.n == 2 and found.test.difference == pytest.approx(50)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(TetherError, match=r"no row can be compared with 'log:e': the rows are 100 edits none"):
        compare(made({(100, "none"): shares(3)}), "log:e")
    empty = made({(100, "none"): shares(3)})
    empty.items = []
    with pytest.raises(TetherError, match=r"no items of general abilities"):
        compare(empty)


def test_a_model_as_it_is_is_not_taken_for_the_unedited_one() -> None:
    results = made({(0, "as it is"): shares(80), (9, "none"): shares(70), (9, "log:e"): shares(75)})
    [found] = compare(results)
    assert found.kept is None and found.baseline_kept is None
    with pytest.raises(TetherError, match=r"no row can be compared with '0'"):
        compare(results, "0")


def test_the_command(tmp_path: Path) -> None:
    write(made(FOUR, NATS), tmp_path / "results.json")
    done = run(tmp_path, "compare", "results.json", "--baseline", "none", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0 and document["baseline"] == "none" and len(document["comparisons"]) == 2
    assert set(document["comparisons"][0]) >= {"ability", "row", "baseline", "test", "p_holm", "kept", "verdict"}
    said = " ".join(run(tmp_path, "compare", "results.json").stdout.split())
    assert "| 100 | log:1.2 | 76.0 ± 1.0* |" in said and "p corrected for 2 comparisons by Holm" in said
    assert run(tmp_path, "compare", "nothing.json").returncode == 1
