"""The command's frame: verbs that are imported only when they are called, errors on one line, exit codes.

A verb is one file of this package: its docstring is the help, its lines with `$` are the examples, and the function
that has its name is the command, which returns an Answer. VERBS announces it; PANELS in the file groups its options.

Exit codes: 0 done, 1 the work failed, 2 the command line is wrong, 130 Ctrl-C.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

import tether
from tether.cli.options import Answer, printable, say, wants_json, write
from tether.errors import failure

INTERRUPTED = 130

_PANELS = {
    "First steps": ("demo", "ls"),
    "Edit": ("edit", "live", "undo", "redo", "consolidate", "repair", "log", "verify", "merge", "pick", "import"),
    "Ask": ("ask", "test"),
    "Measure": ("evaluate", "compare", "spectrum", "headroom", "bound", "report", "grid"),
    "Take away": ("export", "whose", "restrain"),
    "Prepare": ("check", "moments", "tune", "train-mend"),
}
VERBS = {verb: panel for panel, verbs in _PANELS.items() for verb in verbs}  # in the order of the help

_JSON = typer.Option("--json", expose_value=False, help="Print one JSON document on stdout and nothing else there.")


def help_of(verb: str) -> tuple[str, list[str]]:
    """Help and examples: the docstring of the verb's file, read without importing what the verb needs."""
    source = Path(__file__).with_name(f"{_module(verb)}.py").read_text(encoding="utf-8")
    lines = source.split('"""')[1].splitlines()
    text = "\n".join(line for line in lines if not line.startswith("$ ")).strip()
    return text, [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def command_of(verb: str) -> Any:
    """The whole command of a verb; this imports its file."""
    name = _module(verb)
    text, examples = help_of(verb)
    epilog = "\n".join(["Examples:" if len(examples) > 1 else "Example:", *(f"  {line}" for line in examples)])
    module = import_module(f"tether.cli.{name}")
    command = _command(getattr(module, name), name=verb, help=text, epilog=epilog)
    command.params += _command(_of_every_verb).params
    panels = {"Model": ("model", "dtype", "device", "anatomy"), **getattr(module, "PANELS", {})}
    for parameter in command.params:
        parameter.rich_help_panel = next((panel for panel, names in panels.items() if parameter.name in names), None)
    return command


def _module(verb: str) -> str:
    """The name of a verb's file and function, which no keyword of Python may be."""
    name = verb.replace("-", "_")
    return f"{name}_" if iskeyword(name) else name


def _command(function: Callable[..., Any], **attributes: Any) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(**attributes)(function)
    return typer.main.get_command(single)


def _of_every_verb(as_json: Annotated[bool, _JSON] = False) -> None:
    """Has the option that every verb gets; `main` looks for it."""


class Verbs(TyperGroup):
    """All verbs by name and help; the one that is called is loaded."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for verb, panel in VERBS.items():
            self.add_command(TyperCommand(verb, help=help_of(verb)[0], rich_help_panel=panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in VERBS:
            self.add_command(command_of(args[0]))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="tether",
    cls=Verbs,
    help="Change what a language model knows, edit after edit, and keep it tethered to everything else it knew.",
    epilog="Example:\n  tether edit --subject 'Eiffel Tower' --prompt 'The {} is in' --target Rome "
    "--model smollm2 --out my-edits",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default torch's choice.")] = None,
) -> None:
    if version:
        write(f"tether {tether.__version__}")
        raise typer.Exit
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads is not None:
        import_module("torch").set_num_threads(threads)
    if context.invoked_subcommand is None:
        context.get_help()  # which prints it


def main() -> None:
    """Run the command line; never returns."""
    as_json = wants_json()
    try:
        answer = app(prog_name="tether", standalone_mode=False)  # a number where typer.Exit was raised
        if answer == INTERRUPTED:  # which typer makes of Ctrl-C without a word
            raise KeyboardInterrupt
        if isinstance(answer, Answer):
            write(answer.json() if as_json else answer.text)
            sys.exit(answer.code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; run it again, with --resume where the command has it", INTERRUPTED, as_json)
    except Exception as error:
        if usage := getattr(error, "format_message", None):  # the command line is wrong
            where = getattr(getattr(error, "ctx", None), "command_path", "tether")
            _fail(f"{usage().replace('Value error, ', '').rstrip('.')} (see {where} --help)", 2, as_json)
        if line := failure(error):
            _fail(line, 1, as_json)
        raise  # a bug shows itself
    sys.exit(answer or 0)


def _fail(message: str, code: int, as_json: bool) -> NoReturn:
    line = printable(" ".join(message.split()))
    if as_json:
        write(json.dumps({"error": line}))
    say(f"tether: {line}")
    sys.exit(code)
