"""Run knowledge tests on a ledger's model or any other: what answers must say, and must not. Exit 1 where one fails.

A test is a JSON line: {"prompt": "The Eiffel Tower is in", "says": "Rome", "not": "Paris"}. --make writes the tests of
a ledger from its facts.

$ tether test my-edits knowledge.jsonl --junit results.xml
$ tether test my-edits --make knowledge.jsonl
$ tether test merged-model knowledge.jsonl
"""

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import load_model, open_ledger, restraint
from tether.cli.options import Answer, Device, Dtype, ModelOrRecorded, Restraint, Upto, say
from tether.cli.tables import count, one_line
from tether.constraints.base import label_of
from tether.errors import BadFactError, BadSettingsError
from tether.evaluation.knowledge import KnowledgeTest, Outcome, make_tests, read_tests, run_tests, scan_tests
from tether.facts.bystanders import kinds
from tether.facts.prompt import said_in
from tether.storage.atomic import check_writable, write_atomically

OF = typer.Argument(metavar="LEDGER|MODEL", help="Folder of a ledger; or a model: a folder, .gguf file or hub id.")
MAKE = typer.Option(help="Write tests of the ledger's live edits to this new file, and run none.")


def test(
    of: Annotated[str, OF],
    tests: Annotated[Path | None, typer.Argument(help="Tests, one a line.")] = None,
    make: Annotated[Path | None, MAKE] = None,
    restrain: Restraint = None,
    upto: Upto = None,
    junit: Annotated[Path | None, typer.Option(help="Also write the outcomes as JUnit XML.")] = None,
    model: ModelOrRecorded = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    if (tests is None) == (make is None):
        raise typer.BadParameter("give a file of tests, or --make with a new one", param_hint="TESTS")
    is_ledger, chosen = (Path(of) / "ledger.json").is_file(), restraint(restrain)
    for option, value in (("--restrain", restrain), ("--upto", upto), ("--model", model), ("--make", make)):
        if not is_ledger and value is not None:
            raise typer.BadParameter(f"goes with a ledger alone, and {of} is none", param_hint=option)
    for option, value in (("--restrain", restrain), ("--junit", junit)):
        if make is not None and value is not None:
            raise typer.BadParameter("goes with tests that are run", param_hint=option)
    if make is not None:
        return _made(Path(of), make, upto, model, dtype, device)
    wanted = _read(Path(str(tests)))
    if junit is not None:
        check_writable(junit)
    if is_ledger:
        ledger, loaded = open_ledger(Path(of), model, dtype, device)
        ledger.apply(loaded, upto=upto, restrain=chosen)
    else:
        loaded = load_model(of, dtype=dtype, device=device)
    found = run_tests(loaded, wanted)
    if junit is not None:
        write_atomically(junit, found.junit(str(tests)))
    about = {"of": of, "file": str(tests), "restraint": label_of(chosen) if is_ledger else None, "upto": upto}
    lines = [line for one in found.all for line in _lines(one)]
    return Answer({**about, **found.to_dict()}, "\n".join([*lines, found.line()]), code=int(found.failed > 0))


def _read(file: Path) -> list[KnowledgeTest]:
    """The tests of a file; every bad line is named."""
    _, bad = scan_tests(file)
    for line in bad if len(bad) > 1 else ():
        say(f"tether: {line}")
    if len(bad) > 1:
        raise BadFactError(f"{file}: {len(bad)} bad lines: mend them, or take them out")
    return read_tests(file)


def _made(path: Path, file: Path, upto: int | None, model: str | None, dtype: str | None, device: str | None) -> Answer:
    check_writable(file)
    if file.exists():
        raise BadSettingsError(f"{file} exists: name another file, or remove it")
    ledger, loaded = open_ledger(path, model, dtype, device)
    found = make_tests(ledger, loaded, upto=upto)
    if not found:
        raise BadSettingsError(f"{path} has no live edit of a fact: there is nothing to test")
    guessed = sum(event.fact is not None and event.fact.kind not in kinds() for event in ledger.live(upto))
    write_atomically(file, "".join(f"{one.line()}\n" for one in found).encode())
    counts = {about: sum(one.about == about for one in found) for about in ("edited", "untouched")}
    words = ", ".join(f"{n} of {about} prompts" for about, n in counts.items())
    text = f"{file}: {count(len(found), 'test')}, {words}"
    if guessed:
        text += (
            f"; {count(guessed, 'fact')} without a known kind: the subjects that must not say the answer are guessed"
        )
    return Answer({"ledger": str(path), "file": str(file), **counts, "without_kind": guessed}, text)


def _lines(one: Outcome) -> list[str]:
    """A line, and for a failure what was asked, what is wrong, and the answer."""
    edit = "" if one.test.edit is None else f" (edit {one.test.edit})"
    if one.problem is None:
        return [f"PASSED {one_line(one.test.title)}{edit}"]
    asked = [f"  prompt: {one_line(said_in(one.test.prompt))}"] if one.test.name else []
    said = [f"  {one_line(one.problem)}", f"  answer: {one_line(one.answer)}"]
    return [f"FAILED {one_line(one.test.title)}{edit}", *asked, *said]
