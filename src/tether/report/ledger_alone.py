"""The report of a ledger: what its journal and its sums tell, and the measurements that lie where the page goes."""

import logging
from pathlib import Path

from tether.evaluation import read
from tether.evaluation.results import Results
from tether.ledger import Ledger
from tether.report.ledger import write_report

logger = logging.getLogger(__name__)


def write_ledger_report(ledger: Ledger, to: str | Path) -> Path:
    """`write_report` without the model: the edits, their health and headroom, the singular values of their sum. Where
    the folder has a `results.json` of this ledger (the live page's report leaves one), its rows are drawn too. The
    ledger is only read. Raises as `write_report`."""
    header = ledger.header
    results = _measured(ledger, Path(to)) or Results(
        model=header.model, ledger=str(ledger.path), facts_sha256="", versions=header.versions, settings={}
    )
    return write_report(results, to, ledger=ledger, title=f"Edits of {Path(header.model).name}")


def _measured(ledger: Ledger, to: Path) -> Results | None:
    """The results of the ledger in the folder of the page."""
    file = (to.parent if to.suffix == ".html" else to) / "results.json"
    if not file.is_file():
        return None
    found = read(file)
    after = ledger.events_after(str(found.settings.get("journal_sha256")))
    if after is None:
        logger.warning("%s has results of %s: not drawn", file, found.ledger or found.model)
        return None
    if after:
        logger.warning("%s was measured %s ago", file, f"{after} event{'' if after == 1 else 's'}")
    return found
