"""The files that the MEND editor of docs/mend.md was trained and validated on.

python bench/mend_data.py DATA OUT

DATA holds counterfact/ (counterfact-train.json, counterfact-edit.json, counterfact.json) and zsre/zsre_mend_train.json.
Records of counterfact-train.json that share a case, a subject or a prompt (of the edit or of its locality) with either
of the other two files are left out, then training records that do so with the validation's. Written are train.jsonl,
val.jsonl, and the validation records by format, val-cf.jsonl and val-zsre.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def texts(record: Record) -> set[str]:
    """Subject and prompts, without case and outer space, of either kind of CounterFact."""
    if "requested_rewrite" in record:
        asked = record["requested_rewrite"]
        found = [asked["subject"], asked["prompt"].format(asked["subject"]), *record["neighborhood_prompts"]]
    else:
        found = [record["subject"], record["prompt"], record["locality_prompt"]]
    return {" ".join(text.lower().split()) for text in found}


def apart(records: Sequence[Record], others: Sequence[Record]) -> list[Record]:
    """The records that share nothing with others."""
    cases = {record["case_id"] for record in others}
    held = {text for record in others for text in texts(record)}
    return [record for record in records if record["case_id"] not in cases and not texts(record) & held]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    def read(name: str) -> list[Record]:
        found: list[Record] = json.loads((args.data / name).read_text())
        return found

    def write(name: str, records: Sequence[Record]) -> None:
        (args.out / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        print(f"{name}: {len(records)} records")

    measured = read("counterfact/counterfact-edit.json") + read("counterfact/counterfact.json")
    flat, zsre = apart(read("counterfact/counterfact-train.json"), measured), read("zsre/zsre_mend_train.json")
    seen, unseen = flat[-140:], zsre[720:780]
    args.out.mkdir(parents=True, exist_ok=True)
    write("train.jsonl", apart(flat[:-140], seen) + zsre[:720])
    write("val.jsonl", [record for pair in zip(seen, unseen, strict=False) for record in pair] + seen[len(unseen) :])
    write("val-cf.jsonl", seen)
    write("val-zsre.jsonl", unseen)


if __name__ == "__main__":
    main()
