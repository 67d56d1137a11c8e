"""List what there is: methods, constraints, metrics, abilities, models, grids, or what lies in the cache.

$ tether ls methods
$ tether ls cache --clear moments
"""

from __future__ import annotations

import json
import shutil
from importlib import resources, util
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from tether.cli.options import Json, print_result
from tether.cli.tables import table
from tether.constraints.base import CONSTRAINTS
from tether.editors import EDITORS
from tether.evaluation import ABILITIES, METRICS
from tether.evaluation.abilities.run import PERPLEXITY
from tether.evaluation.abilities.tasks import task_file
from tether.experiment.spec import grid_names, grid_text
from tether.storage.cache import cache_dir

What = Literal["methods", "constraints", "metrics", "abilities", "models", "grids", "cache"]
Cached = Literal["models", "moments", "abilities", "states", "all"]
Entry = dict[str, Any]

_CACHED = {
    "models": "GGUF files as safetensors",
    "moments": "second moments of keys",
    "abilities": "measured abilities",
    "states": "states of the blocks below MEND's",
}  # folders of the cache, whose contents tether makes anew when it needs them


def ls(
    what: Annotated[What, typer.Argument(help="What to list.")],
    clear: Annotated[
        Cached | None, typer.Option(help="With `cache`: remove what it holds of one kind, or all of it.")
    ] = None,
    as_json: Json = False,
) -> None:
    if clear is not None:
        if what != "cache":
            raise typer.BadParameter("goes with `tether ls cache` alone", param_hint="--clear")
        removed = [_removed(path) for kind in _CACHED if clear in (kind, "all") for path in _held(kind)]
        lines = [f"removed {entry['path']} ({_cell('bytes', entry['bytes'])})" for entry in removed]
        text = "\n".join([*lines, f"{len(removed)} entries of {cache_dir()} removed"])
        print_result({"folder": str(cache_dir()), "removed": removed}, text, as_json)
        return
    entries = _LISTS[what]()
    text = table(list(entries[0]), [[_cell(key, value) for key, value in entry.items()] for entry in entries])
    print_result(entries, f"{text}\n{cache_dir()}" if what == "cache" else text, as_json)


def methods() -> list[Entry]:
    return [
        {"name": name, "summary": EDITORS[name].summary, "needs": sorted(EDITORS[name].needs),
         "paper": EDITORS[name].paper, "from": EDITORS.source(name)}
        for name in EDITORS
    ]  # fmt: skip


def constraints() -> list[Entry]:
    """By name, with the first line of the docstring."""
    lines = {name: (CONSTRAINTS[name].__doc__ or "").strip().partition("\n")[0] for name in CONSTRAINTS}
    return [{"name": name, "summary": line, "from": CONSTRAINTS.source(name)} for name, line in lines.items()]


def metrics() -> list[Entry]:
    lines = {name: (type(METRICS[name]).__doc__ or "").strip().partition("\n")[0] for name in METRICS}
    return [{"name": name, "summary": line, "from": METRICS.source(name)} for name, line in lines.items()]


def abilities() -> list[Entry]:
    tasks = [task_file(name) for name in ABILITIES if name != PERPLEXITY]
    return [
        {"name": PERPLEXITY, "items": None, "scored": "likelihood of a text"},
        *({"name": t.name, "items": t.size, "scored": t.output_type.replace("_", " ")} for t in tasks),
    ]


def models() -> list[Entry]:
    """The bundled models: the file that their package brings, and where its conversion lies."""
    bundled = json.loads((resources.files("tether.models") / "bundled.json").read_text("utf-8"))
    entries = []
    for name, how in bundled.items():
        spec = util.find_spec(how["package"])
        places = (spec.submodule_search_locations or ()) if spec else ()
        file = next((file for place in places for file in Path(place).glob(how["glob"])), None)
        converted = [path for path in _held("models") if file and path.name.startswith(f"{file.stem}-")]
        entries.append({"name": name, "file": file, "converted": max(converted, default=None), "get": how["remedy"]})
    return entries


def grids() -> list[Entry]:
    return [{"name": name, "title": yaml.safe_load(grid_text(name)).get("title", "")} for name in grid_names()]


def cache() -> list[Entry]:
    held = {kind: _held(kind) for kind in _CACHED}
    return [
        {"name": kind, "holds": _CACHED[kind], "entries": len(paths), "bytes": sum(map(_bytes, paths))}
        for kind, paths in held.items()
    ]


_LISTS = {
    "methods": methods, "constraints": constraints, "metrics": metrics, "abilities": abilities, "models": models,
    "grids": grids, "cache": cache,
}  # fmt: skip


def _held(kind: str) -> list[Path]:
    """The entries of a kind. Locks are no entries, and stay: another process may hold one."""
    folder = cache_dir() / kind
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def _removed(path: Path) -> Entry:
    """Remove an entry; what it was."""
    entry = {"path": str(path), "bytes": _bytes(path)}
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return entry


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _cell(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{value / 1e6:.1f} MB"
    if isinstance(value, list):
        value = ", ".join(value)
    return "-" if value in (None, "") else str(value)
