"""Settings from probe facts: what is tried, what is chosen, and how sure it is said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from core import FACTS, bits, editable, reciter, same_bits
from test_cli import run
from tiny import save, tiny_model

import tether
from tether.editing.tune import Trial, better, write_settings
from tether.editors.memit import MemitHparams
from tether.editors.rome import RomeHparams
from tether.errors import TetherError
from tether.evaluation.statistics.paired import paired
from tether.models import EditableModel


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))


def text(folder: Path) -> Path:
    file = folder / "text.txt"
    file.write_text("The Eiffel Tower is in Paris, and Big Ben in London; the capital of France is Paris. " * 200)
    return file


def test_better_is_more_than_two_standard_errors() -> None:
    assert not better(paired([90, 80, 70, 95], [70, 75, 71, 60]))
    assert better(paired([90, 92, 91, 90], [70, 75, 71, 72]))
    assert not better(paired([70, 75, 71, 72], [90, 92, 91, 90]))
    assert not better(paired([90 + 1e-6, 92 + 1e-6], [90, 92])), "rounding is no reason"


def test_the_layer_that_works_is_found(tmp_path: Path) -> None:
    """On the trained model some layers hold its facts and others do not: the best trial is chosen, or the start."""
    hf, tokenizer, facts = reciter()
    model = EditableModel(hf, tokenizer)
    before = bits(model)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(f"{t} {f.target_true}." for f in facts for t in (f.text, *f.paraphrases)) * 3)
    found = tether.tune(model, facts[:4], method="r-rome", corpus=corpus)
    assert same_bits(model, before)
    layers = {
        trial.settings["layers"][0]: trial for trial in found.trials if trial.what.startswith(("start", "layers"))
    }
    assert len(layers) >= 3
    assert len({trial.score for trial in layers.values()}) > 1
    chosen = next(t for t in reversed(found.trials) if t.settings == found.settings)
    assert chosen.score >= found.trials[0].score
    RomeHparams.model_validate(found.settings)
    assert len(found.verdicts) == 3 and all("±" in line and "n = 4" in line for line in found.verdicts)
    for verdict in found.verdicts:
        assert ("kept" in verdict) == ("not more than two standard errors" in verdict)


def test_memit_is_tuned_in_batches(tmp_path: Path) -> None:
    model = editable("llama")
    seen: list[Trial] = []
    found = tether.tune(model, FACTS[:2], method="memit", corpus=text(tmp_path), progress=seen.append)
    assert tuple(seen) == found.trials
    assert {t.settings["mom2_update_weight"] for t in seen} > {50.0, 1000.0}
    write_settings(found, tmp_path / "settings.json")
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert MemitHparams.model_validate(settings).model_dump(mode="json") == found.settings
    tether.edit(
        model, FACTS[:2], method="memit", out=tmp_path / "ledger", settings=tmp_path / "settings.json", batch_size=2,
        corpus=text(tmp_path),
    )  # fmt: skip


def test_one_probe_fact_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match="standard error needs two"):
        tether.tune(editable("llama"), FACTS[:1], corpus=text(tmp_path))


def test_the_command(tmp_path: Path) -> None:
    save(*tiny_model("llama"), tmp_path / "model")
    (tmp_path / "facts.jsonl").write_text("\n".join(f.model_dump_json(exclude_none=True) for f in FACTS[:2]) + "\n")
    text(tmp_path)
    (tmp_path / "start.json").write_text('{"v_lr": 0.2}')
    done = run(
        tmp_path, "tune", "--model", "model", "--facts", "facts.jsonl", "--method", "r-rome", "--corpus", "text.txt",
        "--out", "s.json", "--json", "--settings", "start.json", "--vary", "v_num_grad_steps,layers",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert all(trial["settings"]["v_lr"] == 0.2 for trial in document["trials"]), "the start's, where none is tried"
    assert document["settings"] == json.loads((tmp_path / "s.json").read_text())
    assert len(document["verdicts"]) == 2 and len(document["trials"]) == 4


def test_settings_that_the_method_lacks_are_not_varied(tmp_path: Path) -> None:
    for vary, words in [
        (["mom2_update_weight"], "r-rome has no such setting"),
        (["v_rate"], "vary v_rate: choose from"),
    ]:
        with pytest.raises(TetherError, match=words):
            tether.tune(editable("llama"), FACTS[:2], corpus=text(tmp_path), vary=vary)
