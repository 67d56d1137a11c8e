"""The general abilities that come with tether: a YAML a task, for lm-evaluation-harness.

`documents` reads their data, `scoring` scores an answer; both are named in the YAML files. Here is what can be known of
a task without the harness: its kind of data, its size, and its version.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
VERSION = 1  # raise it with every change of what `documents` or `scoring` do; a change of a YAML raises its own version


@dataclass(frozen=True)
class TaskFile:
    """A packaged task: its `name`, the `kind` of its data (a key of `documents.FILES`), how many items it takes unless
    told otherwise, its `output_type` in the harness's words, and its `version`, which changes with its numbers."""

    name: str
    kind: str
    size: int
    output_type: str
    version: str


class _Loader(yaml.SafeLoader):
    """YAML whose `!function` references stay text."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def task_names() -> tuple[str, ...]:
    """The names of the packaged tasks, sorted."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def task_file(name: str) -> TaskFile:
    """What is known of a packaged task. `name` must be one of `task_names()`."""
    content = read_yaml(FOLDER / f"{name}.yaml")
    about = content["metadata"]
    return TaskFile(name, about["kind"], about["size"], content["output_type"], f"{about['version']}.{VERSION}")


def read_yaml(file: Path) -> dict[str, Any]:
    """A task file of the harness with what it includes; nothing it names is imported."""
    content: dict[str, Any] = yaml.load(file.read_bytes(), Loader=_Loader)
    included = content.pop("include", None) or []
    merged: dict[str, Any] = {}
    for other in [included] if isinstance(included, str) else included:
        merged |= read_yaml(file.parent / other)
    return merged | content
