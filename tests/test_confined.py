"""Confined fine-tuning: trained through the whole model, inside the directions of one solve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from core import FACTS, bits, editable, plain_text, same_bits

from tether.editing.prepare import recorded_moments, recorded_settings
from tether.editing.run import edit
from tether.editors.bystanders import bystander_prompts
from tether.editors.bystanders import keys_of as keys_at
from tether.editors.keep import Keeper, seed_of
from tether.ledger import Ledger
from tether.models import EditableModel

LAYOUTS = ["llama", "gpt2"]
PHRASED = [
    FACTS[0].model_copy(update={"phrasings": ("Who visits the {} is in", "Where is {}?"), "kind": "building"}),
    FACTS[1].model_copy(update={"kind": "person"}),
    FACTS[4].model_copy(update={"phrasings": ("{} is ruled from",), "kind": "country"}),
]
SETTINGS = {
    "layers": [1, 2], "lr": 0.3, "epochs": 30, "rows": 3, "mom2_update_weight": 0.5, "keep": 0, "keep_subjects": 2,
    "keep_pieces": 2, "keep_length": 16, "bystanders": 2, "moments_ridge": 0.1,
}  # fmt: skip


def edited(model: EditableModel, out: Path, **changes: Any) -> Ledger:
    settings = {**SETTINGS, **changes}
    return edit(model, PHRASED, out=out, method="confined", batch_size=3, settings=settings, corpus=plain_text())


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_facts_get_likelier_inside_the_solve(family: str, tmp_path: Path) -> None:
    model = editable(family)
    before = bits(model)
    ledger = edited(model, tmp_path / "ledger")
    assert [(e.kind, e.column, e.columns) for e in ledger.events] == [
        ("edit", 0, 3), ("edit", 3, None), ("edit", 4, 2),
    ]  # fmt: skip
    losses = [(e.record["loss_first"], e.record["loss_last"]) for e in ledger.events]
    assert all(last < 0.7 * first for first, last in losses), losses
    # Of every layer the right factors are those of MEMIT's solve for the prompts' keys, of the model before the batch.
    moments, prompts = recorded_moments(model, ledger.header), bystander_prompts(model, PHRASED, 2)
    tensors = ledger.tensors(ledger.events[0])
    with model.unedited():
        others = keys_at(model, prompts, [1, 2])
    for layer in (1, 2):
        name, B = model.weight_name(layer), others[layer]
        K = tensors[f"{name}/K"].double()
        C = moments[layer].C + 0.1 * moments[layer].C.diagonal().mean() * torch.eye(K.shape[1], dtype=torch.float64)
        dense = 0.5 * (C + B.mT @ B / len(B)) + K.mT @ K
        torch.testing.assert_close(
            tensors[f"{name}/B"].double(), torch.linalg.solve(dense, K.mT).mT, rtol=1e-3, atol=1e-5
        )
        # The undo of a fact leaves the same trained R on the solve without its keys.
        left = K[3:]
        R = tensors[f"{name}/A"].double()[:, 3:]
        G = torch.linalg.solve(dense - K[:3].mT @ K[:3], left.mT).mT
        ledger.undo(1)
        torch.testing.assert_close(ledger.sums(model=model).of[name].dense.double(), R @ G, rtol=2e-3, atol=1e-5)
        ledger.redo(1)
    ledger.undo(1, 2, 3)
    assert same_bits(ledger.apply(model), before)


def test_the_keep_term_holds_what_others_are_told(tmp_path: Path) -> None:
    kl = {}
    for keep in (0, 20):
        model = editable("llama")
        ledger = edited(model, tmp_path / str(keep), keep=keep)
        hparams = recorded_settings(ledger.header)
        with model.unedited():
            keeper = Keeper(model, PHRASED, hparams, seed_of(PHRASED))
        with torch.no_grad():
            kl[keep] = float(sum(keeper.loss(step) for step in range(3)))
    assert kl[20] < 0.6 * kl[0]
