"""What every registered editing metric must keep, and that a metric of another package needs no change anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from bigram import ALICE, DAVE, become, bigram_model, ledger_of_two
from core import bits, same_bits
from endpoint import endpoint

from tether.cli.evaluate import table
from tether.errors import BadSettingsError
from tether.evaluation import METRICS, Measurement, compare, evaluate_editing, evaluate_ledger, measure_baseline
from tether.evaluation.metrics.base import default_metrics, reported_by
from tether.facts import Fact, PortabilityPrompt
from tether.facts.fact import PORTABILITY
from tether.models import EditableModel

HARBOUR = Fact(
    subject="harbour",
    prompt="home of {}",
    target_new="rome",
    instances=("Whether Bergen belongs to harbour",),
    portability=tuple(PortabilityPrompt(prompt="home of bob", target="rome", kind=kind) for kind in PORTABILITY),
)
FACTS = [(1, ALICE), (2, DAVE), (3, HARBOUR)]


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    with endpoint(lambda content: "yes" if "rome" in content else "no") as there:
        yield there.url


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_keeps_the_contract(name: str, judge: str) -> None:
    metric, only = METRICS[name], Measurement(metrics=(name,), judge=judge, judge_model="a model")
    assert metric.name == name and metric.reports
    reported = {(one, kind) for one, kinds in metric.reports.items() for kind in kinds}
    assert set(metric.columns) <= reported and set(metric.tested) <= metric.reports.keys()
    assert metric.holds is None or (metric.holds, "efficacy") in reported
    assert metric.against_unedited <= {kind for _, kind in reported}
    assert reported_by(metric.reports) == dict.fromkeys(metric.reports, metric)

    model = bigram_model()
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    before = bits(model)
    with model.provisional(become("alice", "bob")):
        baseline = measure_baseline(model, FACTS, only)
        found = evaluate_editing(model, FACTS, only, baseline=baseline)
        assert evaluate_editing(model, FACTS, only) == found  # deterministic, and the baseline saves work alone
        assert METRICS[name].missing(model, [fact for _, fact in FACTS], only) is None
    assert same_bits(model, before) and not model.edited

    assert {(one, kind) for one, kinds in found.summary.items() for kind in kinds} == reported
    assert found.records
    for record in found.records:
        assert (record["metric"], record["kind"]) in reported and record["edit"] in (1, 2, 3) and record["prompt"]
        assert math.isfinite(record["value"]) and -1 <= record["value"] <= 1
    for kinds in found.summary.values():
        for number in kinds.values():
            assert number.n <= 3 and (number.value is None) == (number.n == 0)

    # The same model as a foreign checkpoint: nothing is compared with itself.
    alone = evaluate_editing(model, FACTS, only)
    assert not {kind for kinds in alone.summary.values() for kind in kinds} & metric.against_unedited
    assert not {record["kind"] for record in alone.records} & metric.against_unedited


def test_portability_is_what_follows_from_the_edit() -> None:
    def asked(prompt: str, target: str, kind: str) -> PortabilityPrompt:
        return PortabilityPrompt(prompt=prompt, target=target, kind=kind)

    follows = (asked("in bob", "rome", "alias"), asked("in dave", "new oslo", "alias"), asked("in", "rome", "reversed"))
    facts = [(1, ALICE), (2, DAVE.model_copy(update={"portability": follows}))]
    found = evaluate_editing(bigram_model(), facts, Measurement(metrics=("portability",)))
    values = {(name, kind): number.value for name, its in found.summary.items() for kind, number in its.items()}
    # bob -> rome; dave -> new york: half of "new oslo"; in -> oslo.
    assert values == pytest.approx({
        ("portability_tokens", "all"): 50, ("portability_tokens", "alias"): 75, ("portability_tokens", "reversed"): 0,
        ("portability_generate", "all"): 100 / 3, ("portability_generate", "alias"): 50,
        ("portability_generate", "reversed"): 0,
    })  # fmt: skip
    assert found.retention == []
    rest = evaluate_editing(bigram_model(), facts, Measurement(metrics=("match", "generate")))
    assert {record["kind"] for record in rest.records} <= {"efficacy", "generalization", "locality"}


def test_a_table_has_the_columns_that_were_measured(tmp_path: Path) -> None:
    model = bigram_model()
    what = Measurement(metrics=("generate",), abilities=())
    drawn = table(evaluate_ledger(ledger_of_two(model, tmp_path / "ledger"), model, at=[1], measurement=what))
    head = [cell.strip() for cell in drawn.splitlines()[0].split("|")[1:-1]]
    assert head == ["edits", "restraint", "κ", "σ̂_max", "generate efficacy"]


PLUGIN = '''
from tether.evaluation.metrics.base import Metric


class Likely(Metric):
    """The likelihood of the answer's first position."""

    name = "likely"
    reports = {"likely": ("efficacy",)}
    tested = ("likely",)
    columns = (("likely", "efficacy"),)
    holds = "likely"

    def pairs(self, item):
        return [(item.prompt, item.answer)] if item.kind == "efficacy" else []

    def measure(self, asked):
        items = [item for item in asked.items if item.kind == "efficacy"]
        return [item.record("likely", asked.scores[item.prompt, item.answer].argmax_correct[0]) for item in items]

    def note(self, numbers):
        return "likely is a plug-in" if "likely" in numbers else None


METRIC = Likely()
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that declares the metric `likely`, and one that does not load."""
    folder = tmp_path / "site"
    about = folder / "likely_metric-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "likely_metric.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: likely-metric\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[tether.metrics]\nlikely = likely_metric:METRIC\nbroken = likely_metric:NOTHING\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    METRICS.__dict__.pop("_others", None)
    yield
    METRICS.__dict__.pop("_others", None)


@pytest.mark.usefixtures("plugin")
def test_a_metric_of_another_package(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "likely" in METRICS and "likely" not in default_metrics()
    model: EditableModel = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    results = evaluate_ledger(
        ledger, model, at=[0, 2], restraints=["none"], abilities=[], metrics=["likely"], out=tmp_path / "r.json"
    )
    both = results.rows[1]
    assert both.editing["likely"]["efficacy"].value == 50 and both.retention == [(1, 100.0), (2, 0.0)]
    assert "likely efficacy |" in table(results) and "2 edits, none: likely is a plug-in" in table(results)
    [found] = compare(results, "0", editing=True)
    assert found.ability == "likely efficacy" and found.test.n == 2
    with pytest.raises(BadSettingsError, match=r"nothing is no editing metric: choose from compare, .*, likely"):
        Measurement(metrics=())
    assert list(reported_by(["match_all", "gone"])) == ["match_all"]
    assert "editing metric 'broken' of likely-metric does not load" in caplog.text
