"""What of the edits arrives in which engine: the same facts, asked of every form of export.

python bench/deploy.py --facts 20

The edits of each model are asked of transformers with the merged weights, which is what all others are held against; of
peft with the adapter in three dtypes; and, where llama-cpp-python is installed, of llama.cpp with the adapter on the
base file and with the edited file. A fact is alive where every token of its answer is the engine's own choice; the
difference is the largest of any logit where an answer's tokens are read. "no edits" is the engine's own rounding.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

import tether
from tether.cli.demo import demo_facts
from tether.export import export_whole
from tether.export.card import Provenance
from tether.export.loss import asked, logits_of, says
from tether.facts.fact import Fact
from tether.facts.tokens import Continuation
from tether.models import EditableModel
from tether.models.load import gguf_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from core import demo_text, plain_text
from tiny import save, trained_gpt2

DTYPES = ("float32", "bfloat16", "float16")
HEAD = ("model", "engine", "form", "dtype", "edits alive", "largest logit difference")


def models(folder: Path, n: int, names: list[str]) -> Iterator[tuple[str, EditableModel, list[Fact], dict[str, Any]]]:
    """Each model with its facts, and how they are edited into it."""
    if "gpt2" in names:
        made = trained_gpt2()
        model = tether.load(save(made.hf, made.tokenizer, folder / "gpt2"))
        options = {"method": "emmet", "layers": [1], "batch_size": n, "corpus": plain_text()}
        yield "a GPT-2 of 4 blocks (Conv1D, float32)", model, made.facts[:n], options
    if "smollm2" in names:
        options = {"method": "r-rome", "corpus": demo_text(folder)}
        yield "smollm2 (Llama layout, Q4_1)", tether.load("smollm2"), demo_facts(n), options


def in_peft(base: EditableModel, adapter: Path, texts: list[Continuation]) -> list[Tensor]:
    hf = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    return logits_of(
        EditableModel(PeftModel.from_pretrained(hf, str(adapter)).merge_and_unload(), base.tokenizer), texts
    )


def in_llama_cpp(file: Path, adapter: Path | None, texts: list[Continuation]) -> list[Tensor]:
    from llama_cpp import Llama

    llama = Llama(
        str(file), lora_path=adapter and str(adapter), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True,
        verbose=False, type_k=0, type_v=0,
    )  # fmt: skip
    found = []
    for text in texts:
        llama.reset()
        llama.eval(text.ids[:-1])
        found.append(torch.tensor(llama.scores[text.start - 1 : len(text.ids) - 1]))
    llama.close()
    return found


def rows(name: str, model: EditableModel, ledger: tether.Ledger, folder: Path) -> Iterator[tuple[str, ...]]:
    texts = asked(model, [fact for _, fact in ledger.facts()])

    def row(engine: str, form: str, dtype: str, found: list[Tensor], expected: list[Tensor]) -> tuple[str, ...]:
        alive = sum(says(one, text) for one, text in zip(found, texts, strict=True))
        apart = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        return name, engine, form, dtype, f"{alive} of {len(texts)}", "0" if found is expected else f"{apart:.1e}"

    with model.unedited():
        plain = logits_of(model, texts)
    ledger.apply(model)
    merged = logits_of(model, texts)
    yield row("transformers", "no edits", "float32", plain, plain)
    yield row("transformers", "merged", "float32", merged, merged)
    for dtype in DTYPES:
        ledger.export(model, folder / f"lora-{dtype}", as_="lora", adapter_dtype=dtype)
        yield row("peft", "lora", dtype, in_peft(model, folder / f"lora-{dtype}", texts), merged)
    if util.find_spec("llama_cpp") is None:
        return
    base = gguf_file(model)
    if base is None:
        with model.unedited():
            export_whole("gguf", model, folder / "base", Provenance(model.id, "none", {}, "none", [], [], {}))
        base = folder / "base" / "model.gguf"
    yield row("llama.cpp", "no edits", "as the file", in_llama_cpp(base, None, texts), plain)
    for dtype in DTYPES:
        ledger.export(model, folder / f"gguf-{dtype}", as_="gguf-lora", adapter_dtype=dtype)
        adapter = folder / f"gguf-{dtype}" / "adapter.gguf"
        yield row("llama.cpp", "gguf-lora", dtype, in_llama_cpp(base, adapter, texts), merged)
    ledger.export(model, folder / "whole", as_="gguf")
    yield row("llama.cpp", "gguf", "float32", in_llama_cpp(folder / "whole" / "model.gguf", None, texts), merged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--models", default="gpt2,smollm2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| " + " | ".join(HEAD) + " |\n" + "| --- " * len(HEAD) + "|", flush=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for index, (name, model, facts, how) in enumerate(models(folder, options.facts, options.models.split(","))):
            ledger = tether.edit(model, facts, out=folder / f"ledger-{index}", **how)
            for cells in rows(name, model, ledger, folder / f"out-{index}"):
                print("| " + " | ".join(cells) + " |", flush=True)
                gc.collect()


if __name__ == "__main__":
    main()
