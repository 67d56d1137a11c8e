"""The store of a grid: three small files that say all it found, fit to be kept in a repository.

- `results.parquet`: one number a line, with what it is of: for pandas, DuckDB or a spreadsheet;
- `analyses.json`: everything that is no row, and the sha256 of the other file;
- `grid.yaml`: the grid as it was written.

Lines of results.parquet have the fields of the run, then `row` (its place in the run), `edits`, `restraint`, `replayed`
and

| what | metric | part | value |
|---|---|---|---|
| editing | compare, match_all, … | efficacy, generalization, … | percent, with n, prompts, stderr, neither |
| recent | compare, match_all, … | efficacy, … | as editing, of the last facts alone; their number is a part |
| ability | perplexity, nli, … | | in `unit`, with n, stderr |
| spectrum | sigma_max, sigma_min, kappa, update_sigma_max | the weight | |
| retention | | the edit | percent |
| row | | | none: a row without numbers |

`versions` and `hashes` stand in every line too, as JSON. What cannot be a number stays null, and so does
`neither` of all but shares of answers Yes.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tether.errors import MissingExtraError, TetherError, pydantic_line
from tether.evaluation.results import Row
from tether.experiment.results import StoredGrid, StoredRun
from tether.storage.atomic import seal, write_atomically

ROWS, REST = "results.parquet", "analyses.json"

Line = dict[str, Any]
_OF_A_RUN = {"id": "run", "edits": "total_edits", "restrain": "schedule"}  # Run's fields under other names here


def write_grid(grid: StoredGrid, folder: str | Path) -> None:
    """Write both files, each whole or not at all, the one that knows the other last. Raises TetherError where an id
    stands twice."""
    pa = _arrow()
    for name, count in Counter(stored.run.id for stored in grid.runs).items():
        if count > 1:
            raise TetherError(f"run {name!r} stands twice in the grid {grid.name}: every run has an id of its own")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for stored in grid.runs for line in _lines(stored)]
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(lines, schema=_schema(pa)), buffer, compression="zstd")
    data = buffer.getvalue()
    rest = grid.model_dump(mode="json", exclude={"runs": {"__all__": {"rows"}}})
    body = {"format": 1, **rest, "rows_sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / ROWS, data)
    text = json.dumps({**body, "checksum": seal(body)}, ensure_ascii=False, separators=(",", ":"))
    write_atomically(folder / REST, (text + "\n").encode())


def read_grid(folder: str | Path) -> StoredGrid:
    """The grid that `write_grid` wrote, exactly. Raises TetherError for files that are damaged, or not of one write."""
    folder = Path(folder)
    pa = _arrow()
    file = folder / REST
    remedy = "run tether grid again with --resume, or take both files from a copy"
    try:
        body = json.loads(file.read_bytes())
        data = (folder / ROWS).read_bytes()
        checksum, number = body.pop("checksum"), body.pop("format")
        if number != 1:
            raise TetherError(f"{file} has format {number}: open it with a newer tether")
        if seal({"format": number, **body}) != checksum:
            raise TetherError(f"{file} does not match its checksum: {remedy}")
        if hashlib.sha256(data).hexdigest() != body.pop("rows_sha256"):
            raise TetherError(f"{folder / ROWS} does not match the sha256 in {REST}: {remedy}")
        rows = _rows(pa.parquet.read_table(io.BytesIO(data)).to_pylist())
        for stored in body["runs"]:
            stored["rows"] = rows.get(stored["run"]["id"], [])
        return StoredGrid.model_validate(body)
    except OSError as error:
        raise TetherError(
            f"{error.filename} cannot be read ({error.strerror}): name the folder of a grid, with {ROWS} and {REST}"
        ) from None
    except ValidationError as error:
        raise TetherError(f"{file} is damaged ({pydantic_line(error)}): {remedy}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise TetherError(f"{file} is damaged ({error}): {remedy}") from None


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("the store of a grid needs pyarrow: pip install 'tether[grid]'") from None
    return pyarrow


def _schema(pa: Any) -> Any:
    text, whole, number = pa.dictionary(pa.int32(), pa.string()), pa.int64(), pa.float64()
    kinds = {
        "run": text, "model": text, "method": text, "dataset": text, "seed": whole, "batch_size": whole,
        "total_edits": whole, "schedule": text, "every": whole, "row": whole, "edits": whole, "restraint": text,
        "replayed": pa.bool_(), "what": text, "metric": text, "part": text, "value": number, "n": whole,
        "prompts": whole, "stderr": number, "neither": whole, "unit": text, "versions": text, "hashes": text,
    }  # fmt: skip
    return pa.schema(list(kinds.items()))


def _lines(stored: StoredRun) -> Iterator[Line]:
    """Every number of a run, in the order of the rows and of what is in them."""
    shared = {_OF_A_RUN.get(name, name): value for name, value in stored.run.model_dump().items()}
    shared |= {name: json.dumps(getattr(stored, name), sort_keys=True) for name in ("versions", "hashes")}
    for place, row in enumerate(stored.rows):
        of_row = {**shared, "row": place, "edits": row.edits, "restraint": row.restraint, "replayed": row.replayed}
        for line in [*_numbers(row)] or [{"what": "row"}]:
            yield {**of_row, **line}


def _numbers(row: Row) -> Iterator[Line]:
    for what, metrics in (("editing", row.editing), ("recent", row.recent.editing if row.recent else {})):
        for metric, kinds in metrics.items():
            for kind, number in kinds.items():
                yield {"what": what, "metric": metric, "part": kind, "unit": "percent", **number.model_dump()}
            if not kinds:
                yield {"what": what, "metric": metric}
    if row.recent:
        yield {"what": "recent", "part": str(row.recent.edits)}
    for edit, value in row.retention:
        yield {"what": "retention", "part": str(edit), "value": value, "unit": "percent"}
    for name, ability in row.abilities.items():
        yield {"what": "ability", "metric": name, **ability.model_dump()}
    for weight, singular in row.spectrum.items():
        for metric, value in singular.model_dump().items():
            yield {"what": "spectrum", "metric": metric, "part": weight, "value": value}


def _rows(lines: Sequence[Line]) -> dict[str, list[Row]]:
    """The rows of every run, by its id."""
    rows: dict[str, list[Row]] = {}
    for (run, _), its in groupby(lines, key=itemgetter("run", "row")):
        rows.setdefault(run, []).append(_row(list(its)))
    return rows


def _row(lines: Sequence[Line]) -> Row:
    """Pydantic takes what it knows of a line and leaves the rest."""
    row: Line = {**lines[0], "editing": {}, "recent": None, "retention": [], "abilities": {}, "spectrum": {}}
    metrics: dict[str, Line] = {"editing": row["editing"], "recent": {}}
    for line in lines:
        what, metric, part = line["what"], line["metric"], line["part"]
        if what == "recent" and metric is None:
            row["recent"] = {"edits": int(part), "editing": metrics["recent"]}
        elif what in ("editing", "recent"):
            kinds = metrics[what].setdefault(metric, {})
            if part is not None:
                kinds[part] = line
        elif what == "retention":
            row["retention"].append((int(part), line["value"]))
        elif what == "ability":
            row["abilities"][metric] = line
        elif what == "spectrum":
            row["spectrum"].setdefault(part, {})[metric] = line["value"]
    return Row.model_validate(row)
