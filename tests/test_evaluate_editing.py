"""The editing metrics on a model whose every probability is set by hand, and results.json over a ledger of it."""

from __future__ import annotations

import json
import logging
import math
import statistics
from pathlib import Path

import pytest
from bigram import ALICE, DAVE, FACTS, WEIGHT, WORDS, become, bigram_model, ledger_of_two
from core import editable
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from tether.errors import BadSettingsError, TetherError, WrongModelError
from tether.evaluation import (
    Measurement,
    Number,
    evaluate,
    evaluate_editing,
    evaluate_ledger,
    measure_baseline,
    read,
)
from tether.evaluation import results as results_module
from tether.evaluation.metrics.generate import says
from tether.evaluation.results import Results, ResultsFile, Row, items_path, write
from tether.evaluation.statistics.mean import cluster_mean
from tether.facts.fact import Fact
from tether.ledger import Attempt, Ledger
from tether.models.editable import EditableModel


def numbers(kinds: dict[str, Number]) -> dict[str, tuple[object, object]]:
    return {kind: (found.value, found.n) for kind, found in kinds.items()}


def test_every_metric_of_the_edited_model() -> None:
    model = bigram_model()
    with model.provisional(become("alice", "bob")):
        found = evaluate_editing(model, FACTS)
    half = pytest.approx(50.0)
    third = pytest.approx(100 / 3)
    # compare: DAVE has no true target and no locality answer, so one fact counts. "alice in": rome 20 % > paris.
    # Locality against rome: carol says paris, dave oslo, and alice rome.
    assert numbers(found.summary["compare"]) == {
        "efficacy": (100.0, 1),
        "generalization": (100.0, 1),
        "locality": (pytest.approx(200 / 3), 1),
    }
    # match: "alice in" says oslo; dave says new. Locality answers: carol right, dave says new, alice rome.
    assert numbers(found.summary["match_all"]) == {
        "efficacy": (100.0, 2),
        "generalization": (half, 1),
        "locality": (third, 1),
        "locality_unchanged": (pytest.approx((50 + 100) / 2), 2),  # both prompts that end with alice changed
    }
    assert found.summary["match_tokens"]["efficacy"].prompts == 2
    assert found.summary["generate"]["efficacy"].value == 100.0
    assert numbers(found.summary["generate"])["generalization"] == (half, 1)
    assert numbers(found.summary["generate"])["locality"] == (third, 1)
    assert found.retention == [(1, 100.0), (2, 100.0)]
    assert model.edited == ()


def test_the_unedited_model_and_its_probabilities() -> None:
    model = bigram_model()
    found = evaluate_editing(model, FACTS, baseline=measure_baseline(model, FACTS))
    assert found.retention == [(1, 0.0), (2, 100.0)]
    assert numbers(found.summary["match_all"])["locality_unchanged"] == (100.0, 2)
    [record] = [r for r in found.records if r["metric"] == "compare" and r["kind"] == "efficacy"]
    assert record["edit"] == 1 and record["fact"] == "a" and record["prompt"] == "home of alice"
    assert record["target"] == "rome" and record["against"] == "paris" and record["value"] == 0.0
    assert record["log_likelihood"] == pytest.approx(math.log(0.1 / (len(WORDS) - 2)), abs=1e-5)
    assert record["other"] == pytest.approx(math.log(0.7), abs=1e-5)
    [text] = [r["continuation"] for r in found.records if r["metric"] == "generate" and r["prompt"] == "home of dave"][
        :1
    ]
    assert text == "new york ."


def test_shares_and_whole_targets_differ() -> None:
    fact = Fact(subject="dave", prompt="home of {}", target_new="new paris")
    found = evaluate_editing(bigram_model(), [(1, fact)], Measurement(metrics=("match",)))
    assert found.summary["match_tokens"]["efficacy"] == Number(value=50.0, n=1, stderr=None, prompts=1)
    assert found.summary["match_all"]["efficacy"].value == 0.0
    assert found.summary["match_all"]["locality"] == Number(value=None, n=0, stderr=None, prompts=0)
    assert set(found.summary) == {"match_tokens", "match_all"}


def test_a_baseline_saves_the_unedited_forwards_and_limits_take_the_first_prompts() -> None:
    model = bigram_model()
    calls: list[int] = []
    with model.provisional(become("alice", "bob")):
        baseline = measure_baseline(model, FACTS)
        handle = model.block(0).register_forward_hook(lambda *_: calls.append(1))
        with_it = evaluate_editing(model, FACTS, Measurement(metrics=("compare", "match")), baseline=baseline)
        assert len(calls) == 1  # all metrics in one batch
        without = evaluate_editing(model, FACTS, Measurement(metrics=("compare", "match")))
        assert len(calls) == 3
        handle.remove()
        few = evaluate_editing(model, FACTS, Measurement(max_paraphrases=1, max_locality=0))
    assert with_it == without
    assert few.summary["match_all"]["generalization"] == Number(value=100.0, n=1, stderr=None, prompts=1)
    assert few.summary["match_all"]["locality_unchanged"].n == 0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TetherError, match=r"exactness is no editing metric: choose from compare, match, generate"):
        evaluate_editing(bigram_model(), FACTS, Measurement(metrics=("exactness",)))
    with pytest.raises(TetherError, match=r"'chess' is no ability that can be measured: choose from perplexity"):
        evaluate(bigram_model(), [ALICE], abilities=["chess"])


@pytest.mark.parametrize(
    ("continuation", "target", "expected"),
    [
        (" Rome.", "Rome", True),
        ("\n\nThe answer is ROME", "Rome", True),
        (" the Romeo of old", "Rome", False),
        (" Paris. Rome", "Rome", False),
        (" Paris\nRome", "Rome", False),
        (" version 3.5 of Rome", "Rome", True),
        (" St. Petersburg, Russia", "St. Petersburg", True),
        (" New\nYork", "New York", True),
        (" C++ of course", "C++", True),
        ("", "Rome", False),
    ],
)
def test_what_a_continuation_says(continuation: str, target: str, expected: bool) -> None:
    assert says(continuation, target) is expected


@given(st.lists(st.lists(st.floats(0, 1), max_size=4), max_size=6))
def test_the_mean_of_facts(groups: list[list[float]]) -> None:
    found = cluster_mean(groups)
    means = [100 * statistics.fmean(group) for group in groups if group]
    assert found.n == len(means) and found.prompts == sum(map(len, groups))
    if not means:
        assert found.value is None and found.stderr is None
        return
    assert found.value == pytest.approx(statistics.fmean(means), abs=1e-9)
    if len(means) == 1:
        assert found.stderr is None
    else:
        assert found.stderr == pytest.approx(statistics.stdev(means) / math.sqrt(len(means)), abs=1e-6)


# --- results.json -----------------------------------------------------------------------------------------------

TEXT = "home of alice in paris . home of bob in rome ."
OPTIONS = {"text": TEXT, "restraints": ["none", "linear:2"], "at": [0, 1, 2]}


def test_a_ledger_is_measured_at_every_number_of_edits(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    out = tmp_path / "results.json"
    results = evaluate_ledger(ledger, model, [DAVE, ALICE], out=out, **OPTIONS)
    keys = [(0, "none"), (1, "none"), (1, "linear:2"), (2, "none"), (2, "linear:2")]
    assert [row.key for row in results.rows] == keys
    unedited, one, _, both, _ = results.rows
    assert unedited.retention == [(1, 0.0), (2, 100.0)]
    assert one.retention == [(1, 100.0)]
    assert both.retention == [(1, 100.0), (2, 0.0)]
    assert one.editing["match_all"]["generalization"].prompts == 2  # the given facts' paraphrases
    assert both.editing["compare"]["locality"].n == 1
    assert not one.replayed
    assert unedited.spectrum[WEIGHT].update_sigma_max == 0
    assert both.spectrum[WEIGHT].update_sigma_max == pytest.approx(
        float(ledger.sums(2, "none").of[WEIGHT].factors.singular_values()[0])
    )
    assert unedited.abilities["perplexity"].unit == "ppl"
    assert model.edited == ()

    stored = json.loads(out.read_text())
    assert set(stored) == {"format", "model", "ledger", "facts_sha256", "versions", "settings", "rows"}
    assert set(stored["rows"][0]) == {
        "edits", "restraint", "replayed", "editing", "retention", "abilities", "spectrum",
    }  # fmt: skip
    assert stored["rows"][0]["spectrum"][WEIGHT]["kappa"] is None  # W₀ is zero here, κ infinite
    again = read(out)
    assert again.model_dump(exclude={"rows"}) == results.model_dump(exclude={"rows"})
    assert again.items == results.items
    assert {(item["edits"], item["restraint"]) for item in again.items} == set(keys)
    assert not list(tmp_path.glob("*.tmp"))


def test_no_file_is_read_twice_for_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    read_file, files = Path.read_bytes, []

    def counted(path: Path) -> bytes:
        files.append(path.name)
        return read_file(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    ledger = Ledger.open(tmp_path / "ledger", model)
    found = evaluate_ledger(ledger, model, at=[1, 2], restraints=[None, "none", "linear:2"], abilities=[])
    assert len(found.rows) == 6
    assert sorted(name for name in files if name.endswith(".safetensors")) == [
        "000001.safetensors",
        "000002.safetensors",
    ]


def test_a_row_below_what_replaced_the_edits_is_of_those(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    [before] = evaluate_ledger(ledger, model, at=[2], abilities=[]).rows
    event = ledger.live()[0]
    with ledger.writing():
        ledger.append([Attempt("edit", event.fact, {})], ledger.factors(event), {}, replacing=[1, 2])
    found = {row.edits: row for row in evaluate_ledger(ledger, model, at=[0, 2, 3], abilities=[]).rows}
    assert found[2].editing == before.editing and found[2].retention == before.retention
    assert [edit for edit, _ in found[3].retention] == [3] == [edit for edit, _ in found[0].retention]


def test_the_journal_as_recorded(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    [row] = evaluate_ledger(ledger, model, abilities=[]).rows
    assert row.key == (2, "as recorded")
    assert row.replayed and row.abilities == {}


def test_resume_keeps_what_was_measured_in_the_same_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    out = tmp_path / "results.json"
    caplog.set_level(logging.INFO)

    def run(facts: list[Fact] | None = None, **changes: object) -> tuple[int, list[tuple[int, str]]]:
        """How many rows were measured, and which the file has then."""
        caplog.clear()
        evaluate_ledger(ledger, model, facts, out=out, resume=True, **(OPTIONS | changes))  # type: ignore[arg-type]
        return caplog.text.count("measuring"), [row.key for row in read(out).rows]

    assert run(at=[0, 1], restraints=["none"]) == (2, [(0, "none"), (1, "none")])
    assert run(at=[0, 1], restraints=["none"])[0] == 0
    # With 2 edits row 0 is of more facts, so it is measured anew; the row of 1 edit stays.
    assert run(at=[0, 1, 2], restraints=["none"]) == (2, [(0, "none"), (1, "none"), (2, "none")])
    assert run(at=[0, 1], restraints=["none"]) == (0, [(0, "none"), (1, "none"), (2, "none")])
    assert run()[0] == 2  # linear:2 at 1 and 2
    assert run([ALICE, DAVE])[0] == 5  # other prompts
    # Row 0 of an evaluation of fewer facts is the baseline still where the next one does not name it.
    out.unlink()
    run(at=[0, 1], restraints=["none"])
    assert run(at=[2], restraints=["none"]) == (2, [(0, "none"), (1, "none"), (2, "none")])
    out.unlink()
    run([ALICE, DAVE])
    assert run([ALICE, DAVE], text="in oslo .")[0] == 5
    ledger.undo(2)
    assert run([ALICE, DAVE], text="in oslo .")[0] == 5


def test_facts_of_another_ledger_are_refused_and_missing_ones_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    other = Fact(subject="carol", prompt="home of {}", target_new="rome")
    with pytest.raises(TetherError, match=r"none of the 1 facts given is one of the 2 edits"):
        evaluate_ledger(ledger, model, [other], **OPTIONS)
    evaluate_ledger(ledger, model, [ALICE], at=[2], abilities=[])
    assert "1 of 2 edits are not among the facts given" in caplog.text
    with pytest.raises(TetherError, match=r"3 edits"):
        evaluate_ledger(ledger, model, at=[3], abilities=[])


def test_items_hold_any_text(tmp_path: Path) -> None:
    """JSON leaves the line ends of other alphabets as they are; a model may generate them."""
    results = Results(model="m", ledger=None, facts_sha256="", versions={}, settings={})
    ends = "\u0085\u2028\u2029\x0b\x0c\n\r"
    results.add(Row(edits=1, restraint="none", replayed=False), [{"text": f"a{end}b"} for end in ends])
    write(results, tmp_path / "results.json")
    items = results.items
    assert len(items) == len(ends) and read(tmp_path / "results.json").items == items


def test_damaged_results_are_named(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(TetherError, match=r"cannot be read"):
        read(file)
    file.write_text('{"rows": 3}')
    with pytest.raises(TetherError, match=r"no results file \(model is missing\)"):
        read(file)


def test_a_model_as_it_is() -> None:
    model = bigram_model()
    with model.provisional(become("alice", "bob")):
        results = evaluate(model, [ALICE, DAVE], text=TEXT)
        assert model.edited == (WEIGHT,)
    [row] = results.rows
    assert row.key == (2, "as it is") and results.ledger is None
    assert row.editing["compare"]["efficacy"].value == 100
    assert evaluate(model, [ALICE], abilities=[]).rows[0].edits == 0


# --- a checkpoint that was edited before it was loaded ------------------------------------------------------------


def merged(model: EditableModel, folder: Path) -> EditableModel:
    """The model with its two edits, as an exported checkpoint."""
    ledger_of_two(model, folder / "ledger").export(model, folder / "merged", as_="merged")
    hf = LlamaForCausalLM.from_pretrained(folder / "merged")
    return EditableModel(hf, model.tokenizer, id="merged", anatomy=model.anatomy)


def test_a_foreign_checkpoint_is_not_compared_with_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = bigram_model()
    foreign, facts = merged(base, tmp_path), [ALICE, DAVE]
    assert not foreign.edited
    [alone] = evaluate(foreign, facts, abilities=[]).rows
    assert "locality_unchanged" not in alone.editing["match_all"] and "instance_change" not in alone.editing
    assert "merged carries no updates and has no base: what match and bystanders compare is left out" in caplog.text
    assert alone.key == (0, "as it is") and not alone.unedited

    assert evaluate(base, facts, abilities=[], base=base).rows[0].key == (0, "as it is")
    [row] = evaluate(foreign, facts, abilities=[], base=base).rows
    assert row.key == (2, "as it is") and not base.edited and not foreign.edited
    assert row.editing["match_all"]["locality"] == alone.editing["match_all"]["locality"]
    ledger = Ledger.open(tmp_path / "ledger")
    [expected] = evaluate_ledger(ledger, base, facts, restraints=["none"], abilities=[]).rows
    assert row.editing == expected.editing and row.retention == expected.retention
    assert expected.editing["match_all"]["locality_unchanged"].value == 62.5  # 1 of alice's 4, and dave's only one


def test_the_base_must_be_the_models(tmp_path: Path) -> None:
    with pytest.raises(WrongModelError, match=r"is not the base of in memory, its vocabulary is another"):
        evaluate(bigram_model(), [ALICE], abilities=[], base=editable("llama"))


# --- results on disk ----------------------------------------------------------------------------------------------


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    out = tmp_path / "results.json"
    evaluate_ledger(ledger, model, [ALICE, DAVE], out=out, **OPTIONS)
    before = out.read_bytes(), items_path(out).read_bytes()
    with pytest.raises(BadSettingsError, match=r"results.json exists: name another file, or .* \(--resume\)"):
        evaluate_ledger(ledger, model, [ALICE], out=out, abilities=[])
    assert (out.read_bytes(), items_path(out).read_bytes()) == before


def test_rows_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = Results(model="m", ledger=None, facts_sha256="", versions={}, settings={})
    file = ResultsFile(path, results)
    assert not path.exists()
    file.add(Row(edits=2, restraint="none", replayed=False), [{"ability": "a", "item": 0, "value": math.inf}])
    written, inode = items_path(path).read_bytes(), items_path(path).stat().st_ino
    file.add(Row(edits=1, restraint="none", replayed=False), [{"ability": "a", "item": 0, "value": 0.5}])
    assert items_path(path).read_bytes().startswith(written) and items_path(path).stat().st_ino == inode
    assert not results._items  # they are in the file alone
    assert [row.edits for row in read(path).rows] == [1, 2]
    assert results.items == read(path).items and [item["value"] for item in results.items] == [None, 0.5]


def test_what_a_killed_evaluation_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    facts, out = [ALICE, DAVE], tmp_path / "results.json"
    expected = evaluate_ledger(ledger, model, facts, **OPTIONS)
    write_rows, calls = results_module._write_rows, []

    def killed(results: Results, path: Path) -> None:
        """After the items of the third row, before the row itself."""
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write_rows(results, path)

    with monkeypatch.context() as patch:
        patch.setattr(results_module, "_write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_ledger(ledger, model, facts, out=out, **OPTIONS)
    assert not model.edited
    with items_path(out).open("a") as handle:
        handle.write('{"edits": 2, "restra')
    left = read(out)
    keys = {row.key for row in left.rows}
    assert len(keys) == 2 and {(item["edits"], item["restraint"]) for item in left.items} == keys
    assert items_path(out).read_text().count("\n") > len(left.items)
    resumed = evaluate_ledger(ledger, model, facts, out=out, resume=True, **OPTIONS)
    again = read(out)
    assert [row.model_dump_json() for row in resumed.rows] == [row.model_dump_json() for row in again.rows]
    assert [row.key for row in again.rows] == [row.key for row in expected.rows]
    for row in expected.rows:
        mine, theirs = ([i for i in r.items if (i["edits"], i["restraint"]) == row.key] for r in (again, expected))
        assert mine == json.loads(json.dumps(theirs))
    assert items_path(out).read_text().count("\n") == len(expected.items)


def test_fields_of_a_newer_version_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "results.json"
    results = Results(model="m", ledger=None, facts_sha256="", versions={}, settings={})
    results.add(Row(edits=1, restraint="none", replayed=False), [])
    write(results, path)
    content = json.loads(path.read_text())
    assert content["format"] == 1
    del content["format"]  # as files were before they had one
    content["rows"][0]["fluency"], content["machine"] = 1.5, "m"
    path.write_text(json.dumps(content))
    assert read(path).rows == results.rows
    assert caplog.text.count("fluency, machine not known to this version, and left out") == 1
    path.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(TetherError, match=r"format 2: open them with a newer tether"):
        read(path)


def test_results_of_an_older_version_open(caplog: pytest.LogCaptureFixture) -> None:
    path = Path(__file__).with_name("legacy") / "results.json"
    old = read(path)
    assert old.format == 1 and not caplog.text
    assert {(item["edits"], item["restraint"]) for item in old.items} <= {row.key for row in old.rows}
    assert len(old.items) == items_path(path).read_text().count("\n")
    content = json.loads(path.read_text())
    assert json.loads(old.model_dump_json()) == {"format": 1, **content}


def test_resume_refuses_the_results_of_another_ledger(tmp_path: Path) -> None:
    """Hours of rows are not replaced by those of another ledger."""
    model = bigram_model()
    ledger, other = ledger_of_two(model, tmp_path / "one"), ledger_of_two(model, tmp_path / "two")
    out = tmp_path / "results.json"
    evaluate_ledger(ledger, model, at=[1], abilities=[], out=out)
    kept = out.read_bytes()
    with pytest.raises(BadSettingsError, match="name another"):
        evaluate_ledger(other, model, at=[1], abilities=[], out=out, resume=True)
    assert out.read_bytes() == kept
