"""Edit the bundled model with facts written for this project, with and without PRUNE, and draw a report.

$ tether demo
$ tether demo --limit 8 --out short-demo
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import typer

from tether.cli.edit import progress_line
from tether.cli.options import Answer, say
from tether.cli.tables import number, table
from tether.editing.run import Progress, edit
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

MODEL, METHOD, RESTRAINT, METRIC = "smollm2", "rome", "log:1.2", "match_all"
_CORPUS = "self:3840"  # one batch of sampled text
_FACTS = 44  # of the 64 that come with the package: what a small machine edits and measures in some minutes
_STRIDE = 4  # edits between two looks at the spectrum


@dataclass(frozen=True)
class Step:
    """Where the demo is: `done` of `total` (tokens of text, facts; 0 and None where it is not counted). `edited` is the
    progress of `edit` in the stage `edit`."""

    stage: Literal["load", "moments", "edit", "evaluate", "report"]
    done: int = 0
    total: int | None = None
    edited: Progress | None = None


@dataclass(frozen=True)
class DemoRow:
    """One line of the summary; scores in percent, by `match_all`. None: not measured."""

    name: str
    kappa: float | None
    perplexity_ratio: float | None
    efficacy: float | None
    generalization: float | None
    locality: float | None


@dataclass(frozen=True)
class DemoResult:
    """What the demo left: paths of the ledger, results.json and index.html, and the summary: the unedited model, the
    edited one, and the edited one under PRUNE. `failed` facts were recorded and left the model as it was."""

    ledger: Path
    results: Path
    report: Path
    edits: int
    failed: int
    rows: tuple[DemoRow, ...]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the ledger, the results and the report.")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N facts.")] = None,
) -> Answer:
    result = run_demo(out, limit=limit, progress=_tell)
    text = f"{summary(result)}\n{result.edits} edits, {result.failed} failed; scores: all target tokens, percent"
    return Answer(asdict(result), f"{text}\n\nledger  {result.ledger}\nreport  {result.report}")


def summary(result: DemoResult) -> str:
    """The rows of a demo as a table of text."""
    head = ("", "κ", "perplexity", "efficacy", "generalization", "locality")
    rows = []
    for row in result.rows:
        scores = [number(score, ".0f", "–") for score in (row.efficacy, row.generalization, row.locality)]
        ratio = "–" if row.perplexity_ratio is None else f"× {row.perplexity_ratio:.2f}"
        rows.append([row.name, number(row.kappa, ".1f", "–"), ratio, *scores])
    return table(head, rows, right=range(1, len(head)))


def _tell(step: Step) -> None:
    where = step.stage if step.total is None else f"{step.stage} {step.done}/{step.total}"
    say(where if step.edited is None else f"{step.done}/{step.total} {progress_line(step.edited)}")


def demo_facts(limit: int | None = None) -> list[Fact]:
    """The first `limit` facts that come with the package; None: as many as the demo edits unasked, 44."""
    with resources.as_file(resources.files("tether") / "data" / "demo_facts.jsonl") as file:
        facts = read_facts(file)
    if limit is not None and not 1 <= limit <= len(facts):
        raise BadSettingsError(f"limit {limit}: the demo has {len(facts)} facts; give a number from 1 to {len(facts)}")
    return facts[: limit or _FACTS]


def run_demo(
    out: str | Path,
    *,
    model: EditableModel | None = None,
    limit: int | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> DemoResult:
    """Edit the demo's facts one after another, measure with and without PRUNE, and write the report.

    `model` None loads the bundled one; a given one must be unedited, and carries afterwards what the ledger says, as
    recorded: the edits under PRUNE. `out` gets `ledger/`, `results.json`, `index.html`; where it holds an interrupted
    demo, that one goes on. Raises TetherError where its ledger is not one of the demo's.
    """
    out = Path(out)
    facts = demo_facts(limit)
    if (out / "ledger" / "ledger.json").exists():
        _check_ours(Ledger.open(out / "ledger"), facts)
    if model is None:
        progress(Step("load"))
        model = load(MODEL)
    text = Corpus.parse(_CORPUS, seed=0)
    progress(Step("moments", 0, text.max_tokens))
    layers = settings_for(METHOD, model)[0].layers
    moments(model, layers, text, progress=lambda done, total: progress(Step("moments", done, total)))
    ledger = edit(
        model, facts, out=out / "ledger", method=METHOD, restrain=RESTRAINT, corpus=_CORPUS, seed=0, resume=True,
        progress=lambda at: progress(Step("edit", at.done, at.total, at)),
    )  # fmt: skip
    progress(Step("evaluate"))
    count, live = ledger.attempts, len(ledger.live())
    results = evaluate_ledger(
        ledger, model, facts, at=[0, count], restraints=["none", RESTRAINT], metrics=("compare", "match"),
        out=out / "results.json", resume=True,
    )  # fmt: skip
    _add_spectra(results, ledger, model, range(_STRIDE, count, _STRIDE))
    write(results, out / "results.json")
    progress(Step("report"))
    title = f"tether demo: {live} edits of {results.model} with {METHOD}"
    report = write_report(results, out / "index.html", ledger=ledger, title=title)
    missed = sum(event.kind == "failed" for event in ledger.events)
    return DemoResult(ledger.path, out / "results.json", report, live, missed, _summary(results, count))


def _check_ours(ledger: Ledger, facts: Sequence[Fact]) -> None:
    """Raise TetherError unless the ledger tried these facts, in this order, from the first on."""
    tried = [event.fact.sha256 for event in ledger.events if event.kind in ATTEMPTS and event.fact is not None]
    if tried != [fact.sha256 for fact in facts][: len(tried)]:
        raise BadSettingsError(
            f"{ledger.path} holds {len(tried)} edits that are not the first ones of a demo of {len(facts)} facts: "
            "choose a new folder"
        )


def _add_spectra(results: Results, ledger: Ledger, model: EditableModel, at: Sequence[int]) -> None:
    """Rows that hold singular values alone, for the numbers of edits that have no row yet."""
    for restraint in ("none", RESTRAINT):
        wanted = [count for count in at if (count, restraint) not in {row.key for row in results.rows}]
        for found in ledger.spectrum(model, at=wanted, restrain=restraint) if wanted else []:
            spectrum = {found.weight: Singular(**found.extremes.to_dict())}
            results.add(Row(edits=found.edits, restraint=restraint, replayed=False, spectrum=spectrum), [])


def _summary(results: Results, count: int) -> tuple[DemoRow, ...]:
    by_key = {row.key: row for row in results.rows}
    start = by_key[0, "none"].abilities["perplexity"].value
    names = ("unedited", f"{count} edits", f"{count} edits, PRUNE {RESTRAINT}")
    rows = []
    for name, key in zip(names, ((0, "none"), (count, "none"), (count, RESTRAINT)), strict=True):
        (found,) = by_key[key].spectrum.values()
        value = by_key[key].abilities["perplexity"].value
        ratio = None if value is None or not start else value / start
        scores = [by_key[key].editing[METRIC][kind].value for kind in ("efficacy", "generalization", "locality")]
        rows.append(DemoRow(name, found.kappa, ratio, *scores))
    return tuple(rows)
