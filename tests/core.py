"""What the tests of editors, ledger and session share: settings, moments, a trained model."""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tiny import FAMILIES, Reciter, tiny_model, trained_gpt2
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.editors import Context
from tether.editors.moments import Moments
from tether.editors.rome import RomeHparams
from tether.facts.fact import Fact
from tether.models import EditableModel

SETTINGS: dict[str, Any] = {
    "layers": (1,),
    "v_num_grad_steps": 12,
    "v_lr": 0.1,
    "v_weight_decay": 0.01,
    "clamp_norm_factor": 4.0,
    "kl_factor": 0.0625,
    "prefixes": ({"length": 3, "number": 2},),
}
PREFIXES = ("The answer is", "Because it is so, I think that you know")
FACTS = (
    Fact(subject="Eiffel Tower", prompt="The {} is in the city of", target_new="London"),
    Fact(subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_new="English"),
    Fact(subject="Space Needle", prompt="The {} is in", target_new="Paris"),
    Fact(subject="Big Ben", prompt="I think that {} is in the city of", target_new="Seattle"),
    Fact(subject="France", prompt="The capital of {} is", target_new="Seattle"),
    Fact(subject="Big Ben", prompt="You know {}: it was written in the year", target_new="1987"),
)


def editable(family: str, **more: Any) -> EditableModel:
    """A random model of a family of `tiny`."""
    assert family in FAMILIES
    return EditableModel(*tiny_model(family, **more))


def hparams(**changes: Any) -> RomeHparams:
    return RomeHparams.model_validate({**SETTINGS, **changes})


def random_moments(q: int, seed: int = 0) -> Moments:
    """Moments as of some text: positive definite, with a κ of a hundred or so."""
    keys = torch.randn(4 * q, q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Moments(keys.mT @ keys / len(keys), len(keys), ())


def context(model: EditableModel, **changes: Any) -> Context:
    settings = hparams(**changes)
    (layer,) = settings.layers
    q = model.weight(model.weight_name(layer)).shape[1]
    return Context(settings, PREFIXES, {layer: random_moments(q)})


def plain_text() -> Path:
    """A file of a few thousand tokens of English."""
    return Path(str(resources.files("tether") / "data" / "plain_text.txt"))


def demo_text(folder: Path) -> Path:
    """A file of some thousands of tokens, enough for moments of the bundled model with a ridge."""
    file = folder / "demo_text"
    file.write_text((resources.files("tether") / "data" / "demo_facts.jsonl").read_text("utf-8"), encoding="utf-8")
    return file


def bits(model: EditableModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


def same_bits(model: EditableModel, before: dict[str, Tensor]) -> bool:
    after = model.hf.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def random_update(p: int, q: int, rank: int, seed: int, scale: float = 1.0) -> LowRank:
    """A float32 update with σ̂_max = scale."""
    generator = torch.Generator().manual_seed(seed)
    update = LowRank(torch.randn(p, rank, generator=generator), torch.randn(rank, q, generator=generator))
    return LowRank(update.A * (scale / float(update.singular_values()[0])), update.B)


@functools.cache
def _trained() -> Reciter:
    """Trained once; where workers share the run, by the first that needs it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return trained_gpt2()
    file = Path(tempfile.gettempdir()) / f"tether-tests-{run}.safetensors"
    with FileLock(f"{file}.lock"):
        return trained_gpt2(kept=file)


def reciter() -> Reciter:
    """A fresh copy of the trained model."""
    hf, tokenizer, facts = _trained()
    return Reciter(copy.deepcopy(hf), tokenizer, facts)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree to a share of the norm."""
    return float((found - expected).norm()) <= tolerance * float(expected.norm())
