"""A headless chromium for the tests of pages: sizes and schemes, what axe finds, and pictures.

`TETHER_PICTURES=docs/images` before pytest keeps the pictures, which the documents show; else they are not taken.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra browser")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright.expect.set_options(timeout=30_000)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")

SIZES = {"laptop": (1366, 768), "phone": (390, 844)}
LOOKS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]
CHECKED = [("laptop", "light"), ("phone", "dark")]  # by axe: both layouts, and both sets of colours


@contextmanager
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(viewport=dict(zip(("width", "height"), SIZES["laptop"], strict=True)))
        browser.close()


def look(page: Any, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})


def check(page: Any, size: str, scheme: str) -> None:
    """Nothing is wider than the window, and axe finds nothing serious."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (size, scheme)
    if (size, scheme) in CHECKED:
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], node["html"][:120], node.get("failureSummary")) for one in found
                if one["impact"] in ("serious", "critical") for node in one["nodes"]] == []  # fmt: skip


def picture(page: Any, name: str, *, whole: bool = False) -> None:
    """A picture for the documents, as `name`.webp."""
    if folder := os.environ.get("TETHER_PICTURES"):
        from PIL import Image

        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(500)
        file = Path(folder) / f"{name}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB").save(file, quality=82, method=6)
