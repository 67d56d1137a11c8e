"""The values of an editing run: what its ledger depends on, and when what is done.

    plan = EditPlan(method="memit", settings={"mom2_update_weight": 2000}, seed=1)
    schedule = Schedule(restraint="log:1.2", every=10, batch_size=5, on_alarm="skip")
    tether.edit(model, facts, out="my-edits", plan=plan, schedule=schedule)

The command, a grid file and Python build the same values. What is written as text is parsed here, once.
The third value, what is measured, is `tether.evaluation.measurement.Measurement`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from tether.constraints.base import Constraint, parse
from tether.errors import BadSettingsError, pydantic_line

DEFAULT_METHOD = "r-rome"
OnAlarm = Literal["warn", "skip", "stop"]


class EditPlan(BaseModel, frozen=True, extra="forbid"):
    """What the edits of a ledger depend on; its header records it. None means the default in a new ledger, and what
    the header has in one that is appended to.

    `settings` are a JSON file or a dict, over the bundled settings of the method; `corpus` is a text file for the
    second moments, or `self`, text sampled from the model (the default); `editor` is the file of a trained editor.
    """

    method: str | None = None
    settings: Path | dict[str, Any] | None = None
    layers: tuple[int, ...] | None = None
    corpus: str | Path | None = None
    seed: int | None = None
    editor: Path | None = None


class Schedule(BaseModel, frozen=True, extra="forbid", arbitrary_types_allowed=True):
    """When what is done while a list of facts is edited.

    `restraint` acts on the sum, once at the end, or after every `every` edits and the last. None: the ledger's own.
    `batch_size` facts are edited in one solve. `guard` looks after every `guard_every` edits. The health of every K-th
    proposal is read, K being `health`, and of every one that is disabling by itself (σ_max(ΔW) > 8 m); 0: of none.
    `on_alarm` is what happens to such a proposal whose health is an alarm: it goes in with a warning (`warn`), is
    recorded as failed (`skip`), or is recorded and ends the run (`stop`). With K > 1 other alarms between are unseen.
    After every `verify_every` edits all facts of the ledger are asked which are still said, and so many `bystanders`
    of some of them whether their answers are as before; None: never.
    """

    restraint: Annotated[Constraint | None, BeforeValidator(lambda text: None if text is None else parse(text))] = None
    every: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=1, ge=1)
    guard: str | None = None
    guard_every: int = Field(default=10, ge=1)
    guard_data: str | Path | None = None
    health: int = Field(default=1, ge=0)
    health_every: int = Field(default=10, ge=1, description="the text is read every K edits")
    on_alarm: OnAlarm = "warn"
    verify_every: int | None = Field(default=None, ge=1)
    bystanders: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _alarms_are_seen(self) -> Schedule:
        if self.health == 0 and self.on_alarm != "warn":
            raise ValueError(f"on_alarm {self.on_alarm} needs the health that health 0 switches off: write warn")
        return self


def plan_and_schedule(
    plan: EditPlan | None, schedule: Schedule | None, options: Mapping[str, Any]
) -> tuple[EditPlan, Schedule]:
    """Both values, from themselves or from keywords. Raises BadSettingsError for a value that is refused, an unknown
    keyword, and a keyword beside the value it belongs to."""
    given = {"restraint" if name == "restrain" else name: value for name, value in options.items()}
    of_plan = {name: value for name, value in given.items() if name in EditPlan.model_fields}
    of_schedule = {name: value for name, value in given.items() if name not in of_plan}
    for value, keywords, what in ((plan, of_plan, "plan"), (schedule, of_schedule, "schedule")):
        if value is not None and keywords:
            raise BadSettingsError(f"{next(iter(keywords))} stands beside {what}: put it into the {what}")
    try:
        return plan or EditPlan.model_validate(of_plan), schedule or Schedule.model_validate(of_schedule)
    except ValidationError as error:
        raise BadSettingsError(pydantic_line(error)) from None
