"""The command: a file a verb."""

from tether.cli.app import main

__all__ = ["main"]
