"""The judge, asked over HTTP on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from bigram import ALICE, DAVE, FACTS, become, bigram_model, ledger_of_two
from endpoint import endpoint

from tether.errors import BadSettingsError, TetherError
from tether.evaluation import Measurement, evaluate_editing, evaluate_ledger
from tether.evaluation.metrics import judge as judge_module
from tether.evaluation.metrics.judge import verdict


def test_answers_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_JUDGE_KEY", "secret")

    def reply(content: str) -> str:
        assert "\nhome of" in content or "alice" in content or "\nbob" in content
        return "Yes." if "Expected answer: rome" in content else "No" if "Expected answer: oslo" in content else "Maybe"

    model = bigram_model()
    with endpoint(reply) as there, model.provisional(become("alice", "bob")):
        what = Measurement(metrics=("judge", "generate"), judge=there.url, judge_model="careful")
        found = evaluate_editing(model, FACTS, what)
    path, key, body = there.sent[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "careful"
    contents = [body["messages"][0]["content"] for _, _, body in there.sent]
    assert len(contents) == len(set(contents))
    efficacy, locality = found.summary["judge"]["efficacy"], found.summary["judge"]["locality"]
    # alice: yes; dave's "new york" is Maybe, so the rule counts, and it is said.
    assert (efficacy.value, efficacy.neither) == (100.0, 1)
    # carol's paris and the paris of "of alice": Maybe, and the first is said; dave's oslo: no.
    assert (locality.value, locality.neither) == (pytest.approx(100 / 3), 2)
    assert found.summary["judge"]["generalization"].value == 100.0  # where the rule of generate says 50
    assert found.summary["generate"]["generalization"].value == 50.0


def test_nothing_is_sent_unless_asked(tmp_path: Path) -> None:
    model = bigram_model()
    ledger = ledger_of_two(model, tmp_path / "ledger")
    with endpoint(lambda _: "yes") as there:
        results = evaluate_ledger(ledger, model, [ALICE, DAVE], abilities=[])
        assert not there.sent and "judge" not in results.rows[0].editing
        judged = evaluate_ledger(ledger, model, abilities=[], judge=there.url, judge_model="careful")
    assert judged.rows[0].editing["judge"]["efficacy"].value == 100.0
    assert judged.settings["judge"] == {"host": there.url.split("/")[2], "model": "careful"}


def test_a_judge_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "_PAUSE", 0.0)
    answers = iter([500, 429, "no"])
    with endpoint(lambda _: next(answers)) as there:
        assert verdict(there.url, "m", "q", "t", "a") is False and len(there.sent) == 3
    with (
        endpoint(lambda _: 401) as there,
        pytest.raises(TetherError, match=r"judge at 127\S+ answers 401 after 1 tries: check --judge"),
    ):
        verdict(there.url, "m", "q", "t", "a")
    with pytest.raises(TetherError, match=r"gives no answer .* after 3 tries"):
        verdict(there.url, "m", "q", "t", "a")
    with pytest.raises(BadSettingsError, match=r"judge 'file:///etc' is no address: write one as https://host/v1"):
        Measurement(judge="file:///etc", judge_model="m")
    with pytest.raises(
        BadSettingsError, match=r"judge: the address holds a name or a key; TETHER_JUDGE_KEY is the place"
    ):
        Measurement(judge="https://name:word@host/v1", judge_model="m")
    with pytest.raises(ValueError, match="judge and judge_model go together"):
        Measurement(judge="http://localhost")
