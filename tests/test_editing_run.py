"""The loop of edits: failures, interruptions, appending, schedules of restraint, and the health of a proposal."""

from __future__ import annotations

import copy
import gc
import json
import logging
import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from core import FACTS, SETTINGS, bits, editable, plain_text, random_update, same_bits
from edits import BAD, assert_says, kinds, run
from tiny import save, tiny_model
from tokenizers import normalizers

from tether.algebra.lowrank import LowRank
from tether.editing.health import Health
from tether.editing.plan import EditPlan, Schedule
from tether.editing.run import Progress, edit
from tether.editors import Proposal
from tether.editors.rome import Rome, RomeHparams
from tether.errors import BadLedgerError, BadSettingsError, TetherError
from tether.facts.fact import Fact
from tether.ledger import Ledger
from tether.models import EditableModel, load


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of the same model are collected once for all tests here."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path_factory.getbasetemp() / "session-cache"))


@pytest.mark.parametrize("method", ["rome", "r-rome"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_run(family: str, method: str, tmp_path: Path) -> None:
    model = editable(family)
    before = bits(model)
    seen: list[Progress] = []
    ledger = run(model, FACTS[:3], tmp_path / "a", method=method, progress=seen.append, health_every=2)
    assert kinds(ledger) == ["edit"] * 3
    assert [(p.done, p.total, p.event.edit) for p in seen] == [(1, 3, 1), (2, 3, 2), (3, 3, 3)]
    assert [e.fact for e in ledger.events] == list(FACTS[:3])
    record = ledger.events[1].record
    assert record["loss_last"] < record["loss_first"] and record["perplexity_ratio"] > 0
    assert ledger.events[0].record["kappa"] > 1, "σ_min is measured in the first look"
    assert not same_bits(model, before)
    assert_says(model, ledger, family)
    assert RomeHparams.model_validate(ledger.header.settings).layers == (1,)
    model.clear_updates()
    assert same_bits(model, before)
    # The same run again: the same factors, and the next edit sees the one before.
    again = run(editable(family), FACTS[:3], tmp_path / "b", method=method)
    assert [e.sha256 for e in again.events] == [e.sha256 for e in ledger.events]
    alone = run(editable(family), FACTS[1:2], tmp_path / "c", method=method)
    assert alone.events[0].sha256 != ledger.events[1].sha256


def test_a_failed_edit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = editable("gpt2")
    states: list[dict[str, torch.Tensor]] = [bits(model)]
    absurd = {"v_lr": 1e6, "clamp_norm_factor": 1e9}
    ledger = run(model, FACTS[:2], tmp_path / "a", changes=absurd, progress=lambda _: states.append(bits(model)))
    assert kinds(ledger) == ["failed", "failed"]
    assert "the loss went from" in (ledger.events[0].reason or "")
    assert ledger.events[0].record["steps"] == SETTINGS["v_num_grad_steps"]
    assert all(same_bits(model, state) for state in states)
    assert not list((tmp_path / "a/factors").iterdir())
    assert_says(model, ledger, "gpt2")


def test_a_bad_fact_between_good_ones(tmp_path: Path) -> None:
    """Recorded; the good ones get the factors they would get without it, under its own number."""
    model = editable("gpt2")
    ledger = run(model, [FACTS[0], BAD, FACTS[1]], tmp_path / "a")
    assert kinds(ledger) == ["edit", "failed", "edit"]
    assert [e.edit for e in ledger.events] == [1, 2, 3]
    assert ledger.events[2].factors == "factors/000003.safetensors"
    clean = run(editable("gpt2"), FACTS[:2], tmp_path / "b")
    assert [e.sha256 for e in clean.events] == [ledger.events[i].sha256 for i in (0, 2)]
    assert_says(model, ledger, "gpt2")


def test_strict_stops_and_resumes_behind_the_failed_fact(tmp_path: Path) -> None:
    model = editable("gpt2")
    facts = [FACTS[0], BAD, FACTS[2]]
    with pytest.raises(TetherError, match="edit 2 failed, and --strict stops"):
        run(model, facts, tmp_path / "a", strict=True)
    ledger = Ledger.open(tmp_path / "a", model)
    assert kinds(ledger) == ["edit", "failed"]
    assert_says(model, ledger, "gpt2")
    assert kinds(run(model, facts, tmp_path / "a", resume=True)) == ["edit", "failed", "edit"]


def test_facts_the_model_says_already_are_skipped(tmp_path: Path) -> None:
    model = editable("gpt2")
    before = bits(model)
    ledger = run(model, FACTS[:2], tmp_path / "a", changes={"loss_threshold": 1e9}, strict=True)
    assert kinds(ledger) == ["skipped", "skipped"], "strict minds failures alone"
    assert same_bits(model, before)


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_ctrl_c_leaves_model_and_ledger_one_and_resumes(stop_after: int, tmp_path: Path) -> None:
    options = {"restrain": "linear:2", "every": 2}
    whole_model = editable("gpt2")
    whole = run(whole_model, FACTS[:5], tmp_path / "whole", **options)
    model = editable("gpt2")

    def stop(progress: Progress) -> None:
        if progress.done == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, FACTS[:5], tmp_path / "a", progress=stop, **options)
    interrupted = Ledger.open(tmp_path / "a", model)
    assert interrupted.attempts == stop_after
    assert_says(model, interrupted, "gpt2")
    seen: list[int] = []
    ledger = run(model, FACTS[:5], tmp_path / "a", resume=True, progress=lambda p: seen.append(p.done))
    assert seen == list(range(stop_after + 1, 6))
    assert [(e.kind, e.sha256) for e in ledger.events] == [(e.kind, e.sha256) for e in whole.events]
    assert kinds(ledger) == ["edit", "edit", "restrain", "edit", "edit", "restrain", "edit", "restrain"]
    assert same_bits(model, whole_model.hf.state_dict())
    assert len(run(model, FACTS[:5], tmp_path / "a", resume=True).events) == 8, "nothing is left to do"


@pytest.mark.parametrize("call", range(1, 9))
def test_an_interruption_inside_an_append(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any of its fsyncs: what is on disk then is what the model carries."""
    model = editable("gpt2")
    run(model, FACTS[:1], tmp_path / "a")
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        real(descriptor)
        if calls == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    try:
        run(model, FACTS[:3], tmp_path / "a", resume=True)
    except KeyboardInterrupt:
        assert calls == call
    else:
        assert calls < call
    monkeypatch.undo()
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path.parent / "session-cache"))
    assert_says(model, Ledger.open(tmp_path / "a", model), "gpt2")
    ledger = run(model, FACTS[:3], tmp_path / "a", resume=True)
    assert kinds(ledger) == ["edit"] * 3
    assert_says(model, ledger, "gpt2")


def test_appending_other_facts(tmp_path: Path) -> None:
    """A ledger grown in two calls is the ledger of one; without `resume` a fact said twice is edited twice."""
    whole = run(editable("gpt2"), FACTS[:4], tmp_path / "whole")
    model = editable("gpt2")
    run(model, FACTS[:2], tmp_path / "a")
    fresh = editable("gpt2")  # appending also works on a model loaded anew
    ledger = run(fresh, FACTS[2:4], tmp_path / "a")
    assert [e.sha256 for e in ledger.events] == [e.sha256 for e in whole.events]
    assert_says(fresh, ledger, "gpt2")
    ledger = run(fresh, FACTS[3:4], tmp_path / "a")
    assert ledger.attempts == 5
    assert ledger.events[4].kind in ("edit", "skipped", "failed")


def test_what_another_process_writes_before_the_lock_is_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in ("a", "b"):
        run(editable("gpt2"), FACTS[:2], tmp_path / out)
    Ledger.open(tmp_path / "a").undo(1)
    expected = run(editable("gpt2"), FACTS[2:3], tmp_path / "a")
    model, writing = editable("gpt2"), Ledger.writing

    def after_an_undo(ledger: Ledger) -> AbstractContextManager[None]:
        patch.undo()
        Ledger.open(ledger.path).undo(1)
        return writing(ledger)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "writing", after_an_undo)
        ledger = run(model, FACTS[2:3], tmp_path / "b")
    assert [(e.kind, e.sha256) for e in ledger.events] == [(e.kind, e.sha256) for e in expected.events]
    assert kinds(ledger) == ["edit", "edit", "undo", "edit"]
    assert_says(model, ledger, "gpt2")


def test_what_an_existing_ledger_refuses(tmp_path: Path) -> None:
    model = editable("gpt2")
    run(model, FACTS[:1], tmp_path / "a")
    after = bits(model)
    for options, message in (
        ({"method": "rome"}, "method rome"),
        ({"seed": 7}, "seed 7"),
        ({"layers": [2]}, "layers"),
        ({"settings": tmp_path / "a-settings.json"}, "keeps its own"),
    ):
        with pytest.raises(TetherError, match=message):
            edit(model, FACTS[1:2], out=tmp_path / "a", **options)
    with pytest.raises(TetherError, match="is not the model of"):
        edit(editable("gpt2", seed=1), FACTS[1:2], out=tmp_path / "a")
    with pytest.raises(TetherError, match="carries edits already"):
        run(model, FACTS[1:2], tmp_path / "b")
    assert same_bits(model, after)
    assert Ledger.open(tmp_path / "a").attempts == 1 and not (tmp_path / "b/ledger.json").exists()


def test_another_dtype_than_the_ledgers_is_refused(tmp_path: Path) -> None:
    folder = save(*tiny_model("gpt2"), tmp_path / "model")
    run(load(folder), FACTS[:1], tmp_path / "a")
    half = load(folder, dtype="bfloat16")
    before = bits(half)
    for facts, resume in ((FACTS[1:2], False), (FACTS[:2], True)):
        with pytest.raises(TetherError, match="dtype bfloat16: this ledger was made with float32"):
            run(half, facts, tmp_path / "a", resume=resume)
    assert same_bits(half, before) and Ledger.open(tmp_path / "a").attempts == 1


def test_bad_requests(tmp_path: Path) -> None:
    model = editable("gpt2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    for facts, out, options, message in (
        ((), "a", {}, "no facts"),
        (FACTS[:1], "a", {"every": 0}, "every = 0"),
        (FACTS[:1], "a", {"health_every": 0}, "health_every = 0"),
        (FACTS[:1], "a", {"every": 2}, "no restraint to act"),
        (FACTS[:1], "a", {"every": 2, "restrain": "none"}, "no restraint to act"),
        (FACTS[:1], "a", {"batch_size": 2}, "one fact at a time"),
        (FACTS[:1], "a", {"restrain": "sqrt"}, "is no restraint"),
        (FACTS[:1], "a", {"method": "magic"}, "is no method"),
        (FACTS[:1], "a", {"changes": {"v_speed": 1}}, "v_speed"),
        (FACTS[:1], "a", {"layers": [9]}, "layer 9"),
        (FACTS[:1], "full", {}, "no ledger"),
    ):
        with pytest.raises(TetherError, match=message) as caught:
            run(model, facts, tmp_path / out, **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / out / "ledger.json").exists()


def test_a_corpus_too_small_for_a_key_is_refused_before_a_ledger_is_made(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The Eiffel Tower is in Paris.")
    with pytest.raises(TetherError, match="fewer than the"):
        edit(editable("gpt2"), FACTS[:1], out=tmp_path / "a", corpus=tmp_path / "short.txt")
    assert not (tmp_path / "a" / "ledger.json").exists()


@pytest.mark.parametrize("lost", ["gone", "changed"])
def test_a_ledger_goes_on_from_cached_moments_without_its_corpus(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "text.txt"
    corpus.write_text(plain_text().read_text())
    whole = run(editable("gpt2"), FACTS[:3], tmp_path / "whole", corpus=corpus)
    run(editable("gpt2"), FACTS[:1], tmp_path / "a", corpus=corpus)
    if lost == "gone":
        corpus.unlink()
    else:
        corpus.write_text("Another text.")
    ledger = run(editable("gpt2"), FACTS[:2], tmp_path / "a", resume=True)
    assert [e.sha256 for e in ledger.events] == [e.sha256 for e in whole.events[:2]]
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "empty"))
    with pytest.raises(TetherError, match=rf"corpus .*text\.txt .*{lost}.*: put"):
        run(editable("gpt2"), FACTS[:3], tmp_path / "a", resume=True)


def test_what_a_kill_leaves_while_a_ledger_is_made_is_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "a"
    (out / "factors").mkdir(parents=True)
    (out / "ledger.json.tmp").write_text('{"format"')
    assert kinds(run(editable("gpt2"), FACTS[:1], out, resume=True)) == ["edit"]


# --- what travels as a value, and what is said where nothing is named ---------------------------------------------


def test_plan_and_schedule_do_what_keywords_do(tmp_path: Path) -> None:
    keywords = {"method": "rome", "settings": SETTINGS, "corpus": plain_text(), "seed": 3}
    plan, schedule = EditPlan.model_validate(keywords), Schedule.model_validate({"restraint": "linear:2", "every": 2})
    whole = edit(editable("gpt2"), FACTS[:3], out=tmp_path / "a", plan=plan, schedule=schedule)
    again = edit(editable("gpt2"), FACTS[:3], out=tmp_path / "b", restrain="linear:2", every=2, **keywords)
    assert kinds(whole) == kinds(again) and [e.sha256 for e in whole.events] == [e.sha256 for e in again.events]
    assert whole.header.model_dump(exclude={"created"}) == again.header.model_dump(exclude={"created"})
    assert whole.header.restrain == "linear:2" and whole.header.every == 2
    with pytest.raises(BadSettingsError, match="seed stands beside plan"):
        edit(editable("gpt2"), FACTS[:1], out=tmp_path / "c", plan=plan, seed=1)


def test_settings_as_a_dict_are_those_of_a_file(tmp_path: Path) -> None:
    model = editable("gpt2")
    ledger = edit(model, FACTS[:1], out=tmp_path / "a", method="rome", settings=SETTINGS, corpus=plain_text())
    by_file = run(editable("gpt2"), FACTS[:1], tmp_path / "b", method="rome")
    assert ledger.events[0].sha256 == by_file.events[0].sha256
    assert ledger.header.settings == by_file.header.settings
    assert ledger.header.settings_origin.startswith("settings given over ")
    with pytest.raises(TetherError, match="v_speed"):
        edit(model.__class__(*tiny_model("gpt2")), FACTS[:1], out=tmp_path / "c", settings={"v_speed": 1})


def test_the_method_is_said_where_none_was_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tether.editing.prepare"):
        ledger = run(editable("gpt2"), FACTS[:1], tmp_path / "a")
        assert ledger.header.method == "r-rome" and "method r-rome (default)" in caplog.text
        caplog.clear()
        run(editable("gpt2"), FACTS[:1], tmp_path / "b", method="r-rome")
        run(editable("gpt2"), FACTS[:1], tmp_path / "b", resume=True)
        assert "(default)" not in caplog.text


# --- resuming a list --------------------------------------------------------------------------------------------------


def test_a_fact_is_known_again_where_only_what_measures_it_changed(tmp_path: Path) -> None:
    run(editable("gpt2"), FACTS[:2], tmp_path / "a")
    mended = [fact.model_copy(update={"paraphrases": ("So it is in",)}) for fact in FACTS[:3]]
    ledger = run(editable("gpt2"), mended, tmp_path / "a", resume=True)
    assert kinds(ledger) == ["edit"] * 3
    other = [FACTS[2].model_copy(update={"target_new": "Rome"}), *mended]
    assert Ledger.open(tmp_path / "a").attempts == 3
    assert kinds(run(editable("gpt2"), other, tmp_path / "a", resume=True)) == ["edit"] * 7


def test_resume_says_that_nothing_matched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(editable("gpt2"), FACTS[:2], tmp_path / "a")
    run(editable("gpt2"), FACTS[:3], tmp_path / "a", resume=True)
    assert "does not go on" not in caplog.text
    run(editable("gpt2"), FACTS[4:5], tmp_path / "a", resume=True)
    assert "does not go on from the 3 facts" in caplog.text and "all 1 of it are edited" in caplog.text


# --- errors that are not of a fact ------------------------------------------------------------------------------------


def test_what_is_wrong_for_every_fact_is_raised(tmp_path: Path) -> None:
    """A unit of the MLP that is always 0 makes the moments singular: one error, not a failed fact for each of the
    list."""
    model = editable("gpt2")
    up = model.blocks[1].mlp.c_fc
    up.weight[:, 0], up.bias[0] = 0.0, 0.0
    before = bits(model)
    with pytest.raises(TetherError, match="singular"):
        run(model, FACTS[:3], tmp_path / "a")
    assert Ledger.open(tmp_path / "a").events == [] and same_bits(model, before)


@pytest.mark.parametrize("method", ["r-rome", "memit"])
def test_what_is_wrong_with_a_fact_is_recorded(method: str, tmp_path: Path) -> None:
    """Too many tokens; and a subject that has none, since the tokenizer drops it."""
    hf, tokenizer = tiny_model("gpt2")
    made = copy.deepcopy(tokenizer)
    made.backend_tokenizer.normalizer = normalizers.Replace("™", "")
    dropped = Fact(subject="™", prompt="{} is in", target_new="Paris")
    of_memit = {"mom2_update_weight": 10.0} if method == "memit" else {}
    ledger = edit(
        EditableModel(hf, made), [BAD, dropped, FACTS[0]], out=tmp_path / "a", method=method,
        settings={**SETTINGS, **of_memit}, corpus=plain_text(), batch_size=3 if method == "memit" else 1,
    )  # fmt: skip
    assert kinds(ledger) == ["failed", "failed", "edit"]
    assert "tokens, the model takes" in (ledger.events[0].reason or "")
    assert "has no token" in (ledger.events[1].reason or "")


# --- restraints -----------------------------------------------------------------------------------------------------


def test_once_is_an_event_at_the_end_and_between_blocks(tmp_path: Path) -> None:
    model = editable("gpt2")
    ledger = run(model, FACTS[:2], tmp_path / "a", restrain="linear:2")
    assert kinds(ledger) == ["edit", "edit", "restrain"]
    ledger = run(model, FACTS[2:4], tmp_path / "a")
    assert kinds(ledger) == ["edit", "edit", "restrain", "edit", "edit", "restrain"]
    assert {e.restrain for e in ledger.events if e.kind == "restrain"} == {"linear:2"}
    assert_says(model, ledger, "gpt2")
    ledger = run(model, FACTS[4:5], tmp_path / "a", restrain="none")
    assert kinds(ledger)[-1] == "edit"
    assert_says(model, ledger, "gpt2")


def test_every_takes_the_restraint_of_the_ledger_it_appends_to(tmp_path: Path) -> None:
    model = editable("gpt2")
    run(model, FACTS[:1], tmp_path / "a", restrain="linear:2")
    ledger = run(model, FACTS[1:3], tmp_path / "a", every=1)
    assert kinds(ledger) == ["edit", "restrain"] * 3
    with pytest.raises(TetherError, match="no restraint to act"):
        run(model, FACTS[3:4], tmp_path / "a", restrain="none", every=1)
    assert len(Ledger.open(tmp_path / "a").events) == 6


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_restrains_the_last_partial_block_too(every: int, tmp_path: Path) -> None:
    model = editable("gpt2")
    ledger = run(model, FACTS[:4], tmp_path / "a", restrain="linear:2", every=every)
    expected = {1: "ereree", 2: "eereer", 3: "eeerer"}[every] if every > 1 else "erererer"
    assert "".join(kind[0] for kind in kinds(ledger)) == expected
    assert_says(model, ledger, "gpt2")


def test_a_restraint_that_acts_changes_the_edits_after_it(tmp_path: Path) -> None:
    """Large edits (a tiny decay, a wide clamp): σ̂ is above m, and falls to the restraint's value."""
    free = {"v_num_grad_steps": 25, "v_lr": 1.0, "v_weight_decay": 0.0, "clamp_norm_factor": 30.0}
    plain = run(editable("gpt2"), FACTS[:3], tmp_path / "a", changes=free)
    model = editable("gpt2")
    held = run(model, FACTS[:3], tmp_path / "b", changes=free, restrain="linear:4", every=2)
    restraint = held.events[2]
    assert kinds(held) == ["edit", "edit", "restrain", "edit", "restrain"]
    (name,) = held.header.weights
    record, m = restraint.record[name], held.header.weights[name].sigma_max
    assert record["above_m"] >= 1 and record["update_sigma_max"] > m
    assert record["restrained_sigma_max"] == pytest.approx(m + (record["update_sigma_max"] - m) / 4, rel=1e-5)
    assert [e.sha256 for e in held.events[:2]] == [e.sha256 for e in plain.events[:2]]
    assert held.events[3].sha256 != plain.events[2].sha256, "computed on the restrained model"
    assert_says(model, held, "gpt2")


# --- health ---------------------------------------------------------------------------------------------------------


def test_a_run_warns_of_a_disabling_edit_and_records_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    free = {"v_num_grad_steps": 25, "v_lr": 2.0, "v_weight_decay": 0.0, "clamp_norm_factor": 100.0}
    with caplog.at_level(logging.WARNING, logger="tether"):
        ledger = run(editable("gpt2"), FACTS[:2], tmp_path / "a", changes=free, on_alarm="warn")
    assert "a disabling edit" in caplog.text
    assert [e.record["health"] for e in ledger.events] == ["alarm", "alarm"]
    assert "disabling" in ledger.events[0].record["reasons"][0]


LARGE = {"v_num_grad_steps": 25, "v_lr": 2.0, "v_weight_decay": 0.0, "clamp_norm_factor": 100.0}


def test_an_alarm_can_leave_the_edit_out(tmp_path: Path) -> None:
    model = editable("gpt2")
    before = bits(model)
    ledger = run(model, FACTS[:2], tmp_path / "a", changes=LARGE, method="rome", on_alarm="skip")
    assert kinds(ledger) == ["failed", "failed"] and same_bits(model, before)
    event = ledger.events[0]
    assert (event.reason or "").startswith("health alarm, this edit alone has") and event.record["health"] == "alarm"
    assert event.record["loss_last"] < event.record["loss_first"], "what the editor said of it is kept"
    assert not list((tmp_path / "a/factors").iterdir())
    assert_says(model, ledger, "gpt2")
    # What is no alarm goes in.
    small = run(editable("gpt2"), FACTS[:2], tmp_path / "b", method="rome", on_alarm="skip")
    plain = run(editable("gpt2"), FACTS[:2], tmp_path / "c", method="rome")
    assert [e.sha256 for e in small.events] == [e.sha256 for e in plain.events]


def test_a_disabling_edit_is_seen_between_two_looks(tmp_path: Path) -> None:
    """Also where health is read of every third proposal; what is recorded of it is what a look at each records."""
    options: dict[str, Any] = {"changes": LARGE, "method": "rome", "on_alarm": "skip"}
    seldom = run(editable("gpt2"), FACTS[:2], tmp_path / "a", health=3, **options)
    each = run(editable("gpt2"), FACTS[:2], tmp_path / "b", **options)
    assert kinds(seldom) == ["failed", "failed"] and seldom.events[0].reason == each.events[0].reason
    seconds = {"seconds": 0.0}
    assert [e.record | seconds for e in seldom.events] == [e.record | seconds for e in each.events]


def test_an_alarm_can_stop_the_run_which_resumes_after_it(tmp_path: Path) -> None:
    model = editable("gpt2")
    before = bits(model)
    with pytest.raises(TetherError, match="edit 1 failed, and --on-alarm stop stops there: health alarm"):
        run(model, FACTS[:2], tmp_path / "a", changes=LARGE, method="rome", on_alarm="stop")
    assert same_bits(model, before)
    assert kinds(Ledger.open(tmp_path / "a", model)) == ["failed"]
    ledger = run(model, FACTS[:2], tmp_path / "a", resume=True, on_alarm="warn")
    assert kinds(ledger) == ["failed", "edit"]


def test_health_is_read_of_every_kth_proposal_or_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = run(editable("gpt2"), FACTS[:4], tmp_path / "a")
    seen: list[Progress] = []
    second = run(editable("gpt2"), FACTS[:4], tmp_path / "b", health=2, health_every=4, progress=seen.append)
    assert [p.reading is not None for p in seen] == [False, True, False, True]
    assert ["kappa" in e.record for e in second.events] == [False, True, False, True]
    assert ["perplexity_ratio" in e.record for e in second.events] == [False, False, False, True]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("health is off")

    monkeypatch.setattr(Health, "__init__", refuse)
    never = run(editable("gpt2"), FACTS[:4], tmp_path / "c", health=0)
    assert [e.sha256 for e in never.events] == [e.sha256 for e in second.events] == [e.sha256 for e in every.events]


def test_an_edit_asks_the_ledger_for_none_of_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop counts on its own: what it reads of the journal is read once, before the first edit."""
    asked: list[str] = []
    undone = Ledger.undone.fget
    assert undone is not None

    def watched(ledger: Ledger) -> frozenset[int]:
        asked.append("undone")
        return undone(ledger)

    monkeypatch.setattr(Ledger, "undone", property(watched))
    counts = []
    for number in (1, 4):
        asked.clear()
        run(editable("gpt2"), FACTS[:number], tmp_path / str(number), restrain="linear:2", every=2, health=0)
        counts.append(len(asked))
    assert counts[0] == counts[1]


# --- what is refused, and what is not lost ----------------------------------------------------------------------------


def test_alarms_need_the_health_that_sees_them(tmp_path: Path) -> None:
    with pytest.raises(BadSettingsError, match="on_alarm skip needs the health"):
        run(editable("gpt2"), FACTS[:1], tmp_path / "a", health=0, on_alarm="skip")


def test_an_update_that_is_not_finite_is_a_failed_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = LowRank(torch.full((32, 1), math.nan), torch.ones(1, 80))
    name = editable("gpt2").weight_name(1)
    monkeypatch.setattr(Rome, "propose", lambda *_: Proposal({name: nan}))
    model = editable("gpt2")
    before = bits(model)
    ledger = run(model, FACTS[:2], tmp_path / "a", health=0)
    assert kinds(ledger) == ["failed", "failed"] and "not finite" in str(ledger.events[0].reason)
    assert same_bits(model, before)


def test_a_batch_that_strict_stops_is_tried_again(tmp_path: Path) -> None:
    changes = {"layers": [0, 1], "mom2_update_weight": 0.5}
    facts = [FACTS[0], BAD, *FACTS[2:4]]
    how: dict[str, Any] = {"method": "memit", "batch_size": 2, "changes": changes}
    with pytest.raises(TetherError, match="edit 2 failed, and --strict stops there with its batch"):
        run(editable("gpt2"), facts, tmp_path / "a", strict=True, **how)
    assert kinds(Ledger.open(tmp_path / "a")) == []
    ledger = run(editable("gpt2"), facts, tmp_path / "a", resume=True, batch_size=2)
    assert kinds(ledger) == ["edit", "failed", "edit", "edit"]


def test_an_appended_run_keeps_its_text_and_its_model(tmp_path: Path) -> None:
    ledger = run(editable("gpt2"), FACTS[:1], tmp_path / "a")
    other = tmp_path / "other.txt"
    other.write_text("Another text. " * 400)
    with pytest.raises(BadSettingsError, match="made with other text"):
        run(editable("gpt2"), FACTS[1:2], tmp_path / "a", corpus=other)
    model = editable("gpt2")
    name = model.weight_name(2)
    model.set_update(name, random_update(32, 80, 1, seed=0).to_dense())
    with pytest.raises(TetherError, match="not this ledger's"):
        run(model, FACTS[1:2], tmp_path / "a")
    assert kinds(Ledger.open(ledger.path)) == ["edit"]
    run(editable("gpt2"), FACTS[1:2], tmp_path / "a", corpus=plain_text())


@pytest.mark.parametrize(
    "change",
    [
        {"moments": {"1": {"key": "../victim", "sha256": "0", "tokens": 1}}},
        {"settings": {"layers": [1]}},
        {"corpus": {"path": None}, "moments": {"1": {"key": 32 * "0", "sha256": "0", "tokens": 1}}},
    ],
)
def test_a_header_is_not_trusted(change: dict[str, Any], tmp_path: Path) -> None:
    """A key of the cache is no path; what is missing is one line."""
    ledger = run(editable("gpt2"), FACTS[:1], tmp_path / "a")
    header = json.loads((ledger.path / "ledger.json").read_text())
    (ledger.path / "journal.jsonl").unlink()
    (ledger.path / "ledger.json").write_text(json.dumps({**header, **change}))
    with pytest.raises(BadLedgerError) as caught:
        run(editable("gpt2"), FACTS[:1], tmp_path / "a")
    assert "ledger.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_trial_leaves_no_folder() -> None:
    model = editable("llama")
    before = bits(model)
    settings = {key: value for key, value in SETTINGS.items() if key != "layers"}
    ledger = edit(model, FACTS[:2], corpus=plain_text(), settings={**settings, "layers": [1]})
    place = ledger.path
    assert place.is_dir() and kinds(ledger) == ["edit"] * 2 and not same_bits(model, before)
    ledger.undo(1, 2)
    ledger.apply(model)
    assert same_bits(model, before)
    del ledger
    gc.collect()
    assert not place.exists()
