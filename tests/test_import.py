"""Anybody's edited or fine-tuned checkpoint as a ledger, and all that a ledger serves for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import answer, run
from core import FACTS, bits, close, editable, random_update, same_bits
from tiny import save
from torch import Tensor

import tether
from tether.errors import BadSettingsError, WrongModelError
from tether.ledger import Ledger
from tether.models import EditableModel

LAYOUTS = ["llama", "gpt2"]
RANKS = (3, 2)


def fine_tuned(family: str, *, others: bool = False, dtype: torch.dtype = torch.float32) -> EditableModel:
    """The model of `editable` with two linear weights changed, by updates of ranks RANKS; and a norm, where asked."""
    model = editable(family, dtype=dtype)
    for (layer, rank), scale in zip(enumerate(RANKS), (4.0, 2.0), strict=True):
        name = model.weight_name(layer)
        model.set_update(name, random_update(*model.weight(name).shape, rank, seed=layer, scale=scale).to_dense())
    if others:
        norm = next(n for n, p in model.hf.named_parameters() if (p.ndim == 1 and "norm" in n) or "ln_" in n)
        with torch.no_grad():
            model.hf.get_parameter(norm).add_(0.5)
    return model


def weights(model: EditableModel) -> dict[str, Tensor]:
    return {model.weight_name(layer): model.weight(model.weight_name(layer)).clone() for layer in range(model.n_layers)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", LAYOUTS)
def test_an_imported_checkpoint_is_a_ledger_with_an_edit_a_weight(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base, edited = editable(family, dtype=dtype), fine_tuned(family, dtype=dtype)
    before, unedited = bits(base), weights(base)
    ledger = tether.import_checkpoint(base, edited, tmp_path / "ledger")
    assert same_bits(base, before), "the base stays as it is"
    events = ledger.live()
    assert [e.fact for e in events] == [None, None] and list(ledger.header.weights) == list(unedited)[:2]
    half = dtype == torch.bfloat16
    if not half:
        assert [e.record["rank"] for e in events] == list(RANKS)
    assert all(e.record["error"] < (0.02 if half else 1e-5) for e in events)
    ledger.verify(base)
    after = weights(ledger.apply(editable(family, dtype=dtype)))
    for name, W in weights(edited).items():
        # Of bfloat16: what rounding made is not kept, so a value may be its neighbour.
        assert close(after[name].float(), W.float(), 4e-3 if half else 1e-6)
    ledger.undo(1)
    undone = weights(ledger.apply(editable(family, dtype=dtype)))
    first, second = ledger.header.weights
    assert torch.equal(undone[first], unedited[first]) and torch.equal(undone[second], after[second])
    ledger.redo(1)
    assert all(torch.equal(after[name], W) for name, W in weights(ledger.apply(base)).items())


def test_a_rank_truncates_and_says_what_was_lost(tmp_path: Path) -> None:
    base, edited = editable("llama"), fine_tuned("llama")
    ledger = tether.import_checkpoint(base, edited, tmp_path / "ledger", rank=2)
    one, two = ledger.live()
    name = base.weight_name(0)
    s = torch.linalg.svdvals((edited.weight(name) - base.weight(name)).double())
    assert one.record["rank"] == two.record["rank"] == 2 and two.record["error"] < 1e-5
    assert one.record["error"] == pytest.approx(float(s[2] / s.norm()), rel=1e-3)


def test_what_a_ledger_cannot_hold_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    base, edited = editable("llama"), fine_tuned("llama", others=True)
    refused = [
        (base, edited, {}, WrongModelError, r"differs from .* in \S*layernorm\S*: a ledger holds .*--skip-others"),
        (base, editable("llama"), {}, WrongModelError, "nothing to import"),
        (base, editable("gpt2"), {}, WrongModelError, "do not have the same parameters"),
        (fine_tuned("llama"), edited, {}, WrongModelError, "the base carries edits"),
        (base, edited, {"rank": 0}, BadSettingsError, "rank 0"),
    ]
    for one, other, options, kind, said in refused:
        with pytest.raises(kind, match=said) as error:
            tether.import_checkpoint(one, other, tmp_path / "ledger", **options)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    ledger = tether.import_checkpoint(base, edited, tmp_path / "ledger", skip_others=True)
    assert len(ledger.live()) == 2 and "norm" in ledger.header.settings["skipped"][0]
    with pytest.raises(BadSettingsError, match="holds an imported checkpoint"):
        tether.edit(base, FACTS[:1], out=tmp_path / "ledger")


def test_every_verb_takes_an_imported_ledger(tmp_path: Path) -> None:
    for model, folder in ((editable("llama"), "base"), (fine_tuned("llama"), "edited")):
        save(model.hf, model.tokenizer, tmp_path / folder)
    made = answer(tmp_path, "import", "--base", "base", "--edited", "edited", "--out", "ledger")
    assert [(one["edit"], one["rank"]) for one in made["weights"]] == [(1, 3), (2, 2)] and made["skipped"] == []
    said = run(tmp_path, "log", "ledger").stdout
    assert "import: the difference of edited to the model" in said
    assert "    1 edit model.layers.0.mlp.down_proj.weight of edited, rank 3 | ‖ΔW‖" in said
    assert answer(tmp_path, "verify", "ledger", "--model", "base")["kinds"] == {"edit": 2}
    plain, held = (
        answer(tmp_path, "spectrum", "ledger", "--restrain", restraint)[0] for restraint in ("none", "linear:20")
    )
    assert plain["extremes"]["update_sigma_max"] == pytest.approx(4.0, rel=1e-4)
    assert held["extremes"]["update_sigma_max"] < plain["extremes"]["update_sigma_max"]
    assert answer(tmp_path, "undo", "ledger", "2")["live_edits"] == 1
    assert answer(tmp_path, "redo", "ledger", "2")["live_edits"] == 2
    answer(tmp_path, "export", "ledger", "--to", "merged", "--as", "merged")
    again, edited = (weights(tether.load(tmp_path / folder)) for folder in ("merged", "edited"))
    assert all(close(again[name], W, 1e-6) for name, W in edited.items())
    adapter = answer(tmp_path, "export", "ledger", "--to", "adapter", "--as", "lora", "--restrain", "linear:20")
    assert [one["rank"] for one in adapter["adapter"]["weights"]] == [3, 2]
    assert answer(tmp_path, "whose", "merged", "--ledger", "ledger")["ledgers"] == {"ledger": 0}
    picked = answer(tmp_path, "pick", "ledger", "2", "--out", "second")
    assert picked["edits"] == [2] and len(Ledger.open(tmp_path / "second").header.weights) == 2
    assert [e["reason"] for e in answer(tmp_path, "log", "--diff", "ledger", "second")["only_a"]] == [
        "model.layers.0.mlp.down_proj.weight of edited, rank 3"
    ]
    # An adapter comes in as well; of a folder without facts, those of a file are what is measured.
    answer(tmp_path, "import", "--base", "base", "--edited", "adapter", "--out", "from-adapter")
    facts = [FACTS[0].model_dump_json(exclude_none=True), FACTS[1].model_dump_json(exclude_none=True)]
    (tmp_path / "facts.jsonl").write_text("\n".join(facts))
    words = ("evaluate", "ledger", "--at", "0,1,2", "--abilities", "", "--metrics", "match", "--bystanders", "0")
    found = answer(tmp_path, *words, "--facts", "facts.jsonl", "--out", "results.json")
    rows = {row["edits"]: row for row in found["rows"]}
    assert {edits: row["editing"]["match_tokens"]["efficacy"]["n"] for edits, row in rows.items()} == {0: 2, 1: 2, 2: 2}
    assert [len(row["spectrum"]) for row in rows.values()] == [2, 2, 2]
    assert answer(tmp_path, *words, "--out", "bare.json")["rows"][0]["editing"]["match_tokens"]["efficacy"]["n"] == 0
    page = tmp_path / answer(tmp_path, "report", "results.json")["report"]
    assert "model.layers.0.mlp.down_proj.weight of edited, rank 3" in page.read_text("utf-8")
    assert json.loads((tmp_path / "merged" / "manifest.json").read_text())["method"] == "import"
