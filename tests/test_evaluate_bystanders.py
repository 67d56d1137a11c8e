"""Bystanders: the same prompts about other subjects, before and after the edits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bigram import become, bigram_model
from core import bits, editable, same_bits

from tether.algebra.lowrank import LowRank
from tether.cli.evaluate import relations_table
from tether.evaluation import Measurement, evaluate, evaluate_editing, read, write
from tether.evaluation.metrics.bystanders import unchanged
from tether.facts import Fact
from tether.facts.bystanders import bystander_subjects, kinds
from tether.facts.prompt import Turn

ONLY = Measurement(metrics=("bystanders",))
TURNS = "{% for message in messages %}{{ message.content }} {% endfor %}"


def home(subject: str, target: str, **more: object) -> Fact:
    return Fact.model_validate(
        {"subject": subject, "prompt": "home of {}", "target_new": target, "kind": "city", **more}
    )


def test_unchanged_and_leak() -> None:
    model = bigram_model()
    model.tokenizer.chat_template = TURNS
    rome = home("alice", "rome", phrasings=(Turn(user="of {}"), "in {}", "who? {} in", Turn(user="in {}")))
    facts = [(1, rome), (2, home("dave", "new york"))]
    before = bits(model)
    with model.provisional(become("<unk>", "bob")):  # all subjects that are no words of the model say rome now
        found = evaluate_editing(model, facts, ONLY)
        again = evaluate_editing(model, facts, ONLY.model_copy(update={"bystander_prompts": None, "bystanders": 3}))
    assert same_bits(model, before)
    numbers = found.summary["bystanders"]
    # The last word of "who? <unk> in" is not the subject: it is answered as before. Of alice's six 4 changed.
    assert numbers["unchanged"].value == pytest.approx(100 * (1 / 3 + 0) / 2) and numbers["unchanged"].n == 2
    assert numbers["leak"].value == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert (numbers["unchanged_chat"].value, numbers["unchanged_chat"].n) == (0.0, 1)
    assert numbers["unchanged_plain"].value == pytest.approx(100 * (1 / 2 + 0) / 2)
    assert numbers["unchanged"].prompts == 2 * 3 + 2 * 1
    assert again.summary["bystanders"]["unchanged"].prompts == 3 * 5 + 3 * 1
    asked = {record["prompt"] for record in found.records if record["edit"] == 2}
    assert asked == {f"home of {name}" for name in bystander_subjects(facts[1][1], "measure", 2)}
    assert asked <= {record["prompt"] for record in found.records if record["edit"] == 1}  # one relation
    assert found.relations is None and found.records[0]["relation"] == "home of {}"


def test_answers_are_compared_by_their_first_characters() -> None:
    assert unchanged("the city of Oslo in Norway", "the city of Oslo in the north") is True
    assert unchanged("the city", "The city") is False


def test_an_edited_subject_is_no_bystander() -> None:
    model = bigram_model()
    first = bystander_subjects(home("alice", "rome"), "measure", 1)[0]
    with model.provisional(become("alice", "bob")):
        found = evaluate_editing(model, [(1, home("alice", "rome")), (2, home(first, "oslo"))], ONLY)
    assert not any(first in record["prompt"] for record in found.records)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_by_relation_and_without_a_kind(family: str, tmp_path: Path) -> None:
    model = editable(family)
    weight = model.weight_name(1)
    p, q = model.weight(weight).shape
    generator = torch.Generator().manual_seed(0)
    update = LowRank(torch.randn(p, 1, generator=generator), torch.randn(1, q, generator=generator))
    facts = [
        Fact(subject=subject, prompt=prompt, target_new="Paris", relation=relation)
        for relation, prompt in (("city", "The {} is in the city of"), ("year", "It is the year of {}, and"))
        for subject in ("Eiffel Tower", "Space Needle")
    ]
    assert evaluate(model, facts, [], measurement=None, metrics=("bystanders", "match")).rows[0].editing["match_all"]
    with model.provisional({weight: update}):
        results = evaluate(model, facts, [], metrics=("bystanders", "match"))
    [row] = results.rows
    assert row.editing["bystanders"]["unchanged"].value < 100
    assert row.relations is not None and list(row.relations) == ["city", "year"]
    assert row.relations["city"]["bystanders"]["unchanged"].n == 2
    both = [row.relations[name]["bystanders"]["unchanged"].value or 0.0 for name in row.relations]
    assert sum(both) / 2 == pytest.approx(row.editing["bystanders"]["unchanged"].value)
    assert results.settings["bystanders"] == 2 and results.settings["bystander_prompts"] == 3
    assert set(model.kinds) == {"Eiffel Tower", "Space Needle"} and set(model.kinds.values()) <= kinds().keys()
    head, _, *lines = relations_table(results).splitlines()
    assert "relation" in head and "bystanders unchanged" in head and len(lines) == 2
    write(results, tmp_path / "results.json")
    assert read(tmp_path / "results.json").rows == results.rows
    assert (
        "relations" not in json.loads(evaluate(model, facts[:2], [], metrics=("match",)).model_dump_json())["rows"][0]
    )


def test_none_are_asked_where_none_are_wanted() -> None:
    results = evaluate(bigram_model(), [home("alice", "rome")], [], bystanders=0)
    assert "bystanders" not in results.rows[0].editing and "bystanders" not in results.settings
