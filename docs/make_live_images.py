"""Writes docs/images/live from a ledger: `python docs/make_live_images.py LEDGER QUESTION`. Needs the extra `browser`,
and a chromium. The pictures of docs/guide/live.md are of the ledger that `tether demo` makes."""

from __future__ import annotations

import io
import json
import shutil
import socket
import sys
import threading
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import tether
from tether.editing.plan import EditPlan
from tether.web.app import Live
from tether.web.studio import Studio

FOLDER = Path(__file__).with_name("images") / "live"
SIZES = {"laptop": (1366, 860), "phone": (390, 844)}


def take(page: Page, prompt: str) -> None:
    """Every view, with something on it, at every size, light and dark."""
    page.set_default_timeout(120_000)
    page.fill("[name=prompt]", prompt)
    page.click("text=Chat turn")
    page.click("button:text-is('Ask')")
    page.wait_for_selector("button:text-is('Stop')[disabled]", state="detached")
    page.wait_for_selector("button:text-is('Stop')[disabled]")
    page.click("nav >> text=Edit")
    for name, text in (("subject", "Louvre"), ("fact-prompt", "The {} is located in the city of"), ("target", "Rome")):
        page.fill(f"[name={name}]", text)
    page.wait_for_selector(".tokens .read")
    page.click("nav >> text=Health")
    page.locator("#view-health [name=restraint]").select_option("log")
    page.wait_for_selector("text=word for word")
    page.click("nav >> text=Ledger")
    page.click("#view-ledger >> text='Verify' >> nth=-1")
    page.wait_for_selector("text=whole:")
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            for view in ("ask", "edit", "health", "ledger"):
                page.click(f"nav >> text={view.capitalize()}")
                page.wait_for_selector(f"#view-{view}:visible")
                page.evaluate("scrollTo(0, 0)")
                page.wait_for_timeout(500)
                shot = Image.open(io.BytesIO(page.screenshot(full_page=size == "phone")))
                shot.convert("RGB").save(FOLDER / f"{view}-{size}-{scheme}.webp", quality=82, method=6)


def main(path: Path, prompt: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    header = json.loads((path / "ledger.json").read_text())
    live = Live(Studio(tether.load(header["model"]), path, EditPlan()))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(live.application, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with sync_playwright() as run:
            browser = run.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1366, "height": 860}, device_scale_factor=1)
            page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/#ask")
            take(page, prompt)
            browser.close()
    finally:
        live.close()
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
