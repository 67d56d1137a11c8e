"""docs/reference.md is what the commands say of themselves."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reference_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "make_reference.py"))["reference"]()
    assert page == (DOCS / "reference.md").read_text(encoding="utf-8"), "run: python docs/make_reference.py"
