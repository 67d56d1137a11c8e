"""The value that says what is measured on a checkpoint; the command, a grid file and Python build the same one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tether.errors import BadSettingsError, pydantic_line
from tether.evaluation.metrics.base import check_metrics, default_metrics
from tether.evaluation.metrics.judge import check_endpoint


class Measurement(BaseModel):
    """`metrics` of the editing metrics; `abilities` are `perplexity`, the tasks that come with tether, and any other of
    lm-evaluation-harness by its name. `data` is a folder with the abilities' data, a text file for the perplexity, or
    "hub" to allow downloads; None: the small sets that come with the package. `text`, for the perplexity, goes before
    it. `limit` takes the first items of every task, `quick` a few. `max_paraphrases` and `max_locality` take the first
    prompts of every fact. `bystanders` is the number of other subjects that a fact's first `bystander_prompts` prompts
    (None: all) are asked of. With `sample` a row asks so many of its facts at most, drawn by their contents and so the
    same ones wherever they can be. Where facts are told in the prompt, `told` is how many at most, those nearest to it
    by the words of their subjects. `judge` is the address of an endpoint that free answers are sent to, and
    `judge_model` the model there; nothing is sent without. The editing metrics are also given for the last `recent`
    facts, where there are more. A task file (YAML) can run any Python: one is read only with `trust_task_files`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...] = Field(default_factory=default_metrics)
    abilities: tuple[str, ...] = ("perplexity",)
    data: str | Path | None = None
    text: str | None = None
    limit: int | None = Field(default=None, ge=1)
    quick: bool = False
    max_paraphrases: int | None = Field(default=None, ge=0)
    max_locality: int | None = Field(default=None, ge=0)
    bystanders: int = Field(default=2, ge=0)
    bystander_prompts: int | None = Field(default=3, ge=1)
    sample: int | None = Field(default=None, ge=1)
    told: int | None = Field(default=None, ge=1)
    judge: str | None = None
    judge_model: str | None = None
    recent: int = Field(default=10, ge=1)
    trust_task_files: bool = False

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        check_metrics(metrics)
        return tuple(dict.fromkeys(metrics))

    @model_validator(mode="after")
    def _whole_judge(self) -> "Measurement":
        if (self.judge is None) != (self.judge_model is None):
            raise ValueError("judge and judge_model go together: name the address (--judge) and --judge-model")
        if self.judge is not None:
            check_endpoint(self.judge)
        return self


def measurement_of(
    measurement: Measurement | None, abilities: Sequence[str] | None, options: Mapping[str, Any]
) -> Measurement:
    """The value itself, or one made of keywords (`abilities_data` is its `data`). Raises BadSettingsError for a value
    that is refused, an unknown keyword, and a keyword beside the value."""
    given = {"data" if name == "abilities_data" else name: value for name, value in options.items()}
    given |= {} if abilities is None else {"abilities": abilities}
    if measurement is not None:
        if given:
            raise BadSettingsError(f"{next(iter(given))} stands beside measurement: put it into the measurement")
        return measurement
    try:
        return Measurement.model_validate(given)
    except ValidationError as error:
        raise BadSettingsError(pydantic_line(error)) from None
