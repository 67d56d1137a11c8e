"""The methods of editing, by name. Another package adds its own by an entry point of the group `tether.editors`."""

from tether.editors.base import BatchEditor, Editor, Method
from tether.plugins import Registry

EDITORS: Registry[Method] = Registry(
    "tether.editors",
    "method",
    Method,
    {
        "rome": "tether.editors.rome:ROME",
        "r-rome": "tether.editors.rome:R_ROME",
        "memit": "tether.editors.memit:MEMIT",
        "emmet": "tether.editors.memit:EMMET",
        "confined": "tether.editors.confined:CONFINED",
        "mend": "tether.editors.mend:MEND",
        "ft": "tether.editors.ft:FT",
        "lora": "tether.editors.lora:LORA",
    },
)


def editor(name: str) -> Editor | BatchEditor:
    """A new editor of a registered method."""
    return EDITORS[name].editor()
