"""Several facts of one subject: a later edit keeps what earlier ones taught."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from core import bits, editable, same_bits
from edits import run
from test_memit import PREFIXES, hparams, latents

from tether.editing.check import check_facts
from tether.editing.prepare import recorded_settings
from tether.editing.run import edit
from tether.editors import Context
from tether.editors.prompts import encode_contexts, group_of
from tether.evaluation import score
from tether.facts import Fact
from tether.ledger.history import LedgerHistory
from tether.models import EditableModel, load

CHIEF = Fact(subject="Morwick Labs", prompt="The chief executive officer of {} is", target_new="Edda Lind")
CITY = Fact(subject="morwick  labs", prompt="The headquarters of {} are in the city of", target_new="Porto")
YEAR = Fact(subject="Morwick Labs", prompt="{} was founded in the year", target_new="2004")
OTHER = Fact(subject="Lake Tamsin", prompt="The depth of {} is", target_new="ninety metres")
FACTS = [CHIEF, CITY, YEAR]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_kept_prompts_that_the_update_does_not_reach_change_nothing(family: str) -> None:
    model = editable(family)
    alone, kept = encode_contexts(model, CHIEF, PREFIXES), encode_contexts(model, CITY, PREFIXES[:1])
    both = replace(alone, facts=alone.facts + kept.facts)
    reach = (*[1.0] * alone.contexts, *[0.0] * kept.contexts)
    chosen = hparams(loss_threshold=0)
    (plain,), (unreached,) = latents(model, [alone], chosen), latents(model, [replace(both, reach=reach)], chosen)
    torch.testing.assert_close(unreached.delta, plain.delta, rtol=1e-4, atol=1e-6)
    more = {round(b - a, 4) for a, b in zip(plain.losses, unreached.losses, strict=True)}
    assert len(more) == 1 and more.pop() > 1  # the kept fact's own loss, the same at every step
    # Where it reaches them, δ serves both; the shift goes to all contexts alike, and not to the KL prompt.
    (served,) = latents(model, [both], chosen)
    assert served.losses[-1] < unreached.losses[-1]
    shift = torch.linspace(-0.5, 0.5, len(plain.delta))  # a norm takes no constant away
    (shifted,) = latents(model, [replace(alone, shift=shift)], hparams(loss_threshold=0, kl_factor=0))
    (unshifted,) = latents(model, [alone], hparams(loss_threshold=0, kl_factor=0))
    assert shifted.losses[0] != unshifted.losses[0]


def test_what_is_kept(tmp_path: Path) -> None:
    model = editable("llama")
    ledger = run(model, [CHIEF, OTHER, CITY], tmp_path / "ledger", method="memit")
    settings = recorded_settings(ledger.header)
    context = Context(settings, PREFIXES, history=LedgerHistory(ledger))

    def kept(fact: Fact) -> list[str]:
        group = group_of(model, fact, context)
        assert group.facts[0] == encode_contexts(model, fact, PREFIXES).facts[0]
        return [model.tokenizer.decode(phrasings[0][0].ids) for phrasings in group.facts[1:]]

    said = [f"{fact.text}{fact.target}" for fact in (CHIEF, CITY)]
    assert kept(YEAR) == said
    assert kept(OTHER.model_copy(update={"prompt": "{} is in"})) == [f"{OTHER.text}{OTHER.target}"]
    assert kept(CHIEF.model_copy(update={"target_new": "Ann"})) == said[1:]  # it says otherwise now
    ledger.undo(1)
    assert kept(YEAR) == said[1:]
    ledger.redo(1)
    assert kept(YEAR) == said
    context = replace(context, hparams=settings.model_copy(update={"same_subject": "apart"}))
    assert kept(YEAR) == []


@pytest.mark.parametrize(
    ("family", "method"), [("llama", "rome"), ("gpt2", "r-rome"), ("gpt2", "memit"), ("llama", "emmet")]
)
def test_facts_of_different_subjects_are_edited_as_ever(family: str, method: str, tmp_path: Path) -> None:
    def edited(how: str, facts: list[Fact]) -> EditableModel:
        model = editable(family)
        run(model, facts, tmp_path / f"{how}-{len(facts)}", method=method, changes={"same_subject": how})
        return model

    assert same_bits(edited("together", [CHIEF, OTHER]), bits(edited("apart", [CHIEF, OTHER])))
    assert not same_bits(edited("together", FACTS), bits(edited("apart", FACTS)))


def test_ledgers_of_earlier_versions_go_on_as_they_began(tmp_path: Path) -> None:
    header = run(editable("llama"), [OTHER], tmp_path / "ledger").header
    assert recorded_settings(header).same_subject == "together"
    settings = {key: value for key, value in header.settings.items() if key != "same_subject"}
    old = header.model_copy(update={"settings": settings, "joint": None})
    assert recorded_settings(old).same_subject == "apart"


def test_check_names_subjects_that_come_again() -> None:
    model = editable("llama")
    notes = [found.notes for found in check_facts(model, [CHIEF, OTHER, CITY], [YEAR])]
    assert notes[0] == ("same subject as known fact 0, fact 2: the edits share what the subject's last token says",)
    assert notes[1] == ()


@pytest.mark.real
def test_three_facts_of_one_subject_are_said_at_the_end(tmp_path: Path) -> None:
    text = resources.files("tether").joinpath("data", "demo_facts.jsonl").read_text()
    (tmp_path / "text").write_text(text[:6_000])
    # So little text leaves the moments singular without a ridge; a total loss of 0.3 is enough to be said.
    settings = {"moments_ridge": 0.01, "layers": [5], "prefixes": [], "loss_threshold": 0.3}
    model = load("smollm2")
    for method, batch_size in (("r-rome", 1), ("memit", 3)):
        out = tmp_path / f"{method}-{batch_size}"
        more = {"method": method, "batch_size": batch_size, "corpus": tmp_path / "text", "settings": settings}
        ledger = edit(model, FACTS, out=out, health=0, **more)
        found = score(model, [(fact.text, fact.target) for fact in FACTS], join="")
        assert [all(one.argmax_correct) for one in found] == [True, True, True], out.name
        ledger.apply(model, upto=0)
