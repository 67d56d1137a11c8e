"""The tokens of every fact and the one it will be read at; bad facts are named. Exit 1 where there are any.

$ tether check facts.jsonl --model smollm2
"""

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import load_model
from tether.cli.options import AnatomyFile, Answer, Device, Dtype, ModelName
from tether.cli.tables import count
from tether.editing.check import check_facts
from tether.facts import BadRecord, Fact, FactCheck, FormatFound, scan_facts
from tether.facts.prompt import Turn
from tether.ledger import Ledger

_PLAIN = (
    "the model has a chat template, and no fact is edited for a chat turn: in a chat it may answer as before; "
    'add `phrasings` such as {"user": "Who leads {}?"}'
)
_SHOWN = 90  # characters of a phrasing


def check(
    facts: Annotated[Path, typer.Argument(help="Facts file.")],
    model: ModelName,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N records.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Also look for repeats of this ledger's facts.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
) -> Answer:
    scanned = scan_facts(facts, limit)
    good = [record for record in scanned if isinstance(record, Fact)]
    bad = [str(record) for record in scanned if isinstance(record, BadRecord)]
    known = [] if ledger is None else [fact for _, fact in Ledger.open(ledger).facts()]
    loaded = load_model(model, dtype=dtype, device=device, anatomy=anatomy)
    checks = check_facts(loaded, good, known)
    problems = sum(bool(found.problems) for found in checks) + len(bad)
    lines = [_line(found) for found in checks] + [f"bad record: {record}" for record in bad]
    lines += [_about(found) for found in scanned.formats.values()]
    plain = bool(good and loaded.tokenizer.chat_template) and not any(
        isinstance(prompt, Turn) for fact in good for prompt in fact.asked
    )
    if plain:
        lines.append(f"note: {_PLAIN}")
    lines.append(f"{facts}: {count(scanned.records, 'record')}, {problems} with problems")
    document = {
        "facts": str(facts), "notes": [_PLAIN] if plain else [], "problems": problems, "records": scanned.records,
        "bad_records": bad,
        "formats": [{"format": f.format.name, "source": f.format.source, "records": f.records, "facts": f.facts,
                     "became": f.became, "unused": f.unused} for f in scanned.formats.values()],
        "checks": [{"index": c.index, "subject": c.fact.subject, "prompt": c.fact.text, "target_new": c.fact.target_new,
                    "tokens": c.tokens, "read_at": c.read_at, "read_token": c.read_token, "problems": c.problems,
                    "notes": c.notes,
                    "phrasings": [{"prompt": text, "read_token": read} for text, read in c.phrasings]}
                   for c in checks],
    }  # fmt: skip
    return Answer(document, "\n".join(lines), code=int(problems > 0))


def _about(found: FormatFound) -> str:
    """Which format was recognised, what each field became, what is not used."""
    lines = [f"format {found.format.name} ({found.format.source}): {count(found.records, 'record')}"]
    lines[0] += "" if found.facts == found.records else f", {count(found.facts, 'fact')}"
    if found.became:
        lines.append("   read: " + ", ".join(f"{field} -> {what}" for field, what in found.became.items()))
    if found.unused:
        lines.append("   not used: " + ", ".join(f"{field} ({n})" for field, n in found.unused.items()))
    if found.numbers:
        lines.append(f"   numbers and booleans are read as their text: {count(found.numbers, 'record')}")
    return "\n".join(lines)


def _short(text: str) -> str:
    """The end of a long text, on one line."""
    line = text.replace("\n", "⏎")
    return line if len(line) <= _SHOWN else f"…{line[1 - _SHOWN :]}"


def _line(found: FactCheck) -> str:
    tokens = "|".join(f"[{t}]" if i == found.read_at else t for i, t in enumerate(found.tokens))
    said = [f"read at [{read}]: {_short(text)}" for text, read in found.phrasings]
    said += [f"problem: {problem}" for problem in found.problems] + [f"note: {note}" for note in found.notes]
    return "\n   ".join([f"{found.index}: {tokens} -> {found.fact.target_new}", *said])
