"""What the benchmarks share: interleaved timing, the spread of repetitions, the line that says where they ran."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: for one thread on a machine others use as well


def interleaved(
    ways: Mapping[str, Callable[[int], Any]], n: int, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds and results of `n` repetitions of every way, given the repetition's number. The ways take turns, and the
    first of a turn changes, so that what else the machine does falls on all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, list[Any]] = {name: [] for name in ways}
    names = list(ways)
    for repetition in range(n):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            start = clock()
            result = ways[name](repetition)
            seconds[name].append(clock() - start)
            results[name].append(result)
    return seconds, results


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times faster, repetition by repetition."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median (lowest-highest)."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |")


def where(model: str | None = None) -> None:
    """Print versions and machine; the load tells a quiet machine from a shared one."""
    parts = [f"model {model}"] if model else []
    parts += [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    parts += [f"transformers {transformers.__version__}"] if model else []
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"{', '.join(parts)}; {os.cpu_count()} cores, load average {load} at the start\n")
