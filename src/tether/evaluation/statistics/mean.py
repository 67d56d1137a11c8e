"""A mean with its n and standard error, and how records become one."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, Field

Record = dict[str, Any]  # one measured item, as it stands in the items file


class Number(BaseModel):
    """A mean in percent over `n` facts with `prompts` prompts, and its standard error; without items both are None.

    `neither` belongs to shares of Yes alone: how many prompts were answered with neither Yes nor No, which counts as
    the metric says (instance_change: as Yes). It is written only where it is known.
    """

    value: float | None
    n: int
    stderr: float | None
    prompts: int
    neither: int | None = Field(default=None, exclude_if=lambda count: count is None)


def cluster_mean(groups: Iterable[Sequence[float]]) -> Number:
    """The mean, in percent, of the groups' means, each group being the values (0 to 1) of one fact's prompts.

    The prompts of a fact are not independent of each other, so n counts facts, and stderr = sd(ddof = 1)/√n of their
    means; None for a single fact. Empty groups do not count.
    """
    filled = [group for group in groups if group]
    prompts = sum(len(group) for group in filled)
    means = [100 * sum(group) / len(group) for group in filled]
    n = len(means)
    if not n:
        return Number(value=None, n=0, stderr=None, prompts=0)
    value = math.fsum(means) / n
    stderr = math.sqrt(math.fsum((mean - value) ** 2 for mean in means) / (n - 1) / n) if n > 1 else None
    return Number(value=value, n=n, stderr=stderr, prompts=prompts)


def measure(records: Iterable[Record]) -> Number:
    """`cluster_mean` of the records' `value`, a group an edit."""
    groups: dict[int, list[float]] = {}
    for record in records:
        groups.setdefault(record["edit"], []).append(record["value"])
    return cluster_mean(groups.values())
