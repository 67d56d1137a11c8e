"""What a grid found: one `StoredRun` for every ledger, with its measured rows and its analyses.

Pydantic models of exactly what is kept; `tether.experiment.parquet` writes and reads them, `tether.report` draws them.
"""

from pydantic import BaseModel

from tether.analyses.points import Analyses
from tether.evaluation.results import Row


class Run(BaseModel, frozen=True, extra="forbid"):
    """A ledger of a grid. `every` and `restrain` are those it was edited under (None and "none" for the ledger that
    serves all restraints applied once); `edits` is how many facts it holds at the end. `id` names its folder and says
    what it depends on."""

    id: str
    model: str
    method: str
    dataset: str
    seed: int
    edits: int
    batch_size: int = 1
    restrain: str = "none"
    every: int | None = None


class StoredRun(BaseModel, frozen=True, extra="forbid"):
    """A run with what it found. `rows` as in results.json: restraint "as recorded" (`replayed`) for runs with `every`.
    `counts`: events of the journal by kind (edit, failed, skipped). `hashes`: head of the journal, fingerprint of the
    model, facts, data."""

    run: Run
    rows: list[Row]
    analyses: Analyses = Analyses()
    counts: dict[str, int] = {}
    versions: dict[str, str] = {}
    hashes: dict[str, str] = {}


class StoredGrid(BaseModel, frozen=True, extra="forbid"):
    """All finished runs of a grid. `command` made them."""

    name: str
    title: str
    command: str
    runs: list[StoredRun]
