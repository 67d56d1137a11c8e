"""tether beside EasyEdit, and beside LoRA by plain peft: the same model, facts, prompts, steps and threads, in turns.

python bench/peers/run.py --easyedit FOLDER --python PYTHON --facts counterfact.json --corpus text.txt

FOLDER is a clone of EasyEdit, PYTHON that of an environment with what its ROME and MEMIT need (bench/README.md says how
to make it). Every side works in processes of its own, one at a time: CPU seconds and peak memory are theirs. The edited
weights of all sides are measured by the same code afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from common import table, where  # noqa: E402

import tether  # noqa: E402
from tether.editors.settings import settings_for  # noqa: E402
from tether.facts.fact import Fact  # noqa: E402
from tether.models import EditableModel  # noqa: E402
from tether.models.sampling import sample_prefixes  # noqa: E402

SHARED = (
    "layers",
    "v_num_grad_steps",
    "v_lr",
    "v_weight_decay",
    "clamp_norm_factor",
    "kl_factor",
    "mom2_update_weight",
)
BUNDLED = "tether bundled"  # the same worker with the settings that come with tether for the model, its own steps
THRESHOLD = 0.05  # the loss below which EasyEdit ends its steps; its code has the number
WINDOW = 256


class Worker:
    """A side's process."""

    def __init__(self, python: str, side: str, job: Mapping[str, Any], folder: Path) -> None:
        script, name = side.partition(" ")[0], f"{side.replace(' ', '-')}-{job['what']}"
        job = {
            **job,
            "out": str(folder / f"{name}.safetensors"),
            "settings": job["bundled" if side == BUNDLED else "settings"],
        }
        file = folder / f"{name}.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        self._log = (folder / f"{name}.log").open("w+", encoding="utf-8")
        threads = {name: str(job["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = {**os.environ, **threads, "TETHER_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        command = [python, str(HERE / f"{script}_worker.py"), str(file)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )
        self.side, self.out, self.answers = side, Path(job["out"]), list[dict[str, Any]]()
        self._read()  # it is ready

    def turn(self) -> None:
        """Let it do one piece, and keep its answer."""
        self._go()
        self.answers.append(self._read())

    def end(self) -> None:
        """Let it write what it has, and wait for its end."""
        self._go()
        if self._process.wait():
            self._failed()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._failed()
        found: dict[str, Any] = json.loads(line)
        return found

    def _failed(self) -> None:
        self._process.wait()
        self._log.seek(0)
        raise SystemExit(f"{self.side} ended with {self._process.returncode}:\n{self._log.read()[-3000:]}")


@contextmanager
def workers(sides: Mapping[str, str], job: Mapping[str, Any], folder: Path) -> Iterator[list[Worker]]:
    """A worker of every side, by its name (the script's first) and Python, for one job."""
    started: list[Worker] = []
    try:
        for side, python in sides.items():
            started.append(Worker(python, side, job, folder))
        yield started
    finally:
        for one in started:
            one.stop()


def in_turns(sides: Mapping[str, str], job: Mapping[str, Any], pieces: int, folder: Path) -> list[Worker]:
    """Every side does all pieces, one after the other; the first of a turn changes."""
    with workers(sides, job, folder) as started:
        for piece in range(pieces):
            at = piece % len(started)
            for one in started[at:] + started[:at]:
                one.turn()
        for one in started:
            one.end()
    return started


def windows_of(model: EditableModel, corpus: Path, tokens: int) -> list[str]:
    """The text of windows of 256 tokens each, in all so many tokens or a little less."""
    text = corpus.read_text("utf-8")
    encoding = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = [start for start, _ in encoding["offset_mapping"]]
    if len(starts) <= tokens:
        raise SystemExit(f"{corpus} has {len(starts)} tokens: give more text, or fewer --tokens")
    at = [starts[i] for i in range(0, tokens + 1, WINDOW)]
    return [text[start:stop] for start, stop in itertools.pairwise(at)]


def quality(model: EditableModel, facts: Sequence[Fact], weights: Path | None) -> dict[str, float]:
    """Efficacy, generalization, locality, the share of facts said, and perplexity, with these weights."""
    for name, weight in ({} if weights is None else load_file(weights)).items():
        model.set_update(name, weight - model.original(name))
    try:
        row = tether.evaluate(model, facts, abilities=["perplexity"], metrics=("compare", "match")).rows[0]
        found = {kind: number.value for kind, number in row.editing["compare"].items()}
        return {**found, "said": row.editing["match_all"]["efficacy"].value, "ppl": row.abilities["perplexity"].value}
    finally:
        model.clear_updates()


def difference(model: EditableModel, found: Path, other: Path) -> str:
    """‖ΔW − ΔW'‖/‖ΔW'‖ over all weights."""
    pairs = [
        (one - model.original(name), two - model.original(name))
        for (name, one), two in ((item, load_file(other)[item[0]]) for item in load_file(found).items())
    ]
    apart, size = (torch.stack([part.norm() for part in parts]).norm() for parts in (
        [a - b for a, b in pairs], [b for _, b in pairs]
    ))  # fmt: skip
    return f"{float(apart / size):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--easyedit", help="a clone of EasyEdit; without it tether and LoRA alone")
    parser.add_argument("--python", help="the Python of its environment")
    parser.add_argument("--facts", required=True, help="a file of facts with paraphrases and locality, as CounterFact")
    parser.add_argument("--corpus", type=Path, required=True, help="plain text for the moments")
    parser.add_argument("--model", default="smollm2", help="in the layout of Llama")
    parser.add_argument("--tokens", type=int, default=20000, help="of the moments")
    parser.add_argument("--rome", type=int, default=10, help="facts, one by one; 0 for none")
    parser.add_argument("--memit", type=int, default=10, help="facts, in one batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30, help="of LoRA, at most")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model = tether.load(args.model, dtype="float32", device="cpu")
    facts = list(tether.read_facts(args.facts, limit=max(args.rome, args.memit)))
    where(model.id)
    sides = {"tether": sys.executable}
    if args.easyedit:
        sides = {"easyedit": args.python or sys.executable, **sides}
    settings, bundled = {}, {}
    for method in ("rome", "memit"):
        hparams, _ = settings_for(method, model)
        bundled[method] = hparams.model_dump(mode="json")
        same = {
            "v_step": "adam", "v_num_grad_steps": args.steps, "step_prefixes": None, "loss_threshold": THRESHOLD,
            "moments_ridge": 0.0,
        }  # fmt: skip
        settings[method] = hparams.model_copy(update=same).model_dump(mode="json")
    layers = sorted({layer for one in settings.values() for layer in one["layers"]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        windows = windows_of(model, args.corpus, args.tokens)
        (folder / "text.txt").write_text("".join(windows), encoding="utf-8")

        def job(what: str, method: str, number: int) -> dict[str, Any]:
            own = settings[method]
            return {
                "what": what, "folder": name, "model": str(model.folder), "easyedit": args.easyedit, "windows": windows,
                "facts": [fact.model_dump(mode="json", exclude_none=True) for fact in facts[:number]], "settings": own,
                "bundled": bundled[method],
                "shared": {key: own[key] for key in SHARED if key in own}, "layers": layers, "threads": args.threads,
                "prefixes": sample_prefixes(model, settings_for(method, model)[0].prefixes, 0),
                "epochs": args.epochs, "loss_threshold": THRESHOLD,
            }  # fmt: skip

        rows: list[list[str]] = []

        def tell(what: str, found: Sequence[Worker], of: int) -> None:
            for one in found:
                cpu = [answer["cpu"] for answer in one.answers]
                first = f"{cpu[0]:.2f}" if len(cpu) > 1 else ""
                each = statistics.median(cpu[1:]) if len(cpu) > 1 else cpu[0] / of
                peak = max(answer["peak"] for answer in one.answers)
                more = ", ".join(
                    f"{key} {value}" for key, value in one.answers[-1].items() if key in ("tokens", "steps")
                )
                rows.append([what, one.side, first, f"{each:.2f}", f"{sum(cpu):.1f}", f"{peak:.0f}", more])
                print("; ".join(rows[-1]), file=sys.stderr)

        tell(f"moments of {len(layers)} layers", in_turns(sides, job("moments", "memit", 0), 1, folder), 1)
        sides = {**sides, BUNDLED: sys.executable}
        rome = in_turns(sides, job("rome", "rome", args.rome), args.rome, folder) if args.rome else []
        tell(f"ROME, {args.rome} facts one by one", rome, 1)
        memit = in_turns(sides, job("memit", "memit", args.memit), 1, folder)
        tell(f"MEMIT, one batch of {args.memit}", memit, args.memit)
        lora = in_turns({"lora": sys.executable}, job("lora", "memit", args.memit), 1, folder)
        tell(f"LoRA, {args.memit} facts together", lora, args.memit)
        print(f"At most {args.steps} steps for δ, {args.threads} thread(s). CPU seconds, peak memory of the process\n")
        table(["what", "side", "first s", "each s", "all s", "peak MiB", ""], rows)

        print("\nWhat became of the model, percent; the perplexity over the unedited model's\n")
        before = quality(model, facts, None)
        kinds = ("efficacy", "generalization", "locality")
        quality_rows = [["unedited", "", *(f"{before[kind]:.0f}" for kind in kinds), f"{before['said']:.0f}", "1"]]
        for what, found, number in (
            ("ROME", rome, args.rome),
            ("MEMIT", memit, args.memit),
            ("LoRA", lora, args.memit),
        ):
            for one in found:
                after = quality(model, facts[:number], one.out)
                numbers = (f"{after[kind]:.0f}" for kind in (*kinds, "said"))
                quality_rows.append([what, one.side, *numbers, f"{after['ppl'] / before['ppl']:.3f}"])
        table(["what", "side", *kinds, "said", "perplexity ×"], quality_rows)
        if args.easyedit:
            apart = [f"{what} {difference(model, *(one.out for one in found[:2]))}" for what, found in (
                ("ROME", rome), ("MEMIT", memit)
            ) if found]  # fmt: skip
            print(f"\nΔW of EasyEdit against tether's, relative: {', '.join(apart)}")


if __name__ == "__main__":
    main()
