"""Reports in a headless chromium: nothing cut, nothing fetched, by keyboard, at both widths, dark and light."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import LOOKS, NEEDS_CHROMIUM, SIZES, check, chromium, look, picture
from core import SETTINGS, plain_text, reciter

from tether.editing.run import edit
from tether.evaluation import evaluate_ledger
from tether.experiment import read_grid
from tether.models import EditableModel
from tether.report import write_grid_report, write_report

pytestmark = [pytest.mark.browser, NEEDS_CHROMIUM]

SEEN = """() => {
  const cards = [...document.querySelectorAll(".first .card")].map(e => e.getBoundingClientRect());
  const cut = [...document.querySelectorAll("main *")].filter(e => e.checkVisibility() && !e.closest("svg, .wide") &&
    e.getBoundingClientRect().right > innerWidth + 1);
  const drawn = [...document.querySelectorAll("figure > svg")];
  const pixels = drawn.flatMap(e => [...e.querySelectorAll("text")]).filter(e => e.checkVisibility()).map(e =>
    parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b));
  const boxes = [...document.querySelectorAll(".wide")].filter(e => e.checkVisibility());
  return {
    first: Math.max(...cards.map(r => r.bottom)), cut: cut.map(e => e.outerHTML.slice(0, 80)), drawn: drawn.length,
    headlines: [...document.querySelectorAll("figure figcaption")].filter(e => /\\d/.test(e.textContent)).length,
    smallest: Math.min(...pixels), fetched: performance.getEntriesByType("resource").length,
    unreachable: boxes.filter(e => e.scrollWidth > e.clientWidth && e.tabIndex !== 0).length,
  };
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    trained = reciter()
    model = EditableModel(trained.hf, trained.tokenizer, id="reciter")
    settings = {**SETTINGS, "v_lr": 0.5, "v_num_grad_steps": 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TETHER_CACHE", str(folder / "cache"))
        ledger = edit(
            model, trained.facts[:4], out=folder / "ledger", method="rome", settings=settings, corpus=plain_text(),
            restrain="log:1.2", on_alarm="warn",
        )  # fmt: skip
        results = evaluate_ledger(
            ledger, model, trained.facts[:4], at=[0, 4], restraints=["none", "log:1.2"],
            metrics=("compare", "match", "generate"), out=folder / "results.json",
        )  # fmt: skip
    grid = read_grid(Path(__file__).parents[1] / "results" / "hold")
    return {
        "edits": write_report(results, folder / "edits", ledger=ledger),
        "grid": write_grid_report(grid, folder / "grid"),
    }


@pytest.mark.parametrize("name", ["edits", "grid"])
def test_a_page_is_whole_at_every_size_dark_and_light(name: str, pages: dict[str, Path]) -> None:
    with chromium() as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda said: wrong.append(said.text))
        page.on("request", lambda sent: wrong.append(sent.url))
        page.goto(pages[name].as_uri())
        assert wrong == [pages[name].as_uri()], "nothing but the page is asked for"
        for size, scheme in LOOKS:
            look(page, size, scheme)
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            check(page, size, scheme)
            seen = page.evaluate(SEEN)
            assert seen["cut"] == [] and seen["fetched"] == seen["unreachable"] == 0
            assert seen["drawn"] == seen["headlines"] > 4, "every figure has a headline with numbers"
            assert seen["smallest"] >= 11, "pixels of the smallest text in a figure"
            if size == "laptop":
                assert seen["first"] <= SIZES[size][1], "the three cards are on the first screen"
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = false")
            picture(page, f"report/{name}-{size}-{scheme}")
        stops = []
        for _ in range(40):  # links, tables and what shows itself are all reached by Tab
            page.keyboard.press("Tab")
            stops.append(page.evaluate("document.activeElement.localName"))
        assert {"a", "div", "summary"} <= set(stops)
