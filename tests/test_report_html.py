"""The report: well-formed, self-contained, everything escaped; the demo end to end on a tiny model."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny

from tether.cli.demo import demo_facts, run_demo
from tether.editing.run import edit
from tether.errors import BadSettingsError, TetherError
from tether.evaluation import Results, Row, read
from tether.experiment.results import StoredGrid
from tether.facts import Fact
from tether.ledger import Attempt, Ledger
from tether.models import EditableModel
from tether.report import write_grid_report, write_ledger_report, write_report
from tether.report.exchanges import Exchange, exchanges, words_of

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that every element is closed; collects texts, ids, links and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def tiny_llama() -> EditableModel:
    model = EditableModel(*tiny.tiny_model("llama"))
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    return model


NASTY = '<script>alert(1)</script> & $x$ "q"'


def some_results(name: str = NASTY) -> Results:
    def number(value: float | None, stderr: float | None = 1.5) -> dict[str, object]:
        return {"value": value, "n": 4, "stderr": stderr, "prompts": 8}

    nothing = number(None, None)

    def row(edits: int, restraint: str, kappa: float) -> Row:
        return Row.model_validate({
            "edits": edits, "restraint": restraint, "replayed": restraint == "as recorded",
            "editing": {metric: {"efficacy": number(97.25), "generalization": number(50), "locality": nothing}
                        for metric in ("compare", "match_all", "generate")},
            "retention": [(1, 100.0)],
            "abilities": {"perplexity": {"value": 31.5, "n": 900, "stderr": 0.25, "unit": "ppl"},
                          name: {"value": 44.0, "n": 25, "stderr": None, "unit": "percent"}},
            "spectrum": {name: {"sigma_max": 24, "sigma_min": 1.0, "kappa": kappa, "update_sigma_max": edits}},
        })  # fmt: skip

    spectrum_only = Row.model_validate({
        "edits": 2, "restraint": "none", "replayed": False,
        "spectrum": {name: {"sigma_max": None, "sigma_min": 0, "kappa": None, "update_sigma_max": 2.0}},
    })  # fmt: skip
    rows = [
        row(0, "none", 20.0),
        spectrum_only,
        row(4, "none", 900.0),
        row(4, "log:1.2", 31.0),
        row(4, "as recorded", 30),
    ]
    return Results(model=name, ledger=None, facts_sha256="0", versions={"tether": "0"}, settings={}, rows=rows)


def test_the_page_is_whole_and_needs_nothing_beside_it(tmp_path: Path) -> None:
    file = write_report(some_results(), tmp_path / "new" / "page.html", title=NASTY)
    page = Page(file.read_text(encoding="utf-8"))
    assert file == tmp_path / "new" / "page.html"
    assert page.tags.count("figure") == 6  # κ, three metrics, two abilities: no ledger, no curve by edit
    assert (
        "κ without a restraint rises from 20 to 900 over 4 edits, 31 under log:1.2, 30 under as recorded" in page.texts
    )
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert sum(text.strip() == NASTY for text in page.texts) >= 3  # title, heading, a table cell
    assert [
        "0",
        "no restraint",
        "compare",
        "97.2 ± 1.5",
        "50.0 ± 1.5",
        "–",
    ] in page.rows
    assert ["4", "log:1.2", "perplexity", "31.5", "0.25", "900", "ppl"] in page.rows
    assert ["2", "no restraint", NASTY, "–", "0", "–", "2"] in page.rows
    assert "disinformation" in "".join(page.texts)


def answered(edits: int, restraint: str, edit: int, **more: object) -> dict[str, object]:
    about = {"edits": edits, "restraint": restraint, "edit": edit, "kind": "generalization", "metric": "generate"}
    return {**about, "prompt": f"{edit}?", "target": "Rome", "value": 0.0, "continuation": "Paris", **more}


def test_the_questions_of_a_report_are_chosen_by_rule(tmp_path: Path) -> None:
    results = some_results()
    assert exchanges(results) is None  # results without answers have no such part
    said = set(range(1, 13))
    results.items = [
        {"edits": 4, "restraint": "as recorded", "task": "perplexity"},
        *(answered(0, "none", edit, continuation=NASTY) for edit in range(1, 16)),
        *(answered(4, "log:1.2", edit) for edit in range(1, 16)),
        *(answered(4, "as recorded", edit, value=edit in said) for edit in range(1, 16)),
        answered(4, "as recorded", 1, kind="efficacy", prompt="first?"),
        answered(4, "as recorded", 1, kind="locality", prompt="near?"),
        answered(4, "as recorded", 2, metric="generate_chat", prompt="chat?", continuation="Rome", value=1.0),
    ]
    found = exchanges(results)
    assert found is not None and (found.row.key, found.facts, found.said) == ((4, "as recorded"), 15, 12)
    assert [one.edit for one in found.shown] == [1, 4, 7, 9, 12, 13, 14, 15]
    assert found.shown[0] == Exchange(1, "1?", NASTY, "Paris", "Rome", True)
    page = Page(write_report(results, tmp_path).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    place = page.texts.index("13?")
    shown = [text for text in page.texts[place : place + 12] if text.strip()]
    assert shown[:7] == [
        "13?", "unedited model", NASTY, "edited model, as recorded", "Paris", "Edit 13, new answer Rome: ", "not said"
    ]  # fmt: skip
    results.items = [answered(4, "as recorded", 2), answered(4, "as recorded", 2, metric="generate_chat", prompt="!")]
    found = exchanges(results)
    assert found is not None and [(one.asked, one.unedited) for one in found.shown] == [("!", None)]


def test_the_words_of_a_user_are_found_in_a_rendered_turn() -> None:
    fact = Fact(
        subject="Rome",
        prompt={"user": "Who rules {}?"},
        target_new="Ann",
        paraphrases=["Question: Who rules Rome?\nAnswer:", {"user": "Say: Who rules Rome? "}],
    )
    for prompt, words in (
        ("user: Who rules Rome?\nassistant:", "Who rules Rome?"),
        ("user: Say: Who rules Rome?\nassistant:", "Say: Who rules Rome?"),
        ("Question: Who rules Rome?\nAnswer:", "Question: Who rules Rome?\nAnswer:"),
        ("Something else", "Something else"),
    ):
        assert words_of(fact, prompt) == words
    assert words_of(None, "user: Hi") == "user: Hi"


def test_the_same_results_give_the_same_page_and_a_folder_gets_index_html(tmp_path: Path) -> None:
    first = write_report(some_results(), tmp_path / "a")
    assert first == tmp_path / "a" / "index.html"
    assert first.read_bytes() == write_report(some_results(), tmp_path / "b").read_bytes()


def test_empty_results_are_a_page_without_figures(tmp_path: Path) -> None:
    results = some_results()
    results.rows = []
    page_of = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "svg" not in Page(page_of).tags
    edited, says, cost = (line.split("</h2>")[0] for line in page_of.split("<h2>")[1:])
    assert edited.startswith("0 facts edited into ") and says == cost == "Not measured"


def test_without_matplotlib_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_svg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TetherError, match=re.escape("pip install 'tether[report]'")):
        write_report(some_results(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], object]:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TETHER_CACHE", str(folder / "cache"))
        lines: list[str] = []
        result = run_demo(folder / "out", model=tiny_llama(), limit=2, progress=lines.append)
        return folder, lines, result


def test_the_demo_leaves_ledger_results_and_report(demo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    folder, told, result = demo
    monkeypatch.setenv("TETHER_CACHE", str(folder / "cache"))
    assert list(dict.fromkeys(line.split()[0] for line in told)) == ["moments", "1/2", "2/2", "evaluate", "report"]
    assert [line for line in told if line.startswith("moments")][-1] == "moments 2048/2048"
    ledger = Ledger.open(result.document["ledger"])
    assert ledger.attempts == 2 == result.document["edits"] + result.document["failed"]
    looked_at = {(edits, restraint) for edits in (1, 2) for restraint in ("none", "log:1.2")}
    assert {(0, "none"), *looked_at} == {row.key for row in read(result.document["results"]).rows}
    page = Page(result.document["report"].read_text(encoding="utf-8"))
    assert page.tags.count("figure") == 7  # κ, σ̂_max/m, singular values; three metrics; the perplexity
    assert all(
        any(row[:1] == [str(i)] and fact.text in row for row in page.rows) for i, fact in enumerate(demo_facts(2), 1)
    )
    lines = result.text.splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[3].startswith("2 edits, PRUNE log:1.2")
    questions = [fact.paraphrases[-1].user for fact in demo_facts(2)]
    assert [line for line in lines if line in questions] == questions, "the held-out questions end the output"
    assert [one["asked"] for one in result.document["answers"]] == questions
    assert lines[-1].split(":")[-1].strip() in ("said", "not said")
    assert page.tags.count("article") == 2
    assert [text for text in page.texts if text in questions] == questions
    assert [page.texts.count(who) for who in ("unedited model", "edited model, log:1.2")] == [2, 2]


def test_an_interrupted_demo_goes_on_to_the_same_numbers(demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    folder, _, whole = demo
    monkeypatch.setenv("TETHER_CACHE", str(folder / "cache"))

    def stop(line: str) -> None:
        if line.startswith("1/2 "):
            raise KeyboardInterrupt

    model = tiny_llama()
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, model=model, limit=2, progress=stop)
    model.clear_updates()
    assert Ledger.open(tmp_path / "ledger").attempts == 1
    again = run_demo(tmp_path, model=model, limit=2)
    assert again.document["rows"] == whole.document["rows"]
    factors = [Ledger.open(path) for path in (tmp_path / "ledger", whole.document["ledger"])]
    assert [e.sha256 for e in factors[0].live()] == [e.sha256 for e in factors[1].live()]


def test_a_demo_of_an_earlier_version_goes_on(demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Made of other text and of more facts than a demo takes today."""
    folder, _, _ = demo
    monkeypatch.setenv("TETHER_CACHE", str(folder / "cache"))
    facts, model = demo_facts(12), tiny_llama()
    edit(model, facts[:11], out=tmp_path / "ledger", method="rome", restrain="log:1.2", corpus="self:1024", seed=0)
    model.clear_updates()
    told: list[str] = []
    run_demo(tmp_path, model=model, progress=told.append)
    assert Ledger.open(tmp_path / "ledger").attempts == 11 and not any(line.startswith("moments") for line in told)
    model.clear_updates()
    assert run_demo(tmp_path, model=model, limit=12).document["report"].exists()
    assert Ledger.open(tmp_path / "ledger").attempts == 12


def test_the_demo_leaves_somebody_elses_ledger_alone(demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    folder, _, _ = demo
    monkeypatch.setenv("TETHER_CACHE", str(folder / "cache"))
    edit(tiny_llama(), demo_facts(2)[1:], out=tmp_path / "ledger")
    with pytest.raises(TetherError, match="not the first ones"):
        run_demo(tmp_path, model=tiny_llama(), limit=2)
    assert Ledger.open(tmp_path / "ledger").attempts == 1


def test_a_limit_beyond_the_facts_is_refused() -> None:
    with pytest.raises(TetherError, match="limit 0: the demo has"):
        demo_facts(0)


def test_a_page_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("<h1>My site</h1>")
    for write in (
        lambda: write_report(some_results(), tmp_path),
        lambda: write_grid_report(StoredGrid(name="g", title="", command="", runs=[]), tmp_path),
    ):
        with pytest.raises(BadSettingsError, match=r"index\.html exists and is no report of tether"):
            write()
    assert page.read_text() == "<h1>My site</h1>"
    page.unlink()
    assert write_report(some_results(), tmp_path) == write_report(some_results(), tmp_path) == page


def test_a_run_that_collapsed_can_be_reported(demo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    _, _, result = demo
    shutil.copytree(result.document["ledger"], tmp_path / "ledger")
    ledger = Ledger.open(tmp_path / "ledger")
    nothing = {"loss_first": math.nan, "loss_last": math.nan, "norm": math.inf, "update_ratio": math.nan, "seconds": 1}
    with ledger.writing():
        ledger.append([Attempt("failed", demo_facts(3)[2], nothing, "the loss is not finite")], {}, {})
    for found in (ledger, Ledger.open(tmp_path / "ledger")):  # NaN in memory is null in the journal
        page = Page(write_report(read(result.document["results"]), tmp_path, ledger=found).read_text(encoding="utf-8"))
        assert any("failed" in row and "– → –" in row for row in page.rows)


def test_an_undone_edit_and_a_failed_one_are_named(demo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    _, _, result = demo
    shutil.copytree(result.document["ledger"], tmp_path / "ledger")
    ledger = Ledger.open(tmp_path / "ledger")
    (first, *_) = ledger.live()
    ledger.undo(first.edit)
    with ledger.writing():
        ledger.append([Attempt("failed", demo_facts(3)[2], {"seconds": 1.0}, NASTY)], {}, {})
    page = Page(write_report(read(result.document["results"]), tmp_path, ledger=ledger).read_text(encoding="utf-8"))
    assert any("undone" in row for row in page.rows)
    assert any("failed" in row and NASTY in row for row in page.rows)


def test_what_was_measured_of_a_ledger_is_drawn(
    demo,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import shutil

    _, _, result = demo
    shutil.copytree(result.document["ledger"], tmp_path / "ledger")
    ledger = Ledger.open(tmp_path / "ledger")
    ledger.undo(ledger.live()[0].edit)

    def heads(folder: Path) -> list[str]:
        text = write_ledger_report(ledger, folder).read_text(encoding="utf-8")
        return [part.split("</h2>")[0] for part in text.split("<h2>")[1:]]

    alone = heads(tmp_path / "alone")
    assert "(1 undone or replaced)" in alone[0] and alone[1:] == ["Not measured", "Not measured"]
    for name in ("measured", "another"):
        (tmp_path / name).mkdir()
        shutil.copy(result.document["results"], tmp_path / name / "results.json")
    assert heads(tmp_path / "measured")[1] != "Not measured" and "measured 1 event ago" in caplog.text
    results = json.loads((tmp_path / "another/results.json").read_text(encoding="utf-8"))
    results["settings"]["journal_sha256"] = "0" * 64
    (tmp_path / "another/results.json").write_text(json.dumps(results), encoding="utf-8")
    assert heads(tmp_path / "another") == alone and "not drawn" in caplog.text
