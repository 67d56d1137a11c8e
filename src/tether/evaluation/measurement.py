"""The value that says what is measured on a checkpoint; the command, a grid file and Python build the same one."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tether.evaluation.metrics.editing import METRICS


class Measurement(BaseModel):
    """`metrics` of the editing metrics; `abilities` are `perplexity`, the tasks that come with tether, and any other of
    lm-evaluation-harness by its name. `data` is a folder with the abilities' data, a text file for the perplexity, or
    "hub" to allow downloads; None: the small sets that come with the package. `text`, for the perplexity, goes before
    it. `limit` takes the first items of every task, `quick` a few. `max_paraphrases` and `max_locality` take the first
    prompts of every fact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...] = METRICS
    abilities: tuple[str, ...] = ("perplexity",)
    data: str | Path | None = None
    text: str | None = None
    limit: int | None = Field(default=None, ge=1)
    quick: bool = False
    max_paraphrases: int | None = Field(default=None, ge=0)
    max_locality: int | None = Field(default=None, ge=0)
