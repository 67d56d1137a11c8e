"""The kind of a subject, as a model sees it."""

from __future__ import annotations

import pytest
import torch
from core import bits, editable, same_bits

from tether.algebra.lowrank import LowRank
from tether.facts import Fact
from tether.facts.bystanders import kinds
from tether.models.kinds import likeliest_kind


def of(subject: str, kind: str | None = None) -> Fact:
    return Fact(subject=subject, prompt="The size of {} is", target_new="large", kind=kind)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_subject_has_one_kind_whatever_it_is_asked_with(family: str) -> None:
    model = editable(family)
    names = ["Toyota", "Paris", "aspirin", "Velmora Systems"]
    before = bits(model)
    found = likeliest_kind(model, [of(name) for name in names])
    assert set(found) <= kinds().keys()
    assert same_bits(model, before)
    weight = model.weight_name(0)
    p, q = model.weight(weight).shape
    with model.provisional({weight: LowRank(torch.ones(p, 1), torch.ones(1, q))}):
        assert likeliest_kind(editable(family), [of(names[2])]) == [found[2]]  # asked alone
        model.kinds.clear()
        assert likeliest_kind(model, [of(name) for name in reversed(names)]) == found[::-1]  # without its edits
    assert likeliest_kind(model, [of("Toyota", "river"), of("Toyota")]) == ["river", found[0]]
    assert likeliest_kind(model, []) == []
