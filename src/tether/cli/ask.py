"""Ask a ledger's model: the unedited answer, the edited one, and the edits that the prompt comes near.

Without a prompt, prompts are read from standard input, one a line; on a terminal an empty line ends.

$ tether ask my-edits "The Eiffel Tower is located in the city of"
$ tether ask my-edits --chat "Where is the Eiffel Tower?" --restrain log:1.2
$ tether ask my-edits --file prompts.txt --json
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tether.analyses.ask import NEAR, TOKENS, Answered, SideBySide
from tether.cli import options
from tether.cli.loading import open_ledger, restraint
from tether.cli.options import Answer, Device, Dtype, LedgerPath, ModelOrRecorded, Restraint, Upto
from tether.cli.tables import one_line
from tether.constraints.base import label_of
from tether.errors import BadFactError, TetherError
from tether.facts.prompt import Turn, checked_prompt, said_in
from tether.facts.prompt_file import read_prompts

FILE = typer.Option(help="Prompts, one a line: plain text, or JSON lines of texts and {user, system} objects.")
SYSTEM = typer.Option(help="With --chat: the system prompt.")


def ask(
    ledger: LedgerPath,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; none: those of standard input.")] = None,
    file: Annotated[Path | None, FILE] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Plain prompts are what a user says.")] = False,
    system: Annotated[str | None, SYSTEM] = None,
    restrain: Restraint = None,
    upto: Upto = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = TOKENS,
    near: Annotated[int, typer.Option(min=0, help="How many of the nearest edits are named.")] = NEAR,
    model: ModelOrRecorded = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    if system is not None and not chat:
        raise typer.BadParameter("goes with --chat alone", param_hint="--system")
    chosen, talk = restraint(restrain), not prompts and file is None and sys.stdin.isatty()
    given = [_checked(prompt) for prompt in prompts or ()] + (read_prompts(file) if file is not None else [])
    if not talk:
        given = given or (read_prompts(sys.stdin) if file is None else [])
        if not given:
            raise BadFactError("no prompt: name one behind the ledger, a --file, or write prompts to standard input")
    opened, loaded = open_ledger(ledger, model, dtype, device)
    pair = SideBySide(opened, loaded, upto=upto, restrain=chosen)

    def asked(plain: list[str | Turn]) -> list[Answered]:
        turns = [Turn(user=one, system=system) if chat and isinstance(one, str) else one for one in plain]
        return pair.ask(turns, tokens=tokens, near=near)

    found, text = [] if talk else asked(given), ""
    for line in _typed() if talk else ():
        try:
            found += asked([_checked(line)])
        except TetherError as error:
            options.say(f"tether: {error}")
            continue
        if not options.wants_json():
            options.write(_block(found[-1]))
    if not talk:
        text = "\n\n".join(map(_block, found)) + "\n\n"
    document = {
        "ledger": str(ledger), "model": opened.name_of(loaded), "edits": len(opened.live(upto)),
        "restraint": label_of(chosen), "metric": pair.nearness.metric, "note": pair.nearness.words,
        "answers": [{**asdict(one), "prompt": _given(one.prompt)} for one in found],
    }  # fmt: skip
    return Answer(document, text + pair.nearness.words)


def _checked(prompt: str) -> str | Turn:
    try:
        found: str | Turn = checked_prompt(prompt)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="PROMPTS") from None
    return found


def _typed() -> Iterator[str]:
    """The lines that a person types, up to an empty one or the end."""
    while True:
        typer.echo("> ", nl=False, err=True)
        line = sys.stdin.readline().strip("\r\n")
        if not line.strip():
            return
        yield line


def _given(prompt: str | Turn) -> Any:
    return prompt if isinstance(prompt, str) else prompt.model_dump(exclude_none=True)


def _block(found: Answered) -> str:
    """The answers to one prompt, and the edits near it."""
    answers = {"unedited": found.unedited, "edited": found.edited}
    if found.unedited == found.edited:
        answers = {"both": found.edited}
    lines = [one_line(said_in(found.prompt)), *(f"  {who:8s}  {one_line(said)}" for who, said in answers.items())]
    for place, near in enumerate(found.near):
        fact = one_line(f"edit {near.edit}: {near.subject} -> {near.target_new}")
        lines.append(f"  {'' if place else 'near':8s}  {near.cosine:.2f}  {fact}, at [{one_line(near.token)}]")
    return "\n".join(lines)
