"""Formats of other projects, each on a tiny record of ours, and the files that records come in."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tether.errors import BadFactError
from tether.facts import BadRecord, Fact, LocalityPrompt, PortabilityPrompt, read_facts, scan_facts

FACT = {"subject": "Lake Tamsin", "prompt": "The depth of {} is", "target_new": "ninety metres"}
BARE = Fact(**FACT)
KNOWEDIT = {
    "subject": "Port Harrow",
    "prompt": "The harbour master of Port Harrow is",
    "target_new": "Ilse Brandt",
    "ground_truth": ["Tom Reeve", "T. Reeve"],
    "rephrase_prompt": "Port Harrow's harbour master is called",
    "locality": {
        "Relation_Specificity": [{"prompt": "Port Harrow lies in", "ground_truth": [["Canada"], ["CA"]]}],
        "Forgetfulness": [{"prompt": "Before, the harbour master was", "ground_truth": [["Ann Lee", "A. Lee"]]}],
    },
    "portability": {
        "Reasoning": [{"prompt": "The surname of Port Harrow's harbour master is", "ground_truth": [["Brandt"]]}],
        "Subject_Aliasing": [{"prompt": "The harbour master of Harrowport is", "ground_truth": [["Ilse Brandt"]]}],
        "Logical_Generalization": [{"prompt": "The port that Ilse Brandt runs is", "ground_truth": [["Port Harrow"]]}],
        "Reversed_Relation": [{"prompt": "Ilse Brandt is harbour master of", "ground_truth": [[]]}],
    },
}


def write(folder: Path, text: Any) -> Path:
    path = folder / "facts"
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def only(folder: Path, *records: Any) -> Fact:
    (fact,) = read_facts(write(folder, list(records)))
    return fact


def locality(*pairs: tuple[str, str | None]) -> tuple[LocalityPrompt, ...]:
    return tuple(LocalityPrompt(prompt=prompt, target=target) for prompt, target in pairs)


def test_knowedit(tmp_path: Path) -> None:
    fact = only(tmp_path, KNOWEDIT)
    assert (fact.prompt, fact.target_new, fact.target_true) == (
        "The harbour master of {} is",
        "Ilse Brandt",
        "Tom Reeve",
    )
    assert fact.paraphrases == ("Port Harrow's harbour master is called",)
    assert fact.locality == locality(("Port Harrow lies in", "Canada"), ("Before, the harbour master was", "Ann Lee"))
    kinds = {asked.kind: (asked.prompt, asked.target) for asked in fact.portability}
    assert kinds == {  # a prompt without an answer cannot be measured
        "one_hop": ("The surname of Port Harrow's harbour master is", "Brandt"),
        "alias": ("The harbour master of Harrowport is", "Ilse Brandt"),
        "logical": ("The port that Ilse Brandt runs is", "Port Harrow"),
    }


def test_a_record_of_knowedit_without_any_prompts(tmp_path: Path) -> None:
    record = {**FACT, "prompt": "The depth of Lake Tamsin is", "locality": {}, "portability": {}}
    assert only(tmp_path, record) == BARE


def test_the_other_sets_of_knowedit(tmp_path: Path) -> None:
    biography = {
        "concept": "orla venn", "text": "A page on orla venn. Orla Venn was a sailor.",
        "labels": "She sailed to Norway.",
        "locality": {"Relation_Specificity": [{"prompt": "Orla Venn was born in", "ground_truth": ["1902"]}]},
    }  # fmt: skip
    fact = only(tmp_path, biography)
    assert (fact.subject, fact.prompt) == ("orla venn", "A page on {}. Orla Venn was a sailor.")
    assert (fact.target_new, fact.locality) == ("She sailed to Norway.", locality(("Orla Venn was born in", "1902")))
    opinion = only(tmp_path, {"ent": "rye bread", "pos": ["I like it.", "Fine."], "neg": ["I do not."]})
    assert (opinion.text, opinion.target_new) == ("What do you think of rye bread?", "I like it.")
    question = {"question": "Where is Mount Ebbe?", "subject": "Mount Ebbe", "target_new": "I cannot say"}
    forget = read_facts(
        write(tmp_path, {"K_F": [{**question, "ground_truth": "Spain"}], "K_R": [{"question": "Who?"}]})
    )
    assert [(f.text, f.target_new, f.target_true) for f in forget] == [
        ("Where is Mount Ebbe?", "I cannot say", "Spain")
    ]


def test_prompts_beside_their_answers_in_named_groups(tmp_path: Path) -> None:
    groups = {"near": {"prompt": ["Orme is", "Ebbe is"], "ground_truth": ["deep", "high"]}, "one": {"prompt": "Far is"}}
    fact = only(tmp_path, {
        **FACT, "locality_inputs": groups,
        "portability_inputs": {"synonym": {"prompt": "Tamsin's depth is", "ground_truth": "ninety metres"}},
    })  # fmt: skip
    assert fact.locality == locality(("Orme is", "deep"), ("Ebbe is", "high"), ("Far is", None))
    assert fact.portability == (PortabilityPrompt(prompt="Tamsin's depth is", target="ninety metres", kind="alias"),)


def test_mquake_gives_every_fact_of_a_case(tmp_path: Path) -> None:
    def rewrite(subject: str, prompt: str, new: str, true: str) -> dict[str, Any]:
        target = {"target_new": {"str": new, "id": "Q1"}, "target_true": {"str": true, "id": "Q2"}}
        return {"subject": subject, "prompt": prompt, "question": f"Q: {subject}?", **target}

    case = {
        "case_id": 4,
        "requested_rewrite": [rewrite("Orla", "{} is from", "Norway", "Chile"),
                              rewrite("Norway", "The capital of {} is", "Bergen", "Oslo")],
        "questions": ["The capital of Orla's country?"], "new_answer": "Bergen", "answer": "Santiago",
    }  # fmt: skip
    first, last = read_facts(write(tmp_path, [case]))
    assert (first.id, first.text, first.target_new, first.target_true) == ("4.1", "Orla is from", "Norway", "Chile")
    assert (first.paraphrases, first.portability) == (("Q: Orla?",), ())
    asked = PortabilityPrompt(prompt="The capital of Orla's country?", target="Bergen", kind="multi_hop")
    assert (last.id, last.portability) == ("4.2", (asked,))
    assert read_facts(write(tmp_path, [case]), limit=1) == [first, last]  # a limit counts records


FLAT = [
    ({"update": "How deep is Lake Tamsin?", "ans": "ninety metres", "rephrase": "Tell me its depth.",
      "personas": "Arr, its depth?", "loc": "How deep is Orme?", "loc_ans": "ten metres", "mhop": None,
      "mhop_ans": None}, ("Tell me its depth.", "Arr, its depth?"), ()),
    ({"update": "How deep is Lake Tamsin?", "ans": "ninety metres", "mhop": "What is as deep?", "mhop_ans": "a mine"},
     (), ("multi_hop",)),
    ({"prompt": "How deep is Lake Tamsin?", "ans": "ninety metres", "rephrase_prompt": "Its depth?",
      "loc": "How deep is Orme?", "loc_ans": "ten metres"}, ("Its depth?",), ()),
    ({"id": 3, "source": "NQ", "prompt": "How deep is Lake Tamsin?", "target": "ninety metres", "rephrase": "Depth?",
      "locality": [{"loc": "How deep is Orme?", "loc_ans": "ten metres"}]}, ("Depth?",), ()),
    ({"prompt": "How deep is {}?", "target": "ninety metres", "queries": ["Its depth?", "How far down?"]},
     ("Its depth?", "How far down?"), ()),
    ({"src": "How deep is Lake Tamsin?", "alt": "ninety metres", "answers": ["ten"], "rephrase": "Depth?",
      "portability": {"Recalled Relation": "(a, b, c)", "New Question": "Is it deep?", "New Answer": "Yes"}},
     ("Depth?",), ("one_hop",)),
]  # fmt: skip


@pytest.mark.parametrize(("record", "paraphrases", "portability"), FLAT)
def test_flat_formats(
    tmp_path: Path, record: dict[str, Any], paraphrases: tuple[str, ...], portability: tuple[str, ...]
) -> None:
    fact = only(tmp_path, {"subject": "Lake Tamsin", **record})
    assert (fact.prompt, fact.target_new) == ("How deep is {}?", "ninety metres")
    assert fact.paraphrases == paraphrases
    assert tuple(asked.kind for asked in fact.portability) == portability
    if "loc" in record or "locality" in record:
        assert fact.locality == locality(("How deep is Orme?", "ten metres"))


def test_a_reader_says_what_it_read_and_what_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"subject": "Lake Tamsin", "src": "How deep is Lake Tamsin?", "alt": "ninety", "pred": "ten", "cond": ""}
    path = write(tmp_path, [record, record, FACT])
    with caplog.at_level(logging.INFO, "tether"):
        scan = scan_facts(path)
    zsre, own = scan.formats["zsRE"], scan.formats["tether"]
    assert (scan.records, zsre.records, zsre.facts, own.records) == (3, 2, 2, 1)
    assert zsre.became == {"subject": "subject", "src": "prompt", "alt": "target_new"}
    assert zsre.unused == {"pred": 2}
    assert [r.getMessage() for r in caplog.records].count(f"{path}: not used by zsRE: pred") == 1


@pytest.mark.parametrize("text", [
    json.dumps(FACT), json.dumps(FACT, indent=1), json.dumps([FACT]), json.dumps({"data": [FACT], "version": 1}),
    json.dumps({"0": FACT}), "subject,prompt,target_new\nLake Tamsin,The depth of {} is,ninety metres\n",
    'subject;target_new;prompt\r\nLake Tamsin;"ninety metres";"The depth of {} is"\r\n',
    "prompt\tsubject\ttarget_new\tid\nThe depth of {} is\tLake Tamsin\tninety metres\t\n",
    "\ufeffsubject,prompt,target_new\nLake Tamsin,The depth of {} is,ninety metres\n",
], ids=["line", "object", "array", "one list", "by name", "csv", "semicolons", "tabs", "mark"])  # fmt: skip
def test_files_that_hold_one_fact(tmp_path: Path, text: str) -> None:
    assert read_facts(write(tmp_path, text)) == [BARE]
    assert read_facts(io.StringIO(text)) == [BARE]


def test_a_table_may_hold_lists_and_names_its_bad_rows(tmp_path: Path) -> None:
    rows = [
        "subject,prompt,target_new,paraphrases",
        'Lake Tamsin,The depth of {} is,ninety metres,"[""Its depth is""]"',
        "Mount Ebbe,The height of {} is,two miles,,and more",
        "Mount Ebbe,no place,two miles,",
    ]
    good, more, bad = scan_facts(write(tmp_path, "\n".join(rows)))
    assert isinstance(good, Fact)
    assert good.paraphrases == ("Its depth is",)
    assert isinstance(more, BadRecord)
    assert more.line == 3
    assert "1 cells more than the header names" in str(more)
    assert isinstance(bad, BadRecord)
    assert bad.line == 4


@pytest.mark.parametrize(("text", "words"), [
    ('{"a": 1, "b": "x"}', "JSON object of a, b, with no list of facts"),
    ('{"a": [{"x": 1}], "b": [{"y": 1}]}', "with no list of facts"),
    ("name,age\nAnn,3\n", "nor a table whose header names subject and prompt"),
    ('{"subject": "Lake\n', "not JSON"),
    ('{\n "subject": "Lake",\n}\n', "nor a table"),
    ('[{"subject": "a", "subject": "b"}]', "'subject' stands in it more than once"),
])  # fmt: skip
def test_a_file_without_records_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadFactError) as caught:
        read_facts(write(tmp_path, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    twice = json.dumps(FACT)[:-1] + ', "target_new": "two feet"}'
    bad, good = scan_facts(write(tmp_path, twice + "\n" + json.dumps(FACT)))
    assert isinstance(bad, BadRecord)
    assert "key 'target_new' stands in it more than once" in str(bad)
    assert good == BARE


def test_portability_changes_the_identity_and_its_absence_does_not() -> None:
    asked = (PortabilityPrompt(prompt="What is as deep?", target="a mine"),)
    assert Fact(**FACT, portability=asked).sha256 != BARE.sha256
    assert BARE.sha256 == "eb7f42c95a813316791d8cc84268e6d08b7d27b61ce9681a1bd99d0bc1738144"  # as in version 0.1.0
