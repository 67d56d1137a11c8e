"""List what there is: methods, constraints, metrics, abilities, models, grids, or what lies in the cache.

$ tether ls methods
$ tether ls cache --clear moments
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
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
from tether.plugins import Registry
from tether.storage.cache import cache_dir

What = Literal["methods", "constraints", "metrics", "abilities", "models", "grids", "cache"]
Cached = Literal["moments", "abilities", "models", "states", "all"]
Entry = dict[str, Any]

_CACHED = {
    "models": "GGUF files as safetensors",
    "moments": "second moments of keys",
    "abilities": "measured abilities",
    "states": "states of the blocks below MEND's",
}  # folders of the cache, which tether makes anew when it needs them


def ls(
    what: Annotated[What, typer.Argument(help="What to list.")],
    clear: Annotated[
        Cached | None, typer.Option(help="With `cache`: remove what it holds of one kind, or all of it.")
    ] = None,
    as_json: Json = False,
) -> None:
    if clear is not None and what != "cache":
        raise typer.BadParameter("goes with `tether ls cache` alone", param_hint="--clear")
    if clear is not None:
        removed = cleared(clear)
        size = sum(entry["bytes"] for entry in removed)
        lines = [f"removed {entry['path']} ({_size(entry['bytes'])})" for entry in removed]
        lines.append(f"{len(removed)} entries of {cache_dir()} removed, {_size(size)}")
        print_result({"folder": str(cache_dir()), "removed": removed}, "\n".join(lines), as_json)
        return
    found = _LISTS[what]()
    text = _drawn(found)
    if what == "cache":
        text = f"{text}\n{cache_dir()}".lstrip()
    print_result(found, text, as_json)


def methods() -> list[Entry]:
    return [_method(name, EDITORS[name]) for name in EDITORS]


def _method(name: str, method: Any) -> Entry:
    return {
        "name": name,
        "summary": getattr(method, "summary", ""),
        "needs": sorted(getattr(method, "needs", ())),
        "paper": getattr(method, "paper", ""),
        "from": _source(EDITORS, name),
    }


def constraints() -> list[Entry]:
    return [
        {"name": name, "summary": _summary(CONSTRAINTS[name]), "from": _source(CONSTRAINTS, name)}
        for name in CONSTRAINTS
    ]


def metrics() -> list[Entry]:
    return [{"name": name, "from": _source(METRICS, name)} for name in METRICS]


def abilities() -> list[Entry]:
    entries: list[Entry] = [{"name": PERPLEXITY, "items": None, "scored": "likelihood of a text"}]
    for name in ABILITIES:
        if name != PERPLEXITY:
            task = task_file(name)
            entries.append({"name": name, "items": task.size, "scored": task.output_type.replace("_", " ")})
    return entries


def models() -> list[Entry]:
    """The bundled models, whether their package is installed, and where the conversion of its file lies."""
    bundled = json.loads((resources.files("tether.models") / "bundled.json").read_text("utf-8"))
    entries = []
    for name, how in bundled.items():
        spec = util.find_spec(how["package"])
        places = (spec.submodule_search_locations or ()) if spec else ()
        file = next((file for place in places for file in Path(place).glob(how["glob"])), None)
        converted = [] if file is None else sorted((cache_dir() / "models").glob(f"{file.stem}-*[!k]"))
        entries.append(
            {
                "name": name,
                "file": None if file is None else str(file),
                "converted": str(converted[-1]) if converted else None,
                "install": how["remedy"],
            }
        )
    return entries


def grids() -> list[Entry]:
    return [{"name": name, "title": yaml.safe_load(grid_text(name)).get("title", "")} for name in grid_names()]


def cache() -> list[Entry]:
    entries = []
    for kind, held in _CACHED.items():
        paths = _held(kind)
        entries.append(
            {"name": kind, "holds": held, "entries": len(paths), "bytes": sum(map(_bytes, paths))},
        )
    return entries


def cleared(kind: Cached) -> list[Entry]:
    """Remove what the cache holds of a kind, or of all; what was removed."""
    removed = []
    for path in [path for name in _CACHED if kind in (name, "all") for path in _held(name)]:
        removed.append({"path": str(path), "bytes": _bytes(path)})
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return removed


_LISTS = {
    "methods": methods, "constraints": constraints, "metrics": metrics, "abilities": abilities, "models": models,
    "grids": grids, "cache": cache,
}  # fmt: skip


def _held(kind: str) -> list[Path]:
    """The entries of a kind. Locks are no entries, and stay: another process may hold one."""
    folder = cache_dir() / kind
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def _bytes(path: Path) -> int:
    files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _source(entries: object, name: str) -> str:
    """The package an entry comes from."""
    return entries.source(name) if isinstance(entries, Registry) else "tether"


def _summary(entry: type) -> str:
    """The first line of a docstring."""
    return (entry.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def _drawn(entries: list[Entry]) -> str:
    """Entries of the same keys as a table."""
    if not entries:
        return ""
    return table(list(entries[0]), [[_cell(key, value) for key, value in entry.items()] for entry in entries])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "bytes":
        return _size(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value)
