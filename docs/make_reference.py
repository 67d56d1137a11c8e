"""Writes docs/reference.md from the commands: `python docs/make_reference.py`. A test holds the page up to date."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from tether.cli.app import VERBS, app, command_of, help_of

FILE = Path(__file__).with_name("reference.md")
HEAD = """# Reference of the command

Every verb with its arguments and options, as `tether VERB --help` shows them. This page is written by
`python docs/make_reference.py`; [commands.md](commands.md) says what the verbs do and describes their JSON.
"""


def reference() -> str:
    """The whole page."""
    everywhere = typer.main.get_command(app)
    parts = [HEAD, "## Before the verb\n", _table(everywhere, "tether")]
    for panel in dict.fromkeys(VERBS.values()):
        parts += [_verb(verb) for verb in VERBS if VERBS[verb] == panel]
    return "\n".join(parts)


def _verb(verb: str) -> str:
    text, examples = help_of(verb)
    return "\n".join([f"## tether {verb}\n\n{text}\n", "```", *examples, "```\n", _table(command_of(verb), verb)])


def _table(command: Any, name: str) -> str:
    """The arguments and options of a command, a row each, panel by panel as in its help."""
    context = typer.Context(command, info_name=name)
    shown = [parameter for parameter in command.get_params(context) if "--help" not in parameter.opts]
    panels = dict.fromkeys(["Arguments", "Options", *map(_panel, shown)])
    lines = ["| | | |", "|---|---|---|"]
    for panel in panels:
        for parameter in shown:
            if _panel(parameter) == panel:
                words, text = parameter.get_help_record(context)
                lines.append("| " + " | ".join(map(_cell, (panel, f"`{words.strip()}`", text))) + " |")
    return "\n".join(lines) + "\n"


def _panel(parameter: Any) -> str:
    default = "Arguments" if parameter.param_type_name == "argument" else "Options"
    return getattr(parameter, "rich_help_panel", None) or default


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
