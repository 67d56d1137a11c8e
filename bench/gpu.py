"""The whole path on an accelerator: a random model with the sizes of Llama 2 7B, made on the device, edited by ROME and
MEMIT, restrained, undone and evaluated. First the device is held against the CPU at a small size.

python bench/gpu.py | tee results/gpu/CARD.txt
python bench/gpu.py --device cpu --hidden 64 --width 176 --layers 4 --heads 4 --vocab 600 --dtype float32 \
    --words 1024 --steps 4 --batches 1 3 --matmul 256

Weights are random, so nothing is said of quality. "share" is the arithmetic done (products as torch's FlopCounterMode
counts them, n³/3 of a Cholesky factorisation) over what the device does in the same seconds at the rate of the large
matrix product measured at the start, of the same dtype.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import table, where
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import tether
from tether.algebra.lowrank import LowRank
from tether.algebra.precision import has_float64
from tether.data import text
from tether.editors import Context, editor
from tether.editors.corpus import Corpus
from tether.editors.moments import Moments, moments
from tether.editors.settings import settings_for
from tether.facts.fact import Fact
from tether.models import EditableModel
from tether.models.sampling import sample_prefixes

SMALL = {"hidden": 64, "width": 176, "layers": 4, "heads": 4, "vocab": 600}
EDITED = ("rome", "memit")


def tokenizer_of(words: str, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, made from the words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([words], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>")


def random_model(sizes: dict[str, int], dtype: torch.dtype, device: torch.device) -> EditableModel:
    """A Llama with random weights, made on the device."""
    config = AutoConfig.for_model(
        "llama", hidden_size=sizes["hidden"], intermediate_size=sizes["width"], num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"], num_key_value_heads=sizes["heads"], vocab_size=sizes["vocab"],
        max_position_embeddings=4096, initializer_range=sizes["hidden"] ** -0.5, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return EditableModel(hf, tokenizer_of(text("plain_text.txt"), min(sizes["vocab"], 8000)), id="random")


def random_facts(number: int) -> list[Fact]:
    """Facts of invented subjects, all different."""
    draw = random.Random(0)
    words = sorted({word for word in text("plain_text.txt").split() if word.isalpha() and len(word) > 3})
    names = [f"{draw.choice(words).title()} {draw.choice(words).title()} {n}" for n in range(number)]
    targets = [draw.choice(words) for _ in names]
    return [
        Fact(subject=name, prompt="The capital of {} is", target_new=target, paraphrases=(f"In {name} one visits",))
        for name, target in zip(names, targets, strict=True)
    ]


def random_text(folder: Path, words: int) -> Path:
    """Words in random order, so that no two keys are the same."""
    draw, known = random.Random(1), text("plain_text.txt").split()
    file = folder / "text.txt"
    file.write_text(" ".join(draw.choices(known, k=words)), encoding="utf-8")
    return file


@dataclass
class Bench:
    """Seconds, memory and arithmetic of what runs on one device, as rows of a table."""

    device: torch.device
    size: int
    peaks: dict[torch.dtype, float] = field(default_factory=dict)  # operations a second
    rows: list[list[str]] = field(default_factory=list)

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def memory(self) -> float:
        """The most that was in use since the last measurement began, in GiB; of the process, on a CPU."""
        if self.device.type != "cpu":
            return torch.accelerator.max_memory_allocated(self.device) / 2**30
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)
        self.wait()
        start = time.perf_counter()
        found = work()
        self.wait()
        return time.perf_counter() - start, found

    def measure_peak(self, dtype: torch.dtype) -> None:
        """The best of five products of two square matrices."""
        a, b = (torch.randn(self.size, self.size, device=self.device).to(dtype) for _ in range(2))
        a @ b
        seconds = min(self.timed(lambda: a @ b)[0] for _ in range(5))
        self.peaks[dtype] = 2 * self.size**3 / seconds

    def row(
        self, what: str, work: Callable[[], Any], *, of: int = 1, operations: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:  # fmt: skip
        """Time `work`, which is `of` edits, and print its row; returns what it found."""
        seconds, found = self.timed(work)
        rate = self.peaks.get(dtype) if dtype else None
        done = "" if operations is None else f"{operations / 1e12:.3g}"
        share = "" if operations is None or rate is None else f"{100 * operations / seconds / rate:.1f}"
        self.rows.append([what, f"{seconds:.3g}", f"{seconds / of:.3g}", f"{self.memory():.2f}", done, share])
        return found


def counted(work: Callable[[], Any]) -> float:
    """Floating-point operations of the products that `work` does."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def context_of(model: EditableModel, method: str, steps: int, found: dict[int, Moments], memory: float) -> Context:
    hparams, _ = settings_for(method, model)
    changes: dict[str, Any] = {"loss_threshold": 0.0, "v_num_grad_steps": steps, "v_lr": 0.1, "moments_ridge": 1e-2}
    changes |= {"memory_gb": memory} if method == "memit" else {}
    hparams = hparams.model_copy(update=changes)
    return Context(hparams, sample_prefixes(model, hparams.prefixes, 0), {one: found[one] for one in hparams.layers})


def layers_of(model: EditableModel) -> list[int]:
    return sorted({layer for method in EDITED for layer in settings_for(method, model)[0].layers})


def proposals(model: EditableModel, facts: list[Fact], found: dict[int, Moments], steps: int) -> list[LowRank]:
    """The updates of a ROME edit and of a MEMIT batch."""
    rome, memit = (context_of(model, method, steps, found, 0.5) for method in EDITED)
    one = editor("rome").propose(model, facts[0], rome)
    many = editor("memit").propose_batch(model, facts, memit)
    return [*one.updates.values(), *many.proposal.updates.values()]


def held_against_the_cpu(device: torch.device, folder: Path) -> None:
    """The same weights on both: moments, ROME and MEMIT in float32. Ends the run where they differ."""
    cpu = random_model(SMALL, torch.float32, torch.device("cpu"))
    there = EditableModel(copy.deepcopy(cpu.hf).to(device), cpu.tokenizer, id="random")
    corpus, facts = Corpus.parse(random_text(folder, 4000), max_tokens=2048), random_facts(3)
    of_both = [
        moments(model, layers_of(model), corpus, cache=folder / name) for name, model in (("c", cpu), ("d", there))
    ]
    rows = []
    for layer, expected in of_both[0].items():
        rows.append((f"moments of layer {layer}", of_both[1][layer].C, expected.C, 1e-4))
    both = [proposals(model, facts, found, 10) for model, found in zip((cpu, there), of_both, strict=True)]
    for number, (expected, found) in enumerate(zip(*both, strict=True)):
        what = "ROME, ΔW" if number == 0 else f"MEMIT, ΔW of its layer {number}"
        rows.append((what, found.to("cpu").to_dense(), expected.to_dense(), 1e-2))
    differences = [(what, float((a - b).norm() / b.norm()), limit) for what, a, b, limit in rows]
    print("The device against the CPU, float32, hidden size 64: relative differences\n")
    table(["what", "difference"], [[what, f"{difference:.1e}"] for what, difference, _ in differences])
    bad = [what for what, difference, limit in differences if not difference < limit]
    if bad:  # bench/README.md: no time of what is not the same
        raise SystemExit(f"{', '.join(bad)}: not the same as on the CPU, so no time is measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="by default the accelerator, else the CPU")
    parser.add_argument("--dtype", default="bfloat16")
    for name, value in (("hidden", 4096), ("width", 11008), ("layers", 32), ("heads", 32), ("vocab", 32000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--words", type=int, default=32768, help="of text for the moments; more than --width")
    parser.add_argument("--steps", type=int, default=25, help="for δ, all forced")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 100], help="facts in a batch of MEMIT")
    parser.add_argument("--memory", type=float, default=8, help="GB for the steps of a micro-batch of MEMIT")
    parser.add_argument("--matmul", type=int, default=8192, help="side of the matrices of the peak")
    args = parser.parse_args()
    device = torch.device(args.device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    dtype: torch.dtype = getattr(torch, args.dtype)

    card = "CPU" if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
    print(f"{card}; ", end="")
    where("random")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TETHER_CACHE"] = name  # moments of a random model are of no use to anybody
        held_against_the_cpu(device, folder)
        bench = Bench(device, args.matmul)
        for one in dict.fromkeys((dtype, torch.float32, torch.float64)):
            if one != torch.float64 or has_float64(device):
                bench.measure_peak(one)
        rates = ", ".join(f"{str(one).removeprefix('torch.')} {rate / 1e12:.3g}" for one, rate in bench.peaks.items())
        print(f"\nA product of two {args.matmul}×{args.matmul} matrices, 10¹² operations a second: {rates}\n")
        sizes = {name: getattr(args, name) for name in SMALL}
        model = bench.row("weights, made on the device", lambda: random_model(sizes, dtype, device))
        measure(bench, model, args, folder, dtype)
    numbers = sum(parameter.numel() for parameter in model.hf.parameters())
    print(f"{numbers / 1e9:.3g}·10⁹ numbers in {args.dtype}, {args.steps} steps for δ\n")
    table(["what", "s", "s an edit", "peak memory GiB", "10¹² operations", "share of the limit %"], bench.rows)


def measure(bench: Bench, model: EditableModel, args: argparse.Namespace, folder: Path, dtype: torch.dtype) -> None:
    """All rows but that of the weights."""
    facts, layers = random_facts(max(args.batches)), layers_of(model)
    corpus = Corpus.parse(random_text(folder, args.words))
    bench.row("sha256 of all weights", model.fingerprint)
    before = {layer: model.weight(model.weight_name(layer)).clone() for layer in layers}
    work = counted(lambda: moments(model, layers, corpus, cache=folder / "counted"))
    found = bench.row(
        f"moments of {len(layers)} layers, {args.words} words",
        lambda: moments(model, layers, corpus), operations=work, dtype=dtype,
    )  # fmt: skip
    key = torch.randn(args.width, device=bench.device)
    bench.row(
        "Cholesky factor of one C, and C⁻¹k", lambda: found[layers[0]].solve(key, ridge=2e-2),
        operations=args.width**3 / 3, dtype=torch.float64,
    )  # fmt: skip

    rome, memit = (context_of(model, method, args.steps, found, args.memory) for method in EDITED)
    one = editor("rome")
    work = counted(lambda: one.propose(model, facts[0], rome))  # and a first time, so that what is kept is there
    bench.row("ROME, one edit", lambda: one.propose(model, facts[0], rome), operations=work, dtype=dtype)
    many = editor("memit")
    for size in args.batches:
        batch = facts[:size]
        work = counted(lambda batch=batch: many.propose_batch(model, batch, memit))
        bench.row(
            f"MEMIT, a batch of {size}", lambda batch=batch: many.propose_batch(model, batch, memit), of=size,
            operations=work, dtype=dtype,
        )  # fmt: skip

    number = min(10, len(facts))
    how: dict[str, Any] = {
        "method": "memit", "corpus": corpus.path, "on_alarm": "warn", "batch_size": 1,
        "settings": memit.hparams.model_dump(mode="json"),
    }  # fmt: skip
    ledger = bench.row(
        f"{number} edits of MEMIT, one by one, into a ledger, its making and health included",
        lambda: tether.edit(model, facts[:number], out=folder / "ledger", **how), of=number,
    )  # fmt: skip
    live = {name: model.weight(name).clone() for name in ledger.header.weights}
    bench.row("replay of the ledger", lambda: ledger.apply(model))
    if not all(torch.equal(model.weight(name), weight) for name, weight in live.items()):
        raise SystemExit("a replay does not give the bits of the live run")
    bench.row("PRUNE log:1.2 of the sums, and applied", lambda: ledger.apply(model, restrain="log:1.2"))
    bench.row("perplexity and the facts", lambda: tether.evaluate(model, facts[:number], abilities=["perplexity"]))
    live_edits = [event.edit for event in ledger.live()]
    ledger.undo(*live_edits[:1])
    bench.row("undo of one edit, applied", lambda: ledger.apply(model))
    if live_edits[1:]:
        ledger.undo(*live_edits[1:])
    ledger.apply(model)
    if not all(torch.equal(model.weight(model.weight_name(layer)), weight) for layer, weight in before.items()):
        raise SystemExit("after the undo of all edits a weight does not have its own bits")


if __name__ == "__main__":
    main()
