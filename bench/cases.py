"""What small inputs do: every file of a folder through `tether check`, and with --edit through `edit` on smollm2.

    python bench/cases.py FOLDER [--edit] [--tether "python -m …"]

One line a file: how many records became facts, in which format, what was not used, what was bad, and with --edit how
many facts are said at the end. `--tether` names another version's command, for a before and after.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SUFFIXES = {".json", ".jsonl", ".csv", ".tsv"}


def run(command: list[str], *words: str) -> tuple[int, Any, str]:
    """Exit code, the JSON document (None where there is none), and the last line on stderr."""
    done = subprocess.run([*command, *words, "--json"], capture_output=True, text=True, check=False)
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return done.returncode, document, lines[-1][:160] if lines else ""


def checked(command: list[str], file: Path, model: str) -> str:
    code, found, last = run(command, "check", str(file), "--model", model)
    if not found or "checks" not in found:
        return f"exit {code}: {(found or {}).get('error', last)[:160]}"
    formats = ", ".join(f"{one['format']} {one['records']}" for one in found.get("formats", []))
    unused = sorted({name for one in found.get("formats", []) for name in one["unused"]})
    bad = found["bad_records"]
    parts = [f"exit {code}: {len(found['checks'])} facts", formats, f"not used {', '.join(unused)}" if unused else ""]
    parts += [f"{len(bad)} bad: {bad[0][:120]}" if bad else ""]
    notes = sum(bool(one.get("notes")) for one in found["checks"])
    return "; ".join(part for part in [*parts, f"{notes} with notes" if notes else ""] if part)


def edited(command: list[str], file: Path, model: str, corpus: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        words = ("edit", str(file), "--model", model, "--out", f"{folder}/ledger", "--corpus", corpus)
        code, found, last = run(command, *words)
        said = (found or {}).get("said")
        if said:
            return f"exit {code}: {said['said']} of {said['of']} said at the end"
        return f"exit {code}: {(found or {}).get('events') or (found or {}).get('error') or last}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--edit", action="store_true")
    parser.add_argument("--corpus", default="self")
    parser.add_argument("--tether", default=f"{shlex.quote(sys.executable)} -c 'from tether.cli import main; main()'")
    args = parser.parse_args()
    command = shlex.split(args.tether)
    for file in sorted(path for path in args.folder.iterdir() if path.suffix in SUFFIXES):
        print(f"{file.name}: {checked(command, file, args.model)}", flush=True)
        if args.edit:
            print(f"    edit: {edited(command, file, args.model, args.corpus)}", flush=True)


if __name__ == "__main__":
    main()
