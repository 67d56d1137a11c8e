"""A version for numbers: the code that makes them."""

from __future__ import annotations

import hashlib
from pathlib import Path


def code_sha256(*names: str) -> str:
    """sha256 of files of this room, by name: what they compute may differ wherever it differs."""
    digest = hashlib.sha256()
    for name in names:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()
