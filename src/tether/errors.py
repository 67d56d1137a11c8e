"""The one error a user is meant to read, and what it quotes of others."""


class TetherError(Exception):
    """A message on one line: the value at fault, the rule it breaks, the remedy.

    The command prints it to stderr and exits with 1; nothing half-written stays.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    return next((line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()), type(error).__name__)
