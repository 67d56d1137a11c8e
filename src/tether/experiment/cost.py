"""About how long a grid takes and how much memory, before anything of it is loaded: a rule of thumb.

Work is counted in tokens that a model reads, at 2 FLOP a parameter and token, twice that where it goes back as well:

- an edit that optimises δ: steps × prompts × TOKENS, forward and back, a third of it with the frozen prefix; one by
  gradients (mend): one forward and back;
- moments: the tokens of the corpus;
- a row: for every fact its prompts, forward, and what is generated; for every item of an ability a prompt.

The machine's speed is that of a matrix product, timed here, of which a model reaches SHARE. Memory is parameters ×
bytes, the float32 copies that updates need, and the moments.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import cached_file

from tether.editors.corpus import SELF
from tether.editors.registry import EDITORS
from tether.errors import TetherError
from tether.evaluation.abilities.data import HUB, TEXT_FILE
from tether.evaluation.abilities.perplexity import builtin_text
from tether.evaluation.abilities.run import ABILITIES, PERPLEXITY, QUICK_ITEMS
from tether.evaluation.abilities.tasks import task_file
from tether.experiment.plan import Job, Plan
from tether.experiment.spec import GridSpec, ModelSpec
from tether.models.checkpoint_files import stored_tensors

TOKENS = 15  # of a prompt with its target
ITEM_TOKENS = 200  # of an ability's item
GENERATED = 20  # tokens, for `generate` or an ability that answers in words; each costs as much as GENERATED_AS read
GENERATED_AS = 2
STEPS, PROMPTS = 25, 11  # of an edit that optimises δ, where settings do not say
SAMPLED = 32768  # tokens of moments from text sampled from the model
FROZEN = 3  # times less work with the frozen prefix
SHARE = 0.6  # of a matrix product's speed
BYTES_A_TOKEN = 4  # of text
LOADING = 20.0  # seconds a model
_WEIGHTS = {"memit": 5, "mend": 9}  # edited by the settings of a family; one by the others
_BYTES = {"float32": 4, "auto": 4, None: 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Size:
    """Parameters of a model and where the number is from."""

    parameters: float | None
    source: str


@dataclass(frozen=True)
class Cost:
    """Of a run: None where the model's size is not known."""

    seconds: float | None
    memory: float | None


@dataclass(frozen=True)
class Estimate:
    """Of a plan: `runs` by id; `seconds` of all of them, `memory` of the largest, None where a size is not known;
    `sizes` by model; `how` it was made, for a person."""

    runs: dict[str, Cost]
    seconds: float | None
    memory: float | None
    sizes: dict[str, Size]
    how: str


def estimate(plan: Plan) -> Estimate:
    """About how long the runs take one after another on this machine, and the memory of the largest."""
    sizes = {model.name: model_size(model) for model in plan.spec.models}
    abilities = sum(_ability_tokens(plan.spec, name) for name in plan.spec.abilities)
    speeds: dict[str, float] = {}
    runs: dict[str, Cost] = {}
    seen: set[str] = set()
    for job in plan.jobs:
        size = sizes[job.model.name].parameters
        device = _device(job.model)
        if device not in speeds:
            speeds[device] = _matrix_speed(device)
        if size is None:
            runs[job.run.id] = Cost(None, None)
            continue
        first = job.model.name not in seen
        seen.add(job.model.name)
        tokens = (
            _edit_tokens(job) * 2 + (_prompt_tokens(job) + abilities) * job.rows + (_corpus_tokens(job) if first else 0)
        )
        loading = LOADING if first else 0.0
        runs[job.run.id] = Cost(loading + tokens * 2 * size / (SHARE * speeds[device]), _memory(job, size))
    seconds = [cost.seconds for cost in runs.values() if cost.seconds is not None]
    memory = [cost.memory for cost in runs.values() if cost.memory is not None]
    known = len(seconds) == len(runs)
    told = ", ".join(f"{device} {speed / 1e9:.0f} GFLOP/s" for device, speed in speeds.items())
    return Estimate(
        runs, sum(seconds) if known else None, max(memory) if memory and known else None, sizes,
        f"a rule of thumb, no model timed: tokens × 2 × parameters at {SHARE:.0%} of a matrix product timed here "
        f"({told}), {STEPS} steps × {PROMPTS} prompts × {TOKENS} tokens an edit; not held against long runs",
    )  # fmt: skip


def model_size(model: ModelSpec) -> Size:
    """The number of parameters: as the grid gives it, or counted in the headers of a folder or of the hub's cache.
    Nothing is downloaded."""
    if model.parameters is not None:
        return Size(model.parameters, "as the grid says")
    folder = Path(model.load)
    if not folder.is_dir():
        name, _, revision = model.load.partition("@")
        try:
            folder = Path(cached_file(name, "config.json", revision=revision or None, local_files_only=True)).parent
        except (OSError, ValueError):
            return Size(None, f"not on this machine as a folder: add parameters to the model {model.name}")
    try:
        stored = stored_tensors(folder)
    except TetherError as error:
        return Size(None, str(error))
    count = 0.0
    for tensor in stored.values():
        count += torch.Size(tensor.shape).numel()
    return Size(count or None, "counted in its files" if count else f"{folder} has no weights")


def _edit_tokens(job: Job) -> float:
    if "editor" in EDITORS[job.method].needs:
        return job.run.edits * 2.0 * TOKENS
    return job.run.edits * STEPS * PROMPTS * TOKENS / FROZEN


def _corpus_tokens(job: Job) -> float:
    if "moments" not in EDITORS[job.method].needs:
        return 0.0
    if job.corpus in (None, SELF) or not Path(str(job.corpus)).is_file():
        return SAMPLED * GENERATED_AS
    return Path(str(job.corpus)).stat().st_size / BYTES_A_TOKEN


def _prompt_tokens(job: Job) -> float:
    """Of the editing metrics of a mean row."""
    facts = sum(job.at) / len(job.at)
    paraphrases = 2 if job.dataset.paraphrases is None else job.dataset.paraphrases
    locality = 10 if job.dataset.locality is None else job.dataset.locality
    prompts = 1 + paraphrases + locality
    read = 2 * prompts * TOKENS if {"compare", "match"} & set(job.dataset.metrics) else 0
    written = prompts * GENERATED * GENERATED_AS if "generate" in job.dataset.metrics else 0
    return facts * (read + written)


def _ability_tokens(spec: GridSpec, name: str) -> float:
    if name == PERPLEXITY:
        source = None if spec.abilities_data in (None, HUB) else Path(str(spec.abilities_data))
        file = source / TEXT_FILE if source is not None and source.is_dir() else source
        there = file is not None and file.is_file()
        return (file.stat().st_size if file is not None and there else len(builtin_text())) / BYTES_A_TOKEN
    task = task_file(name) if name in ABILITIES else None
    items = (QUICK_ITEMS if spec.quick else 300 if task is None else task.size) if spec.limit is None else spec.limit
    answers = task is None or task.output_type == "generate_until"
    return items * (ITEM_TOKENS + (GENERATED * GENERATED_AS if answers else TOKENS))


def _memory(job: Job, parameters: float) -> float:
    """Bytes. Of a transformer of so many parameters a block's MLP projection holds about one in 200 (in 30 blocks) and
    is as wide as the root of four times that; an edit keeps W₀ and the update of every edited layer in float32."""
    layers = len(job.layers) if job.layers else _WEIGHTS.get(EDITORS[job.method].settings.family, 1)
    projection = parameters / 200
    moments = 8 * 4 * projection if "moments" in EDITORS[job.method].needs else 0
    return parameters * _BYTES[job.model.dtype] * 1.2 + layers * (8 * projection + moments) + 1e9


def _device(model: ModelSpec) -> str:
    """The model's, or the CPU where this machine has none such."""
    found = torch.accelerator.current_accelerator(check_available=True)
    device = model.device or ("cpu" if found is None else str(found))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return "cpu"
    return device


def _matrix_speed(device: str) -> float:
    """FLOP/s of a float32 matrix product: the best one of a tenth of a second, since others may use the machine too."""
    a = torch.rand(768, 768, device=device)
    float((a @ a).sum())
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < 0.1:
        before = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - before)
    return 2 * 768**3 / best
