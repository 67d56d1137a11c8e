"""What grows with the number of edits: opening, verifying and applying a ledger, its spectrum, and the next edit.

    python bench/growth.py [--events 10000] [--spectrum-events N] [--edit-at 20,2000] [--large] [--threads 1]

The edits are made up, of rank 1 on one 576×1536 weight of a random model with two blocks (with --large on a 4096×11008
weight of one block). An edit's time is what tether adds to it: the method proposes at once. Every tenth edit reads the
small text as well, which is the top of the range. Files are read right after they were written, so from memory.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import CLOCKS, spread, table, where
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import tether
from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Spectrum
from tether.editors import editor
from tether.editors.base import Proposal
from tether.facts.fact import Fact
from tether.ledger import Attempt, Header, Ledger, WeightRecord
from tether.models import EditableModel
from tether.storage.versions import versions

M = 8.0  # σ_max of the unedited weight, as in an early layer of a 7B model
Factors = Callable[[int], tuple[Tensor, Tensor]]
Clock = Callable[[], float]
RESTRAINTS = ("none", "log:1.2")

# --- the library, as far as it is used --------------------------------------------------------------------------------


def editable(hf: Any, tokenizer: Any) -> EditableModel:
    return EditableModel(hf, tokenizer, id="random")


def new_ledger(folder: Path, model: EditableModel, name: str) -> Ledger:
    """An empty ledger of ROME over one weight."""
    p, q = model.weight(name).shape
    settings = {
        "layers": [0], "v_num_grad_steps": 1, "v_lr": 0.5, "v_weight_decay": 0.001, "clamp_norm_factor": 4,
        "kl_factor": 0.0625, "prefixes": [],
    }  # fmt: skip
    header = Header(
        created="2026-01-01T00:00:00.000+00:00", model=model.id, fingerprint=model.fingerprint([name]), dtype="float32",
        weights={name: WeightRecord(shape=(p, q), sigma_max=Spectrum(model.original(name)).sigma_max)}, method="rome",
        settings=settings, settings_origin="the benchmark", prefixes=(), moments={}, corpus={}, seed=0,
        threads=torch.get_num_threads(), restrain="none", every=None, versions=versions(),
    )  # fmt: skip
    return Ledger.create(folder, header)


def fill(ledger: Ledger, name: str, factors: Factors, events: int) -> None:
    """Append made-up edits as the loop of edits does, without waiting for the disk."""
    with mock.patch("os.fsync"), ledger.writing():
        for number in range(events):
            A, B = factors(number)
            ledger.append([Attempt("edit", a_fact(number), RECORD)], {name: LowRank(A, B)}, vectors(name, A, B))


def timed_edits(
    model: EditableModel, folder: Path, name: str, factors: Factors, facts: Sequence[Fact], first: int, clock: Clock
) -> list[float]:
    """Seconds from the end of each edit to the end of the next, by a method that proposes at once."""
    ready = iter([factors(first + i) for i in range(len(facts))])

    def propose(*_: Any) -> Proposal:
        A, B = next(ready)
        return Proposal({name: LowRank(A, B)}, vectors(name, A, B), {"loss_first": 5.0, "loss_last": 0.04, "steps": 9})

    ends: list[float] = []
    with mock.patch.object(type(editor("rome")), "propose", propose):
        tether.edit(model, facts, out=folder, progress=lambda _: ends.append(clock()))
    return [after - before for before, after in itertools.pairwise(ends)]


# --- what is edited ---------------------------------------------------------------------------------------------------

RECORD = {
    "loss_first": 5.0123456789, "loss_last": 0.0412345678, "steps": 9.0, "delta_norm": 12.345678901, "v0_norm": 3.14159,
    "norm": 1.2345678901, "health": "ok", "reasons": [], "sigma_max": 8.1234567891, "sigma_min": 0.2345678912,
    "kappa": 34.567891234, "kappa_ratio": 1.0123456789, "update_sigma_max": 2.3456789123, "update_ratio": 0.293209864,
    "seconds": 1.2345678912,
}  # fmt: skip


def a_fact(number: int) -> Fact:
    return Fact(subject=f"Subject {number}", prompt="The {} is in the city of", target_new=f"Place {number % 97}")


def vectors(name: str, A: Tensor, B: Tensor) -> dict[str, Tensor]:
    return {f"{name}/K": B[0].clone(), f"{name}/V": A[:, 0].clone()}


def random_factors(p: int, q: int, events: int) -> Factors:
    """Factors of edit i, the same for the same i. The sum of so many has a σ̂_max of about three times m."""
    norm = 3 * M / (1 + events**0.5 * (p**-0.5 + q**-0.5))

    def factors(number: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(number)
        a, b = torch.randn(p, 1, generator=random), torch.randn(1, q, generator=random)
        return a * (norm / a.norm()), b / b.norm()

    return factors


def random_model(p: int, q: int, blocks: int) -> EditableModel:
    """A Llama with random weights; the first block's output projection has σ_max M."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<s>", *letters])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=len(letters) + 1, hidden_size=p, intermediate_size=q, num_hidden_layers=blocks,
        num_attention_heads=p // 64, max_position_embeddings=1024, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        weight = hf.model.layers[0].mlp.down_proj.weight
        weight.normal_().mul_(M / (p**0.5 + q**0.5))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
    return editable(hf, fast)


# --- the measurements -------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, help="edits of the ledger that is opened, verified and applied")
    parser.add_argument("--spectrum-events", type=int, help="edits of the ledger whose spectrum is taken; 0: none")
    parser.add_argument("--edit-at", default="", help="numbers of edits around which edits are timed; 0: none")
    parser.add_argument("--around", type=int, default=20, help="edits that are timed there")
    parser.add_argument("--large", action="store_true", help="4096×11008, with 300 edits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a shared machine, with one thread")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]
    logging.disable(logging.WARNING)  # the health of made-up edits
    p, q, blocks = (4096, 11008, 1) if args.large else (576, 1536, 2)
    events = args.events or (300 if args.large else 10_000)
    points = events if args.spectrum_events is None else args.spectrum_events
    edits_at = [int(n) for n in (args.edit_at or ("20,200" if args.large else "20,2000")).split(",") if int(n)]

    where()
    print(
        f"tether {versions()['tether']}, {p}×{q}, edits of rank 1, {args.threads} thread(s), {args.clock} time\n",
        flush=True,
    )
    model = random_model(p, q, blocks)
    name = model.weight_name(0)
    factors = random_factors(p, q, max([events, *edits_at]))
    rows: list[list[str]] = []

    def row(what: str, edits: str, value: str) -> None:
        """One line as soon as it is known, on stderr; the table comes last."""
        rows.append([what, edits, value])
        print(f"{what}, {edits} edits: {value} s", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        edited = []
        for number in edits_at:
            path, before = at / f"edits-{number}", max(0, number - args.around // 2 - 1)
            fill(new_ledger(path, model, name), name, factors, before)
            facts = [a_fact(before + i) for i in range(args.around + 1)]
            edited.append(timed_edits(model, path, name, factors, facts, before, clock))
            model.clear_updates()
            row("an edit, beside the method's own time", f"around {number}", spread(edited[-1]))

        path = at / "ledger"
        ledger = new_ledger(path, model, name)
        made = seconds(lambda: fill(ledger, name, factors, events), clock)
        row("append, without waiting for the disk", str(events), f"{made:.3g}")
        row("open", str(events), f"{seconds(lambda: Ledger.open(path), clock):.3g}")
        ledger = Ledger.open(path)
        row("verify", str(events), f"{seconds(ledger.verify, clock):.3g}")
        for restrain in (None, *RESTRAINTS):
            taken = seconds(lambda restrain=restrain: ledger.apply(model, restrain=restrain), clock)
            row(f"apply, {restrain or 'as recorded'}", str(events), f"{taken:.3g}")
            model.clear_updates()

        if points:
            if points != events:
                path = at / "spectrum"
                ledger = new_ledger(path, model, name)
                fill(ledger, name, factors, points)
            prefixes = [points * i // 10 for i in range(1, 11)]
            each = []
            for restrain in RESTRAINTS:
                taken = seconds(lambda restrain=restrain: ledger.spectrum(model, at=prefixes, restrain=restrain), clock)
                each.append(taken / len(prefixes))
                row(f"spectrum, a point of 10, {restrain}", f"{prefixes[0]} … {points}", f"{each[-1]:.3g}")
            row("spectrum, 10 points × 2 restraints", f"{prefixes[0]} … {points}", f"{10 * sum(each):.3g}")

    table(["what", "edits", "seconds"], rows)
    print()
    if edited:
        ratio = statistics.median(edited[-1]) / statistics.median(edited[0])
        print(f"an edit around {edits_at[-1]} takes {ratio:.3g} times one around {edits_at[0]}; "
              f"medians (range) of {args.around}")  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory of the process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
