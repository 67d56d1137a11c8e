"""What the benchmarks share: interleaved timing, the spread of repetitions, the line that says where they ran, and the
textbook way to find δ, which both ROME and MEMIT are held against."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from tether.editors.settings import LatentHparams
from tether.facts.tokens import EncodedPrompt
from tether.models.editable import EditableModel

PLAIN = {"v_step": "adam", "v_num_grad_steps": 20, "step_prefixes": None}  # the search as the papers have it
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


@dataclass(frozen=True)
class PlainDelta:
    """δ, the last loss, and the keys of every prompt at the subject's last token."""

    delta: Tensor
    loss: float
    keys: Tensor


def plain_delta(
    model: EditableModel, prompts: Sequence[EncodedPrompt], layer: int, hparams: LatentHparams,
    *, start: Tensor | None = None,
) -> PlainDelta:  # fmt: skip
    """The loop as the papers of ROME and MEMIT state it: every step a forward and a backward of the whole model, logits
    at all positions. `prompts` are one fact's contexts and its KL prompt; `start`, for decay and clamp, is v₀ unless
    given."""
    hf = model.hf
    width = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[*p.ids, *[0] * (width - len(p.ids))] for p in prompts])
    mask = torch.tensor([[1] * len(p.ids) + [0] * (width - len(p.ids)) for p in prompts])
    labels = torch.full_like(ids, -100)
    for row, p in enumerate(prompts[:-1]):
        labels[row, p.target_start - 1 : len(p.ids) - 1] = torch.tensor(p.ids[p.target_start :])
    rows, lookup = torch.arange(len(prompts)), torch.tensor([p.subject_last for p in prompts])

    delta = torch.zeros(model.hidden_size, requires_grad=True)
    seen: dict[str, Tensor] = {}

    def add(_: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not seen:
            seen["keys"], seen["v0"] = args[0][rows, lookup].detach(), output[0, lookup[0]].detach()
        output = output.clone()
        output[rows, lookup] += delta
        return output

    adam = torch.optim.Adam([delta], lr=hparams.v_lr)
    before = None
    handle = model.projection(layer).register_forward_hook(add)
    for step in range(hparams.v_num_grad_steps):
        log_p = hf(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
        at_target = log_p[:-1].gather(2, labels[:-1].clamp_min(0)[..., None])[..., 0] * (labels[:-1] != -100)
        nll = -(at_target.sum(1) / (labels[:-1] != -100).sum(1)).mean()
        log_kl = log_p[-1, lookup[-1]]
        before = log_kl.detach() if before is None else before
        kl = torch.nn.functional.kl_div(before, log_kl, log_target=True, reduction="sum")
        norm = (seen["v0"] if start is None else start).norm()
        loss = nll + hparams.kl_factor * kl + hparams.v_weight_decay * delta.norm() / norm**2
        if loss.item() < hparams.loss_threshold or step == hparams.v_num_grad_steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > hparams.clamp_norm_factor * norm:
                delta *= hparams.clamp_norm_factor * norm / delta.norm()
    handle.remove()
    return PlainDelta(delta.detach(), loss.item(), seen["keys"])
