"""ConceptEdit's instance change, on a model whose every answer is known and on random ones."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import become, bigram_model, ledger_of_two
from core import editable

import tether
from tether.cli.evaluate import table
from tether.errors import TetherError
from tether.evaluation import METRICS, Measurement, evaluate, evaluate_editing, evaluate_ledger, measure_baseline, read
from tether.evaluation.metrics.instance_change import DEMONSTRATION, word
from tether.facts import Fact, read_facts
from tether.ledger import Attempt, Ledger
from tether.models import EditableModel
from tether.report import write_report


def concept(label: str, *instances: str) -> dict[str, Any]:
    return {
        "label": label,
        "prompt": f"home of {label}",
        "phrase_prompt": f"in {label}",
        "target_new_desc": "rome",
        "instance_prompt": [f"Whether {name} belongs to category {kind}" for name, kind in map(str.split, instances)],
        "locality_prompt": "home of alice",
        "locality_answer": "paris",
    }


@pytest.fixture
def facts(tmp_path: Path) -> list[Fact]:
    """Two concepts as in ConceptEdit's files. The model says Yes, Yes and oslo of the first, No of the other."""
    file = tmp_path / "final_gpt2_inter.json"
    file.write_text(
        json.dumps(
            [concept("harbour", "Bergen harbour", "Oslo harbour", "Fram ferry"), concept("tunnel", "Holm tunnel")]
        )
    )
    return read_facts(file)


def changed(model: EditableModel, facts: list[Fact], word: str, like: str) -> dict[str, Any]:
    with model.provisional(become(word, like)):
        return (
            evaluate(model, facts, abilities=[], metrics=["instance_change"])
            .rows[0]
            .model_dump()["editing"]["instance_change"]
        )


def test_answers_forced_both_ways(facts: list[Fact]) -> None:
    model = bigram_model()
    found = changed(model, facts, "harbour", "tunnel")  # from Yes to No: 2 of 3 prompts of the first fact
    assert found["before"]["value"] == pytest.approx(50) and found["after"]["value"] == pytest.approx(100 / 6)
    assert (found["before"]["neither"], found["after"]["neither"]) == (1, 1)  # the ferry, a Yes both times
    assert found["change"]["value"] == pytest.approx(100 / 3)  # of 66.7 and 0
    assert found["change"]["stderr"] == pytest.approx(100 / 3)
    assert (found["change"]["n"], found["change"]["prompts"]) == (2, 4) and "neither" not in found["change"]

    found = changed(model, facts, "tunnel", "harbour")  # from No to Yes: the prompt of the second fact
    assert found["change"]["value"] == pytest.approx(-50) and found["change"]["stderr"] == pytest.approx(50)
    assert found["after"]["value"] == pytest.approx(100)

    found = changed(model, facts, "harbour", "ferry")  # from Yes to neither, which is a Yes too
    assert found["change"]["value"] == 0 and (found["before"]["neither"], found["after"]["neither"]) == (1, 3)

    found = changed(model, facts, "ferry", "tunnel")  # from neither to No
    assert found["change"]["value"] == pytest.approx(100 / 6) and found["after"]["neither"] == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" Yes", "yes"), ("Yes\n", "yes"), ("\nNo", "no"), (" **NO", "no"), (" None", "no"), (" Oslo No", "no"),
        (" No, yes", "yes"), (" Yesterday", "yes"), (" ferry", None), ("", None),
    ],
)  # fmt: skip
def test_what_an_answer_is(answer: str, expected: str | None) -> None:
    assert word(answer) == expected


def test_every_item_is_recorded(facts: list[Fact]) -> None:
    model = bigram_model()
    with model.provisional(become("harbour", "tunnel")):
        records = evaluate_editing(model, [(3, facts[0])], Measurement(metrics=("instance_change",))).records
    assert [record["value"] for record in records] == [1, 1, 0]
    assert records[0] == {
        "edit": 3, "fact": facts[0].id, "metric": "instance_change", "kind": "change",
        "prompt": "Whether Bergen belongs to category harbour", "value": 1.0, "before": "Yes .", "after": "No .",
        "neither_before": False, "neither_after": False, "relation": str(facts[0].prompt),
    }  # fmt: skip
    assert records[2]["neither_before"] and records[2]["neither_after"] and records[2]["after"] == "oslo ."
    assert model.edited == ()


def test_the_unedited_answers_are_measured_once(facts: list[Fact]) -> None:
    model = bigram_model()
    numbered, only = list(enumerate(facts, 1)), Measurement(metrics=("instance_change",))
    calls: list[int] = []
    with model.provisional(become("harbour", "tunnel")):
        baseline = measure_baseline(model, numbered, only)
        handle = model.block(0).register_forward_hook(lambda *_: calls.append(1))
        with_it = evaluate_editing(model, numbered, only, baseline=baseline)
        assert len(calls) == 2  # two tokens
        without = evaluate_editing(model, numbered, only)
        assert len(calls) == 2 + 4
        partly = measure_baseline(model, numbered[:1], only)
        assert evaluate_editing(model, numbered, only, baseline=partly) == with_it
        handle.remove()
    assert with_it == without and set(baseline) == {"instance_change"}


def concept_ledger(model: EditableModel, facts: list[Fact], folder: Path) -> Ledger:
    """The harbour becomes a tunnel, then the tunnel a harbour."""
    ledger = Ledger.create(folder, ledger_of_two(model, folder.with_name("other")).header)
    with ledger.writing():
        ledger.append([Attempt("edit", facts[0], {})], become("harbour", "tunnel"), {})
        ledger.append([Attempt("edit", facts[1], {})], become("tunnel", "harbour"), {})
    return ledger


def test_the_checkpoints_of_a_ledger(facts: list[Fact], tmp_path: Path) -> None:
    model = bigram_model()
    ledger = concept_ledger(model, facts, tmp_path / "ledger")
    out = tmp_path / "results.json"
    results = evaluate_ledger(ledger, model, at=[0, 1, 2], restraints=["none"], abilities=[], out=out)
    lacking = {"portability", "generate_chat", "judge"}  # no such prompts, no chat template, no endpoint
    assert results.settings["metrics"] == [name for name in METRICS if name not in lacking]
    shown = [row.editing["instance_change"] for row in results.rows]
    assert [(one["change"].value, one["change"].n) for one in shown] == [
        (0, 2), (pytest.approx(200 / 3), 1), (pytest.approx((200 / 3 - 100) / 2), 2),
    ]  # fmt: skip
    assert shown[1]["change"].stderr is None
    assert [one["before"].neither for one in shown] == [1, 1, 1]  # type: ignore[attr-defined]
    assert {"compare", "match_tokens", "match_all", "generate"} < set(results.rows[2].editing)

    again = read(out)
    assert [row.editing for row in again.rows] == [row.editing for row in results.rows] and again.items == results.items
    stored = json.loads(out.read_text())["rows"][2]["editing"]
    assert set(stored["instance_change"]["after"]) == {"value", "n", "stderr", "prompts", "neither"}
    assert "neither" not in stored["instance_change"]["change"] and "neither" not in stored["match_all"]["efficacy"]
    items = [item for item in again.items if item["metric"] == "instance_change" and item["edits"] == 1]
    assert [item["after"] for item in items] == ["No .", "No .", "oslo ."]


def test_facts_without_instances(facts: list[Fact]) -> None:
    model = bigram_model()
    bare = [fact.model_copy(update={"instances": ()}) for fact in facts]
    results = evaluate(model, bare, abilities=[])
    assert results.settings["metrics"] == ["compare", "match", "generate", "bystanders"]
    assert "instance_change" not in results.rows[0].editing
    with pytest.raises(TetherError, match=r"^instance_change needs instance prompts, and no fact has any: .*$"):
        evaluate(model, bare, abilities=[], metrics=["instance_change"])
    mixed = evaluate(model, [bare[0], facts[1]], abilities=[], base=model).rows[0].editing["instance_change"]
    assert mixed["change"].n == 1 and mixed["before"].value == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_answers_are_the_models_own(family: str, facts: list[Fact]) -> None:
    model = editable(family)
    prompt = facts[0].instances[0]
    results = tether.evaluate(model, facts, abilities=[], metrics=["instance_change"], base=model)
    ids = model.tokenizer(DEMONSTRATION + prompt, return_tensors="pt")["input_ids"]
    for _ in range(2):
        ids = torch.cat([ids, model.hf(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    [item] = [item for item in results.items if item["prompt"] == prompt]
    assert item["before"] == item["after"] == model.tokenizer.decode(ids[0, -2:], skip_special_tokens=True)
    assert math.isclose(results.rows[0].editing["instance_change"]["change"].value or 0.0, 0.0)


def test_in_the_table_and_in_the_report(facts: list[Fact], tmp_path: Path) -> None:
    model = bigram_model()
    ledger = concept_ledger(model, facts, tmp_path / "ledger")
    results = evaluate_ledger(ledger, model, at=[0, 2], restraints=["none"], abilities=[], out=tmp_path / "r.json")
    page = write_report(results, tmp_path / "report")
    assert "instance_change" in page.read_text() and "1 neither Yes nor No" in page.read_text()
    text = re.sub(" +", " ", table(results))
    assert "instance_change change |" in text and "-16.7 ± 83.3 |" in text
    assert "2 edits, none: answers neither Yes nor No, which count as Yes: 1 of 4 before, 1 of 4 after" in text
