"""The report of a ledger that was not evaluated: what its journal and its sums tell, without the model."""

from pathlib import Path

from tether.evaluation.results import Results
from tether.ledger import Ledger
from tether.report.ledger import write_report


def write_ledger_report(ledger: Ledger, to: str | Path) -> Path:
    """`write_report` of no rows: the edits, their health and headroom, and the singular values of their sum. The ledger
    is only read. Raises as `write_report`."""
    header = ledger.header
    results = Results(
        model=header.model, ledger=str(ledger.path), facts_sha256="", versions=header.versions, settings={}
    )
    return write_report(results, to, ledger=ledger, title=f"Edits of {Path(header.model).name}")
