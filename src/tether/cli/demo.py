"""Edit the bundled model with facts written for this project, with and without PRUNE, and draw a report.

$ tether demo
$ tether demo --limit 44 --out long-demo
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from tether.cli.edit import progress_line
from tether.cli.options import Answer, say
from tether.cli.tables import count, number, one_line, table
from tether.editing.run import edit
from tether.editors.corpus import Corpus
from tether.editors.moments import moments
from tether.editors.settings import settings_for
from tether.errors import BadSettingsError
from tether.evaluation import Results, Row, evaluate_ledger, write
from tether.evaluation.results import Singular
from tether.facts import Fact, read_facts
from tether.ledger import ATTEMPTS, Ledger
from tether.models import EditableModel, load
from tether.report import write_report
from tether.report.exchanges import Exchanges, exchanges, spread

MODEL, METHOD, RESTRAINT, METRIC = "smollm2", "rome", "log:1.2", "match_all"
SCORES = ("efficacy", "generalization", "locality")
_CORPUS = "self:2048"  # one batch of sampled text
_FACTS = 10  # of the 64 that come with the package: what a small machine edits and measures in a few minutes
_SHOWN = 3  # questions with their answers, of those in the report
_LOOKS = 10  # at the spectrum, at most, while edits add up


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the ledger, the results and the report.")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N facts.")] = None,
) -> Answer:
    return run_demo(out, limit=limit, progress=say)


def demo_facts(limit: int | None = None) -> list[Fact]:
    """The first `limit` facts that come with the package; None: as many as the demo edits unasked, 10."""
    facts = _packaged()
    if limit is not None and not 1 <= limit <= len(facts):
        raise BadSettingsError(f"limit {limit}: the demo has {len(facts)} facts; give a number from 1 to {len(facts)}")
    return facts[: limit or _FACTS]


def _packaged() -> list[Fact]:
    with resources.as_file(resources.files("tether") / "data" / "demo_facts.jsonl") as file:
        return read_facts(file)


def _going_on(ledger: Path, limit: int | None) -> list[Fact]:
    """The facts of a demo whose ledger is there: those that it tried, and the rest. Raises BadSettingsError for the
    ledger of no demo."""
    tried = [event.fact.sha256 for event in Ledger.open(ledger).events if event.kind in ATTEMPTS and event.fact]
    facts = demo_facts(limit) if limit else _packaged()[: max(_FACTS, len(tried))]
    if tried != [fact.sha256 for fact in facts][: len(tried)]:
        raise BadSettingsError(
            f"{ledger} holds {len(tried)} edits that are not the first ones of a demo of {len(facts)} "
            "facts: choose a new folder"
        )
    return facts


def run_demo(
    out: str | Path,
    *,
    model: EditableModel | None = None,
    limit: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Answer:
    """Edit the demo's facts one after another, measure with and without PRUNE, and write the report.

    `model` None loads the bundled one; a given one must be unedited and have a chat template, and carries afterwards
    what the ledger says, as recorded: the edits under PRUNE. `out` gets `ledger/`, `results.json`, `index.html`; where
    it holds an interrupted demo, that one goes on. `progress` is told lines: `moments 512/2048` (tokens),
    `1/10 edit …` (facts), or a stage. The rows of the answer are of the unedited model, the edited one, and the edited
    one under PRUNE; its `answers` are some of the report's. Raises TetherError where the ledger in `out` is not one of
    the demo's.
    """
    out = Path(out)
    begun = (out / "ledger" / "ledger.json").exists()
    facts = _going_on(out / "ledger", limit) if begun else demo_facts(limit)
    if model is None:
        progress("load")
        model = load(MODEL)
    if not begun:  # else the ledger names its own
        text = Corpus.parse(_CORPUS, seed=0)
        progress(f"moments 0/{text.max_tokens}")
        layers = settings_for(METHOD, model)[0].layers
        moments(model, layers, text, progress=lambda done, total: progress(f"moments {done}/{total}"))
    ledger = edit(
        model, facts, out=out / "ledger", method=METHOD, restrain=RESTRAINT, seed=0, resume=True,
        corpus=None if begun else _CORPUS, progress=lambda at: progress(f"{at.done}/{at.total} {progress_line(at)}"),
    )  # fmt: skip
    progress("evaluate")
    tries, live = ledger.attempts, len(ledger.live())
    results = evaluate_ledger(
        ledger, model, facts, at=[0, tries], restraints=["none", RESTRAINT],
        metrics=("match", "generate_chat"), max_locality=2, out=out / "results.json", resume=True,
    )  # fmt: skip
    stride = math.ceil(tries / _LOOKS)
    _add_spectra(results, ledger, model, range(stride, tries, stride))
    write(results, out / "results.json")
    progress("report")
    title = f"tether demo: {count(live, 'edit')} of {results.model} with {METHOD}"
    report = write_report(results, out / "index.html", ledger=ledger, title=title)
    failed, rows = sum(event.kind == "failed" for event in ledger.events), _rows(results, tries)
    asked = exchanges(results, ledger)
    document = {
        "ledger": ledger.path, "results": out / "results.json", "report": report, "edits": live, "failed": failed,
        "rows": rows, "answers": [asdict(one) for one in spread(asked.shown, _SHOWN)] if asked else [],
    }  # fmt: skip
    lines = [_table(rows), f"{count(live, 'edit')}, {failed} failed; scores: all target tokens, percent", ""]
    lines += [f"ledger  {ledger.path}", f"report  {report}"]
    return Answer(document, "\n".join([*lines, *(_answers(asked) if asked else ())]))


def _add_spectra(results: Results, ledger: Ledger, model: EditableModel, at: Sequence[int]) -> None:
    """Rows that hold singular values alone, for the numbers of edits that have no row yet."""
    for restraint in ("none", RESTRAINT):
        wanted = [edits for edits in at if (edits, restraint) not in {row.key for row in results.rows}]
        for found in ledger.spectrum(model, at=wanted, restrain=restraint) if wanted else []:
            spectrum = {found.weight: Singular(**found.extremes.to_dict())}
            results.add(Row(edits=found.edits, restraint=restraint, replayed=False, spectrum=spectrum), [])


def _rows(results: Results, tries: int) -> list[dict[str, Any]]:
    """Singular values, perplexity and scores (percent) of the unedited model, the edited one, and that under PRUNE."""
    by_key = {row.key: row for row in results.rows}
    start = by_key[0, "none"].abilities["perplexity"].value
    edited = count(tries, "edit")
    names = {"unedited": (0, "none"), edited: (tries, "none"), f"{edited}, PRUNE {RESTRAINT}": (tries, RESTRAINT)}
    rows = []
    for name, key in names.items():
        (found,) = by_key[key].spectrum.values()
        value = by_key[key].abilities["perplexity"].value
        ratio = None if value is None or not start else value / start
        scores = {kind: by_key[key].editing[METRIC][kind].value for kind in SCORES}
        rows.append({"name": name, "kappa": found.kappa, "perplexity_ratio": ratio, **scores})
    return rows


def _answers(asked: Exchanges) -> list[str]:
    """The first, the last and the middle one of the report's questions, with the answers."""
    under = f"{count(asked.row.edits, 'edit')}, PRUNE {asked.row.restraint}"
    lines = ["", f"{under}: {asked.said} of {asked.facts} facts are said. Of the questions in the report:"]
    for one in spread(asked.shown, _SHOWN):
        said = {"unedited": one.unedited or "", "edited": one.edited}
        lines += ["", one_line(one.asked), *(f"  {who:10s}  {one_line(answer)}" for who, answer in said.items())]
        lines.append(f"  {'new answer':10s}  {one.target_new}: {'said' if one.said else 'not said'}")
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        ratio = "–" if row["perplexity_ratio"] is None else f"× {row['perplexity_ratio']:.2f}"
        scores = [number(row[kind], ".0f", "–") for kind in SCORES]
        cells.append([row["name"], number(row["kappa"], ".1f", "–"), ratio, *scores])
    head = ("", "κ", "perplexity", *SCORES)
    return table(head, cells, right=range(1, len(head)))
