"""MEND: the gradient as pairs, the network, its training, the file of a trained editor, and editing with it."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from command import answer, run
from core import FACTS, bits, close, editable, reciter, same_bits
from tiny import FAMILIES, save, tiny_model
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import tether
from tether.algebra.lowrank import LowRank
from tether.editors import Context, EditFailedError, Editor, editor
from tether.editors.mend import train as mend_train
from tether.editors.mend.examples import Reader, States, examples, reads
from tether.editors.mend.file import open_trained, read_tensors, write_tensors
from tether.editors.mend.network import Hypernetwork, MendHparams, Pairs, gradient_pairs, mlp_weights, target_nll
from tether.editors.mend.train import Training, edit_losses, example_pairs, train_mend
from tether.editors.settings import settings_for
from tether.errors import TetherError
from tether.evaluation.scores import Continuation
from tether.facts.fact import Fact, LocalityPrompt
from tether.facts.formats import read_training_facts
from tether.models import EditableModel, load

LAYOUTS = ["llama", "gpt2"]
SETTINGS: dict[str, Any] = {
    "rank": 8, "lr": 1e-3, "lr_lr": 1e-4, "accumulate": 2, "steps": 8, "validate_every": 4, "validation": 3,
    "statistics": 4,
}  # fmt: skip
FEEDERS = {
    "gpt2": ["c_fc"], "gpt_neox": ["dense_h_to_4h"], "gptj": ["fc_in"], "falcon": ["dense_h_to_4h"], "phi": ["fc1"],
    "opt": ["fc1"],
}  # fmt: skip


def hparams(**changes: Any) -> MendHparams:
    return MendHparams.model_validate({"layers": (1, 2, 3), **SETTINGS, **changes})


def shapes(model: EditableModel, names: list[str]) -> dict[str, tuple[int, int]]:
    return {name: (model.weight(name).shape[0], model.weight(name).shape[1]) for name in names}


def a_network(model: EditableModel, chosen: MendHparams) -> Hypernetwork:
    return Hypernetwork(shapes(model, mlp_weights(model, chosen.layers)), chosen)


def stirred(network: Hypernetwork, scale: float = 0.05) -> Hypernetwork:
    """The network with every parameter moved at random."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "alpha":
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def mend() -> Editor:
    found = editor("mend")
    assert isinstance(found, Editor)
    return found


def plain_gradients(model: EditableModel, fact: Fact, names: list[str]) -> dict[str, Tensor]:
    """dL/dW, out×in, as backward through the whole model gives it."""
    hf = copy.deepcopy(model.hf)
    parameters = [hf.get_parameter(name).requires_grad_(True) for name in names]
    ids = torch.tensor([tuple(model.tokenizer(f"{fact.text} {fact.target_new}")["input_ids"])])
    start = len(model.tokenizer(fact.text)["input_ids"])
    loss = torch.nn.functional.cross_entropy(hf(input_ids=ids).logits[0, start - 1 : -1], ids[0, start:])
    found = torch.autograd.grad(loss, parameters)
    return {n: g.mT if model.is_transposed(n) else g for n, g in zip(names, found, strict=True)}


# --- which weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_an_mlp_are_found_on_every_family(family: str) -> None:
    model = editable(family)
    *feeding, out = model.mlp_weight_names(2)
    assert out == model.weight_name(2)
    assert [name.split(".")[-2] for name in feeding] == FEEDERS.get(family, ["gate_proj", "up_proj"])
    width = model.weight(out).shape[1]
    assert all(model.weight(name).shape == (width, model.hidden_size) for name in feeding)


# --- the edit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYOUTS)
def test_at_the_start_without_normalisation_the_edit_is_a_gradient_step(family: str) -> None:
    model, chosen = editable(family), hparams(edit_lr=1e-2)
    before = bits(model)
    network = a_network(model, chosen)
    for fact in FACTS[:2]:
        found = mend().propose(model, fact, Context(chosen, trained=network))
        plain = plain_gradients(model, fact, network.names)
        assert len(plain) == (9 if family == "llama" else 6)
        for name, gradient in plain.items():
            assert close(found.updates[name].to_dense(), -1e-2 * gradient, 1e-5)
            assert found.updates[name].rank == len(found.vectors[f"{name}/K"])
        # The direction of descent: a short step lowers the loss.
        assert found.record["loss_last"] < found.record["loss_first"]
    assert same_bits(model, before) and all(p.grad is None for p in model.hf.parameters())


@pytest.mark.parametrize("family", LAYOUTS)
def test_with_normalisation_it_is_the_sum_of_normalised_pairs(family: str) -> None:
    model, chosen = editable(family), hparams(edit_lr=1e-3)
    network, reader = a_network(model, chosen), Reader(model, None)
    every = [example_pairs(reader, network.names, example) for example in examples(model, FACTS)]
    network.measure(iter(every))
    with torch.no_grad():
        updates = network(every[0])
    for name in network.names:
        x, delta = (torch.cat([getattr(pairs[name], part) for pairs in every]) for part in ("x", "delta"))
        mine = every[0][name]
        z_x = (mine.x - x.mean(0)) / x.std(0).clamp_min(1e-3 * x.std(0).mean())
        z_d = (mine.delta - delta.mean(0)) / delta.std(0).clamp_min(1e-3 * delta.std(0).mean())
        expected = torch.stack([torch.outer(d, k) for d, k in zip(z_d, z_x, strict=True)]).sum(0)
        assert close(updates[name].to_dense(), -1e-3 * expected, 1e-4)


def test_the_network_is_its_formula() -> None:
    model = editable("llama")
    for last_relu in (True, False):
        network = stirred(a_network(model, hparams(last_relu=last_relu)))
        pairs = {name: Pairs(torch.randn(3, q), torch.randn(3, p)) for name, (p, q) in
                 shapes(model, network.names).items()}  # fmt: skip
        found = network(pairs)
        for group, names in enumerate(network.groups):
            U, V, b, s, o = (network.get_parameter(f"shared.{group}.{part}") for part in "UVbso")
            for its, name in enumerate(names):
                rows = []
                for x, delta in zip(pairs[name].x, pairs[name].delta, strict=True):
                    z = torch.cat([x, delta])
                    for k in (0, 1):
                        added = s[its, k] * (U[k] @ (V[k] @ z) + b[k]) + o[its, k]
                        z = z + (added.relu() if k == 0 or last_relu else added)
                    rows.append(z)
                z, q = torch.stack(rows), pairs[name].x.shape[1]
                torch.testing.assert_close(found[name].B, z[:, :q])
                torch.testing.assert_close(found[name].A, -network.alpha[network.names.index(name)] * z[:, q:].mT)


def test_tokens_without_gradient_are_left_out() -> None:
    """In the last block only the tokens that the loss reads have any; below it, all up to the last one read."""
    model = editable("llama")
    (example, *_) = examples(model, FACTS)
    names = mlp_weights(model, (1, 2, 3))
    pairs = example_pairs(Reader(model, None), names, example)
    for name in names:
        expected = len(reads(example.edit)) if ".3." in name else len(example.edit.ids) - 1
        assert len(pairs[name].x) == len(pairs[name].delta) == expected


def test_a_known_fact_is_skipped_and_a_rising_loss_refused() -> None:
    model = editable("llama")
    known = hparams(loss_threshold=1e6)
    with pytest.raises(tether.editors.EditSkippedError, match="already says"):
        mend().propose(model, FACTS[0], Context(known, trained=a_network(model, known)))
    uphill = hparams(edit_lr=-1e-2)
    network = a_network(model, uphill)
    with pytest.raises(EditFailedError, match="the loss went from"):
        mend().propose(model, FACTS[0], Context(uphill, trained=network))
    kept = mend().propose(model, FACTS[0], Context(hparams(drop_rising=False), trained=network))
    assert kept.record["loss_last"] > kept.record["loss_first"]


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_prompt_longer_than_the_model_takes(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model, chosen = editable(family), hparams()
    long = Fact(subject="Big Ben", prompt=300 * "so " + "{} is in", target_new="Paris")
    with pytest.raises(EditFailedError, match="tokens, the model takes 256; shorten the prompt"):
        mend().propose(model, long, Context(chosen, trained=a_network(model, chosen)))
    # The last fact goes too: it has no locality prompt of its own and borrows the long one.
    assert examples(model, [long, *FACTS[:3]]) == examples(model, FACTS[:3])[:2]
    assert "left out: 'so so" in caplog.text and "the model takes 256" in caplog.text


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*LAYOUTS, "gemma3", "opt"])
def test_the_upper_blocks_alone_equal_the_whole_model(family: str, tmp_path: Path) -> None:
    model, chosen = editable(family), hparams()
    listed = examples(model, FACTS)
    network = stirred(a_network(model, chosen))
    results = []
    for reader in (Reader(model, States(model, 1, listed, cache=tmp_path)), Reader(model, None)):
        network.zero_grad()
        losses = []
        for example in listed[:3]:
            found = edit_losses(network, reader, example)
            found.total(chosen).backward()
            losses += [found.edit.item(), found.loc.item()]
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        results.append((losses, gradient))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4, abs=1e-6)
    assert results[1][0][1] > 0, "the edit changes the unrelated text"
    assert close(results[0][1], results[1][1], 1e-3)
    assert all(p.grad is None for p in model.hf.parameters())


@pytest.mark.parametrize("family", LAYOUTS)
def test_updates_on_the_way_equal_dense_weights(family: str, tmp_path: Path) -> None:
    """Logits, and gradients in the factors, against dense W + ΔW; with biases where a layout has them."""
    model = editable(family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        biases = [p for name, p in model.hf.named_parameters() if ".mlp." in name and name.endswith(".bias")]
        for bias in biases:
            bias.copy_(torch.randn(bias.shape, generator=generator))
    assert bool(biases) == (family == "gpt2")
    listed, names = examples(model, FACTS), mlp_weights(model, (1, 2, 3))
    texts = [listed[0].again, listed[0].loc, listed[1].loc]
    results = []
    for reader in (Reader(model, States(model, 1, listed, cache=tmp_path)), Reader(model, None)):
        generator.manual_seed(4)
        updates = {
            name: LowRank(*(
                (0.1 * torch.randn(size, generator=generator)).requires_grad_(True) for size in ((p, 3), (3, q))
            ))
            for name, (p, q) in shapes(model, names).items()
        }  # fmt: skip
        logits = torch.cat(reader.logits(texts, updates))
        (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
        results.append((logits.detach(), [factor.grad for u in updates.values() for factor in (u.A, u.B)]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert not close(results[0][0], torch.cat(Reader(model, None).logits(texts)), 1e-2), "the updates do something"
    for mine, its in zip(results[0][1], results[1][1], strict=True):
        assert mine is not None and its is not None and close(mine, its, 1e-4)


def test_states_are_made_once_and_read_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = editable("gpt2", dtype=torch.bfloat16)
    listed = examples(model, FACTS)
    made = States(model, 2, listed, cache=tmp_path)
    monkeypatch.setattr(States, "_build", None)
    again = States(model, 2, listed, cache=tmp_path)
    text = listed[0].loc
    assert torch.equal(made.entry(text), again.entry(text)) and again.entry(text).dtype == torch.bfloat16
    assert again.final(text).shape == (len(reads(text)), model.hidden_size)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts to train and validate on, as files."""
    folder = tmp_path_factory.mktemp("mend")
    facts = reciter().facts
    for name, chosen in (("train", facts[::3] + facts[1::3]), ("val", facts[2::3]), ("tiny", FACTS)):
        lines = [fact.model_dump_json(exclude_none=True) for fact in chosen]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def training(data: Path) -> Iterator[tuple[EditableModel, Training]]:
    """A network trained for the model that knows something."""
    known = reciter()
    model = EditableModel(known.hf, known.tokenizer)
    settings = {"rank": 32, "lr": 2e-4, "lr_lr": 1e-5, "edit_lr": 1e-3, "accumulate": 4, "validate_every": 40}
    (data / "real.json").write_text(json.dumps({**settings, "validation": 8, "statistics": 16}))
    before = bits(model)
    found = train_mend(
        model, data / "train.jsonl", data / "val.jsonl", data / "trained.safetensors", steps=160,
        settings=data / "real.json", cache=data / "cache",
    )  # fmt: skip
    assert same_bits(model, before) and all(p.grad is None for p in model.hf.parameters())
    yield model, found


def test_training_lowers_the_validation_loss(training: tuple[EditableModel, Training]) -> None:
    _, found = training
    curve, best = found.trained.record.curve, found.trained.record.best()
    assert best.loss < 0.8 * curve[0].loss and best.edit < curve[0].edit
    assert found.trained.record.step == best.step > 0
    assert found.work_ratio < 1
    parameters = dict(found.trained.network.named_parameters())
    assert all(p.abs().max() > 0 for name, p in parameters.items() if name.endswith(".U")), "a relu would keep U at 0"


def test_the_trained_editor_edits_facts_it_has_not_seen(
    training: tuple[EditableModel, Training], data: Path, tmp_path: Path
) -> None:
    """Through the ledger: an edit, what follows from it, and its undoing, as for every editor."""
    model, found = training
    facts = tether.read_facts(data / "val.jsonl", 4)
    before = bits(model)
    with mock.patch("tether.editors.mend.file.read_tensors", wraps=read_tensors) as opened:
        ledger = tether.edit(model, facts, out=tmp_path / "l", method="mend", editor=data / "trained.safetensors")
    assert opened.call_count == 1
    edits = [event for event in ledger.events if event.kind == "edit"]
    assert edits and ledger.header.editor is not None and ledger.header.editor.sha256 == found.trained.sha256
    assert ledger.header.prefixes == () and ledger.header.moments == {} and len(ledger.header.weights) == 6
    carried = bits(model)
    assert same_bits(ledger.apply(model), carried)
    number = edits[0].edit
    assert number is not None
    ledger.undo(number)
    rest = [event for event in edits if event.edit != number]
    for name, held in ledger.sums().of.items():
        expected = sum((ledger.factors(event)[name].to_dense() for event in rest), torch.zeros(held.dense.shape))
        assert torch.equal(held.dense, expected)
    assert {row.weight for row in ledger.spectrum(model, restrain="log:1.2")} == set(ledger.header.weights)
    model.clear_updates()
    assert same_bits(model, before)


# --- files, kills, errors -------------------------------------------------------------------------------------------

NURSERY = """
import json, os, signal, sys, traceback
import torch
torch.set_num_threads(1)
from pathlib import Path
from tether.models import load
from tether.editors.mend import train_mend

folder, lives = Path(sys.argv[1]), json.loads(sys.argv[2])
load(folder / "model")  # imports what every life needs

def live(out, deadly, before):
    real, calls = os.fsync, 0
    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls == deadly and before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
    os.fsync = fsync
    train_mend(load(folder / "model"), folder / "tiny.jsonl", folder / "tiny.jsonl", folder / out, resume=True,
               settings=folder / "falling.json", cache=folder / "cache")

ends = []
for out, deadly, before in lives:
    child = os.fork()
    if not child:
        try:
            live(out, deadly, before)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


def test_a_killed_training_ends_with_the_same_bytes(data: Path) -> None:
    """Deaths before and after every kind of fsync: of the states, of the editor, of the state of the training; with
    learning rates that fall to 0."""
    (data / "falling.json").write_text(json.dumps({**SETTINGS, "lr_end": 0}))
    save(*tiny_model("llama"), data / "model")
    deaths = [*((deadly, True) for deadly in (1, 2, 3, 4, 6, 9)), (1, False), (3, False)]
    plan = [("killed", deadly, before) for deadly, before in deaths]
    done = subprocess.run(
        [sys.executable, "-c", NURSERY, str(data), json.dumps([*plan, ("killed", 0, False), ("whole", 0, False)])],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    ends = json.loads(done.stdout)
    assert ends[-2:] == [0, 0] and ends.count(-signal.SIGKILL) >= 6
    for end in ("", ".training"):
        assert (data / f"killed{end}").read_bytes() == (data / f"whole{end}").read_bytes()


def test_more_steps_go_on_where_a_training_ended(data: Path, tmp_path: Path) -> None:
    model = editable("llama")

    def train(out: str, **more: Any) -> Training:
        return train_mend(
            model, data / "tiny.jsonl", data / "tiny.jsonl", tmp_path / out, settings=data / "settings.json",
            cache=tmp_path, **more,
        )  # fmt: skip

    train("a", steps=4)
    longer, whole = train("a", steps=8, resume=True), train("b", steps=8)
    assert longer.trained.sha256 == whole.trained.sha256
    assert [look.step for look in longer.trained.record.curve] == [0, 4, 8]
    with pytest.raises(TetherError, match="exists"):
        train("a")
    trained = (tmp_path / "a").read_bytes()
    (tmp_path / "a.training").rename(tmp_path / "state")
    with pytest.raises(TetherError, match=r"a is trained for [48] steps, and .*a.training, .*bring it back"):
        train("a", resume=True)
    (tmp_path / "state").rename(tmp_path / "a.training")
    assert (tmp_path / "a").read_bytes() == trained
    with pytest.raises(TetherError, match="lr"):
        (tmp_path / "other.json").write_text(json.dumps({**SETTINGS, "lr": 0.5}))
        train_mend(
            model, data / "tiny.jsonl", data / "tiny.jsonl", tmp_path / "a", settings=tmp_path / "other.json",
            cache=tmp_path, resume=True,
        )  # fmt: skip
    with pytest.raises(TetherError, match=r"is not the .* this training began with"):
        train_mend(
            model, data / "train.jsonl", data / "tiny.jsonl", tmp_path / "a", settings=data / "settings.json",
            cache=tmp_path, resume=True,
        )  # fmt: skip


def test_the_learning_rates_fall_in_a_line_to_their_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 optimiser's steps, of edits 0, 2, 4 and 6 of 8; a training that goes on takes up the line where it was."""
    model, seen = editable("llama"), []
    step = torch.optim.Adam.step

    def watched(self: torch.optim.Adam, *args: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    tiny = data / "tiny.jsonl"

    def train(out: str, **more: Any) -> Training:
        (tmp_path / "s.json").write_text(json.dumps({**SETTINGS, "lr": 1e-3, "lr_lr": 1e-4, "lr_end": 0.2}))
        return train_mend(model, tiny, tiny, tmp_path / out, settings=tmp_path / "s.json", cache=tmp_path, **more)

    train("a")
    assert seen == [pytest.approx([1e-3 * share, 1e-4 * share]) for share in (1, 0.8, 0.6, 0.4)]
    seen.clear()
    train("a", steps=16, resume=True)
    assert [rates[0] for rates in seen] == pytest.approx([1e-3 * (1 - 0.8 * at / 16) for at in (8, 10, 12, 14)])


def test_v_starts_with_its_spread() -> None:
    """The same numbers, scaled: the untrained editor is the same, since U is 0."""
    model = editable("llama")
    wide, narrow = (a_network(model, hparams(v_std=v_std)) for v_std in (1.0, 0.02))
    for mine, its in zip(narrow.shared, wide.shared, strict=True):
        assert torch.equal(mine.V, 0.02 * its.V) and 0.8 < its.V.std() < 1.2
    pairs = {name: Pairs(torch.ones(2, q), torch.ones(2, p)) for name, (p, q) in shapes(model, wide.names).items()}
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(
        wide(pairs).values(), narrow(pairs).values(), strict=True
    ))  # fmt: skip


def test_a_model_in_bfloat16_is_trained_for_and_edited(data: Path, tmp_path: Path) -> None:
    model = editable("llama", dtype=torch.bfloat16)
    found = train_mend(
        model, data / "tiny.jsonl", data / "tiny.jsonl", tmp_path / "e", settings=data / "settings.json", steps=4,
        cache=tmp_path,
    )  # fmt: skip
    assert {p.dtype for p in found.trained.network.parameters()} == {torch.float32}
    ledger = tether.edit(model, FACTS[:1], out=tmp_path / "l", method="mend", editor=tmp_path / "e")
    assert [event.kind for event in ledger.events] in (["edit"], ["failed"])


def test_it_stops_early(data: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({**SETTINGS, "lr": 1e-9, "lr_lr": 0, "c_edit": 0, "patience": 2}))
    found = train_mend(
        editable("gpt2"), data / "tiny.jsonl", data / "tiny.jsonl", tmp_path / "e", settings=tmp_path / "s.json",
        steps=400, cache=tmp_path,
    )  # fmt: skip
    assert found.stopped_early and found.trained.record.curve[-1].step < 400


def test_other_models_and_damaged_files_are_refused(data: Path, tmp_path: Path) -> None:
    model = editable("llama")
    file = tmp_path / "e"
    train_mend(
        model, data / "tiny.jsonl", data / "tiny.jsonl", file, settings=data / "settings.json", steps=2, cache=tmp_path
    )
    trained = open_trained(file, model)
    assert trained.record.train.sha256
    (tmp_path / "s.json").write_text('["loss_threshold"]')
    with pytest.raises(TetherError, match="holds a list: give a JSON object"):
        trained.settings(tmp_path / "s.json")
    (tmp_path / "s.json").write_text('{"loss_threshold": 0.5}')
    assert trained.settings(tmp_path / "s.json").loss_threshold == 0.5
    for other in (editable("llama", seed=1), editable("gpt2")):
        with pytest.raises(TetherError, match="is not the model of") as refused:
            open_trained(file, other)
        assert "\n" not in str(refused.value)
    tensors, content = read_tensors(file)
    write_tensors(tmp_path / "less", {k: v for k, v in tensors.items() if k != "alpha"}, content)
    write_tensors(tmp_path / "odd", tensors, {**content, "colour": "red"})
    (tmp_path / "torn").write_bytes(file.read_bytes()[:1000])
    for name in ("less", "odd", "torn", "none"):
        with pytest.raises(TetherError, match="train"):
            open_trained(tmp_path / name, model)


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    model, data = editable("llama"), tmp_path / "not-even-read.jsonl"
    for out, why in (("nowhere/e", "nowhere is no folder"), (".", "is a folder: name a file")):
        with pytest.raises(TetherError, match=why) as refused:
            train_mend(model, data, data, tmp_path / out)
        assert "\n" not in str(refused.value)


def test_settings_and_training_data(tmp_path: Path) -> None:
    model = editable("llama")
    chosen, _ = settings_for("mend", model)
    assert chosen.layers == (1, 2, 3) and (chosen.rank, chosen.lr, chosen.lr_lr, chosen.edit_lr) == (
        1920,
        1e-6,
        1e-4,
        1e-4,
    )
    (tmp_path / "s.json").write_text('{"validate_every": 15, "accumulate": 10}')
    with pytest.raises(TetherError, match="multiple of accumulate"):
        settings_for("mend", model, given=tmp_path / "s.json")
    with pytest.raises(TetherError, match="train-mend"):
        tether.tune(model, FACTS, method="mend")
    flat = {"prompt": "Big Ben is in", "target_new": "Paris", "subject": "Big Ben", "ground_truth": "London",
            "rephrase_prompt": "Something else. Big Ben", "locality_prompt": "The Space Needle is in",
            "locality_ground_truth": "Seattle"}  # fmt: skip
    zsre = {"src": "Where is Big Ben?", "subject": "Big Ben", "alt": "Paris", "rephrase": "Big Ben is where?",
            "loc": "nq question: who", "loc_ans": "you", "answers": ["London"]}  # fmt: skip
    (tmp_path / "f.jsonl").write_text(f"{json.dumps(flat)}\n{json.dumps(zsre)}\n")
    first, second = examples(model, read_training_facts(tmp_path / "f.jsonl"))
    assert first.again == first.edit and second.again != second.edit

    def text(its: Continuation) -> str:
        return str(model.tokenizer.decode(list(its.ids)))

    assert text(second.again) == "Big Ben is where? Paris" and text(second.loc) == "nq question: who you"
    assert text(first.loc) == "The Space Needle is in Seattle"
    without = examples(model, FACTS[:2])[0].loc
    assert text(without).startswith(FACTS[1].text) and reads(without) == [len(without.ids) - 1]


def test_the_gradient_of_a_loss_is_taken_once_per_weight() -> None:
    model = editable("gpt2")
    ids = torch.tensor([[5, 6, 7, 8]])
    loss, pairs = gradient_pairs(
        model, [model.weight_name(0)], lambda: target_nll(model.hf(input_ids=ids).logits[0, :-1], ids[0, 1:])
    )
    assert loss > 0 and len(pairs[model.weight_name(0)].x) == 3
    assert not any(module._forward_hooks for module in model.hf.modules())


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_command_end_to_end(family: str, data: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    save(*tiny_model(family), tmp_path / "model")
    for name in ("tiny.jsonl", "settings.json"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    found = answer(
        tmp_path, "train-mend", "--model", "model", "--train", "tiny.jsonl", "--val", "tiny.jsonl", "--out", "e.st",
        "--settings", "settings.json",
    )  # fmt: skip
    assert found["best"]["step"] in (0, 4, 8) and 0 < found["work_ratio"] < 1
    edit = ("edit", "tiny.jsonl", "--model", "model", "--method", "mend", "--out", "ledger")
    refused = run(tmp_path, *edit)
    assert refused.returncode == 1 and "train-mend" in refused.stderr and refused.stderr.count("\n") == 1
    done = answer(tmp_path, *edit, "--editor", "e.st", "--limit", "3", "--restrain", "linear:2", "--every", "2")
    assert done["events"]["edit"] >= 2 and done["events"]["restrain"] == 2
    assert len(done["spectrum"]) == (9 if family == "llama" else 6)
    answer(tmp_path, *edit, "--skip", "3", "--limit", "1")  # the recorded editor
    results = answer(tmp_path, "evaluate", "ledger", "--at", "0,4", "--restrain", "none,log:e", "--out", "r.json")
    assert len(results["rows"]) == 3
    answer(tmp_path, "undo", "ledger", "1")
    assert answer(tmp_path, "bound", "ledger", "--at", "3", "--restrain", "none")
    assert answer(tmp_path, "verify", "ledger", "--model", "model")["ok"]
    answer(tmp_path, "export", "ledger", "--to", "merged", "--as", "merged", "--restrain", "none")
    answer(tmp_path, "export", "ledger", "--to", "lora", "--as", "lora", "--restrain", "none")
    ids = load(tmp_path / "model").tokenizer(FACTS[1].text, return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    torch.testing.assert_close(
        PeftModel.from_pretrained(base, str(tmp_path / "lora"))(ids).logits, merged, rtol=1e-3, atol=1e-4
    )

    # Another editor, another method, settings that belong to the network.
    (tmp_path / "more.json").write_text(json.dumps({**SETTINGS, "seed": 1}))
    answer(
        tmp_path, "train-mend", "--model", "model", "--train", "tiny.jsonl", "--val", "tiny.jsonl", "--out", "f.st",
        "--settings", "more.json", "--steps", "2",
    )  # fmt: skip
    for words, why in (
        ((*edit, "--editor", "f.st"), "is not the one this ledger was made with"),
        (("edit", "tiny.jsonl", "--model", "model", "--method", "rome", "--out", "x", "--editor", "e.st"), "needs no"),
        (("edit", "tiny.jsonl", "--model", "model", "--method", "mend", "--out", "x", "--editor", "e.st", "--corpus",
          "tiny.jsonl"), "no moments"),
        (("edit", "tiny.jsonl", "--model", "model", "--method", "mend", "--out", "x", "--editor", "e.st", "--settings",
          "more.json"), "comes with the trained editor"),
        (("edit", "tiny.jsonl", "--model", "model", "--method", "mend", "--out", "x", "--editor", "e.st", "--layers",
          "1"), "was trained for"),
    ):  # fmt: skip
        done = run(tmp_path, *words)
        assert done.returncode == 1 and why in done.stderr and done.stderr.count("\n") == 1, done.stderr
    (tmp_path / "e.st").rename(tmp_path / "moved.st")
    assert "gone" in run(tmp_path, *edit).stderr
    assert run(tmp_path, *edit, "--editor", "moved.st", "--skip", "4", "--limit", "1").returncode == 0


def test_a_tokenizer_that_ends_every_text_does_not_move_what_is_read() -> None:
    """The loss on unrelated text reads the last token of the text, not an end of text after it."""
    model = editable("gpt2")
    facts = [fact.model_copy(update={"locality": (LocalityPrompt(prompt="I think that"),)}) for fact in FACTS[:2]]
    expected = examples(model, facts)
    end = model.tokenizer.eos_token
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, model.tokenizer.eos_token_id)]
    )
    assert examples(model, facts) == expected
    assert all(example.loc.ids[-1] != model.tokenizer.eos_token_id for example in expected)


def test_every_epoch_is_shuffled_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    shuffled = mend_train._shuffled
    monkeypatch.setattr(
        mend_train, "_shuffled", lambda n, seed, epoch: epochs.append(epoch) or shuffled(n, seed, epoch)
    )
    found = train_mend(
        editable("gpt2"), data / "tiny.jsonl", data / "tiny.jsonl", tmp_path / "e", settings=data / "settings.json",
        cache=tmp_path,
    )  # fmt: skip
    assert len(FACTS) == 6 and found.trained.record.settings.steps == 8
    assert epochs == [0, 1]
