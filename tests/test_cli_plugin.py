"""Another package adds a method and a constraint: it is installed, and both are used from the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tether.editors import base

PLUGIN = Path(__file__).parent / "plugin"
pytestmark = pytest.mark.skipif(not hasattr(base, "Method"), reason="there is no Method to register yet")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the package into; the package's own folder stays clean."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
         "--disable-pip-version-check", "--target", folder / "site", folder / "source"],
        check=True,
    )  # fmt: skip
    return folder / "site"


def test_a_method_and_a_constraint_of_another_package(place: Path, installed: Path) -> None:
    (place / "toy.json").write_text(json.dumps({"strength": 0.75}))
    edit = ("edit", "facts.jsonl", "--model", "model", "--method", "toy", "--settings", "toy.json", "--restrain",
            "half:1+rank:3", "--limit", "3", "--out", "toyed")  # fmt: skip
    listed, made, spectra, undone, (first,) = answers(
        place, installed, ("ls", "methods"), edit, ("spectrum", "toyed", "--restrain", "none,half:1"),
        ("undo", "toyed", "--last", "2"), ("spectrum", "toyed", "--restrain", "none"),
    )  # fmt: skip
    methods = {entry["name"]: entry for entry in listed}
    assert methods["toy"]["from"] == "tether-toy" and methods["rome"]["from"] == "tether"
    assert methods["toy"]["summary"].startswith("Writes the direction")
    assert (made["method"], made["events"]["edit"], made["events"]["restrain"]) == ("toy", 3, 1)
    header = json.loads((place / "toyed" / "ledger.json").read_text())
    assert header["restrain"] == "half:1+rank:3" and header["settings"]["strength"] == 0.75
    whole, half = (row["extremes"]["update_sigma_max"] for row in spectra)
    assert half == pytest.approx(whole / 2, rel=1e-5)
    assert undone["live_edits"] == 1 and first["extremes"]["update_sigma_max"] == pytest.approx(0.75, rel=1e-5)


PROGRAM = """
import json, sys
from tether.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["tether", *words, "--json"]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    print("\\x1e", flush=True)
"""


def answers(place: Path, installed: Path, *commands: tuple[str, ...]) -> list[Any]:
    """The JSON documents of command lines that must succeed, one after another in a process that finds the package."""
    paths = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TETHER_CACHE": str(place / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(document) for document in done.stdout.split("\x1e\n")[:-1]]
