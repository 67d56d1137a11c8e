"""Versions of what a result depends on."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Of Python and the packages that compute and write the numbers."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("tether", "torch", "transformers", "safetensors")
    }
