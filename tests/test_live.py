"""The live page: what it answers is what the library answers, in the same ledger; who may ask; one thing at a time."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import bigram_model, ledger_of_two
from command import run as command
from core import FACTS, bits, editable, same_bits
from edits import run as edit_facts
from live import as_json, chatty, live, studio

pytest.importorskip("starlette")
pytest.importorskip("httpx2")

from starlette.testclient import TestClient

import tether
from tether.editing.plan import EditPlan
from tether.errors import BadSettingsError, TetherError
from tether.evaluation import builtin_text, perplexity
from tether.evaluation.scores import greedy, next_token, score_ids
from tether.facts.prompt import Turn
from tether.facts.tokens import Continuation, prompt_ids
from tether.ledger import Ledger
from tether.web.app import Live
from tether.web.desk import BusyError, Desk, GaveWayError, GoneError
from tether.web.door import Door
from tether.web.studio import Studio

PROMPT = FACTS[0].text


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path_factory.mktemp("cache")))


def client(page: Live) -> TestClient:
    return TestClient(page.application, base_url="http://localhost:8765")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A page on a ledger of three edits, for tests that do not change it."""
    made = live(tmp_path_factory.mktemp("live"))
    yield made
    made.close()


def events(found: Any) -> list[dict[str, Any]]:
    return [json.loads(part[6:]) for part in found.text.split("\n\n") if part.startswith("data: ")]


def done(found: Any) -> Any:
    assert found.status_code == 200, found.text
    return found.json()


# --- asking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, {"user": "Where is the Eiffel Tower?"}])
@pytest.mark.parametrize("restrain", [None, "none", "log:9"])
def test_both_answers_are_those_of_ask_and_grow(page: Live, prompt: Any, restrain: str | None) -> None:
    model, ledger = page.studio.model, Ledger.open(page.studio.path)
    page.studio._answers.clear()
    before = bits(model)
    found = events(client(page).post("/api/ask", json={"prompt": prompt, "restrain": restrain, "tokens": 6}))
    asked = prompt if isinstance(prompt, str) else Turn(**prompt)
    [wanted] = tether.ask(ledger, [asked], model, restrain=restrain, tokens=6, near=4)
    for who in ("unedited", "edited"):
        texts = [one["text"] for one in found if one.get("who") == who]
        assert texts[-1] == getattr(wanted, who) and len(texts) > 1
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    [near] = [one for one in found if one["kind"] == "near"]
    assert [one["edit"] for one in near["near"]] == [one.edit for one in wanted.near]
    assert all(("not_made" in one) is not isinstance(prompt, str) for one in near["near"])  # no edit is of a chat turn
    assert found[-1] == {"kind": "end"} and same_bits(model, before)


def test_next_tokens_are_what_the_scorer_says(page: Live) -> None:
    model = page.studio.model
    with model.unedited():
        probabilities = next_token(model, PROMPT)
        best = int(probabilities.argmax())
        word, ids = str(model.tokenizer.decode([best])), prompt_ids(model.tokenizer, PROMPT)
        [scored] = score_ids(model, [Continuation((*ids, best), len(ids))])
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    assert scored.argmax_ids == (best,)
    assert float(probabilities.max().log()) == pytest.approx(scored.log_likelihood, abs=1e-4)
    [said] = [one for one in events(client(page).post("/api/ask", json={"prompt": PROMPT, "tokens": 1}))
              if one["kind"] == "next"]  # fmt: skip
    assert word in [one["token"] for one in said["next"]]
    assert max(one["unedited"] for one in said["next"]) == pytest.approx(float(probabilities.max()), rel=1e-5)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "  "}, "is empty"),
        ({"prompt": 7}, "is no prompt"),
        ({"prompt": PROMPT, "restrain": "log:0.5"}, "above 1"),
        ({"prompt": PROMPT, "upto": 99}, "has edits 1 to 3"),
        ({"prompt": PROMPT, "tokens": 10**6}, "give 1 to 400"),
    ],
)
def test_a_bad_question_is_one_line_in_the_stream(page: Live, body: Any, words: str) -> None:
    [said] = events(client(page).post("/api/ask", json=body))
    assert said["kind"] == "error" and words in said["error"] and "\n" not in said["error"]


def test_without_a_ledger_both_answers_are_the_same(tmp_path: Path) -> None:
    page = live(tmp_path, edits=0)
    found = events(client(page).post("/api/ask", json={"prompt": PROMPT, "tokens": 4}))
    texts = {who: [one["text"] for one in found if one.get("who") == who][-1] for who in ("unedited", "edited")}
    assert texts["edited"] == texts["unedited"] == greedy(page.studio.model, [PROMPT], 4)[0]
    refused = client(page).post("/api/preview", json={})
    assert refused.status_code == 400 and "edit a fact first" in refused.json()["error"]
    page.close()


# --- the restraint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restrain", [None, "log:9", "linear:3"])
def test_the_preview_is_the_spectrum_and_the_next_token_of_the_restrained_model(
    page: Live, restrain: str | None
) -> None:
    model, ledger = page.studio.model, Ledger.open(page.studio.path)
    before = bits(model)
    found = done(client(page).post("/api/preview", json={"restrain": restrain, "upto": 2, "prompt": PROMPT}))
    free, rows = ledger.spectrum(model, at=[2], restrain="none"), ledger.spectrum(model, at=[2], restrain=restrain)
    for one, row, unrestrained in zip(found["weights"], rows, free, strict=True):
        assert (one["weight"], one["m"]) == (row.weight, row.m)
        assert one["restrained"]["kappa"] == pytest.approx(row.extremes.kappa, rel=1e-5)
        assert one["restrained"]["values"] == pytest.approx(row.update_singular_values, rel=1e-4, abs=1e-6)
        assert one["unrestrained"]["sigma_max"] == pytest.approx(unrestrained.extremes.sigma_max, rel=1e-6)
    with model.unedited():
        ledger.apply(model, upto=2, restrain=restrain)
        after = next_token(model, PROMPT)
    assert max(one["edited"] for one in found["next"]) == pytest.approx(float(after.max()), rel=1e-4)
    assert same_bits(model, before)


def test_quick_scores_count_the_facts_that_are_said(tmp_path: Path) -> None:
    model = bigram_model()  # alice is said, dave is not
    ledger_of_two(model, tmp_path / "ledger")
    page = Live(Studio(model, tmp_path / "ledger", EditPlan()))
    with torch.no_grad():
        unedited = perplexity(model, builtin_text()).value
    for upto, said, of in ((None, 1, 2), (1, 1, 1), (0, 0, 0)):
        found = done(client(page).post("/api/scores", json={"upto": upto, "restrain": "none"}))
        assert (found["said"], found["of"], found["edits"]) == (said, of, 2 if upto is None else upto)
        Ledger.open(tmp_path / "ledger").apply(model, upto=upto, restrain="none")
        assert found["perplexity_ratio"] == pytest.approx(perplexity(model, builtin_text()).value / unedited, rel=1e-6)
        model.clear_updates()
    page.close()


# --- facts and runs -----------------------------------------------------------------------------------------------


def test_a_fact_is_checked_as_one_types(page: Live) -> None:
    ask = client(page)
    [earlier] = as_json(FACTS[0])
    assert "target_new is missing" in done(ask.post("/api/check", json={"subject": "Big Ben", "prompt": "{}"}))["error"]
    found = done(ask.post("/api/check", json={**earlier, "target_new": "Berlin"}))
    assert any("contradicts edit 1," in line for line in found["problems"]), found["problems"]
    fresh = {"subject": "Big Ben", "prompt": "{} stands in", "target_new": "Paris",
             "phrasings": [{"user": "Where is {}?"}]}  # fmt: skip
    found = done(ask.post("/api/check", json=fresh))
    assert found["problems"] == [] and found["tokens"][found["read_at"]] in "Big Ben"
    assert len(found["phrasings"]) == 1 and found["fact"]["subject"] == "Big Ben"
    assert {one["edit"] for one in found["near"]} == {1, 2, 3}


def test_a_file_of_facts_is_read_and_bad_records_are_named(page: Live) -> None:
    text = "\n".join([json.dumps(as_json(FACTS[0])[0]), '{"subject": "x"}'])
    found = done(client(page).post("/api/facts", json={"text": text}))
    assert found["facts"] == as_json(FACTS[0]) and len(found["bad"]) == 1 and "record 2" in found["bad"][0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_paused_run_is_gone_on_with_by_the_library_and_the_other_way(family: str, tmp_path: Path) -> None:
    whole = edit_facts(chatty(family), FACTS[:3], tmp_path / "whole", method="rome", on_alarm="skip")
    for name, here in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        work = studio(tmp_path / name, family, edits=0)
        work.begin(as_json(*FACTS[:3]), {})
        work.pause()
        work.work()
        assert work.run is not None and work.run.state == "paused"
        assert work.ledger is not None and work.ledger.attempts == 1
        if here:
            work.go_on()
            work.work()
            assert work.run.to_dict()["done"] == 3 and work.run.state == "done"
        else:
            tether.edit(editable(family), FACTS[:3], out=work.path, resume=True, on_alarm="skip")
            work.refresh()
            assert work.state()["edits"] == 3
            for after in range(2):  # nothing is left, whatever came after
                work.go_on()
                work.work()
                assert work.run.to_dict()["done"] == 3 and work.run.state == "done"
                assert Ledger.open(work.path).attempts == 3 + after
                work.run.state = "paused"
                if not after:
                    tether.edit(editable(family), FACTS[3:4], out=work.path, on_alarm="skip")
        for file in sorted((whole.path / "factors").iterdir()):
            assert file.read_bytes() == (work.path / "factors" / file.name).read_bytes()
        assert same_bits(Ledger.open(work.path).apply(editable(family)), work.ledger.apply(work.model).hf.state_dict())


def test_a_run_over_the_wire_makes_the_ledger_and_says_how_it_goes(tmp_path: Path) -> None:
    page = live(tmp_path, edits=0)
    with client(page) as ask:
        assert done(ask.get("/api/state"))["made"] is False
        assert ask.post("/api/run", json={"facts": []}).status_code == 400
        assert ask.post("/api/run", json={"facts": as_json(FACTS[0]), "restrain": "log:0"}).status_code == 400
        done(ask.post("/api/run", json={"facts": as_json(*FACTS[:2]), "restrain": "log:1.2"}))
        finished = threading.Event()
        for _ in range(600):
            if page.studio.run_state()["state"] == "done":  # type: ignore[index]
                break
            finished.wait(0.05)
        run = page.studio.run_state()
        assert run is not None and run["state"] == "done" and [one["edit"] for one in run["lines"]] == [1, 2]
        assert all("health" in one["health_line"] for one in run["lines"])
        state = done(ask.get("/api/state"))
        assert state["live"] == 2 and state["recorded"] == "log:1.2"
    page.close()
    Ledger.open(tmp_path / "ledger").verify()


# --- the ledger ---------------------------------------------------------------------------------------------------


def test_undo_redo_verify_tests_export_and_report_are_the_ledgers(tmp_path: Path) -> None:
    page = live(tmp_path)
    ask, path = client(page), page.studio.path
    answers = {}
    for step in ("as it was", "undone", "redone"):
        if step != "as it was":
            kind = step.removesuffix("ne") if step == "undone" else "redo"
            found = done(ask.post(f"/api/{kind}", json={"edits": [1]}))
            assert found["edits"] == [1] and Ledger.open(path).head == found["head"]
        answers[step] = events(ask.post("/api/ask", json={"prompt": PROMPT, "tokens": 4}))[-2]["text"]
    assert answers["as it was"] == answers["redone"] != answers["undone"]
    every = done(ask.get("/api/events"))
    assert every["undone"] == [] and [one["kind"] for one in every["events"]][-2:] == ["undo", "redo"]
    number = len(every["events"])
    assert done(ask.get(f"/api/events?after={number}")) == {"first": number, "events": [], "undone": []}
    assert done(ask.get(f"/api/events?after={number - 1}"))["events"] == every["events"][-1:]
    assert done(ask.get(f"/api/events?after={number + 1}")) == every  # more than there are: all of them
    assert "after must be" in ask.get("/api/events?after=-1").json()["error"]
    assert ask.post("/api/redo", json={"edits": [1]}).json()["error"].startswith("edit 1 is not undone")
    assert done(ask.post("/api/verify", json={"head": Ledger.open(path).head[:8]}))["events_after_head"] == 0
    tests = done(ask.post("/api/tests", json={"restrain": "none"}))
    assert tests["passed"] + tests["failed"] == len(tests["tests"]) == len(tests["lines"].splitlines())
    done(ask.post("/api/export", json={"as": "merged", "name": "out", "restrain": "none"}))
    exported, model = tether.load(tmp_path / "out"), editable("llama")
    Ledger.open(path).apply(model, restrain="none")
    name = next(iter(page.studio.ledger.header.weights))  # type: ignore[union-attr]
    assert torch.equal(exported.weight(name), model.weight(name))
    for bad in ("../away", "/tmp/x", ".", ""):
        refused = ask.post("/api/export", json={"as": "lora" if bad else "zip", "name": bad})
        assert refused.status_code == 400 and not (tmp_path.parent / "away").exists()
    done(ask.post("/api/export", json={"as": "gguf-lora"}))
    assert (tmp_path / f"{path.name}-gguf-adapter").is_dir()
    room = done(ask.post("/api/headroom", json={}))
    assert room["edits"] == len(Ledger.open(path).live()) and room["relations"][0]["edited"]["value"] > 0
    assert "above 0" in ask.post("/api/consolidate", json={"strength": "much"}).json()["error"]
    again = done(ask.post("/api/consolidate", json={"strength": "0.5"}))
    assert again["strength"] == 0.5 and again["head"] == Ledger.open(path).head
    assert Ledger.open(path).live_numbers() == list(range(again["first"], again["last"] + 1))
    assert ask.post("/api/repair", json={}).json()["error"].startswith("rome holds no other edits in its solve")
    assert ask.get("/report").status_code == 404
    pytest.importorskip("matplotlib")
    done(ask.post("/api/report", json={}))
    shown = ask.get("/report")
    assert "Edits of" in shown.text and "script-src" not in shown.headers["content-security-policy"]
    page.close()


def test_another_writer_is_named_and_what_it_wrote_is_seen(tmp_path: Path) -> None:
    page = live(tmp_path, edits=2)
    ask, other = client(page), Ledger.open(page.studio.path)
    with other.writing():
        refused = ask.post("/api/undo", json={"edits": [1]})
        assert refused.status_code == 400 and "written by another process" in refused.json()["error"]
    other.undo(2)
    assert done(ask.get("/api/state"))["live"] == 1
    found = done(ask.get("/api/events"))
    assert found["events"][-1]["kind"] == "undo" and found["undone"] == [2]
    page.close()


# --- one thing at a time ------------------------------------------------------------------------------------------


def test_while_long_work_goes_on_other_work_is_refused_and_nobody_waits(page: Live) -> None:
    page.desk.busy = "editing"
    try:
        for name in ("undo", "preview", "ask", "run", "export"):
            refused = client(page).post(f"/api/{name}", json={"edits": [1], "prompt": "x", "facts": [], "as": "lora"})
            assert refused.status_code == 409 and refused.json()["busy"] and "editing" in refused.json()["error"], name
        assert done(client(page).get("/api/state"))["live"] == 3
    finally:
        page.desk.busy = None


def test_the_desk_does_one_thing_after_another_and_stops_where_nobody_listens() -> None:
    async def scene() -> list[Any]:
        desk, gate, seen = Desk(), threading.Event(), []
        long = desk.do_long("measuring", lambda: gate.wait(10))
        with pytest.raises(BusyError, match="measuring"):
            await desk.do(lambda: None)
        gate.set()
        assert await long and desk.busy is None
        threads = [await desk.do(threading.get_ident) for _ in range(3)]
        assert len(set(threads)) == 1
        queue: asyncio.Queue[Any] = asyncio.Queue()
        told = threading.Event()

        def work(tell: Any) -> None:
            tell({"n": 0})
            told.wait(10)
            try:
                tell({"n": 1})
            except GoneError:
                seen.append("gone")
                raise

        stream = asyncio.create_task(desk.stream(work, queue))
        assert await queue.get() == {"n": 0}
        stream.cancel()
        await asyncio.sleep(0.02)
        told.set()
        await desk.do(lambda: None)
        desk.close()
        return seen

    assert asyncio.run(scene()) == ["gone"]


def test_what_gives_way_stops_for_other_work_and_has_its_place_after_it() -> None:
    async def scene() -> list[str]:
        desk, seen, begun = Desk(), [], threading.Event()

        def behind(look: Callable[[], None]) -> None:
            begun.set()
            while "preview" not in seen:  # for ever, were it not stopped
                look()
            seen.append("scores")

        first, alike = desk.do_behind(behind), desk.do_behind(lambda look: look())
        await asyncio.to_thread(begun.wait, 10)
        work = desk.do(lambda: seen.append("preview"))
        for one in (first, alike):  # `alike` waits for its turn as well, and stops nothing
            with pytest.raises(GaveWayError):
                await one
        await work
        await desk.do_behind(behind)
        desk.close()
        return seen

    assert asyncio.run(scene()) == ["preview", "scores"]


def test_quick_scores_that_give_way_leave_the_model_as_it_was(page: Live) -> None:
    before, looks = bits(page.studio.model), []

    def stop() -> None:
        looks.append(page.studio.model)
        if len(looks) in (1, 4):  # the first block of all, and a later one
            raise GaveWayError

    for _ in range(2):
        with pytest.raises(GaveWayError):
            page.studio.scores(upto=3, restrain="log:1.3", look=stop)
        assert same_bits(page.studio.model, before)
    assert done(client(page).post("/api/scores", json={"upto": 3, "restrain": "log:1.3"}))["of"] == 3
    assert len(looks) == 4 and same_bits(page.studio.model, before)


def test_scores_that_gave_way_are_begun_again_for_who_waits(page: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, begun = page.studio.scores, []
    drag = threading.Thread(target=lambda: begun.append(client(page).post("/api/preview", json={}).status_code))

    def scores(*, look: Callable[[], None], **chosen: Any) -> Any:
        begun.append("scores")
        if len(begun) == 1:
            drag.start()
            while True:  # as long as the preview does not wait
                look()
                time.sleep(0.005)
        return measure(**chosen, look=look)

    monkeypatch.setattr(page.studio, "scores", scores)
    assert done(client(page).post("/api/scores", json={"upto": 3, "restrain": "log:1.4"}))["of"] == 3
    drag.join()
    assert sorted(map(str, begun)) == ["200", "scores", "scores"]


async def answers(*asked: Any) -> list[Any]:
    return await asyncio.gather(*asked, return_exceptions=True)


def test_a_look_while_the_ledger_is_written_leaves_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second tab asks for the ledger between the write of a line and what the writer counts of it."""
    page, looks = live(tmp_path, edits=2), []
    ask, fsync = client(page), os.fsync

    def look(file: int) -> None:
        fsync(file)
        if threading.current_thread().name.startswith("tether-desk") and page.desk.busy:
            looks.append(done(client(page).get("/api/state"))["edits"])

    monkeypatch.setattr(os, "fsync", look)
    done(ask.post("/api/consolidate", json={"strength": "0.5"}))
    monkeypatch.undo()
    assert looks
    found = Ledger.open(page.studio.path)
    assert page.studio.ledger is not None and page.studio.ledger.head == found.head
    assert [one.number for one in page.studio.ledger.events] == [one.number for one in found.events]
    done(ask.post("/api/undo", json={"edits": [found.live_numbers()[0]]}))
    Ledger.open(page.studio.path).verify()
    page.close()


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path: Path) -> None:
    page = live(tmp_path, edits=1)

    async def scene() -> list[Any]:
        found = await answers(*(page._run({"facts": as_json(fact)}) for fact in FACTS[1:3]))
        assert page._running is not None
        await page._running
        return found

    one, other = asyncio.run(scene())
    assert one["run"]["total"] == 1 and isinstance(other, BusyError)
    assert [fact.subject for _, fact in Ledger.open(page.studio.path).facts()] == [one.subject for one in FACTS[:2]]
    page.close()


def test_a_paused_run_goes_on_where_it_was_whatever_was_written_meanwhile(tmp_path: Path) -> None:
    page = live(tmp_path, edits=1)
    assert "no run" in client(page).post("/api/run/resume", json={}).json()["error"]
    page.studio.begin(as_json(*FACTS[1:4]), {})
    page.studio.pause()
    page.studio.work()
    tether.edit(editable("llama"), [FACTS[4]], out=page.studio.path, on_alarm="skip")

    async def go_on() -> None:
        await page._resume({})
        assert page._running is not None
        await page._running

    asyncio.run(go_on())
    tried = [fact.subject for _, fact in Ledger.open(page.studio.path).facts()]
    assert tried == [FACTS[i].subject for i in (0, 1, 4, 2, 3)]
    run = page.studio.run_state()
    assert run is not None and (run["state"], run["done"], run["total"]) == ("done", 3, 3)
    page.close()


def test_what_another_process_writes_is_told(tmp_path: Path) -> None:
    page = live(tmp_path, edits=2)

    async def scene() -> list[Any]:
        said = (await page._live(None)).body_iterator  # type: ignore[arg-type, attr-defined]
        first = await anext(said)
        Ledger.open(page.studio.path).undo(2)
        found = [json.loads(one[6:])["live"] for one in (first, await anext(said))]
        await said.aclose()
        return found

    assert asyncio.run(asyncio.wait_for(scene(), 20)) == [2, 1]
    page.close()


def test_few_sums_are_kept_while_one_drags(page: Live) -> None:
    for upto in (1, 2, 3, None, 1):
        done(client(page).post("/api/preview", json={"upto": upto, "prompt": PROMPT}))
        events(client(page).post("/api/ask", json={"upto": upto, "prompt": PROMPT, "tokens": 1}))
    kinds = [name for name, *_ in page.studio._kept[1]]
    assert all(0 < kinds.count(large) <= 2 for large in ("recorded", "free", "near"))


def test_what_nobody_foresaw_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = live(tmp_path, edits=1)
    ask = TestClient(page.application, base_url="http://localhost:8765", raise_server_exceptions=False)
    (tmp_path / "ledger-report").write_text("a file where the report goes")
    wrong = ask.post("/api/report", json={})
    assert wrong.status_code == 500 and "ledger-report" in wrong.json()["error"]
    as_it_is = {"content-type": "application/json"}
    assert ask.post("/api/check", content="[" * 100_000, headers=as_it_is).status_code == 400
    assert ask.post("/api/undo", json={"edits": [[1]]}).status_code == 400
    assert ask.post("/api/tests", json={"text": 7}).status_code == 400
    same = "known fact 77"
    found = done(ask.post("/api/check", json={**as_json(FACTS[1])[0], "target_new": same, "target_true": same}))
    assert any(f"target_true '{same}'" in line for line in found["problems"])

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("not enough memory: you tried to allocate 9 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(page.studio.model.hf, "forward", full)
        [said] = events(ask.post("/api/ask", json={"prompt": "Who knows?"}))
    assert said["kind"] == "error" and said["error"].startswith("out of memory")
    assert events(ask.post("/api/ask", json={"prompt": "Who knows?", "tokens": 1}))[-1] == {"kind": "end"}
    page.close()


def test_a_ledger_of_any_name_has_its_folders_beside_it(page: Live, tmp_path: Path) -> None:
    shutil.copytree(page.studio.path, tmp_path / "my edits")
    other = Live(Studio(page.studio.model, tmp_path / "my edits", EditPlan()))
    assert client(other).get("/report").status_code == 404
    assert done(client(other).post("/api/export", json={"as": "lora"}))["to"] == str(tmp_path / "my edits-adapter")
    other.close()


def test_a_kill_ends_the_page_as_ctrl_c_does(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    from tether.web.serve import serve

    def kill(_: str) -> None:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            serve(studio(tmp_path, edits=0), host="127.0.0.1", port=0, token=None, browser=False, say=kill)
    finally:
        signal.signal(signal.SIGTERM, before)


# --- who may ask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:9000"}, 200),  # through a tunnel
        ({"host": "[::1]:8765"}, 200),
        ({"origin": "http://localhost:8765"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example:8765"}, 421),
        ({"host": "192.168.1.5:8765"}, 421),
        ({"host": "["}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1234"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_another_page_is_refused(page: Live, headers: dict[str, str], status: int) -> None:
    sent = {"content-type": "application/json", **headers}
    assert client(page).post("/api/check", content="{}", headers=sent).status_code == status


def test_the_token_is_shown_once_and_then_kept_in_a_cookie(tmp_path: Path) -> None:
    page = live(tmp_path, edits=0, host="0.0.0.0", token="secret-token-1")
    ask = client(page)
    assert ask.get("/api/state").status_code == ask.get("/").status_code == 401
    assert ask.get("/?token=secret-token-2").status_code == 401
    assert ask.get("/api/state", headers={"authorization": "Bearer secret-token-1"}).status_code == 200
    assert ask.get("/api/state", headers={"host": "10.0.0.7:80"}).status_code == 401  # the name is fine
    assert ask.get("/?token=secret-token-1", headers={"host": "rebound.example"}).status_code == 421
    first = ask.get("/?token=secret-token-1", follow_redirects=False)
    assert (
        first.status_code == 303
        and "HttpOnly" in first.headers["set-cookie"]
        and "token" not in first.headers["location"]
    )
    assert ask.get("/api/state").status_code == 200
    (tmp_path / "b").mkdir()
    other = live(
        tmp_path / "b", edits=0, token="secret-token-3"
    )  # of the same host: a cookie does not tell ports apart
    both = TestClient(other.application, base_url="http://localhost:8766", cookies=ask.cookies)
    both.get("/?token=secret-token-3")
    both.cookies.set("not of tether", "{a=b; c")
    assert both.get("/api/state").status_code == 200
    ask.cookies.update(both.cookies)
    assert ask.get("/api/state").status_code == 200
    page.close()
    other.close()


@pytest.mark.parametrize(("host", "token"), [("0.0.0.0", None), ("localhost", "short"), ("localhost", "with space 1")])
def test_no_server_without_the_token_it_needs(host: str, token: str | None) -> None:
    async def nothing(*_: Any) -> None: ...

    with pytest.raises(BadSettingsError, match="token"):
        Door(nothing, host=host, token=token)


def test_the_page_needs_no_other_host_and_says_so(page: Live) -> None:
    ask = client(page)
    shown = ask.get("/")
    policy = shown.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy and "frame-ancestors 'none'" in policy
    for name in ("style.css", "live.css", "main.js", "lib.js", "icon.svg"):
        found = ask.get(f"/static/{name}")
        assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
        assert "http" not in found.text.replace("http://www.w3.org/2000/svg", "")
    for name in ("nothing.js", "../app.py", "%2e%2e/app.py"):
        assert ask.get(f"/static/{name}").status_code == 404
    for sent in ("[]", "{", "null"):
        wrong = ask.post("/api/check", content=sent, headers={"content-type": "application/json"})
        assert wrong.status_code == 400 and "request is wrong" in wrong.json()["error"]
    assert ask.post("/api/undo", json={}).status_code == 400


def test_every_file_of_the_package_is_in_its_wheel() -> None:
    root = Path(__file__).parents[1]
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    kinds = [pattern.removeprefix("**/") for pattern in settings["package-data"]["tether"]]
    files = [one for one in (root / "src" / "tether").rglob("*") if one.is_file() and one.suffix not in (".py", ".pyc")]
    assert len(files) > 40 and [str(one) for one in files if not any(one.match(kind) for kind in kinds)] == []


def test_the_command_names_what_is_wrong_before_a_model_is_loaded(tmp_path: Path) -> None:
    assert command(tmp_path, "live").returncode == 2
    assert "--model" in command(tmp_path, "live", "new").stderr
    wrong = command(tmp_path, "live", "--model", "nowhere", "--method", "romee")
    assert wrong.returncode == 2 and "romee" in wrong.stderr
    studio(tmp_path, edits=1)
    assert "keeps its own" in command(tmp_path, "live", "ledger", "--corpus", "self").stderr


def test_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    import socket

    from tether.web.serve import serve

    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TetherError, match="name another --port"):
            serve(
                studio(tmp_path, edits=0), host="127.0.0.1", port=taken.getsockname()[1], token=None, browser=False,
                say=said.append,
            )  # fmt: skip
    assert said == []
