"""The one error a user is meant to read."""


class TetherError(Exception):
    """A message on one line: the value at fault, the rule it breaks, the remedy.

    The command prints it to stderr and exits with 1; nothing half-written stays.
    """
