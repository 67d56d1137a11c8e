"""Texts that come with the package."""

from importlib import resources


def text(name: str) -> str:
    """The content of a file of this folder."""
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


def misuse() -> str:
    """The note on misuse, Markdown without a title."""
    return text("misuse.md").strip()
