"""The health of a proposal: seen before it is in, measured as often as it says, recorded as it was measured."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from core import bits, editable, random_update, same_bits

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Extremes, Spectrum
from tether.cli.log import _line
from tether.editing.health import ALONE, UPDATE, Health, Reading
from tether.ledger import Event, WeightRecord
from tether.models import EditableModel
from tether.models.frozen_prefix import hooks

SIZES = {"sigma_min", "kappa", "kappa_ratio"}


def weights(model: EditableModel, *layers: int) -> dict[str, WeightRecord]:
    """As the header of a new ledger has them."""
    records = {}
    for name in map(model.weight_name, layers):
        unedited = Spectrum(model.original(name)).unedited
        shape = (model.weight(name).shape[0], model.weight(name).shape[1])
        records[name] = WeightRecord(shape=shape, sigma_max=unedited.sigma_max, kappa=unedited.kappa)
    return records


def nothing(records: dict[str, WeightRecord]) -> dict[str, LowRank]:
    return {name: LowRank.zeros(*record.shape) for name, record in records.items()}


def test_a_disabling_edit_is_seen_before_it_is_in() -> None:
    model = editable("gpt2")
    before, records = bits(model), weights(model, 1)
    ((name, record),) = records.items()
    m = record.sigma_max
    health = Health(model, records, nothing(records))

    def update(scale: float) -> dict[str, LowRank]:
        return {name: random_update(*record.shape, 1, seed=0, scale=scale * m)}

    def look(scale: float, *, read_text: bool = False) -> Reading:
        reading = health.look(update(scale), read_text=read_text)
        assert same_bits(model, before) and not model.edited
        return reading

    small = look(0.05, read_text=True)
    assert small.level == "ok" and small.reasons == () and small.perplexity_ratio == pytest.approx(1, abs=0.1)
    assert look(0.05).perplexity_ratio is None
    assert small.update_ratio == pytest.approx(0.05, rel=1e-5)
    large = 1.5 * ALONE
    disabling = look(large)
    assert disabling.level == "alarm" and disabling.disabling and not small.disabling
    assert disabling.reasons[0].startswith(f"this edit alone has σ_max {large:.2f} m: a disabling edit")
    assert disabling.perplexity_ratio is not None, "an alarm reads the text"
    s = torch.linalg.svdvals(model.original(name).double() + update(large)[name].to_dense().double())
    assert isinstance(disabling.worst, Extremes)
    assert disabling.worst.kappa == pytest.approx(float(s[0] / s[-1]), rel=1e-4)
    # A sum that grew by small edits is no disabling edit.
    grown = update(0.95 * UPDATE)
    health.commit(grown)
    with model.provisional(grown):
        carried = bits(model)
        reading = health.look(update(0.1 * UPDATE), read_text=False)
        assert same_bits(model, carried)
    assert f"σ̂_max {1.05 * UPDATE:.2f} m" in reading.reasons and reading.level != "ok"
    assert not reading.disabling and not any("alone" in reason for reason in reading.reasons)
    health.reset(nothing(records))
    assert health.look(nothing(records), read_text=False).level == "ok"


def test_of_several_weights_the_worst_is_the_one_whose_kappa_grew_most() -> None:
    """Layer 1 has the larger κ, from 50 to 75; layer 2's grows most, from 2 to 12."""
    model = editable("gpt2")
    sums: dict[str, LowRank] = {}
    for layer, top, raised in ((1, 50.0, 75.0), (2, 2.0, 12.0)):
        weight = model.weight(model.weight_name(layer))
        U, s, Vh = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_(U * torch.linspace(top, 1, len(s)) @ Vh)
        sums[model.weight_name(layer)] = LowRank((raised - top) * U[:, :1], Vh[:1])
    records = weights(model, 1, 2)
    reading = Health(model, records, nothing(records)).look(sums, read_text=False)
    assert [one.to_dict()["kappa"] for one in reading.extremes.values()] == pytest.approx([75, 12], rel=1e-3)
    record = reading.record()
    assert (record["kappa"], record["kappa_ratio"]) == pytest.approx((12, 6), rel=1e-3)
    assert (record["sigma_max"], record["sigma_min"]) == pytest.approx((12, 1), rel=1e-3)
    assert "κ 12.0 (× 6.00)" in reading.line()
    # What the model carries already counts as well.
    carried = Health(model, records, sums).look({}, read_text=False).record()
    for key in ("kappa", "sigma_max", "sigma_min", "update_ratio"):
        assert carried[key] == pytest.approx(record[key])


def test_the_record_says_what_was_measured_and_nothing_else() -> None:
    model = editable("gpt2")
    records = weights(model, 1, 2)
    health = Health(model, records, nothing(records), sigma_min_every=3)
    measured = []
    for i in range(7):
        updates = {name: random_update(*one.shape, 1, seed=i, scale=1e-4) for name, one in records.items()}
        record = health.look(updates, read_text=False).record()
        measured.append(record.keys() >= SIZES)
        assert measured[-1] or not SIZES & record.keys()
        per_weight: list[dict[str, Any]] = list(record["weights"].values())
        assert all(("kappa" in one) == measured[-1] for one in per_weight) and len(per_weight) == 2
        health.commit(updates)
    assert measured == [True, False, False, True, False, False, True]
    line = health.look({}, read_text=False).line()
    assert "κ" not in line and "σ̂_max/m" in line
    # One weight jumps: σ_min is then measured of both, so that the worst is the worst of all.
    name, one = next(iter(records.items()))
    jump = health.look({name: random_update(*one.shape, 1, seed=9, scale=2 * one.sigma_max)}, read_text=False)
    assert jump.worst is jump.extremes[name] and all(isinstance(e, Extremes) for e in jump.extremes.values())


def test_a_weight_that_no_update_changes_is_measured_as_seldom() -> None:
    model = editable("gpt2")
    records = weights(model, 1, 2)
    health = Health(model, records, nothing(records), sigma_min_every=3)
    name, shape = model.weight_name(1), records[model.weight_name(1)].shape
    measured = []
    for i in range(5):
        update = {name: random_update(*shape, 1, seed=i, scale=1e-4)}
        measured.append(health.look(update, read_text=False).kappa_ratio is not None)
        health.commit(update)
    assert measured == [True, False, False, True, False]


def test_a_kappa_beyond_the_limit_stays_an_alarm_until_it_is_measured_again() -> None:
    """Only that of an edit that went in; a restraint clears it."""
    model = editable("gpt2")
    name = model.weight_name(1)
    weight = model.weight(name)
    U, s, Vh = torch.linalg.svd(weight, full_matrices=False)
    weight.copy_(U * torch.linspace(2, 1, len(s)) @ Vh)
    records = weights(model, 1)
    raised, small = {name: LowRank(15 * U[:, :1], Vh[:1])}, {name: random_update(*weight.shape, 1, seed=0, scale=1e-4)}
    health = Health(model, records, nothing(records))
    assert health.look(raised, read_text=False).level == "alarm"
    health.commit(small)
    assert health.look(small, read_text=False).level == "ok", "the raised one did not go in"
    assert health.look(raised, read_text=False).level == "alarm"
    health.commit(raised)
    after = health.look(small, read_text=False)
    assert after.level == "alarm" and after.kappa_ratio is None and "kappa" not in after.record()
    assert any(reason.startswith("κ as last measured") for reason in after.reasons)
    health.reset(nothing(records))
    assert health.look(small, read_text=False).level == "ok"


def test_why_it_is_bad_is_said_once_and_then_counted() -> None:
    model = editable("gpt2")
    records = weights(model, 1)
    ((name, one),) = records.items()
    health = Health(model, records, nothing(records))

    def line(scale: float) -> str:
        update = {name: random_update(*one.shape, 1, seed=0, scale=scale * one.sigma_max)}
        return health.look(update, read_text=False).line().split(" — ")[0]

    ok, large = UPDATE / 4, 1.2 * ALONE
    health._kappa = dict.fromkeys(records, float("inf"))  # so that σ̂_max alone is judged
    assert [line(scale) for scale in (ok, ok)] == ["health ok"] * 2
    found = [line(scale) for scale in (4, 4.1, 4.2, ok, 4)]
    assert found == ["health warn", "health warn, 2 in a row", "health warn, 3 in a row", "health ok", "health warn"]
    assert [line(scale) for scale in (large, large, 4)] == ["health alarm"] * 2 + ["health warn"], "each is named"


def test_the_unedited_weight_is_looked_at_once_where_the_header_has_its_kappa() -> None:
    model = editable("gpt2")
    records = weights(model, 1)
    with mock.patch("tether.editing.health.Spectrum", side_effect=AssertionError("κ₀ is in the header")):
        new = Health(model, records, nothing(records))
    old = {name: record.model_copy(update={"kappa": None}) for name, record in records.items()}
    update = {name: random_update(*one.shape, 1, seed=0) for name, one in records.items()}
    found = [health.look(update, read_text=False).kappa_ratio for health in (new, Health(model, old, nothing(old)))]
    assert found[0] == pytest.approx(found[1]) and found[0] is not None


def test_a_perplexity_that_is_no_number_is_an_alarm() -> None:
    model = editable("llama")
    model.hf.get_output_embeddings().weight.mul_(1e6)  # infinite before and after, so the ratio is NaN
    name = model.weight_name(1)
    records = {name: WeightRecord(shape=tuple(model.weight(name).shape), sigma_max=1.0)}  # type: ignore[arg-type]
    update = {name: random_update(*model.weight(name).shape, 1, seed=0, scale=0.01)}
    health = Health(model, records, nothing(records))
    reading = health.look(update, read_text=True)
    assert reading.level == "alarm" and reading.reasons == ("perplexity nan × the unedited model's",)
    assert health.look(update, read_text=False).level == "ok"


def test_a_line_of_the_log_says_what_was_measured() -> None:
    measured = {"loss_first": 3.0, "loss_last": 0.1, "steps": 5, "norm": 2.0, "seconds": 1.0}

    def line(**more: Any) -> str:
        record = {**measured, **more}
        event = Event(number=1, time="2026-01-01T00:00:00Z", kind="edit", edit=1, previous="", record=record)
        return _line(event, frozenset())

    assert line(kappa=12.3, health="ok").endswith("‖ΔW‖ 2.00, κ 12.3, ok, 1.0 s")
    assert line(kappa=None, health="ok").endswith("κ not finite, ok, 1.0 s")
    assert line(health="ok").endswith("‖ΔW‖ 2.00, ok, 1.0 s")
    assert line().endswith("‖ΔW‖ 2.00, 1.0 s")


def test_no_text_is_read_before_it_is_due() -> None:
    model = editable("llama")
    records = weights(model, 1)
    ((name, record),) = records.items()
    read: list[int] = []
    with hooks(model.base.register_forward_hook(lambda *_: read.append(1))):
        health = Health(model, records, nothing(records))
        update = {name: random_update(*record.shape, 1, seed=0, scale=0.1)}
        assert health.look(update, read_text=False).perplexity_ratio is None and not read
        first = health.look(update, read_text=True).perplexity_ratio
        once = len(read)
        assert once and health.look(update, read_text=True).perplexity_ratio == first
        assert len(read) - once == once // 2, "the unedited model reads it once"
