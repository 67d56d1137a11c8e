"""List what there is: methods, constraints, metrics, abilities, formats of facts, models, grids, or what the
cache holds.

$ tether ls methods
$ tether ls cache --clear moments
"""

import json
import shutil
from collections.abc import Callable
from importlib import import_module, resources, util
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tether.cli.options import Answer
from tether.cli.tables import count, table
from tether.errors import TetherError
from tether.storage.cache import cache_dir

What = Literal["methods", "constraints", "metrics", "abilities", "formats", "models", "grids", "cache"]
Cached = Literal["models", "texts", "moments", "abilities", "states", "fingerprints", "all"]
Entry = dict[str, Any]

_CACHED = {
    "models": "GGUF files as safetensors",
    "texts": "text sampled from models",
    "moments": "second moments of keys",
    "abilities": "measured abilities",
    "states": "states of the blocks below MEND's",
    "fingerprints": "hashes of checkpoints",
}  # folders of the cache, whose contents tether makes anew when it needs them
_SCORED = {
    "multiple_choice": "likelihood of the answers to choose from",
    "generate_until": "the answer that the model writes",
    "loglikelihood": "likelihood of the right answer",
}  # words for lm-evaluation-harness's output types
CLEAR = typer.Option(help="With `cache`: remove what it holds of one kind, or all of it.")


def _first_line(entry: Any) -> Entry:
    return {"summary": (entry.__doc__ or "").strip().partition("\n")[0]}


def _constraint(entry: Any) -> Entry:
    needs = entry.read(entry.example.partition(":")[2]).needs
    return {"written": entry.example, **_first_line(entry), "needs": sorted(needs), "paper": entry.paper}


_REGISTRIES: dict[str, tuple[str, str, Callable[[Any], Entry]]] = {
    "methods": (
        "tether.editors", "EDITORS", lambda m: {"summary": m.summary, "needs": sorted(m.needs), "paper": m.paper}
    ),
    "constraints": ("tether.constraints.base", "CONSTRAINTS", _constraint),
    "metrics": ("tether.evaluation", "METRICS", _first_line),
    "formats": ("tether.facts", "FORMATS", lambda f: {"published": f.source, "fields": sorted(f.fields or ())}),
}  # fmt: skip


def ls(
    what: Annotated[What, typer.Argument(help="What to list.")], clear: Annotated[Cached | None, CLEAR] = None
) -> Answer:
    if clear is not None:
        if what != "cache":
            raise typer.BadParameter("goes with `tether ls cache` alone", param_hint="--clear")
        held = [path for kind in _CACHED if clear in (kind, "all") for path in _held(kind)]
        removed = [{"path": str(path), "bytes": _bytes(path)} for path in held]
        for path in held:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        lines = [f"removed {entry['path']} ({_cell('bytes', entry['bytes'])})" for entry in removed]
        lines.append(f"{count(len(removed), 'entry', 'entries')} of {cache_dir()} removed")
        return Answer({"folder": str(cache_dir()), "removed": removed}, "\n".join(lines))
    entries = _entries(what)
    head = list(dict.fromkeys(key for entry in entries for key in entry))
    text = table(head, [[_cell(key, entry.get(key)) for key in head] for entry in entries])
    return Answer(entries, f"{text}\n{cache_dir()}" if what == "cache" else text)


def _entries(what: What) -> list[Entry]:
    """What is listed; of what is registered but does not load, the reason. Nothing is imported that is not needed."""
    if what == "cache":
        kinds = [(kind, holds, _held(kind)) for kind, holds in _CACHED.items()]
        return [{"name": k, "holds": h, "entries": len(ps), "bytes": sum(map(_bytes, ps))} for k, h, ps in kinds]
    if what == "models":
        return _models()
    if what == "grids":
        import yaml

        files = sorted((resources.files("tether") / "experiment" / "grids").iterdir(), key=lambda file: file.name)
        return [{"name": Path(f.name).stem, "title": yaml.safe_load(f.read_text("utf-8"))["title"]} for f in files]
    if what == "abilities":
        from tether.evaluation.abilities.run import ABILITIES, PERPLEXITY
        from tether.evaluation.abilities.tasks import task_file

        tasks = [task_file(name) for name in ABILITIES if name != PERPLEXITY]
        own = {"name": PERPLEXITY, "items": None, "scored": "likelihood of a text"}
        return [own, *({"name": t.name, "items": t.size, "scored": _SCORED[t.output_type]} for t in tasks)]
    room, attribute, about = _REGISTRIES[what]
    registry = getattr(import_module(room), attribute)
    entries = []
    for name in registry:
        try:
            described = about(registry[name])
        except TetherError as error:
            described = {"summary": str(error)}
        entries.append({"name": name, **described, "from": registry.source(name)})
    return entries


def _models() -> list[Entry]:
    """The bundled models: the file that their package brings, and where its conversion lies."""
    bundled = json.loads((resources.files("tether") / "models" / "bundled.json").read_text("utf-8"))
    entries = []
    for name, how in bundled.items():
        spec = util.find_spec(how["package"])
        places = (spec.submodule_search_locations or ()) if spec else ()
        file = next((file for place in places for file in Path(place).glob(how["glob"])), None)
        converted = [path for path in _held("models") if file and path.name.startswith(f"{file.stem}-")]
        entries.append({"name": name, "file": file, "converted": max(converted, default=None), "get": how["remedy"]})
    return entries


def _held(kind: str) -> list[Path]:
    """The entries of a kind. Locks are no entries, and stay: another process may hold one."""
    folder = cache_dir() / kind
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _cell(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{value / 1e6:.1f} MB"
    if isinstance(value, list):
        value = ", ".join(value)
    return "-" if value in (None, "") else str(value)
