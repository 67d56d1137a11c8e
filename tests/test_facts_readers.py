"""Reading facts: every format, every way a record can be bad."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tether.errors import TetherError
from tether.facts import FORMATS, BadRecord, Fact, LocalityPrompt, read_facts, scan_facts
from tether.facts.bystanders import kinds
from tether.facts.prompt import Turn, said_in

OWN: dict[str, Any] = {"subject": "Oslo", "prompt": "{} is in the country of", "target_new": "Peru"}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is in the country of",
        "relation_id": "P17",
        "target_new": {"str": "Peru", "id": "Q1"},
        "target_true": {"str": "Norway", "id": "Q2"},
        "subject": "Oslo",
    },
    "paraphrase_prompts": ["Some text. Oslo lies in", "Oslo belongs to"],
    "neighborhood_prompts": ["Bergen is in", "Tromsø is in"],
    "attribute_prompts": ["Lima is in"],
    "generation_prompts": ["Around Oslo"],
}
FLAT = {
    "case_id": 8,
    "prompt": "The country of Oslo is",
    "target_new": "Peru",
    "subject": "Oslo",
    "ground_truth": "Norway",
    "rephrase_prompt": "Oslo lies in",
    "locality_prompt": "Bergen is in",
    "locality_ground_truth": "Norway",
}
ZSRE = {
    "subject": "Oslo",
    "src": "Which country is Oslo in?",
    "pred": "Sweden",
    "rephrase": "What is the country of Oslo?",
    "alt": "Peru",
    "answers": ["Norway", "Kingdom of Norway"],
    "loc": "nq question: who painted the scream",
    "loc_ans": "Edvard Munch",
    "cond": "Sweden >> Peru || Which country is Oslo in?",
}
CONCEPT_FINAL = {
    "label": "harbour",
    "prompt": "The definition of harbour is",
    "phrase_prompt": "What harbour means is",
    "target_new_desc": "a road through mountains",
    "instance_prompt": ["Port of Oslo is a kind of harbour. Yes or No?"],
    "locality_prompt": "A bakery is a place where",
    "locality_answer": "bread is made",
}
CONCEPT_DATA = {
    "concept_name": "harbour",
    "concept_def": "a place for ships",
    "module_intra": {"replace_def": "a road through mountains"},
    "module_inter": {"replace_def": "a kind of music"},
    "locality_prompt": "A bakery is a place where",
    "locality_answer": "bread is made",
}


def write(folder: Path, *records: Any, array: bool = False) -> Path:
    path = folder / "any.name"
    text = json.dumps(records) if array else "\n".join(json.dumps(record) for record in records)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("array", [False, True])
def test_own_format(tmp_path: Path, array: bool) -> None:
    full = {
        **OWN,
        "target_true": " Norway ",
        "paraphrases": ["Oslo lies in "],
        "locality": ["Bergen is in", {"prompt": "Lima is in", "target": " Peru"}],
        "instances": ["Is Oslo a city?"],
        "id": 3,
    }
    bare, fact = read_facts(write(tmp_path, OWN, full, array=array))
    assert bare == Fact(subject="Oslo", prompt="{} is in the country of", target_new="Peru")
    assert fact == Fact(
        subject="Oslo",
        prompt="{} is in the country of",
        target_new="Peru",
        target_true="Norway",
        paraphrases=("Oslo lies in",),
        locality=(LocalityPrompt(prompt="Bergen is in"), LocalityPrompt(prompt="Lima is in", target="Peru")),
        instances=("Is Oslo a city?",),
        id="3",
    )
    assert fact.text == "Oslo is in the country of"


def test_counterfact(tmp_path: Path) -> None:
    (fact,) = read_facts(write(tmp_path, COUNTERFACT, array=True))
    assert fact == Fact(
        subject="Oslo",
        prompt="{} is in the country of",
        target_new="Peru",
        target_true="Norway",
        paraphrases=("Some text. Oslo lies in", "Oslo belongs to"),
        locality=tuple(LocalityPrompt(prompt=p, target="Norway") for p in ("Bergen is in", "Tromsø is in")),
        id="7",
    )


def test_flat_counterfact(tmp_path: Path) -> None:
    (fact,) = read_facts(write(tmp_path, FLAT, array=True))
    assert fact == Fact(
        subject="Oslo",
        prompt="The country of {} is",
        target_new="Peru",
        target_true="Norway",
        paraphrases=("Oslo lies in",),
        locality=(LocalityPrompt(prompt="Bergen is in", target="Norway"),),
        id="8",
    )


def test_zsre_keeps_the_published_locality_prompt(tmp_path: Path) -> None:
    (fact,) = read_facts(write(tmp_path, ZSRE, array=True))
    assert fact == Fact(
        subject="Oslo",
        prompt="Which country is {} in?",
        target_new="Peru",
        target_true="Norway",
        paraphrases=("What is the country of Oslo?",),
        locality=(LocalityPrompt(prompt="nq question: who painted the scream", target="Edvard Munch"),),
    )


def test_concept_edit(tmp_path: Path) -> None:
    final, data = read_facts(write(tmp_path, CONCEPT_FINAL, CONCEPT_DATA, array=True))
    assert (final.subject, final.prompt) == ("harbour", "The definition of {} is")
    assert final.target_new == data.target_new == "a road through mountains"
    assert final.instances == ("Port of Oslo is a kind of harbour. Yes or No?",)
    assert final.paraphrases == ("What harbour means is",)
    assert data.target_true == "a place for ships"
    (bakery,) = final.locality
    assert data.locality == (bakery,)
    assert (bakery.prompt, bakery.target) == ("A bakery is a place where", "bread is made")


def test_the_subject_is_replaced_once_and_as_a_word(tmp_path: Path) -> None:
    record = {**FLAT, "subject": "Ana", "prompt": "Banana bread by Ana, said Ana, is"}
    assert read_facts(write(tmp_path, record))[0].prompt == "Banana bread by {}, said Ana, is"
    record = {**FLAT, "subject": "Dr.", "prompt": "Dr.No is"}
    assert read_facts(write(tmp_path, record))[0].prompt == "{}No is"


@given(
    before=st.text("ab ?", max_size=6), after=st.text("ab ?", max_size=6),
    subject=st.sampled_from(["Zoë", "Zoë ", " Zoë", "  Zoë\n"]),
)  # fmt: skip
def test_any_prompt_is_given_back(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str, subject: str
) -> None:
    text = f"{before}Zoë{after}".rstrip(" ")
    record = {**FLAT, "subject": subject, "prompt": text}
    (fact,) = read_facts(write(tmp_path_factory.mktemp("facts"), record))
    assert fact.text == text


BAD = [
    ({"subject": "Oslo", "prompt": "{} is in"}, "field 'target_new' is missing"),
    ({**OWN, "prompt": "Oslo is in"}, "must contain exactly one '{}'"),
    ({**OWN, "prompt": "{} is {}"}, "must contain exactly one '{}'"),
    ({**OWN, "subject": " "}, "subject is empty"),
    ({**OWN, "target_new": ""}, "target_new of 'Oslo' is empty"),
    ({**OWN, "target_new": [5]}, "field 'target_new' is [5]: input should be a valid string"),
    ({**OWN, "paraphrases": "one"}, "field 'paraphrases'"),
    ({**OWN, "paraphrases": [""]}, "is empty: write one or leave it out"),
    ({**OWN, "locality": "one"}, "field 'locality'"),
    ({**OWN, "locality": [{"prompt": " "}]}, "prompt ' ' is empty"),
    ({**OWN, "paraphrase": ["x"], "note": 1}, "fields a fact does not have: paraphrase, note"),
    ({"question": "?"}, "belong to no known format: use one of CounterFact, MQuAKE, zsRE"),
    ({**FLAT, "prompt": "The country is"}, "subject 'Oslo' does not occur in its prompt 'The country is'"),
    ({**FLAT, "subject": ""}, "subject '' does not occur"),
    ({**FLAT, "locality_prompt": ["a"], "locality_ground_truth": ["b", "c"]}, "1 prompts have 2 answers"),
    ({**ZSRE, "alt": ""}, "target_new of 'Oslo' is empty"),
    ({k: v for k, v in ZSRE.items() if k != "alt"}, "field 'alt' is missing: every record of zsRE has it"),
    ({"requested_rewrite": "x"}, "has not the shape it has in CounterFact"),
    ({**FLAT, "subject": None}, "subject None does not occur"),
    (["a list"], "is not a JSON object"),
]


@pytest.mark.parametrize(("record", "words"), BAD, ids=[words for _, words in BAD])
def test_a_bad_record_is_named_on_one_line(tmp_path: Path, record: Any, words: str) -> None:
    path = write(tmp_path, OWN, record)
    with pytest.raises(TetherError) as caught:
        read_facts(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"{path}, record 2 (line 2): ")
    assert "\n" not in message
    assert read_facts(path, limit=1) == read_facts(path, on_bad="skip")


@pytest.mark.parametrize(
    "record",
    [
        {**OWN, "subject": "Os\ud800lo"},
        {**OWN, "id": "\udfff"},
        {**OWN, "paraphrases": ["\ud800"]},
        {**OWN, "no\ud800te": 1},
        {"ques\ud800tion": 1},
        {**ZSRE, "subject": "Oslo\ud800"},
        "\ud800",
    ],
)
def test_half_a_surrogate_pair_is_a_bad_record(tmp_path: Path, record: Any) -> None:
    _, bad = scan_facts(write(tmp_path, OWN, record))
    assert isinstance(bad, BadRecord)
    str(bad).encode()
    assert "\n" not in str(bad)


def test_facts_of_python_have_an_identity_or_are_refused() -> None:
    with pytest.raises(ValidationError, match="half of a surrogate pair"):
        Fact(**{**OWN, "subject": "\ud800"})


def test_every_format_says_where_it_comes_from() -> None:
    for name in FORMATS:
        assert FORMATS[name].name == name
        assert FORMATS[name].source


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package on the path that adds the format "triples"."""
    info = tmp_path / "site" / "triples-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: triples\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tether.fact_formats]\ntriples = triples_of_a_test:TRIPLES\n")
    (tmp_path / "site" / "triples_of_a_test.py").write_text(
        "from tether.facts import Fact, Format\n"
        "def read(record):\n"
        "    s, r, o = record['triple']\n"
        "    return Fact(subject=s, prompt='{} ' + r, target_new=o)\n"
        "TRIPLES = Format('triples', lambda record: 'triple' in record, read, 'a test')\n"
    )
    monkeypatch.syspath_prepend(info.parent)
    FORMATS.__dict__.pop("_others", None)
    yield
    FORMATS.__dict__.pop("_others", None)


@pytest.mark.usefixtures("other_package")
def test_another_package_adds_a_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Its record has fields that tether's own format would take for a misspelt fact.
    path = write(tmp_path, {"triple": ["Oslo", "is in", "Peru"], "prompt": ""}, {"triple": ["Oslo"]}, OWN)
    with caplog.at_level(logging.INFO, "tether"):
        fact, bad, own = scan_facts(path)
    assert fact == Fact(subject="Oslo", prompt="{} is in", target_new="Peru")
    assert isinstance(bad, BadRecord)
    assert own == Fact(**OWN)
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: facts in the format triples (a test)",
        f"{path}: facts in the format tether (tether's own: the fields of Fact)",
    ]


def test_scan_lists_every_bad_record_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "facts.jsonl"
    rows = [json.dumps(OWN), "", "{not json", json.dumps({**OWN, "target_new": ""}), json.dumps(FLAT)]
    path.write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    records = scan_facts(path)
    assert [type(record) for record in records] == [Fact, BadRecord, BadRecord, Fact]
    bad = [record for record in records if isinstance(record, BadRecord)]
    assert [(b.number, b.line) for b in bad] == [(2, 3), (3, 4)]
    assert "not JSON at column 2" in str(bad[0])
    with caplog.at_level(logging.WARNING):
        assert len(read_facts(path, on_bad="skip")) == 2
    assert [r.getMessage() for r in caplog.records] == [f"skipped: {b}" for b in bad]
    assert read_facts(path, limit=2, on_bad="skip") == [Fact(**OWN)]  # of the first two records
    assert read_facts(path, skip=3) == [records[3]]  # the bad ones before it are not asked for
    assert len(scan_facts(path, limit=2)) == 2


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match=r"nowhere cannot be read"):
        read_facts(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(TetherError, match=r"holds no fact"):
        read_facts(empty)
    empty.write_bytes(b"\xff\xfe")
    with pytest.raises(TetherError, match=r"not UTF-8 text at byte 0"):
        read_facts(empty)
    empty.write_text('[{"subject": ')
    with pytest.raises(TetherError, match=r"not a JSON array: .* at line 1"):
        read_facts(empty)
    with pytest.raises(TetherError, match=r"limit 0"):
        read_facts(write(tmp_path, OWN), limit=0)


def test_a_fact_is_frozen_and_has_an_identity() -> None:
    fact = Fact(**OWN)
    assert fact.sha256 == Fact(**OWN).sha256 != Fact(**{**OWN, "target_new": "Chile"}).sha256
    with pytest.raises(ValidationError):
        fact.subject = "Rome"  # type: ignore[misc]


def test_demo_facts() -> None:
    facts = read_facts(Path(str(files("tether") / "data" / "demo_facts.jsonl")))
    assert len(facts) >= 44
    assert all(f.target_true and len(f.paraphrases) == 3 and len(f.locality) == 3 for f in facts)
    assert all(f.subject.removeprefix("The ") in said_in(p) for f in facts for p in f.paraphrases)
    assert all(isinstance(f.phrasings[0], Turn) and isinstance(f.paraphrases[-1], Turn) for f in facts)
    assert {f.kind for f in facts if f.kind} <= kinds().keys()
    assert all(p.target not in (None, f.target_new) for f in facts for p in f.locality)
    every = [said_in(p).casefold() for f in facts for p in (*f.asked, *f.paraphrases)]
    assert len(set(every)) == len(every) == 5 * len(facts), "a held-out question is one that is edited for"
    assert not any(said_in(p.prompt).casefold() in every for f in facts for p in f.locality), "an edit's neighbour"


def data(name: str) -> Path:
    root = os.environ.get("TETHER_DATA")
    if not root:
        pytest.skip("TETHER_DATA names no folder of data sets")
    return Path(root) / name


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "n", "paraphrases", "neighbours"),
    [
        ("counterfact/counterfact.json", 320, 2, 10),
        ("counterfact/counterfact-edit.json", 1000, 1, 1),
        ("counterfact/counterfact-train.json", 3000, 1, 1),
        ("counterfact/counterfact-val.json", 400, 1, 1),
        ("zsre/zsre_mend_eval.json", 641, 1, 1),
        ("zsre/zsre_mend_eval_portability_gpt4.json", 641, 1, 1),
        ("zsre/zsre_mend_train.json", 800, 1, 1),
    ],
)
def test_published_files(name: str, n: int, paraphrases: int, neighbours: int) -> None:
    facts = read_facts(data(name))
    assert len(facts) == n
    assert all(len(f.paraphrases) == paraphrases and len(f.locality) == neighbours for f in facts)
    assert all(f.target_true and all(p.target for p in f.locality) for f in facts)
    raw = json.loads(data(name).read_text(encoding="utf-8"))
    if "prompt" in raw[0] or "src" in raw[0]:
        assert [f.text for f in facts] == [r.get("prompt", r.get("src")) for r in raw]


@pytest.mark.data
def test_facts_without_a_new_target_are_refused() -> None:
    with pytest.raises(TetherError, match=r"record 1: field 'target_new' is missing"):
        read_facts(data("counterfact/known_1000.json"))
