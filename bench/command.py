"""A whole `tether edit`, from the start of Python to the last fsync, by parts.

python bench/command.py [FACTS] [--method rome] [--model smollm2] [--corpus self:2048] [--warm] [--limit 3] [--repeat 3]

Every run is a process of its own, with one thread and a ledger of its own. The cache is empty but for the converted
model, so that moments are collected; with --warm it is that of a run before, which is not shown. Words behind `--` are
further options of the command. A part's seconds are without those of the parts inside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

START = time.process_time()  # of this process: the interpreter's own start

STARTUP, IMPORTS, REST = "start of Python", "imports", "all else"
PARTS: dict[str, tuple[str, ...]] = {  # the name by which a caller looks each function up
    "facts file": ("tether.cli.edit:scan_facts",),
    "load the model": ("tether.cli.edit:load_model",),
    "hash the weights": ("tether.models.editable:EditableModel.fingerprint",),
    "moments: text": ("tether.editors.corpus:sample",),
    "moments: forwards, KᵀK, the look": (
        "tether.editing.prepare:moments", "tether.editing.prepare:moments_keys", "tether.editing.loop:recorded_moments"
    ),
    "prefixes": ("tether.editing.prepare:sample_prefixes",),
    "spectrum of W₀": ("tether.algebra.spectrum:Spectrum.__init__", "tether.algebra.spectrum:Spectrum.of"),
    "health: the start": ("tether.editing.loop:Health.__init__",),
    "health: a look": tuple(f"tether.editing.loop:Health.{one}" for one in ("look", "alone", "commit", "reset")),
    "contexts and their forward": tuple(
        f"tether.editors.{file}:{one}" for file in ("rome", "memit")
        for one in ("group_of", "align", "full_forward", "keys_of")
    ),
    "steps for δ": ("tether.editors.rome:optimise", "tether.editors.memit:optimise"),
    "keys and states (memit)": ("tether.editors.memit:keys_and_states",),
    "solve": ("tether.editors.metric:Metric.solve", "tether.editors.rome:solve", "tether.editors.memit:solve"),
    "weights: show the sum": (
        "tether.ledger.replay:Sums.show", "tether.ledger.replay:Sums.add",
        "tether.models.editable:EditableModel.set_update",
    ),
    "ledger: files and lines": tuple(
        f"tether.ledger.ledger:Ledger.{one}" for one in ("create", "open", "checked_sums", "append", "append_restraint")
    ),
    "fsync": ("os:fsync",),
    "answer: what is said": ("tether.cli.edit:said_now",),
    "answer: spectra": ("tether.ledger.ledger:Ledger.spectra",),
}  # fmt: skip


class Clock:
    """CPU and wall seconds and calls of every part, without the parts inside."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
        self._inside = [[0.0, 0.0]]  # of every part that is open, what its inner ones took

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            self._inside.append([0.0, 0.0])
            try:
                return function(*args, **kwargs)
            finally:
                took = [time.process_time() - cpu, time.perf_counter() - wall]
                inner, part = self._inside.pop(), self.parts[name]
                for i in (0, 1):
                    part[i] += took[i] - inner[i]
                    self._inside[-1][i] += took[i]
                part[2] += 1

        return timed

    def watch(self, name: str, place: str) -> None:
        """Put a timed function in the place of `module:name` or `module:Class.name`."""
        module, _, path = place.partition(":")
        owner: Any = import_module(module)
        *classes, attribute = path.split(".")
        for one in classes:
            owner = getattr(owner, one)
        found = vars(owner)[attribute]
        kept = isinstance(found, classmethod)
        timed = self.wrapped(name, found.__func__ if kept else found)
        setattr(owner, attribute, classmethod(timed) if kept else timed)


def child(out: Path, words: list[str]) -> None:
    """The command in this process; writes the parts' seconds, the whole and the peak memory to `out`."""
    began, clock = time.perf_counter(), Clock()
    clock.parts[STARTUP] = [START, 0.0, 1]

    def imports() -> None:
        import_module("tether.cli.edit")

    clock.wrapped(IMPORTS, imports)()
    for name, places in PARTS.items():
        for place in places:
            clock.watch(name, place)
    sys.argv = ["tether", "edit", *words]
    with suppress(SystemExit):
        import_module("tether.cli").main()
    whole = [time.process_time(), time.perf_counter() - began]
    known = [sum(part[i] for part in clock.parts.values()) for i in (0, 1)]
    clock.parts[REST] = [whole[0] - known[0], whole[1] - known[1], 1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    out.write_text(json.dumps({"parts": clock.parts, "whole": whole, "peak": peak}))


def run(words: list[str], cache: Path, folder: Path) -> dict[str, Any]:
    out = folder / "seconds.json"
    out.unlink(missing_ok=True)
    environment = {**os.environ, "TETHER_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", str(out), *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not out.exists():
        raise SystemExit(f"tether edit ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("facts", nargs="?", help="a file of facts; by default three of the demo's")
    parser.add_argument("--method", default="rome")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpus", default="self:2048")
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="with the moments of a run before in the cache")
    parser.add_argument("--repeat", type=int, default=3)
    argv = sys.argv[1:]
    args = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    more = argv[argv.index("--") + 1 :] if "--" in argv else []

    from common import table, where

    from tether.data import text
    from tether.storage.cache import cache_dir

    where(args.model)
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name, "cache")
        facts = Path(args.facts) if args.facts else folder / "facts.jsonl"
        if not args.facts:
            facts.write_text(text("demo_facts.jsonl"), encoding="utf-8")
        for kind in ("models", "fingerprints"):  # made once for a model, not once for a run
            cache.mkdir(exist_ok=True)
            if (cache_dir() / kind).is_dir():
                (cache / kind).symlink_to(cache_dir() / kind)
        words = [str(facts), "--model", args.model, "--method", args.method, "--corpus", args.corpus]
        words += ["--limit", str(args.limit), *more]
        found = []
        for repetition in range(args.repeat + args.warm):
            if not args.warm:
                shutil.rmtree(cache / "moments", ignore_errors=True)
            one = run([*words, "--out", str(folder / f"ledger-{repetition}")], cache, folder)
            found += [] if args.warm and repetition == 0 else [one]

    wholes = [one["whole"][0] for one in found]
    moments = f"moments of {args.corpus} {'in the cache' if args.warm else 'collected'}"
    peak = f"peak memory {max(one['peak'] for one in found) / 2**20:.0f} MiB"
    print(f"{args.limit} facts, {args.method}, {moments}, 1 thread: median of {args.repeat}; {peak}\n")
    rows = []
    for part in (STARTUP, IMPORTS, *PARTS, REST):
        if any(part in one["parts"] for one in found):
            of_runs = [one["parts"].get(part, [0.0, 0.0, 0]) for one in found]
            cpu, wall, calls = (statistics.median(run[i] for run in of_runs) for i in range(3))
            rows.append(
                [part, f"{cpu:.2f}", f"{100 * cpu / statistics.median(wholes):.0f}", f"{wall:.2f}", f"{calls:.0f}"]
            )
    walls = statistics.median(one["whole"][1] for one in found)
    rows.append(["the whole command", f"{statistics.median(wholes):.2f}", "100", f"{walls:.2f}", ""])
    table(["part", "CPU s", "%", "wall s", "calls"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
