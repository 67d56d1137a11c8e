"""The live page in a headless chromium: a person edits, asks, drags, undoes and exports."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from core import SETTINGS, plain_text, reciter

from tether.editing.plan import EditPlan
from tether.ledger import Ledger
from tether.models import EditableModel
from tether.web.studio import Studio

pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]

VIEWS = ("ask", "edit", "health", "ledger")
SIZES = ((1366, 768), (390, 844))


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    trained = reciter()
    model = EditableModel(trained.hf, trained.tokenizer, id="reciter")
    plan = EditPlan(method="rome", settings={**SETTINGS, "v_lr": 0.5, "v_num_grad_steps": 20}, corpus=plain_text())
    return Studio(model, tmp_path / "ledger", plan)


@pytest.fixture
def address(studio: Studio) -> Iterator[str]:
    import socket

    import uvicorn

    from tether.web.app import Live

    live, listening = Live(studio), socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(live.application, log_level="error", lifespan="off",
                                           timeout_graceful_shutdown=1))  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    live.close()
    server.should_exit = True
    thread.join()
    listening.close()


def test_a_person_edits_asks_drags_undoes_and_exports(studio: Studio, address: str) -> None:
    fact = reciter().facts[0]
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1366, "height": 768})
        page = context.new_page()
        page.set_default_timeout(30_000)
        wrong: list[str] = []
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith((address, "blob:")) else wrong.append(sent.url))
        page.goto(address)

        # a fact by hand, checked as one types
        page.fill("[name=subject]", fact.subject)
        page.fill("[name=fact-prompt]", str(fact.prompt))
        page.fill("[name=target]", fact.target_new)
        page.wait_for_selector(".tokens .read")
        assert page.inner_text(".tokens .read").strip() in fact.subject
        page.click("text=Add to the list")
        page.click("text=Edit 1 fact")
        page.wait_for_selector("text=done (1 of 1)")
        assert "loss" in page.inner_text(".log")

        # both answers; nothing below them moves while they grow
        page.click("nav >> text=Ask")
        below = page.locator(".control:visible")
        before = below.bounding_box()
        page.fill("[name=prompt]", fact.text)
        page.press("[name=prompt]", "Enter")
        page.wait_for_selector(".answer mark")
        unedited, edited = page.locator(".answer").all_inner_texts()
        assert unedited.strip().startswith(str(fact.target_true)) and edited.strip().startswith(fact.target_new)
        assert below.bounding_box() == before
        assert f"edit 1: {fact.subject}" in page.inner_text(".near")

        # the strength, dragged: spectrum and next token are redrawn
        page.click("nav >> text=Health")
        health = page.locator("#view-health")
        health.locator("[name=restraint]").select_option("log")
        page.wait_for_selector("text=facts said")
        largest = health.locator(".big").nth(2)
        before = largest.inner_text()
        health.locator("[name=strength]").evaluate(
            "slider => { slider.value = 1000; slider.dispatchEvent(new Event('input')); "
            "slider.dispatchEvent(new Event('change')); }"
        )
        playwright.expect(largest).not_to_have_text(before)
        assert float(largest.inner_text()) < float(before)
        health.locator("text=word for word").wait_for()

        # every view, at both widths, dark and light: nothing is cut off, and axe finds nothing serious
        for scheme in ("light", "dark"):
            for width, height in SIZES:
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": height})
                for view in VIEWS:
                    page.click(f"nav >> text={view.capitalize()}")
                    page.wait_for_selector(f"#view-{view}:visible")
                    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (view, width)
                    found = axe.Axe().run(page).response["violations"]
                    serious = [(one["id"], node["html"][:120], node.get("failureSummary"))
                               for one in found if one["impact"] in ("serious", "critical")
                               for node in one["nodes"]]  # fmt: skip
                    assert serious == [], (view, width, scheme)

        # by keyboard: the first stop skips to the view, the next are its links
        page.goto(f"{address}#ask")
        page.reload()
        page.wait_for_selector("#view-ask:visible")
        stops = []
        for _ in range(3):
            page.keyboard.press("Tab")
            stops.append(page.evaluate("document.activeElement.innerText"))
        assert stops == ["Skip to the view", "Ask", "Edit"]

        # a second tab sees the same; undo there, and here the answer is the old one
        page.set_viewport_size({"width": 1366, "height": 768})
        other = context.new_page()
        other.goto(f"{address}#ledger")
        other.click("[aria-label='Undo edit 1']")
        other.wait_for_selector("text=undid 1")
        other.fill("[name=search]", "undone")
        other.wait_for_selector("text=1 of 2 events")
        playwright.expect(page.locator("#about")).to_contain_text("0 edits")
        other.fill("[name=search]", "")
        other.click("[aria-label='Redo edit 1']")
        other.wait_for_selector("text=redid 1")
        other.fill("[name=export-to]", "exported")
        other.click("#view-ledger >> text='Export' >> nth=-1")
        other.wait_for_selector("text=written")
        browser.close()
    assert wrong == []
    assert (studio.path.parent / "exported" / "model.safetensors").is_file()
    assert Ledger.open(studio.path).verify()["kinds"] == {"edit": 1, "undo": 1, "redo": 1}
