"""A grid as it is written: models × editors × datasets × numbers of edits × restraints × abilities × seeds, in YAML.

    spec = read_spec("my-grid.yaml")        # or the name of a grid that comes with tether: "smollm2"

Everything is checked when it is read, and an error names its key. Files need not be there yet (`tether.experiment.plan`
names those that are not). A relative path is relative to the grid file, in a grid that comes with tether to the current
folder. In the value of a key that names a file or a folder, `${NAME}` stands for an environment variable.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo, model_validator

from tether.constraints.base import parse
from tether.editing.plan import EditPlan
from tether.editors import BatchEditor, editor
from tether.editors.corpus import SELF
from tether.editors.registry import EDITORS
from tether.errors import BadSettingsError, TetherError, pydantic_line
from tether.evaluation.abilities.run import HUB
from tether.evaluation.measurement import Measurement
from tether.evaluation.metrics.base import check_metrics, default_metrics

_ALPHA = re.compile(r":\s*alpha(?=\s*(\+|$))")  # a restraint's parameter, as in log:alpha: the cell's own stands there
_PATH_KEYS = ("facts", "corpus", "load", "settings", "editor", "anatomy", "abilities_data")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _path(text: str, info: ValidationInfo) -> str:
    """Relative to the context's `base`; without a context the text was read before, and stays."""
    return text if info.context is None else os.path.normpath(info.context["base"] / Path(text).expanduser())


def _path_unless(*words: str) -> Callable[[str, ValidationInfo], str]:
    return lambda text, info: text if text in words else _path(text, info)


def _source(text: str, info: ValidationInfo) -> str:
    """A model's name by default. A folder or file beside the grid by its path, anything else as it is."""
    text = text or str(info.data.get("name", ""))
    path = _path(text, info)
    beside = info.context is not None and Path(path).is_dir()
    return path if beside or text.startswith((".", "/", "~")) or text.endswith(".gguf") else text


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name: letters, digits, dots, hyphens and underscores, as names of folders")
    return text


def _checked(check: Callable[[str], object], text: str) -> str:
    """`text`, after a check of the library, whose complaint becomes one of the grid's."""
    try:
        check(text)
    except TetherError as error:
        raise ValueError(str(error)) from None
    return text


def _restraint(text: str) -> str:
    """Written as the rows of results write it; one with `alpha` stays as it is."""
    _checked(parse, _ALPHA.sub(":2", text))
    return text if _ALPHA.search(text) else str(parse(text))


def _acting(text: str) -> str:
    if text == "none":
        raise ValueError("none restrains nothing; write it under once")
    return text


def _numbers(edits: tuple[int, ...]) -> tuple[int, ...]:
    if not edits or min(edits) < 0 or max(edits) == 0:
        raise ValueError("write numbers of edits, from 0, the largest above 0, as in [0, 10, 100]")
    return tuple(sorted(set(edits)))


def _named(key: str) -> BeforeValidator:
    """A bare word stands for an entry with this key alone."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


Name = Annotated[str, AfterValidator(_name)]
FilePath = Annotated[str, AfterValidator(_path)]
SettingsOrFile = FilePath | dict[str, Any]  # a file, or the settings themselves
CorpusPath = Annotated[str, AfterValidator(_path_unless(SELF))]
DataPath = Annotated[str, AfterValidator(_path_unless(HUB))]
RestraintText = Annotated[str, AfterValidator(_restraint)]
Method = Annotated[str, AfterValidator(lambda text: _checked(editor, text))]
Metric = Annotated[str, AfterValidator(lambda text: _checked(lambda name: check_metrics([name]), text))]
Edits = Annotated[tuple[int, ...], AfterValidator(_numbers)]
Analysis = Literal["spectrum", "values", "copies", "bound", "differences"]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class _Strict(BaseModel):
    model_config = {"frozen": True, "extra": "forbid", "validate_default": True}


class ModelSpec(_Strict):
    """A model. `load` (default: the name) is what `tether.load` takes. `parameters` is of older grids, and not used."""

    name: Name
    load: Annotated[str, AfterValidator(_source)] = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    anatomy: FilePath | None = None
    corpus: CorpusPath | None = None
    parameters: float | None = Field(default=None, gt=0)


class EditorSpec(_Strict):
    """A method with its settings. `editor` is the file of a trained one; `edits` replaces the grid's."""

    method: Method
    name: Annotated[str, AfterValidator(lambda text, info: _name(text or info.data.get("method", "unknown")))] = ""
    settings: SettingsOrFile | None = None
    layers: tuple[int, ...] | None = None
    editor: FilePath | None = None
    batch_size: int = Field(default=1, ge=1)
    edits: Edits | None = None


class DatasetSpec(_Strict):
    """Facts from a file: `limit` of them after the first `skip`, with `shuffle` in an order drawn by the seed; and how
    the edits are measured (`paraphrases`, `locality`: at most so many prompts a fact)."""

    name: Name
    facts: FilePath
    limit: int | None = Field(default=None, ge=1)
    skip: int = Field(default=0, ge=0)
    shuffle: bool = False
    metrics: tuple[Metric, ...] = Field(default_factory=default_metrics, min_length=1)
    paraphrases: int | None = Field(default=None, ge=0)
    locality: int | None = Field(default=None, ge=0)


class EverySpec(_Strict):
    """A restraint on the running sum after every `every` edits."""

    restrain: Annotated[RestraintText, AfterValidator(_acting)]
    every: int = Field(ge=1)


class When(_Strict):
    """Which cells: names, or lists of them; a key that is not given means any."""

    model: Names | None = None
    editor: Names | None = None
    dataset: Names | None = None


class Override(_Strict):
    """What differs in some cells of the grid. Of several the last one counts. `leave_out`: not run at all."""

    when: When
    alpha: float | Literal["e"] | None = None
    once: tuple[RestraintText, ...] | None = None
    every: tuple[EverySpec, ...] | None = None
    edits: Edits | None = None
    settings: SettingsOrFile | None = None
    layers: tuple[int, ...] | None = None
    editor: FilePath | None = None
    batch_size: int | None = Field(default=None, ge=1)
    corpus: CorpusPath | None = None
    leave_out: bool = False


class Resources(_Strict):
    """What Ray keeps free for a run, and how often it starts one again whose worker died."""

    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    retries: int = Field(default=3, ge=0)


class GridSpec(_Strict):
    """A grid. See docs/grids.md for the keys."""

    name: Name
    title: str = ""
    models: tuple[Annotated[ModelSpec, _named("name")], ...] = Field(min_length=1)
    editors: tuple[Annotated[EditorSpec, _named("method")], ...] = Field(min_length=1)
    datasets: tuple[DatasetSpec, ...] = Field(min_length=1)
    edits: Edits
    alpha: float | Literal["e"] | None = None
    once: tuple[RestraintText, ...] = ("none",)
    every: tuple[EverySpec, ...] = ()
    abilities: tuple[str, ...] = ("perplexity",)
    abilities_data: DataPath | None = None
    limit: int | None = Field(default=None, ge=1)
    quick: bool = False
    corpus: CorpusPath | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    analyses: tuple[Analysis, ...] = ()
    overrides: tuple[Override, ...] = ()
    resources: Resources = Resources()
    ray_address: str | None = None

    @model_validator(mode="after")
    def _agree(self) -> GridSpec:
        parts: dict[str, tuple[Any, ...]] = {"model": self.models, "editor": self.editors, "dataset": self.datasets}
        for key, entries in parts.items():
            _once(f"{key}s", (entry.name for entry in entries))
            known = {entry.name for entry in entries}
            for place, override in enumerate(self.overrides):
                for name in getattr(override.when, key) or ():
                    if name not in known:
                        raise ValueError(f"overrides.{place}.when.{key} {name!r} is none of {', '.join(sorted(known))}")
        _once("seeds", self.seeds)
        if not self.cells():
            raise ValueError("overrides leave out every cell: there is nothing to run")
        return self

    def cells(self) -> list[Cell]:
        """Every model × dataset × editor with what holds there, in this order."""
        return [
            cell
            for model in self.models for dataset in self.datasets for chosen in self.editors
            if (cell := self._cell(model, dataset, chosen)) is not None
        ]  # fmt: skip

    def measurement(self, dataset: DatasetSpec) -> Measurement:
        """What is measured of the ledgers of a data set."""
        return Measurement(
            metrics=dataset.metrics, abilities=self.abilities, data=self.abilities_data, limit=self.limit,
            quick=self.quick, max_paraphrases=dataset.paraphrases, max_locality=dataset.locality,
        )  # fmt: skip

    def _cell(self, model: ModelSpec, dataset: DatasetSpec, chosen: EditorSpec) -> Cell | None:
        holds: dict[str, Any] = {
            **chosen.model_dump(include={"settings", "layers", "editor", "batch_size"}), "alpha": self.alpha,
            "once": self.once, "every": self.every, "edits": chosen.edits or self.edits,
            "corpus": model.corpus or self.corpus, "leave_out": False,
        }  # fmt: skip
        names = {"model": model.name, "editor": chosen.name, "dataset": dataset.name}
        for override in self.overrides:
            if all(wanted is None or names[key] in wanted for key, wanted in override.when):
                holds |= {key: getattr(override, key) for key in override.model_fields_set if key != "when"}
        if holds.pop("leave_out"):
            return None
        where = f"model {model.name}, editor {chosen.name}, dataset {dataset.name}"
        alpha, size, method = holds["alpha"], holds["batch_size"], EDITORS[chosen.method]
        once = dict.fromkeys(_with_alpha(text, alpha, where) for text in holds["once"])
        every = dict.fromkeys((_with_alpha(one.restrain, alpha, where), one.every) for one in holds["every"])
        if not once and not every:
            raise ValueError(f"once and every are both empty for {where}: name a restraint, none at least")
        for text in (*once, *(restraint for restraint, _ in every)):
            if "moments" in parse(text).needs and "moments" not in method.needs:
                what = f"restraint {text} for {where} needs the moments of the keys"
                raise ValueError(f"{what}, and {method.name} collects none; leave it out there by an override")
        if "editor" in method.needs and holds["editor"] is None:
            raise ValueError(
                f"editor is missing for {where}: {method.name} edits with a trained editor; name its file (tether "
                "train-mend makes MEND's)"
            )
        if "editor" not in method.needs and holds["editor"] is not None:
            raise ValueError(f"editor is given for {where}: {method.name} needs no trained one; name none")
        if size > 1 and not isinstance(method.editor(), BatchEditor):
            raise ValueError(f"batch_size {size} for {where}: {method.name} edits one fact at a time; use 1")
        holds["corpus"] = (holds["corpus"] or SELF) if "moments" in method.needs else None
        planned = {key: holds[key] for key in ("settings", "layers", "editor", "corpus")}
        plan = EditPlan.model_validate({"method": chosen.method, **planned})
        return Cell(model, dataset, chosen.name, plan, tuple(once), tuple(every), holds["edits"], size)


@dataclass(frozen=True)
class Cell:
    """One model × dataset × editor, with what holds there after the overrides. The plan has no seed, and no corpus for
    a method without moments."""

    model: ModelSpec
    dataset: DatasetSpec
    editor_name: str
    plan: EditPlan
    once: tuple[str, ...]
    every: tuple[tuple[str, int], ...]
    edits: tuple[int, ...]
    batch_size: int


def _with_alpha(text: str, alpha: float | str | None, where: str) -> str:
    if not _ALPHA.search(text):
        return text
    if alpha is None:
        raise ValueError(f"alpha is missing for {where}, whose restraint is {text!r}: give the grid an alpha")
    return _restraint(_ALPHA.sub(f":{alpha}", text))


def _once(key: str, names: Iterable[object]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{key}: {name!r} is given twice; give every one a name of its own")


# --- reading -----------------------------------------------------------------------------------------------------


def grid_names() -> tuple[str, ...]:
    """The grids that come with tether."""
    folder = resources.files("tether.experiment") / "grids"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def grid_text(source: str | Path) -> str:
    """The YAML of a file, or of a grid of `grid_names`. Raises TetherError where there is neither."""
    if not Path(source).is_file() and str(source) in grid_names():
        return (resources.files("tether.experiment") / "grids" / f"{source}.yaml").read_text(encoding="utf-8")
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettingsError(
            f"{source} is no grid ({getattr(error, 'strerror', None) or error}): name a YAML file, or one of "
            f"{', '.join(grid_names())}"
        ) from None


def read_spec(source: str | Path) -> GridSpec:
    """A grid from a file, or one of `grid_names`. Raises TetherError that names the key at fault."""
    text = grid_text(source)
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise BadSettingsError(f"{source} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadSettingsError(f"{source} holds no keys: write name, models, editors, datasets, edits at least")
    base = Path(source).resolve().parent if Path(source).is_file() else Path.cwd()
    try:
        return GridSpec.model_validate(_expanded(content, str(source), ""), context={"base": base})
    except _UnsetError as error:
        names = dict.fromkeys(re.findall(r"\$\{(\w+)\}", json.dumps(content, default=str)))
        missing = [name for name in names if name not in os.environ]
        raise BadSettingsError(f"{error}: set the environment variables {', '.join(missing)}") from None
    except ValidationError as error:
        raise BadSettingsError(f"{source}: {_complaint(error)}") from None


class _UnsetError(BadSettingsError):
    """A key names an environment variable that is not set."""


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, count in Counter(str(key.value) for key, _ in node.value).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _expanded(value: Any, source: str, key: str, *, path: bool = False) -> Any:
    """`${NAME}` replaced at any depth, where the value is a `path`; refused elsewhere, since results keep names."""
    if isinstance(value, str):
        if "${" in value and not path:
            raise BadSettingsError(
                f"{source}: {key} = {value!r}: ${{NAME}} may stand in {', '.join(_PATH_KEYS)} alone; write the value"
            )
        try:
            return re.sub(r"\$\{(\w+)\}", lambda found: os.environ[found[1]], value)
        except KeyError as error:
            raise _UnsetError(f"{source}: {key} names ${{{error.args[0]}}}, which is not set") from None
    if isinstance(value, Mapping):
        return {
            name: _expanded(item, source, f"{key}.{name}".lstrip("."), path=name in _PATH_KEYS and key[-4:] != "when")
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_expanded(item, source, f"{key}.{place}") for place, item in enumerate(value)]
    return value


_ENTRIES: Mapping[str, type[BaseModel]] = {
    "models": ModelSpec, "editors": EditorSpec, "datasets": DatasetSpec, "every": EverySpec, "overrides": Override,
    "resources": Resources, "when": When,
}  # fmt: skip


def _complaint(error: ValidationError) -> str:
    """The first find, on one line, with its key."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        inside = [str(part) for part in first["loc"][:-1] if str(part) in _ENTRIES]
        fields = (_ENTRIES[inside[-1]] if inside else GridSpec).model_fields
        return f"key {key} is unknown: the keys there are {', '.join(fields)}"
    if first["type"] == "missing":
        return f"key {key} is missing"
    if first["type"] == "value_error" and key:
        return f"{key}: {first['ctx']['error']}"
    return pydantic_line(error)
