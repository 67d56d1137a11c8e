"""Files and folders that appear whole or not at all, and locks on every system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tether.export.folder import new_folder
from tether.storage.cache import built_folder, locked

WITHOUT_FCNTL = """
import pkgutil, sys
import filelock, torch, transformers  # these know systems without it
sys.modules["fcntl"] = None
import tether
for module in pkgutil.walk_packages(tether.__path__, "tether."):
    if module.name.split(".")[1] in ("storage", "facts", "algebra", "constraints", "models", "editors", "ledger"):
        __import__(module.name)
assert tether.Ledger
"""


def test_nothing_needs_the_locks_of_unix() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_FCNTL], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("make", ["cache", "export"])
def test_a_folder_is_durable_before_it_has_its_name(make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut may leave its name without its files."""
    to = tmp_path / "made"
    happened: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        happened.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        happened.append("rename")
        return rename(path, target)

    def build(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner/file").write_text("x")
        (folder / "other").write_text("y")

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    if make == "cache":
        built_folder(to, build)
    else:
        with new_folder(to) as folder:
            build(folder)
    before, after = happened[: happened.index("rename")], happened[happened.index("rename") + 1 :]
    assert {"inner", "file", "other"} < set(before) and any(name.endswith(".partial") for name in before)
    assert after == [tmp_path.name]
    assert (to / "inner/file").read_text() == "x" and (to / "other").read_text() == "y"


def test_a_lock_is_waited_for_and_released(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import filelock, sys; l = filelock.FileLock({str(tmp_path / 'a.lock')!r}); "
         "l.acquire(); print('held', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.kill()
    with locked(tmp_path / "a"):
        pass
    holder.wait()
