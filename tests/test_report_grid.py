"""The report of a grid: findings both ways, and pages of whatever was measured."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from grids import WEIGHT, made_grid, made_run
from test_report_html import Page

from tether.analyses.points import Difference
from tether.cli import main
from tether.experiment import read_grid
from tether.experiment.results import StoredGrid, StoredRun
from tether.report import write_grid_report
from tether.report.grid import figures as grid_figures
from tether.report.grid.findings import CLAIMS, findings
from tether.report.grid.rules import FEW, contrast
from tether.report.grid.series import editors

ROW_PARTS = ("editing", "abilities", "spectrum")
PARTS = (*ROW_PARTS, "analyses.spectrum", "values", "copies", "bound")


def grid_of(*runs: StoredRun) -> StoredGrid:
    return StoredGrid(name="g", title="", command="", runs=list(runs))


def with_parts(run: StoredRun, parts: set[str]) -> StoredRun:
    rows = [
        row.model_copy(update={part: {} for part in ROW_PARTS if part not in parts}) for row in run.rows
    ]  # fmt: skip
    nothing = {"spectrum": [], "values": None, "copies": [], "bound": []}
    gone = {name: empty for name, empty in nothing.items() if not parts & {name, f"analyses.{name}"} - {"spectrum"}}
    return run.model_copy(update={"rows": rows, "analyses": run.analyses.model_copy(update=gone)})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid_report(made_grid(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def verdicts() -> dict[tuple[str, str], str]:
    return {(f.key, f.editor.split()[0]): f.verdict for f in findings(made_grid())}


@pytest.mark.parametrize("key", [claim.key for claim in CLAIMS])
def test_a_finding_is_seen_only_where_the_data_show_it(key: str, verdicts: dict[tuple[str, str], str]) -> None:
    harmed, unharmed = verdicts[key, "rome"], verdicts[key, "memit"]
    if key == "instances-stay":
        assert (harmed, unharmed) == ("not seen", "seen")
    elif key in ("sigma-min-stays", "bound-holds", "copies-add-up", "copies-restrained"):
        assert (harmed, unharmed) == ("seen", "seen")
    else:
        assert harmed == "seen"
        assert unharmed in ("not seen", "cannot say")


def test_what_was_measured_decides_which_metric_judges() -> None:
    """Not what the data set is called. Of facts without a true target `compare` has no efficacy."""
    run = made_run("rome", "counterfact", 1.0)
    number = run.rows[0].editing["compare"]["efficacy"]
    nothing = number.model_copy(update={"value": None, "n": 0, "stderr": None, "prompts": 0})
    for name, (efficacy, metric) in itertools.product(
        ("counterfact", "my facts"), ((number, "compare"), (nothing, "match_all"))
    ):
        editing = {"compare": {"efficacy": efficacy, "locality": number}, "match_all": {"efficacy": number}}
        rows = [row.model_copy(update={"editing": editing}) for row in run.rows]
        named = run.run.model_copy(update={"dataset": name})
        (editor,) = editors(grid_of(run.model_copy(update={"run": named, "rows": rows})))
        assert editor.metric == metric, name


def test_what_holds_for_both_editors_can_fail() -> None:
    run = made_run("rome", "counterfact", 1.0)
    spectrum = [
        p.model_copy(update={"sigma_min": 2.0}) if p.edits == 200 else p for p in run.analyses.spectrum
    ]  # fmt: skip
    copies = [p.model_copy(update={"update_sigma_max": 5.0}) for p in run.analyses.copies]
    bound = [p.model_copy(update={"holds": False}) for p in run.analyses.bound]
    analyses = run.analyses.model_copy(update={"spectrum": spectrum, "copies": copies, "bound": bound})
    found = {f.key: f.verdict for f in findings(grid_of(run.model_copy(update={"analyses": analyses})))}
    for key in ("sigma-min-stays", "bound-holds", "copies-add-up", "copies-restrained"):
        assert found[key] == "not seen"


def test_prune_that_does_worse_is_not_seen_to_help() -> None:
    run = made_run("rome", "counterfact", 1.0)
    swap = {"none": "log:1.2", "log:1.2": "none"}
    rows = [r.model_copy(update={"restraint": swap.get(r.restraint, r.restraint)}) if r.edits else r for r in run.rows]
    found = {f.key: f.verdict for f in findings(grid_of(run.model_copy(update={"rows": rows})))}
    for key in ("abilities-kept", "editing-kept", "editing-improved", "log-beats-linear"):
        assert found[key] == "not seen"


def test_of_too_little_nothing_is_said() -> None:
    run = made_run("rome", "counterfact", 1.0)
    short = run.model_copy(update={
        "rows": [row for row in run.rows if row.edits == 0],
        "analyses": run.analyses.model_copy(update={"spectrum": [], "values": None, "copies": [], "bound": []}),
    })  # fmt: skip
    assert {f.verdict for f in findings(grid_of(short))} == {"cannot say"}


@pytest.mark.parametrize(("p", "sign"), [(0.01, 1), (0.2, 0), (None, 0)])
def test_a_stored_paired_test_decides_before_standard_errors(p: float | None, sign: int) -> None:
    run = made_run("rome", "counterfact", 1.0)
    one = Difference(
        measure="nli", unit="percent", row=(200, "log:1.2"), baseline=(200, "none"), value=50, baseline_value=10,
        mean=40.0, stderr=2.0, n=300, p=p, p_holm=p, verdict="",
    )  # fmt: skip
    analyses = run.analyses.model_copy(update={"differences": [one]})
    (editor,) = editors(grid_of(run.model_copy(update={"analyses": analyses})))
    forward = contrast(editor, "nli", (200, "log:1.2"), (200, "none"))
    back = contrast(editor, "nli", (200, "none"), (200, "log:1.2"))
    assert forward is not None and back is not None
    assert (forward.sign, back.sign) == (sign, -sign)


def test_on_a_few_items_nothing_is_said() -> None:
    """Neither by a paired test of two windows of a text nor by their standard errors."""
    run = made_run("rome", "counterfact", 1.0)
    signs = {}
    for n in (FEW - 1, FEW):
        one = Difference(
            measure="nli", unit="percent", row=(200, "log:1.2"), baseline=(200, "none"), value=50, baseline_value=10,
            mean=40.0, stderr=2.0, n=n, p=0.5, p_holm=1.0, verdict="",
        )  # fmt: skip
        analyses = run.analyses.model_copy(update={"differences": [one]})
        (editor,) = editors(grid_of(run.model_copy(update={"analyses": analyses})))
        found = contrast(editor, "nli", (200, "log:1.2"), (200, "none"))
        signs[n] = None if found is None else found.sign
    assert signs == {FEW - 1: None, FEW: 0}


def test_an_edit_that_never_held_is_not_left_by_a_restraint() -> None:
    run = made_run("rome", "counterfact", 1.0)
    empty = [p.model_copy(update={"efficacy": 0.0}) for p in run.analyses.copies]
    analyses = run.analyses.model_copy(update={"copies": empty})
    found = {f.key: f.verdict for f in findings(grid_of(run.model_copy(update={"analyses": analyses})))}
    assert found["copies-restrained"] == "cannot say"


def test_the_weight_with_the_largest_kappa_is_marked() -> None:
    run = made_run("memit", "zsre", 1.0)
    other = [p.model_copy(update={"weight": "lower", "kappa": 2 * (p.kappa or 0)}) for p in run.analyses.spectrum]
    analyses = run.analyses.model_copy(update={"spectrum": [*run.analyses.spectrum, *other]})
    (editor,) = editors(grid_of(run.model_copy(update={"analyses": analyses})))
    drawn = grid_figures.singular_values(editor)
    assert drawn is not None
    assert [name for name, _ in drawn.legend] == ["lower (the worst)", WEIGHT]
    assert all(list(curves) == ["lower (the worst)", WEIGHT] for curves in drawn.curves.values())


def test_the_kept_results_have_the_verdicts_that_the_docs_tell() -> None:
    root = Path(__file__).parents[1]
    words: dict[str, list[str]] = {}
    for f in findings(read_grid(root / "results/smollm2")):
        words.setdefault(f"| {f.name} | {f.place} |", []).append(f.verdict)
    told = (root / "docs/grids.md").read_text().splitlines()
    assert len(words) == len(CLAIMS)
    for start, (rome, memit, mend) in words.items():
        assert f"{start} {rome} | {memit} | {mend} |" in told


def test_seeds_become_one_curve() -> None:
    runs = [made_run("rome", "counterfact", harm, seed=seed) for seed, harm in enumerate((1.0, 0.5))]
    (editor,) = editors(grid_of(*runs))
    last = editor.measured("nli")["none"][-1]
    assert (last.edits, last.seeds) == (200, 2)
    assert last.value == pytest.approx((10 + 35) / 2)
    assert last.stderr == pytest.approx(12.5)


def test_every_combination_of_missing_parts_has_findings_and_charts() -> None:
    charts = [
        grid_figures.singular_values, grid_figures.tasks, grid_figures.editing, grid_figures.log_and_linear,
        grid_figures.multiple, grid_figures.restrained_kappa, grid_figures.kappa_abilities, grid_figures.values,
        grid_figures.locality_abilities, grid_figures.repeated_update, grid_figures.perturbation_bound,
    ]  # fmt: skip
    run = made_run("rome", "counterfact", 1.0)
    for chosen in itertools.product((True, False), repeat=len(PARTS)):
        parts = {part for part, there in zip(PARTS, chosen, strict=True) if there}
        grid = grid_of(with_parts(run, parts))
        assert len(findings(grid)) == len(CLAIMS)
        (editor,) = editors(grid)
        drawn = {chart.__name__ for chart in charts if chart(editor) is not None}
        assert ("tasks" in drawn) == ("abilities" in parts)
        assert ("singular_values" in drawn) == bool(parts & {"spectrum", "analyses.spectrum"})
        assert ("perturbation_bound" in drawn) == ("bound" in parts)


@pytest.mark.parametrize("part", [*PARTS, ""])
def test_one_part_alone_gives_a_page(part: str, tmp_path: Path) -> None:
    grid = grid_of(with_parts(made_run("memit", "zsre", 0.0), {part}))
    text = write_grid_report(grid, tmp_path).read_text(encoding="utf-8")
    found = Page(text)
    assert "What was not measured" in found.texts
    assert ("figure" in found.tags) == bool(part)


def test_a_grid_without_runs_gives_a_page(tmp_path: Path) -> None:
    found = Page(write_grid_report(grid_of(), tmp_path).read_text(encoding="utf-8"))
    assert "svg" not in found.tags
    assert not (tmp_path / "figures").exists()


def test_the_page_is_whole_and_its_figures_lie_beside_it(page: Path) -> None:
    found = Page(page.read_text(encoding="utf-8"))
    assert "script" not in found.tags and "img" not in found.tags
    assert len(found.ids) == len(set(found.ids))
    files = [link for link in found.links if not link.startswith("#")]
    assert files and all((page.parent / link).stat().st_size for link in files)
    assert {file.name for file in (page.parent / "figures").iterdir()} == {Path(link).name for link in files}
    assert "γ ≤ 0" in "".join(found.texts)
    assert any("tether grid made-up.yaml" in text for text in found.texts)
    run = next(row for row in found.rows if row[:1] == ["rome-counterfact-0-10"])
    assert run[8:11] == ["197", "2", "1"] and "a" * 64 in run[11]


def test_each_claim_has_one_sentence_an_editor(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count('<p class="verdict">') == 2 * len(CLAIMS)
    assert text.count('<p class="rule">') == len(CLAIMS)


def test_the_command_takes_the_folder_of_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pytest.importorskip("tether.experiment.parquet")
    pytest.importorskip("pyarrow")

    store.write_grid(grid_of(with_parts(made_run("rome", "zsre", 1.0), {"copies"})), tmp_path / "grid")
    monkeypatch.setattr(sys, "argv", ["tether", "report", str(tmp_path / "grid"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8")).tags.count("figure") == 4
