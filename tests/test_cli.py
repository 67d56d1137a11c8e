"""The command, as a person or a script calls it: on a tiny model in a folder, through every verb."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import answer, run
from hub import hub
from tiny import save, tiny_model

import tether
from tether.errors import TetherError
from tether.ledger import Ledger
from tether.models import load


def test_evaluate_and_report(place: Path) -> None:
    results = answer(place, "evaluate", "ledger", "--at", "0,4", "--restrain", "none,log:e", "--out", "results.json")
    assert [(row["edits"], row["restraint"]) for row in results["rows"]] == [(0, "none"), (4, "none"), (4, "log:e")]
    assert json.loads((place / "results.json").read_text()) == results
    page = Path(answer(place, "report", "results.json", "--out", "report")["report"])
    assert "<svg" in (place / page).read_text()


def test_spectrum_log_undo_verify(place: Path) -> None:
    rows = answer(place, "spectrum", "ledger", "--at", "0,4", "--restrain", "none")
    assert rows[0]["extremes"]["update_sigma_max"] == 0 < rows[1]["extremes"]["update_sigma_max"]
    half = answer(place, "spectrum", "ledger", "--dtype", "bfloat16")
    assert rows[1]["rounding"] is None and 0 < half[0]["rounding"] < 1
    table = run(place, "spectrum", "ledger", "--dtype", "bfloat16").stdout.splitlines()
    assert "rounding" in table[0] and f"{half[0]['rounding']:.1e}" in table[1]
    first = next(e for e in answer(place, "log", "ledger")["events"] if e["kind"] == "edit")["edit"]
    left = answer(place, "undo", "ledger", str(first))["live_edits"]
    assert answer(place, "verify", "ledger", "--model", "model")["kinds"]["edit"] == left + 1
    again = run(place, "undo", "ledger", str(first))
    assert again.returncode == 1 and "undone already" in again.stderr and again.stderr.count("\n") == 1


def test_damage_is_named(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ledger"
    shutil.copytree(place / "ledger", copy)
    file = next((copy / "factors").iterdir())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = run(place, "verify", str(copy), "--json")
    assert done.returncode == 1 and file.name in json.loads(done.stdout)["error"]


def test_export_both_ways_and_restrain(place: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    answer(place, "export", "ledger", "--to", "merged", "--as", "merged", "--restrain", "none")
    answer(place, "export", "ledger", "--to", "adapter", "--as", "lora", "--restrain", "none")
    ids = load(place / "model").tokenizer("The Eiffel Tower is in the city of", return_tensors="pt").input_ids
    merged = AutoModelForCausalLM.from_pretrained(place / "merged")
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(place / "adapter"))(ids).logits
    torch.testing.assert_close(adapted, merged(ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    answer(place, "export", "ledger", "--to", "as-it-is", "--as", "merged")
    recorded = "log:1.2 after edit 4"
    assert json.loads((place / "as-it-is" / "manifest.json").read_text())["restraint"] == recorded
    assert f"Restraint on the sum of the updates: {recorded}." in (place / "as-it-is" / "README.md").read_text()
    report = answer(place, "restrain", "--base", "model", "--edited", "merged", "--out", "restrained")
    assert [m["name"] for m in report["matrices"]] == ["model.layers.1.mlp.down_proj.weight"]


def test_the_command_writes_every_form_with_card_and_manifest(place: Path) -> None:
    ledger = Ledger.open(place / "ledger")
    for form in ("merged", "lora", "gguf-lora", "gguf", "mlx"):
        document = answer(place, "export", "ledger", "--to", f"as-{form}", "--as", form)
        manifest = json.loads((place / f"as-{form}" / "manifest.json").read_text())
        assert [fact["target_new"] for fact in manifest["facts"]] and manifest["ledger"]["head"] == ledger.head
        assert manifest["base"]["checkpoint"] == load(place / "model").fingerprint() and manifest["restraint"]
        assert "Edited facts" in (place / f"as-{form}" / "README.md").read_text()
        assert (document["adapter"] is None) == (form in ("merged", "gguf"))
    document = answer(
        place, "export", "ledger", "--to", "small", "--as", "lora", "--rank", "1", "--adapter-dtype", "float16",
        "--check", "vllm,ollama",
    )  # fmt: skip
    assert document["adapter"]["loss"]["edits"] == len(ledger.live()) and document["adapter"]["dtype"] == "float16"
    assert document["adapter"]["weights"][0]["smallest_edit"] > 0
    assert {check["verdict"] for check in document["checks"]} == {"right"}
    assert run(place, "export", "ledger", "--to", "x", "--as", "gguf", "--rank", "3").returncode == 2
    assert run(place, "export", "ledger", "--to", "x").returncode == 2


def test_an_export_goes_to_the_hub_when_asked_and_only_then(place: Path) -> None:
    with hub() as found:
        answer(place, "export", "ledger", "--to", "unsent", "--as", "merged")
        assert not found.made and not found.tokens
        words = ("export", "ledger", "--as", "merged", "--push-to", "my-team/edited", "--private")
        document = answer(place, *words, "--to", "sent")
        assert document["pushed"] == f"{found.url}/my-team/edited/commit/1"
        (made,) = found.made
        assert (made["organization"], made["name"], made["visibility"]) == ("my-team", "edited", "private")
        assert found.tokens == {"Bearer hf_test"}
        assert found.files == {"my-team/edited": {f.name: f.read_bytes() for f in (place / "sent").iterdir()}}
        (place / "again").mkdir()
        for name, data in found.files["my-team/edited"].items():
            (place / "again" / name).write_bytes(data)
        whose = answer(place, "whose", "again", "--ledger", "ledger")
        assert whose["changed"] == {} and whose["ledgers"] == {"ledger": 0}
        # An adapter goes where others find its base.
        local = run(place, "export", "ledger", "--to", "local", "--as", "lora", "--push-to", "my-team/adapter")
        assert local.returncode == 1 and "--base-name" in local.stderr and (place / "local").is_dir()
        answer(
            place, "export", "ledger", "--to", "with-its-base", "--as", "lora", "--base-name", "org/base",
            "--push-to", "my-team/adapter",
        )  # fmt: skip
        assert "adapter_model.safetensors" in found.files["my-team/adapter"]
        assert found.made[-1].get("visibility") is None


def test_what_cannot_be_pushed_is_said_in_one_line(place: Path) -> None:
    answer(place, "export", "ledger", "--to", "kept", "--as", "merged")
    with hub(403) as found:
        refused = [
            ("kept", "my-team/edited", "did not go to my-team/edited"),
            ("kept", "a/b/c", "no name of a repository"),
            ("ledger", "my-team/edited", "has no manifest.json"),
        ]
        for folder, repo, said in refused:
            with pytest.raises(TetherError, match=said) as error:
                tether.push(place / folder, repo)
            assert "\n" not in str(error.value)
        assert len(found.made) == 1 and not found.files
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TetherError, match="did not go to"):
        patch.setattr("huggingface_hub.constants.ENDPOINT", found.url)  # where nobody answers any more
        tether.push(place / "kept", "my-team/edited")
    for words in (("--private",), ("--push-to", "a/b/c")):
        done = run(place, "export", "ledger", "--to", "not-made", "--as", "merged", *words)
        assert done.returncode == 2 and not (place / "not-made").exists()


def test_check_says_what_a_file_is(place: Path) -> None:
    record = {"subject": "Rome", "src": "Where is Rome?", "alt": "Peru", "pred": "Italy", "answers": ["Italy"]}
    (place / "zsre.json").write_text(json.dumps([record]))
    found = answer(place, "check", "zsre.json", "--model", "model")
    became = {"subject": "subject", "src": "prompt", "alt": "target_new", "answers": "target_true"}
    (only,) = found["formats"]
    assert (only["format"], only["records"], only["became"], only["unused"]) == ("zsRE", 1, became, {"pred": 1})
    text = run(place, "check", "zsre.json", "--model", "model").stdout
    assert "format zsRE (MEND, arXiv:2110.11309): 1 record\n" in text
    assert "   read: subject -> subject, src -> prompt, alt -> target_new, answers -> target_true\n" in text
    assert "   not used: pred (1)\n" in text


def test_bad_records_are_left_out_when_asked(place: Path) -> None:
    bad, good = {"subject": "Rome", "prompt": "The city is", "target_new": "x"}, (place / "facts.jsonl").read_text()
    (place / "mixed.jsonl").write_text("\n".join([json.dumps(bad), *good.splitlines()[:2], json.dumps(bad)]))
    words = ("edit", "mixed.jsonl", "--model", "model", "--corpus", "corpus.txt", "--settings", "settings.json")
    stopped = run(place, *words, "--out", "mixed")
    assert stopped.returncode == 1 and "mixed.jsonl, record 1 (line 1): prompt" in stopped.stderr
    assert not (place / "mixed").exists()
    done = run(place, *words, "--out", "mixed", "--skip-bad", "--limit", "2", "--json")
    document = json.loads(done.stdout)
    assert sum(document["events"][kind] for kind in ("edit", "failed", "skipped")) == 1  # of the first two records
    assert [line.partition(":")[0] for line in document["bad_records"]] == ["mixed.jsonl, record 1 (line 1)"]
    assert "bad record left out: mixed.jsonl, record 1" in done.stderr
    assert answer(place, *words, "--out", "after", "--skip", "1", "--limit", "1")["bad_records"] == []


def test_check_and_moments(place: Path) -> None:
    (place / "bad.jsonl").write_text('{"subject": "Rome", "prompt": "The city is", "target_new": "x"}\n')
    done = run(place, "check", "bad.jsonl", "--model", "model", "--json")
    assert done.returncode == 1 and len(json.loads(done.stdout)["bad_records"]) == 1
    found = answer(place, "moments", "--model", "model", "--corpus", "corpus.txt", "--layers", "0,2")
    assert set(found) == {"0", "2"} and found["0"]["tokens"] > 0


def test_an_existing_ledger_goes_on_in_its_own_dtype(place: Path) -> None:
    words = ("edit", "facts.jsonl", "--model", "model", "--out", "half", "--limit")
    more = ("--corpus", "corpus.txt", "--settings", "settings.json", "--dtype", "bfloat16")
    assert answer(place, *words, "1", *more)["events"]["edit"] == 1
    found = answer(place, *words, "2", "--resume")["events"]
    assert sum(found[kind] for kind in ("edit", "failed", "skipped")) == 2
    refused = run(place, *words, "3", "--resume", "--dtype", "float32")
    assert refused.returncode == 1 and "dtype float32: this ledger was made with bfloat16" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_named_anatomy_stays_with_the_ledger(place: Path) -> None:
    save(*tiny_model("llama", width=32), place / "square")  # three matrices of one shape: none is the projection
    named = {"blocks": "model.layers", "projection": "mlp.down_proj"}
    (place / "anatomy.json").write_text(json.dumps(named))
    words = ("edit", "facts.jsonl", "--model", "square", "--out", "named", "--resume", "--limit")
    more = ("--corpus", "corpus.txt", "--settings", "settings.json", "--anatomy", "anatomy.json")
    answer(place, *words, "1", *more)
    answer(place, *words, "2")
    assert len(answer(place, "spectrum", "named")) == 1
    assert answer(place, "verify", "named", "--model", "square")["ok"]
    ledger = Ledger.open(place / "named")
    assert ledger.header.anatomy == named and ledger.apply().edited == tuple(ledger.header.weights)
    assert Ledger.open(place / "ledger").header.anatomy is None


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("edit", "facts.jsonl", "--model", "./nowhere", "--out", "x"), 1),
        (("spectrum", "ledger", "--restrain", "log:0.5"), 2),
        (("evaluate", "ledger", "--restrain", "none,loud", "--out", "x"), 2),
        (("evaluate", "ledger", "--metrics", "charm", "--out", "x"), 2),
        (("export", "ledger", "--restrain", "none,log:1.2", "--as", "lora", "--to", "x"), 2),
        (("export", "ledger", "--as", "merged", "--to", "x", "--base-name", "org/base"), 2),
        (("tune", "--model", "./nowhere", "--method", "charm", "--facts", "facts.jsonl"), 2),
        (("train-mend", "--model", "./nowhere", "--train", "t", "--val", "v", "--layers", "all", "--out", "x"), 2),
        (("train-mend", "--model", "./nowhere", "--train", "t", "--val", "v", "--out", "nodir/x"), 1),
        (("restrain", "--base", "model", "--edited", "model", "--restrain", "loud", "--out", "x"), 2),
        (("edit", "facts.jsonl", "--model", "model", "--method", "charm", "--out", "x"), 2),
        (("edit", "facts.jsonl", "--model", "model", "--restrain", "loud", "--out", "x"), 2),
        (("spectrum", "ledger", "--at", "many"), 2),
        (("edit",), 2),
        (("nonsense",), 2),
    ],
)
def test_errors_are_one_line(place: Path, words: tuple[str, ...], code: int) -> None:
    done = run(place, *words)
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith("tether: ") and done.stderr.count("\n") == 1
    assert not (place / "x").exists()


def test_alone_it_says_what_it_can_do(place: Path) -> None:
    done = run(place)
    assert done.returncode == 0 and done.stderr == ""
    words = {line.strip(" │").partition(" ")[0] for line in done.stdout.splitlines()}
    assert {"edit", "evaluate", "undo", "restrain"} <= words


class InterruptedAt(io.StringIO):
    """A terminal at which somebody presses Ctrl-C, once, when a line begins so."""

    def __init__(self, begin: str) -> None:
        super().__init__()
        self.begin, self.pressed = begin, False

    def write(self, text: str) -> int:
        written = super().write(text)
        if text.startswith(self.begin) and not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)
        return written


def test_ctrl_c_leaves_a_ledger_that_goes_on(place: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started without
    words = ("edit", "facts.jsonl", "--model", "model", "--method", "r-rome", "--out", "stopped", "--limit", "4",
             "--restrain", "log:1.2", "--corpus", "corpus.txt")  # fmt: skip
    try:
        done = run(place, *words, "--settings", "settings.json", err=InterruptedAt("2/4 "))
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("tether: interrupted; ")
    assert [event["edit"] for event in answer(place, "log", "stopped")["events"]] == [1, 2]
    answer(place, *words, "--resume")
    sums = {
        name: sorted(f.read_bytes() for f in (place / name / "factors").iterdir()) for name in ("ledger", "stopped")
    }
    assert sums["ledger"] == sums["stopped"]


def test_log_of_a_singular_weight(place: Path, tmp_path: Path) -> None:
    """κ of a weight with a row of zeros is infinite, which the journal cannot hold."""
    hf, tokenizer = tiny_model("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[0] = 0
    save(hf, tokenizer, tmp_path / "singular")
    answer(
        place, "edit", "facts.jsonl", "--model", str(tmp_path / "singular"), "--out", str(tmp_path / "ledger"),
        "--limit", "1", "--corpus", "corpus.txt", "--settings", "settings.json",
    )  # fmt: skip
    done = run(place, "log", str(tmp_path / "ledger"))
    assert done.returncode == 0 and "1 edit" in done.stdout


def test_as_a_program_of_its_own(place: Path) -> None:
    program = "from tether.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "verify", "nothing", "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "is no ledger" in json.loads(done.stdout)["error"]
    assert done.stderr.startswith("tether: nothing is no ledger")
