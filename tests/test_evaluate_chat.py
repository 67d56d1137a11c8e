"""Facts asked in a chat, and facts that stand in the prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bigram import ALICE, DAVE, FACTS, become, bigram_model, ledger_of_two
from command import run
from core import editable
from tiny import save

from tether.evaluation import Measurement, evaluate_editing, evaluate_in_context, evaluate_ledger, greedy, score
from tether.evaluation.in_context import InContext, statement
from tether.evaluation.metrics.base import METRICS
from tether.facts import Fact
from tether.facts.prompt import Turn
from tether.models import EditableModel
from tether.models.sampling import end_tokens

TURNS = (
    "{% for message in messages %}{{ message.content }} {% if message.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOTH = Measurement(metrics=("generate", "generate_chat"))


def chatty(family: str) -> EditableModel:
    """A random model with a chat template and its two tokens."""
    model = editable(family)
    model.tokenizer.chat_template = CHAT
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model.hf.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
    return model


def test_plain_facts_are_asked_as_turns() -> None:
    model = bigram_model()
    model.tokenizer.chat_template = TURNS
    with model.provisional(become("alice", "bob")):
        found = evaluate_editing(model, FACTS, BOTH)
    assert found.summary["generate_chat"] == found.summary["generate"]
    assert {r["prompt"] for r in found.records if r["metric"] == "generate_chat"} == {
        f"{r['prompt']} " for r in found.records if r["metric"] == "generate"
    }
    assert found.retention == [(1, 100.0), (2, 100.0)]


def test_turns_are_asked_as_they_are() -> None:
    model = bigram_model()
    model.tokenizer.chat_template = TURNS
    fact = Fact(
        subject="alice", prompt="home of {}", target_new="rome", phrasings=(Turn(user="in {}"), "of {}"),
        paraphrases=(Turn(user="alice", system="new"), "of alice"),
        locality=({"prompt": {"user": "home of carol"}, "target": "paris"}, {"prompt": {"user": "home of bob"}}),
    )  # fmt: skip
    turns_alone = Fact(subject="dave", prompt=Turn(user="home of {}"), target_new="new york")
    with model.provisional(become("alice", "bob")):
        found = evaluate_editing(model, [(1, fact), (2, turns_alone)], BOTH)
    asked = {(r["metric"], r["edit"], r["kind"], r["prompt"]) for r in found.records}
    assert asked == {
        ("generate", 1, "efficacy", "home of alice"),
        ("generate", 1, "generalization", "of alice"),
        ("generate_chat", 1, "efficacy", "in alice "),
        ("generate_chat", 1, "generalization", "new alice "),
        ("generate_chat", 1, "locality", "home of carol "),
        ("generate_chat", 2, "efficacy", "home of dave "),
    }
    assert all(record["value"] == 1 for record in found.records)
    assert found.retention == [(1, 100.0), (2, 100.0)]


def test_left_out_where_there_is_no_template(tmp_path: Path) -> None:
    model = bigram_model()
    why = METRICS["generate_chat"].missing(model, [ALICE], BOTH)
    assert why == "generate_chat asks in the chat, and the model has no chat template: take a chat model, or generate"
    results = evaluate_ledger(ledger_of_two(model, tmp_path / "ledger"), model, abilities=[], measurement=None)
    assert "generate_chat" not in results.rows[0].editing and "generate_chat" not in results.settings["metrics"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_ends_with_the_turn(family: str) -> None:
    model = chatty(family)
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_tokens(model) == [0, end]
    found = evaluate_editing(model, [(1, Fact(subject="Big Ben", prompt="{} is in", target_new="Paris"))], BOTH)
    [record] = [record for record in found.records if record["metric"] == "generate_chat"]
    assert record["prompt"] == "<|im_start|>user\nBig Ben is in<|im_end|>\n<|im_start|>assistant\n"
    assert record["continuation"] == greedy(model, [record["prompt"]], 20)[0]


# --- the facts in the prompt ----------------------------------------------------------------------------------------

SEATTLE = Fact(subject="Space Needle", prompt="The {} is in", target_new="Seattle", target_true="Paris")
NEEDLES = [SEATTLE, Fact(subject="Big Ben", prompt=Turn(user="Where is {}?"), target_new="Rome")]


def test_a_fact_is_a_statement() -> None:
    assert statement(SEATTLE) == "The Space Needle is in Seattle."
    assert statement(NEEDLES[1]) == "Where is Big Ben? Rome."
    told = NEEDLES[1].model_copy(update={"phrasings": ("{} stands in",), "target_new": "Rome!"})
    assert statement(told) == "Big Ben stands in Rome!"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_facts_in_the_prompt(family: str) -> None:
    model = chatty(family)
    frame = InContext(model, NEEDLES)
    told = "The Space Needle is in Seattle. Where is Big Ben? Rome."
    assert frame("It is") == f"{told}\n\nIt is"
    asked = frame(Turn(user="Where?", system="Be brief."))
    assert asked.startswith(f"<|im_start|>system\n{told}\n\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>")
    unedited, row = evaluate_in_context(model, NEEDLES, measurement=Measurement(abilities=())).rows
    assert unedited.unedited and row.key == (2, "in-context") and not row.unedited
    assert row.told is not None and (row.told.facts, row.told.fewest) == (2, 2) and row.abilities == {}
    what = Measurement(metrics=("compare", "bystanders"), abilities=())
    results = evaluate_in_context(model, [SEATTLE], measurement=what)
    [item] = [item for item in results.items if item["metric"] == "compare" and item["edits"] == 1]
    framed = "The Space Needle is in Seattle.\n\nThe Space Needle is in"
    assert item["prompt"] == "The Space Needle is in"
    assert item["log_likelihood"] == pytest.approx(score(model, [(framed, "Seattle")])[0].mean, abs=1e-5)
    stayed = [item for item in results.items if item["metric"] == "bystanders" and item["edits"] == 1]
    plain = {item["prompt"]: item["after"] for item in results.items if "after" in item and item["edits"] == 0}
    assert stayed and all(item["before"] == plain[item["prompt"]] for item in stayed)  # as without the facts


def test_the_nearest_facts_where_fewer_are_wanted() -> None:
    model = chatty("llama")
    frame = InContext(model, NEEDLES, 1)
    assert frame("Who built Big Ben?") == "Where is Big Ben? Rome.\n\nWho built Big Ben?"
    assert frame("Who built the Space Needle?") == "The Space Needle is in Seattle.\n\nWho built the Space Needle?"
    what = Measurement(metrics=("compare",), abilities=(), told=1)
    results = evaluate_in_context(model, NEEDLES, measurement=what)
    told = results.rows[1].told
    assert told is not None and (told.facts, told.fewest) == (2, 1) and results.settings["told"] == 1


def test_the_nearest_facts_where_not_all_fit() -> None:
    model = editable("llama")
    many = [SEATTLE.model_copy(update={"subject": f"Tower {word}"}) for word in ("one", "two", "three", "four") * 6]
    frame = InContext(model, [*many, SEATTLE])
    text = frame("Who built the Space Needle?")
    assert "The Space Needle is in Seattle.\n\nWho built" in text and 0 < frame.fewest < len(many)
    assert len(model.tokenizer(text)["input_ids"]) <= 256 - 64


def test_the_command(tmp_path: Path) -> None:
    model = editable("llama")
    save(model.hf, model.tokenizer, tmp_path / "model")
    (tmp_path / "facts.jsonl").write_text(SEATTLE.model_dump_json(exclude_none=True) + "\n")
    done = run(
        tmp_path, "evaluate", "--base", "model", "--in-context", "--facts", "facts.jsonl", "--abilities", "", "--out",
        "r.json", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["edits"], row["restraint"]) for row in rows] == [(0, "none"), (1, "in-context")]
    wrong = run(tmp_path, "evaluate", "--edited", "model", "--in-context", "--facts", "facts.jsonl", "--out", "x.json")
    assert wrong.returncode == 2 and "--in-context" in wrong.stderr


def test_a_row_of_a_ledger(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    out = tmp_path / "results.json"
    first = evaluate_ledger(ledger, model, [ALICE, DAVE], at=[0, 2], abilities=[], in_context=True, out=out)
    assert [row.key for row in first.rows] == [(0, "none"), (2, "as recorded"), (2, "in-context")]
    told = first.rows[-1]
    assert told.retention == first.rows[0].retention  # the last word alone decides here
    assert told.editing["match_all"]["locality_unchanged"].value == 100.0
    before = out.read_bytes()
    evaluate_ledger(ledger, model, [ALICE, DAVE], at=[0, 2], abilities=[], in_context=True, out=out, resume=True)
    assert out.read_bytes() == before
