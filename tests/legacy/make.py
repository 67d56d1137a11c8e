"""Made the files beside it with version 0.1.0; kept to say how.

    PYTHONPATH=src:tests python tests/legacy/make.py

It runs with that version alone, and makes nothing where the files are there already.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TETHER_CACHE"] = tempfile.mkdtemp()
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from core import FACTS
from safetensors.torch import save_file
from tether.evaluate.results import write
from tether.header import new_header, trained_editor
from tether.model import EditableModel
from tether.restraint import parse
from tiny import save, tiny_model

import tether
from tether.facts.fact import Fact, LocalityPrompt
from tether.ledger import EditorRecord, Ledger

ROME: dict[str, Any] = {
    "layers": [0], "v_num_grad_steps": 20, "v_lr": 0.5, "v_weight_decay": 0.01, "clamp_norm_factor": 4.0,
    "kl_factor": 0.0625, "prefixes": [{"length": 3, "number": 2}],
}  # fmt: skip
MEMIT: dict[str, Any] = {**ROME, "layers": [0, 1], "mom2_update_weight": 0.5}
MEND: dict[str, Any] = {
    "layers": [1, 2], "rank": 4, "edit_lr": 0.05, "lr": 1e-3, "lr_lr": 1e-4, "accumulate": 2, "steps": 8,
    "validate_every": 4, "validation": 5, "statistics": 5,
}  # fmt: skip
TEXT = "The Eiffel Tower is in the city of Paris. The Space Needle is in Seattle, and Big Ben is in London.\n" * 40


def with_prompts(index: int) -> Fact:
    """A fact of the tests with a paraphrase and, as locality prompt, another fact's."""
    fact, other = FACTS[index], FACTS[(index + 1) % 5]
    return fact.model_copy(
        update={
            "paraphrases": (f"I think that you know: {fact.text}",),
            "locality": (LocalityPrompt(prompt=other.text, target="London" if index % 2 else "Paris"),),
        }
    )


def made_model() -> EditableModel:
    """The model in `model`. Its edited weights are larger than a random start, so that log:1.2 acts right above m."""
    hf, tokenizer = tiny_model("llama", n_layers=3, hidden=16, width=40)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.mlp.down_proj.weight.mul_(4)
    save(hf, tokenizer, Path("model"))
    model = tether.load("model", device="cpu")
    model.id = "model"  # as it is named from here, wherever here is
    return model


def mend_ledger(model: EditableModel) -> None:
    """An empty ledger that names its editor as from here."""
    tether.train_mend(model, "facts.jsonl", "facts.jsonl", "editor.safetensors", settings="mend.json")
    Path("editor.safetensors.training").unlink()
    trained = trained_editor(model, "mend", "editor.safetensors", None)
    assert trained is not None
    header = new_header(model, "mend", parse("none"), None, 0, None, None, None, trained)
    record = EditorRecord(path="editor.safetensors", sha256=trained.sha256)
    Ledger.create("mend", header.model_copy(update={"editor": record}))


def main() -> None:
    os.chdir(Path(__file__).parent)
    if version("tether") != "0.1.0" or Path("model").exists():
        raise SystemExit("the files are made once, by version 0.1.0")
    torch.set_num_threads(1)
    model = made_model()
    facts = [with_prompts(index) for index in range(5)]
    Path("facts.jsonl").write_text("".join(fact.model_dump_json() + "\n" for fact in facts))
    for name, settings in {"rome": ROME, "memit": MEMIT, "mend": MEND}.items():
        Path(f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n")

    def edit(method: str, **how: Any) -> Ledger:
        model.clear_updates()
        ledger = tether.edit(model, facts, out=method, method=method, **how)
        model.clear_updates()
        return ledger

    rome = edit("rome", settings="rome.json", corpus="self", restrain="log:1.2", every=2)
    write(
        tether.evaluate_ledger(rome, model, at=[0, 2, 5], restraints=(None, "none"), text=TEXT, limit=2),
        "results.json",
    )
    rome.undo(3)
    memit = edit("memit", settings="memit.json", corpus="self", restrain="linear:2", batch_size=3)
    memit.undo(2)
    mend_ledger(model)
    mend = edit("mend", editor="editor.safetensors")

    tensors, expected = {}, {}
    for ledger in (rome, memit, mend):
        for restrain, label in ((None, "recorded"), ("none", "none")):
            ledger.apply(model, restrain=restrain)
            for name in ledger.header.weights:
                update = model.update(name)
                assert update is not None
                tensors[f"{ledger.path}/{name}/{label}"] = update.float().contiguous()
        model.clear_updates()
        rows = [row for how in (None, "none") for row in ledger.spectrum(model, at=[0, 2, 5], restrain=how)]
        expected[str(ledger.path)] = {
            "head": ledger.head, "verify": ledger.verify(model), "live": [event.edit for event in ledger.live()],
            "undone": sorted(ledger.undone), "spectrum": [asdict(row) for row in rows],
        }  # fmt: skip
    save_file(tensors, "expected.safetensors")
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for lock in Path().glob("*/ledger.lock"):
        lock.unlink()


if __name__ == "__main__":
    main()
