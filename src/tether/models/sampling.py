"""Text sampled from the unedited model: prefixes for prompts, and a corpus where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import GenerationConfig

from tether.models.editable import EditableModel

STARTS = ("The", "Therefore", "Because", "I", "You")


class PrefixLength(BaseModel):
    """`number` prefixes of `length` generated tokens each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int = Field(ge=1)
    number: int = Field(ge=0)


def sample(model: EditableModel, starts: Sequence[str], length: int, *, seed: int, top_k: int = 0) -> list[str]:
    """One continuation of `length` new tokens for each start, start included, from the unedited model. Deterministic in
    `seed`; the caller's random state is left as it was. `top_k` 0 samples from the whole distribution."""
    tokenizer = model.tokenizer
    ids = [tokenizer(start)["input_ids"] for start in starts]
    width = max(len(row) for row in ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    batch = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    # Special tokens (an end of text above all) would cut a text short: they are never drawn.
    config = GenerationConfig(
        do_sample=True, top_k=top_k, max_new_tokens=length, min_new_tokens=length, pad_token_id=pad, eos_token_id=None,
        suppress_tokens=sorted(set(tokenizer.all_special_ids)) or None,
    )  # fmt: skip
    devices = [] if model.device.type == "cpu" else [model.device]
    kind = {} if model.device.type == "cpu" else {"device_type": model.device.type}
    with model.unedited(), torch.no_grad(), torch.random.fork_rng(devices, **kind):
        torch.manual_seed(seed)
        output = model.hf.generate(batch, attention_mask=mask, generation_config=config)
    return tokenizer.batch_decode(output, skip_special_tokens=True)


def sample_prefixes(model: EditableModel, wanted: Sequence[PrefixLength], seed: int) -> list[str]:
    """The prefixes of a ledger, top-5 sampled as ROME does, `number` of each `length`, spread over the usual starts."""
    prefixes: list[str] = []
    for index, kind in enumerate(wanted):
        starts = [STARTS[i % len(STARTS)] for i in range(kind.number)]
        if starts:
            texts = sample(model, starts, kind.length, seed=seed + index, top_k=5)
            prefixes += [" ".join(text.split()) for text in texts]
    return prefixes
