"""The live page in a headless chromium: a person edits, asks, drags, undoes and exports."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import LOOKS, NEEDS_CHROMIUM, check, chromium, look, picture, playwright
from core import SETTINGS, plain_text, reciter

from tether.editing.plan import EditPlan
from tether.ledger import Ledger
from tether.models import EditableModel
from tether.web.studio import Studio

pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.browser, NEEDS_CHROMIUM]

VIEWS = ("ask", "edit", "health", "ledger")
EXPORTS = ("merged", "lora", "gguf-lora", "gguf")


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # the page shows the ledger's path
    trained = reciter()
    model = EditableModel(trained.hf, trained.tokenizer, id="reciter")
    plan = EditPlan(method="r-rome", settings={**SETTINGS, "v_lr": 0.5, "v_num_grad_steps": 20}, corpus=plain_text())
    return Studio(model, Path("ledger"), plan)


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


def type_fact(page: Any, number: int) -> None:
    fact = reciter().facts[number]
    for name, text in (("subject", fact.subject), ("fact-prompt", str(fact.prompt)), ("target", fact.target_new)):
        page.fill(f"[name={name}]", text)
    page.wait_for_selector(".tokens .read")
    assert page.inner_text(".tokens .read").strip() in fact.subject


def act(page: Any, card: str, said: str) -> str:
    """Press the last button of a card of the ledger's view; what is said of it."""
    outcome = page.locator("#view-ledger .outcome")
    page.locator(f"#view-ledger [aria-label='{card}'] button").last.click()
    playwright.expect(outcome).to_contain_text(said)
    return str(outcome.inner_text())


def test_a_person_edits_asks_drags_undoes_and_exports(studio: Studio, address: str) -> None:
    fact = reciter().facts[0]
    with chromium() as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        wrong: list[str] = []
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith((address, "blob:")) else wrong.append(sent.url))
        page.goto(address)

        # facts by hand, checked as one types
        for number in (0, 1):
            type_fact(page, number)
            page.click("text=Add to the list")
        taken = reciter().facts[0].subject  # back into the form, and to the list again
        page.click(f"[aria-label='Edit {taken} in the form']")
        assert page.input_value("[name=subject]") == taken
        playwright.expect(page.locator(".queue tbody tr")).to_have_count(1)
        page.click("text=Add to the list")
        page.click("text=Edit 2 facts")
        page.wait_for_selector("text=done (2 of 2)")
        assert "loss" in page.inner_text(".log")
        page.wait_for_selector("text=1 of 1 facts are said now")
        type_fact(page, 2)

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
        page.wait_for_selector("text=facts whose answer comes first")
        largest = health.locator(".big").nth(2)
        before = largest.inner_text()
        health.locator("[name=strength]").evaluate(
            "slider => { slider.value = 1000; slider.dispatchEvent(new Event('input')); "
            "slider.dispatchEvent(new Event('change')); }"
        )
        playwright.expect(largest).not_to_have_text(before)
        assert float(largest.inner_text()) < float(before)
        quick = health.locator(".card", has_text="Quick scores")
        playwright.expect(quick).to_have_attribute("aria-busy", "true")  # of another place, until they are read
        playwright.expect(quick).to_contain_text("restraint log:11")
        playwright.expect(quick).to_contain_text("0 of 1")  # so strong a restraint takes the edit back
        playwright.expect(health.locator("[aria-busy=true]")).to_have_count(0)
        health.locator("[name=restraint]").select_option("none")

        # what is done with the whole ledger: every form of export, and every card
        page.click("nav >> text=Ledger")
        for form in (*EXPORTS, "mlx"):
            page.locator("#view-ledger [name=export-as]").select_option(form)
            page.fill("#view-ledger [name=export-to]", f"exported-{form}")
            act(page, "Export", f"exported-{form}" if form in EXPORTS else "mlx-lm is known")  # a reason, in one line
        act(page, "Verify", "whole:")
        assert "2 passed" in act(page, "Knowledge tests", "Save these tests")
        assert "1 of 256" in act(page, "Headroom", "used")
        act(page, "Repair what is lost", "made anew")
        page.fill("#view-ledger [name=strength]", "1")
        act(page, "Consolidate", "stand for")
        act(page, "Verify", "whole:")
        act(page, "Report", "Open the report")
        with context.expect_page() as opened:
            page.click("#view-ledger .outcome a")
        playwright.expect(opened.value.locator("h1")).to_contain_text("Edits of")
        opened.value.close()

        # every view, at both widths, dark and light: nothing is cut off, and axe finds nothing serious
        for size, scheme in LOOKS:
            look(page, size, scheme)
            for view in VIEWS:
                page.click(f"nav >> text={view.capitalize()}")
                page.wait_for_selector(f"#view-{view}:visible")
                check(page, size, scheme)
                picture(page, f"live/{view}-{size}-{scheme}", whole=size == "phone")

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
        look(page, "laptop", "light")
        other = context.new_page()
        other.goto(f"{address}#ledger")
        for edit, left in ((3, 1), (1, 0)):  # what stood for the first edit, which comes back, and then that
            other.click(f"[aria-label='Undo edit {edit}']")
            other.wait_for_selector(f".outcome >> text=undid edit {edit}; {left} edit")
        other.fill("[name=search]", "undone")
        playwright.expect(other.locator("#view-ledger")).to_contain_text("2 of 5 events")
        playwright.expect(page.locator("#about")).to_contain_text("0 edits")
        other.fill("[name=search]", "")
        other.click("[aria-label='Redo edit 1']")
        other.wait_for_selector(".outcome >> text=redid edit 1")
    assert ["400" in line for line in wrong] == [True], wrong  # the export that is refused
    made = {file.name for file in studio.path.parent.iterdir() if file.name.startswith("exported-")}
    assert made == {f"exported-{form}" for form in EXPORTS}
    assert Ledger.open(studio.path).verify()["kinds"]["redo"] == 1
