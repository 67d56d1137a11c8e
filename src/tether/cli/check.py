"""tether check"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.app import AnatomyFile, Device, Dtype, Json, ModelName, app, load_model, show
from tether.editing.check import check_facts
from tether.facts import BadRecord, Fact, FactCheck, scan_facts
from tether.ledger import Ledger


@app.command("check")
def command(
    facts: Annotated[Path, typer.Argument(help="Facts file.")],
    model: ModelName,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N records.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Also look for repeats of this ledger's facts.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
    as_json: Json = False,
) -> None:
    """The tokens of every fact and the one it will be read at; bad facts are named. Exit 1 where there are any."""
    scanned = scan_facts(facts, limit)
    good = [record for record in scanned if isinstance(record, Fact)]
    bad = [record for record in scanned if isinstance(record, BadRecord)]
    known = [] if ledger is None else [fact for _, fact in Ledger.open(ledger).facts()]
    checks = check_facts(load_model(model, dtype=dtype, device=device, anatomy=anatomy), good, known)
    problems = sum(bool(check.problems) for check in checks) + len(bad)
    lines = [_line(check) for check in checks] + [f"bad record: {record}" for record in bad]
    lines.append(f"{facts}: {len(checks) + len(bad)} records, {problems} with problems")
    document = {
        "facts": str(facts), "problems": problems, "bad_records": [str(record) for record in bad],
        "checks": [{"index": c.index, "subject": c.fact.subject, "prompt": c.fact.text, "target_new": c.fact.target_new,
                    "tokens": c.tokens, "read_at": c.read_at, "read_token": c.read_token, "problems": c.problems}
                   for c in checks],
    }  # fmt: skip
    show(document, "\n".join(lines), as_json)
    if problems:
        raise typer.Exit(1)


def _line(check: FactCheck) -> str:
    tokens = "|".join(f"[{t}]" if i == check.read_at else t for i, t in enumerate(check.tokens))
    return f"{check.index}: {tokens} -> {check.fact.target_new}" + "".join(f"\n   problem: {p}" for p in check.problems)
