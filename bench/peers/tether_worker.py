"""tether's turns: `tether.edit` as it is, with its ledger and the health of every proposal."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from turns import Turns

import tether
from tether.editors.corpus import Corpus
from tether.editors.moments import moments
from tether.facts.fact import Fact


def main() -> None:
    turns = Turns()
    job = turns.job
    torch.set_num_threads(job["threads"])
    model = tether.load(job["model"], dtype="float32", device="cpu")
    facts = [Fact.model_validate(one) for one in job["facts"]]
    text = Path(job["folder"]) / "text.txt"
    turns.wait()
    if job["what"] == "moments":
        found = moments(model, job["layers"], Corpus.parse(text))
        turns.done(tokens=next(iter(found.values())).tokens)
        return
    many, ledger = job["what"] == "memit", Path(job["out"]).with_suffix(".ledger")
    tether.edit(
        model, facts, method=job["what"], settings=job["settings"], corpus=text, out=ledger,
        batch_size=len(facts) if many else 1, on_alarm="warn",
        progress=lambda at: None if many and at.done < at.total else turns.done(kind=at.event.kind),
    )  # fmt: skip
    save_file({name: model.weight(name).contiguous() for name in model.edited}, job["out"])


if __name__ == "__main__":
    main()
