"""What became of the facts of a ledger, asked of the model as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from bigram import become, bigram_model, ledger_of_two
from command import answer, run
from core import SETTINGS, plain_text, reciter

from tether.editing.run import edit
from tether.editing.said import Lost, Said, said_now
from tether.evaluation import Measurement, evaluate_ledger
from tether.facts import Fact
from tether.facts.prompt import Turn
from tether.ledger import Attempt
from tether.models import EditableModel


def fact(subject: str, target: str, prompt: str = "home of {}") -> Fact:
    return Fact(subject=subject, prompt=prompt, target_new=target)


def test_said_and_lost(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")  # alice -> rome is said; dave -> new york is taken away
    ledger.apply(model)
    found = said_now(model, ledger)
    assert (found.said, found.total, [one.edit for one in found.lost]) == (1, 2, [2])
    assert found.line() == "1 of 2 facts are said now; lost: 2"
    with ledger.writing():
        ledger.append([Attempt("failed", fact("carol", "rome"), {}, "why")], {}, {})  # never edited: does not count
        ledger.append([Attempt("skipped", fact("carol", "paris"), {}, "said")], {}, {})
        ledger.append([Attempt("edit", fact("Dave", "paris", "{} of"), {})], become("bob", "bob"), {})
        ledger.append([Attempt("edit", fact("alice", "oslo"), {})], become("carol", "carol"), {})
    found = said_now(model, ledger)
    assert [(one.edit, one.same_prompt, one.same_subject) for one in found.lost] == [
        (2, None, 5), (5, None, None), (6, None, None)
    ]  # fmt: skip
    ledger.undo(2)
    ledger.apply(model)
    assert [one.edit for one in said_now(model, ledger).lost][:1] != [2]
    assert ledger.attempts == 6


def test_the_line_groups_what_was_lost_for_one_reason() -> None:
    def lost(edit: int, **why: int) -> Lost:
        return Lost(edit, "s", "p", "t", **why)

    few = Said(
        12, 12, (lost(1, same_subject=9), lost(2, same_subject=9), lost(5), lost(7, same_prompt=8, same_subject=8))
    )
    assert few.line() == "8 of 12 facts are said now; lost: 1, 2 (same subject as 9); 5; 7 (same prompt as 8)"
    many = Said(40, 40, tuple(lost(edit) for edit in range(1, 31)))
    assert many.line().endswith("19, 20; 10 more")
    assert Said(3, 3, ()).line() == "3 of 3 facts are said now"
    assert few.to_dict()["lost"][0] == {
        "edit": 1, "subject": "s", "prompt": "p", "target_new": "t", "same_prompt": None, "same_subject": 9,
    }  # fmt: skip


def test_facts_are_verified_on_the_way(place: Path) -> None:
    words = ("edit", "facts.jsonl", "--model", "model", "--corpus", "corpus.txt", "--settings", "settings.json")
    found = answer(place, *words, "--out", "verified", "--limit", "4", "--verify-every", "2")
    tried = sum(found["events"][kind] for kind in ("edit", "failed", "skipped"))
    assert [one["edits"] for one in found["verified"]] == list(range(2, tried + 1, 2))
    assert found["verified"][-1] == found["said"]
    assert found["said"]["of"] == found["events"]["edit"] + found["events"]["skipped"]
    assert len(found["said"]["lost"]) == found["said"]["of"] - found["said"]["said"]
    done = run(place, *words, "--out", "lines", "--limit", "2")
    assert done.stdout.rstrip().splitlines()[-1].startswith(f"{found['verified'][0]['said']} of ")


def test_the_answers_about_others_are_watched(tmp_path: Path) -> None:
    """The same counts as the metric `bystanders` gives, of the run that looks and of the line at its end."""
    hf, tokenizer, facts = reciter()
    model = EditableModel(hf, tokenizer)
    seen: list[Said] = []
    settings = {**SETTINGS, "v_lr": 0.5, "prefixes": (), "kl_factor": 0.0, "moments_ridge": 3.0}
    ledger = edit(
        model, facts[:2], method="r-rome", settings=settings, corpus=plain_text(), out=tmp_path / "l", health=0,
        verify_every=2, bystanders=3, progress=lambda at: seen.extend([] if at.said is None else [at.said]),
    )  # fmt: skip
    found = said_now(model, ledger, bystanders=3)
    assert seen == [found] and found.others is not None and found.others.asked == 6
    assert found.line().endswith(f"; {found.others.line()}") and found.to_dict()["others"]["asked"] == 6
    what = Measurement(metrics=("bystanders",), abilities=(), bystanders=3, bystander_prompts=1)
    row = evaluate_ledger(ledger, model, at=[2], measurement=what).rows[-1]
    assert row.editing["bystanders"]["unchanged"].value == pytest.approx(100 * found.others.unchanged / 6)
    assert row.editing["bystanders"]["leak"].value == pytest.approx(100 * found.others.leaked / 6)
    assert said_now(model, ledger).others is None


def test_phrasings_are_counted_beside_the_prompts(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    ledger.apply(model)
    found = said_now(model, ledger)
    assert found.phrasings is None and "phrasings" not in found.to_dict()
    asked = fact("alice", "rome").model_copy(
        update={"phrasings": ("of {}", "{} of", Turn(user="{}"))}
    )  # the last token decides
    with ledger.writing():
        ledger.append([Attempt("skipped", asked, {}, "said")], {}, {})
    found = said_now(model, ledger)
    assert found.phrasings == (1, 3) and found.to_dict()["phrasings"] == {"said": 1, "of": 3}
    assert found.line() == "2 of 3 facts are said now; lost: 2; 1 of their 3 phrasings"
