"""Knowledge tests: read, run, made of a ledger, and what the command says of them."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from bigram import bigram_model, ledger_of_two
from command import answer, run
from core import bits, reciter, same_bits
from edits import run as edit_facts
from tiny import save

import tether
from tether.evaluation.knowledge import KnowledgeTest, make_tests, read_tests, run_tests
from tether.evaluation.metrics.generate import mentions
from tether.facts.bystanders import bystander_subjects
from tether.facts.prompt import Turn, about
from tether.ledger import Ledger
from tether.models import load
from tether.models.kinds import likeliest_kind


def check(prompt: str, **fields: Any) -> KnowledgeTest:
    return KnowledgeTest.model_validate({"prompt": prompt, **fields})


# --- what a test says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text", "problem"),
    [
        ({"says": "Rome"}, " rome, in Italy.", None),
        ({"says": ["Paris", "Rome"]}, " Rome.", None),
        ({"says": 1987}, " in 1987.", None),
        ({"says": "Rome"}, " Romeo.", "wanted 'Rome'"),
        ({"says": ["Paris", "Oslo"]}, " Rome.", "wanted 'Paris' or 'Oslo'"),
        ({"says": "Rome"}, " Italy. It is Rome.", "wanted 'Rome', which it says behind its first sentence alone"),
        ({"not": "Paris"}, " Rome, Italy. Not Parisian.", None),
        ({"not": "Paris"}, " Rome. It was Paris.", "says 'Paris', and must not"),
        ({"says": "Rome", "not": ["Paris", "Oslo"]}, " Rome, Oslo.\nParis", "says 'Paris' and 'Oslo', and must not"),
        ({"says": "Rome", "not": "Paris"}, " Paris", "wanted 'Rome'"),
    ],
)
def test_what_passes(fields: dict[str, Any], text: str, problem: str | None) -> None:
    assert check("The tower is in", **fields).problem(text) == problem


def test_nothing_mentions_an_empty_text() -> None:
    assert not mentions("", "") and not mentions("Rome", " ") and mentions("a\n\nST.  PETERSBURG", "st. Petersburg")


def test_a_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    tests = [
        check("The tower is in", says="Rome", about="edited", edit=3),
        KnowledgeTest.model_validate({"prompt": {"user": "Wo?"}, "not": ["Zürich", "b"], "name": "n", "tokens": 7}),
    ]
    assert json.loads(tests[1].line()) == {"prompt": {"user": "Wo?"}, "not": ["Zürich", "b"], "name": "n", "tokens": 7}
    (tmp_path / "t.jsonl").write_text("\n\n".join(one.line() for one in tests) + "\n", encoding="utf-8")
    assert read_tests(tmp_path / "t.jsonl") == tests and isinstance(tests[1].prompt, Turn)


BAD = {
    '{"prompt": "a"}': "a test needs says or not: write what the answer must say, or must not",
    '{"prompt": "a", "says": ""}': "says = '': '' is no answer: write a text, or a list of texts",
    '{"prompt": "a", "not": [null]}': "not = [None]: None is no answer: write a text, or a list of texts",
    '{"prompt": " ", "says": "b"}': "prompt = ' ': prompt ' ' is empty: write one or leave it out",
    '{"prompt": {"user": "a", "role": 1}, "says": "b"}': "a chat turn is",
    '{"prompt": "a", "say": "b"}': "say is not known",
    '{"says": "b"}': "prompt is missing",
    '{"prompt": "a", "says": "b", "about": "all"}': "about = 'all': Input should be 'edited' or 'untouched'",
    '{"prompt": "a", "says": "b", "tokens": 0}': "tokens = 0: Input should be greater than or equal to 1",
    '{"prompt": "a", "not": "b", "not": "c"}': "key 'not' stands in it more than once: keep one of them",
    '["a", "b"]': "is no object",
    "{": "Expecting property name",
}


def test_bad_lines_are_named_one_by_one(place: Path) -> None:
    lines = ['{"prompt": "a", "says": "b"}', "", *BAD]
    (place / "bad.jsonl").write_text("\n".join(lines) + "\n")
    done = run(place, "test", "model", "bad.jsonl")
    said = done.stderr.splitlines()
    assert done.returncode == 1 and done.stdout == "" and len(said) == len(BAD) + 1
    for number, (line, why) in enumerate(zip(said, BAD.values(), strict=False), 3):
        assert line.startswith(f"tether: bad.jsonl, line {number}: ") and why in line
    assert said[-1] == f"tether: bad.jsonl: {len(BAD)} bad lines: mend them, or take them out"
    with pytest.raises(tether.TetherError, match=r"bad.jsonl, line 3: a test .*; 11 more lines are bad"):
        read_tests(place / "bad.jsonl")
    (place / "bad.jsonl").write_text(lines[2])
    assert run(place, "test", "model", "bad.jsonl").stderr.count("\n") == 1
    (place / "bad.jsonl").write_text("\n")
    assert "bad.jsonl holds no test: write lines of" in run(place, "test", "model", "bad.jsonl").stderr
    assert "no.jsonl cannot be read" in run(place, "test", "model", "no.jsonl").stderr


# --- run and made -------------------------------------------------------------------------------------------------


def test_run_on_a_model_whose_every_answer_is_known() -> None:
    model = bigram_model()
    before = bits(model)
    tests = [check("home of alice", says="paris"), check("home of dave", says="new york", tokens=1),
             check("home of bob", **{"not": "paris"}), check("home of alice", **{"not": "Paris"})]  # fmt: skip
    found = run_tests(model, tests)
    assert [one.test for one in found.all] == tests and [one.answer for one in found.all][:2] == ["paris .", "new"]
    assert [one.problem is None for one in found.all] == [True, False, True, False]
    assert (found.passed, found.failed) == (2, 2) and found.line().startswith("2 passed, 2 failed in ")
    assert 0 < sum(one.seconds for one in found.all) <= found.seconds and same_bits(model, before)
    assert run_tests(model, []).line() == "0 passed, 0 failed in 0.0 s"


def test_xml_holds_any_text() -> None:
    name = "a <b> & \x00 \ud800 \u2028 日本"
    found = run_tests(bigram_model(), [check("home of bob", says="x\x1b", name=name), check("bob", says="rome")])
    suite = ET.fromstring(found.junit("t.jsonl"))
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "2", "failures": "1", "errors": "0",
    }  # fmt: skip
    first, second = suite
    assert first.get("name") == "a <b> & \\x00 \\ud800 \u2028 日本" and first[0].get("message") == r"wanted 'x\x1b'"
    assert "answer: rome ." in str(first[0].text) and len(second) == 0
    assert (suite.tag, second.tag, second.get("classname")) == ("testsuite", "testcase", "knowledge")
    assert float(suite.get("time", "")) >= float(second.get("time", ""))


def test_tests_are_made_of_the_live_edits_alone(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    before = bits(model)
    made = make_tests(ledger, model)
    edited = [(one.prompt, one.says, one.edit) for one in made if one.about == "edited"]
    assert edited == [("home of alice", ("rome",), 1), ("home of dave", ("new york",), 2)] and same_bits(model, before)
    fact = ledger.live()[0].fact
    assert fact is not None
    (kind,) = likeliest_kind(model, [fact])
    (stranger,) = bystander_subjects(fact, "measure", 1, kind=kind)
    untouched = [(one.prompt, one.never) for one in made if one.about == "untouched"]
    assert (about(fact.prompt, stranger), ("rome",)) in untouched
    ledger.undo(1)
    assert {one.edit for one in make_tests(ledger, model)} == {2} and make_tests(ledger, model, upto=1) == []


@pytest.fixture(scope="module")
def recited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained model and a ledger of three edits that are said; the third has the prompt of the
    first."""
    folder = tmp_path_factory.mktemp("recited")
    trained = reciter()
    save(trained.hf, trained.tokenizer, folder / "model")
    first, second = trained.facts[0], trained.facts[12]
    near = [*first.locality, tether.LocalityPrompt(prompt=first.locality[0].prompt, target="Rome")]
    wrong = first.model_copy(update={"target_new": "Vessa", "paraphrases": (), "locality": ()})
    facts = [wrong, second.model_copy(update={"paraphrases": ()}),
             first.model_copy(update={"paraphrases": (), "locality": tuple(near), "kind": "city"})]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TETHER_CACHE", str(folder / "cache"))
        edit_facts(
            load(folder / "model"),
            facts,
            folder / "ledger",
            method="rome",
            changes={"v_num_grad_steps": 25, "v_lr": 0.5},
        )
    return folder


def test_made_tests_pass_where_the_facts_are_said(recited: Path) -> None:
    ledger, model = Ledger.open(recited / "ledger"), load(recited / "model")
    first, second = (event.fact for event in ledger.live()[1:])
    assert first is not None and second is not None
    made = answer(recited, "test", "ledger", "--make", "made.jsonl")
    tests = read_tests(recited / "made.jsonl")
    assert made == {
        "ledger": "ledger",
        "file": "made.jsonl",
        "edited": 2,
        "untouched": len(tests) - 2,
        "without_kind": 2,
    }
    assert [(one.edit, one.says) for one in tests if one.about == "edited"] == [
        (2, (first.target_new,)), (3, (second.target_new,)),
    ]  # fmt: skip
    near = [one for one in tests if one.about == "untouched" and one.says]
    assert near and all("Rome" not in one.says for one in near)  # which the unedited model does not say
    assert run_tests(model, [one for one in tests if one.about == "untouched"]).failed == 0
    kept = [one for one in tests if one.about == "edited"]
    (recited / "kept.jsonl").write_text("".join(f"{one.line()}\n" for one in kept))
    done = run(recited, "test", "ledger", "kept.jsonl", "--junit", "kept.xml")
    assert done.returncode == 0, done.stdout
    assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["PASSED", "PASSED", "2"]
    assert done.stdout.splitlines()[-1].startswith("2 passed, 0 failed in ")
    assert ET.parse(recited / "kept.xml").getroot().attrib["failures"] == "0"
    again = run(recited, "test", "ledger", "--make", "made.jsonl")
    assert again.returncode == 1 and "made.jsonl exists: name another file" in again.stderr


def test_failures_are_shown_and_counted(recited: Path, tmp_path: Path) -> None:
    fact = Ledger.open(recited / "ledger").live()[-1].fact
    assert fact is not None
    tests = [check(fact.text, says=fact.target_new, edit=3, about="edited"),
             check(fact.text, says="Atlantis", name="sunk"), check(fact.text, **{"not": fact.target_new})]  # fmt: skip
    (recited / "own.jsonl").write_text("".join(f"{one.line()}\n" for one in tests))
    done = run(recited, "test", "ledger", "own.jsonl", "--junit", "own.xml")
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == ""
    assert lines[:4] == [f"PASSED {fact.text} (edit 3)", "FAILED sunk", f"  prompt: {fact.text}", "  wanted 'Atlantis'"]
    assert lines[4].startswith(f"  answer: {fact.target_new}") and lines[5] == f"FAILED {fact.text}"
    assert lines[-1].startswith("1 passed, 2 failed in ")
    suite = ET.parse(recited / "own.xml").getroot()
    assert suite.attrib["failures"] == "2" == str(len(suite.findall("testcase/failure")))
    document = json.loads(run(recited, "test", "ledger", "own.jsonl", "--json").stdout)
    assert [one["passed"] for one in document["tests"]] == [True, False, False] and document["failed"] == 2
    assert document["tests"][1]["says"] == "Atlantis" and document["restraint"] == "as recorded"
    for words in (("ledger", "own.jsonl", "--upto", "0"), ("model", "own.jsonl")):  # the unedited model
        found = json.loads(run(recited, "test", *words, "--json").stdout)
        assert [one["passed"] for one in found["tests"]] == [False, False, True], words
    shutil.copytree(recited / "ledger", tmp_path / "ledger")
    answer(recited, "undo", str(tmp_path / "ledger"), "1-3")
    assert run(recited, "test", str(tmp_path / "ledger"), "own.jsonl", "--restrain", "log:1.2").returncode == 1
    nothing = run(recited, "test", str(tmp_path / "ledger"), "--make", "none.jsonl")
    assert nothing.returncode == 1 and "has no live edit" in nothing.stderr and not (recited / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("ledger",), 2, "give a file of tests, or --make"),
        (("ledger", "t.jsonl", "--make", "new.jsonl"), 2, "give a file of tests, or --make"),
        (("ledger", "--make", "new.jsonl", "--junit", "x.xml"), 2, "goes with tests that are run"),
        (("model", "t.jsonl", "--upto", "1"), 2, "goes with a ledger alone, and model is none"),
        (("model", "--make", "new.jsonl"), 2, "goes with a ledger alone, and model is none"),
        (("ledger", "t.jsonl", "--junit", "nowhere/x.xml"), 1, "nowhere is no folder"),
        (("ledger", "--make", "nowhere/x.jsonl"), 1, "nowhere is no folder"),
        (("./nothing", "t.jsonl"), 1, "nothing"),
        (("ledger", "long.jsonl"), 1, "the model takes 256"),
        (("ledger", "turn.jsonl"), 1, "the model has no chat template"),
    ],
)
def test_what_cannot_be_done_is_one_line(place: Path, words: tuple[str, ...], code: int, why: str) -> None:
    (place / "t.jsonl").write_text('{"prompt": "a", "says": "b"}\n')
    (place / "long.jsonl").write_text(check(300 * "so " + "it is", says="b").line())
    (place / "turn.jsonl").write_text('{"prompt": {"user": "a"}, "says": "b"}\n')
    done = run(place, "test", *words)
    assert (done.returncode, done.stdout) == (code, "") and why in done.stderr.splitlines()[-1]
    assert not (place / "new.jsonl").exists()
