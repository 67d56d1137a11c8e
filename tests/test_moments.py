"""Second moments against a naive pass, in one pass for many layers, cached and resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from core import FACTS, SETTINGS, bits, editable, plain_text, random_update, same_bits
from torch import Tensor

import tether
from tether.editing.prepare import recorded_moments
from tether.editors import corpus as corpora
from tether.editors import moments as moments_module
from tether.editors.corpus import Corpus
from tether.editors.moments import Moments, moments, moments_keys
from tether.errors import TetherError
from tether.models import EditableModel

WINDOW = 32


def corpus(**more: Any) -> Corpus:
    return Corpus.parse(plain_text(), **{"window": WINDOW, "max_tokens": 1024, **more})


def moments_key(model: EditableModel, layer: int, text: Corpus) -> str:
    return moments_keys(model, [layer], text)[layer]


def naive(model: EditableModel, layer: int, windows: list[list[int]]) -> Tensor:
    """E[k kᵀ] in float64, of full plain forwards."""
    keys: list[Tensor] = []
    handle = model.projection(layer).register_forward_hook(
        lambda _, args, __: keys.append(args[0].reshape(-1, args[0].shape[-1]).double())
    )
    for window in windows:
        model.hf(input_ids=torch.tensor([window]))
    handle.remove()
    stacked = torch.cat(keys)
    return stacked.mT @ stacked / len(stacked)


def collect(model: EditableModel, layers: list[int], cache: Path, **more: Any) -> dict[int, Moments]:
    return moments(model, layers, corpus(), cache=cache, batch_tokens=4 * WINDOW, **more)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "opt"])
def test_equal_to_a_naive_pass(family: str, tmp_path: Path) -> None:
    model = editable(family)
    before = bits(model)
    found = collect(model, [0, 2], tmp_path)
    ids = model.tokenizer(plain_text().read_text(), add_special_tokens=False).input_ids
    windows = [ids[i : i + WINDOW] for i in range(0, 1024, WINDOW)]
    assert list(corpus().windows(model)) == windows
    for layer, one in found.items():
        expected = naive(model, layer, windows)
        assert one.tokens == 1024 and one.C.dtype == torch.float64
        torch.testing.assert_close(one.C, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
        assert torch.equal(one.C, one.C.mT)
    k = torch.randn(len(found[2].C), generator=torch.Generator().manual_seed(0))
    for ridge in (0.0, 0.3, 0.0):
        regular = found[2].C + ridge * found[2].C.diagonal().mean() * torch.eye(len(k))
        plain = torch.linalg.solve(regular, k.double())
        torch.testing.assert_close(found[2].solve(k, ridge=ridge), plain, rtol=1e-6, atol=1e-6)
    assert same_bits(model, before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.hf.modules())


def test_several_layers_in_one_pass_equal_single_ones(tmp_path: Path) -> None:
    model = editable("gpt2")
    together = collect(model, [3, 0, 2, 0], tmp_path / "together")
    assert sorted(together) == [0, 2, 3]
    for layer, one in together.items():
        alone = collect(model, [layer], tmp_path / "alone")[layer]
        assert torch.equal(alone.C, one.C)
        assert alone == Moments(alone.C, one.tokens, one.convergence)


def test_convergence_is_measured_as_the_text_doubles(tmp_path: Path) -> None:
    model = editable("llama")
    one = moments(model, [1], corpus(max_tokens=None), cache=tmp_path, batch_tokens=WINDOW)[1]
    tokens, cosines = zip(*one.convergence, strict=True)
    assert tokens[0] == 2 * 4 * 80 and tokens[1] == 2 * tokens[0] and tokens[-1] == one.tokens
    assert all(0 < cosine <= 1 + 1e-9 for cosine in cosines)


class Stopped(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("after", [1, 5, 7])
def test_an_interrupted_pass_ends_with_the_same_bits(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "_CHECKPOINT_EVERY", 2)
    model = editable("gpt2")
    whole = collect(model, [0, 2], tmp_path / "whole")
    seen: list[int] = []

    def stop(tokens: int, total: int | None) -> None:
        assert total == 1024
        seen.append(tokens)
        if len(seen) == after:
            raise Stopped

    with pytest.raises(Stopped):
        collect(model, [0, 2], tmp_path / "broken", progress=stop)
    assert not list((tmp_path / "broken/moments").glob("*.safetensors"))
    seen.clear()
    resumed = collect(model, [0, 2], tmp_path / "broken", progress=lambda tokens, _: seen.append(tokens))
    assert seen[0] == 4 * WINDOW * (after // 2 * 2 + 1), "it goes on at its last checkpoint"
    for layer, one in whole.items():
        assert torch.equal(resumed[layer].C, one.C)
        assert (resumed[layer].tokens, resumed[layer].convergence) == (one.tokens, one.convergence)
    assert not [f.name for f in (tmp_path / "broken/moments").iterdir() if f.suffix in (".partial", ".tmp")]


@pytest.mark.parametrize("writes", ["a checkpoint", "the result"])
def test_what_a_kill_leaves_of_a_file_does_not_stay(
    writes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "_CHECKPOINT_EVERY", 2 if writes == "a checkpoint" else 100)
    model = editable("gpt2")

    def kill(_: int) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        with pytest.raises(Stopped):
            collect(model, [0, 2], tmp_path)
    assert [f for f in (tmp_path / "moments").iterdir() if f.suffix == ".tmp"]
    monkeypatch.setattr(os, "getpid", lambda: -1)  # another process goes on
    collect(model, [0, 2], tmp_path)
    left = {f.suffix for f in (tmp_path / "moments").iterdir()}
    assert left == {".safetensors", ".lock"}


def test_the_cache_needs_no_forward(tmp_path: Path) -> None:
    model = editable("gpt2")
    first = collect(model, [1, 2], tmp_path)

    def fail(*_: Any) -> None:
        raise AssertionError("a forward ran")

    handle = model.base.register_forward_pre_hook(fail)
    again = collect(model, [2], tmp_path)
    assert torch.equal(again[2].C, first[2].C)
    with pytest.raises(AssertionError, match="a forward ran"):
        collect(model, [3], tmp_path)
    handle.remove()


def test_edits_do_not_matter(tmp_path: Path) -> None:
    """C is of the unedited model, and the edits are still there afterwards."""
    model = editable("gpt2")
    expected = collect(model, [2], tmp_path / "a")[2].C
    name = model.weight_name(0)
    model.set_update(name, random_update(32, 80, 2, seed=0, scale=5.0).to_dense())
    edited = bits(model)
    assert moments_key(model, 2, corpus()) == moments_key(editable("gpt2"), 2, corpus())
    assert torch.equal(collect(model, [2], tmp_path / "b")[2].C, expected)
    assert same_bits(model, edited) and model.edited == (name,)


def test_text_sampled_from_the_model_itself(tmp_path: Path) -> None:
    model = editable("gpt2")
    own = Corpus.parse("self", window=WINDOW, max_tokens=256, seed=3)
    random_state = torch.random.get_rng_state()
    found = moments(model, [1], own, cache=tmp_path / "a")[1]
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert found.tokens == 256
    model.set_update(model.weight_name(1), random_update(32, 80, 2, seed=0, scale=5.0).to_dense())
    assert torch.equal(moments(model, [1], own, cache=tmp_path / "b")[1].C, found.C), "sampled from the unedited model"
    other = Corpus.parse("self", window=WINDOW, max_tokens=256, seed=4)
    assert not torch.equal(moments(model, [1], other, cache=tmp_path / "a")[1].C, found.C)
    assert moments_key(model, 1, own) != moments_key(model, 1, other)


def test_the_key_knows_all_that_matters(tmp_path: Path) -> None:
    model = editable("gpt2")
    text = tmp_path / "text.txt"
    text.write_text("one two three")
    keys = {
        moments_key(model, 1, Corpus.parse(text)),
        moments_key(model, 2, Corpus.parse(text)),
        moments_key(model, 1, Corpus.parse(text, window=8)),
        moments_key(model, 1, Corpus.parse(text, max_tokens=8)),
        moments_key(editable("gpt2", seed=1), 1, Corpus.parse(text)),
        moments_key(editable("gpt2", dtype=torch.bfloat16), 1, Corpus.parse(text)),
    }
    text.write_text("one two four")
    keys.add(moments_key(model, 1, Corpus.parse(text)))
    assert len(keys) == 7


def test_texts_that_do_not_do(tmp_path: Path) -> None:
    model = editable("gpt2")
    with pytest.raises(TetherError, match="is no file"):
        Corpus.parse(tmp_path / "none.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(TetherError, match="has no tokens"):
        moments(model, [1], Corpus.parse(empty), cache=tmp_path)
    with pytest.raises(TetherError, match=r"100 tokens of corpus 'plain_text\.txt' are .* at least 256"):
        moments(model, [1], Corpus.parse(plain_text(), max_tokens=100), cache=tmp_path)
    short = tmp_path / "short.txt"
    short.write_text("The Eiffel Tower is in Paris.")
    found = moments(model, [1], Corpus.parse(short), cache=tmp_path)[1]
    assert found.tokens == len(model.tokenizer(short.read_text()).input_ids), "a single short window counts"
    with pytest.raises(TetherError, match="singular"):
        found.solve(torch.ones(80))


# --- text of the model's own ----------------------------------------------------------------------------------------


def seeds_of_batches(monkeypatch: pytest.MonkeyPatch, seed: int) -> list[int]:
    """The seeds of the first batches of text that a corpus samples."""
    seen: list[int] = []

    def sampled(_: Any, starts: Any, length: int, *, seed: int) -> list[str]:
        seen.append(seed)
        return ["word " * length] * len(starts)

    monkeypatch.setattr(corpora, "sample", sampled)
    texts = Corpus.parse("self", seed=seed)._texts(editable("gpt2"))
    for _ in range(6):
        next(texts)
    return seen


def test_the_texts_of_two_seeds_share_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path))
    drawn = [seeds_of_batches(monkeypatch, seed) for seed in range(4)]
    assert len({one for seeds in drawn for one in seeds}) == 4 * 6


def test_text_is_sampled_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For other layers, and for more tokens as far as it goes; the text is the one that sampling gives."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    caplog.set_level("INFO", "tether.editors.corpus")
    model, small = editable("llama"), Corpus.parse("self:300", window=64)
    sampled = list(small.windows(model))
    first = moments(model, [0], small)
    assert len(caplog.records) == 1 and "batch 1 of about 1 (5 texts each)" in caplog.text
    moments(model, [1], small)
    assert list(small.windows(model)) == sampled and len(caplog.records) == 1
    for file in (tmp_path / "cache/texts").iterdir():
        file.unlink()
    assert list(small.windows(model)) == sampled and len(caplog.records) == 2
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "another"))
    assert torch.equal(moments(model, [0], small)[0].C, first[0].C)
    list(Corpus.parse("self:300", window=64, seed=1).windows(model))
    assert len(caplog.records) == 4


def test_how_much_text_is_sampled() -> None:
    assert Corpus.parse(None) == Corpus.parse("self") == Corpus(None)
    assert [Corpus.parse("self").sized(width).max_tokens for width in (64, 1536)] == [2048, 9216]
    assert (
        Corpus.parse("self:1024").sized(1536).max_tokens == 1024 and Corpus(plain_text()).sized(64).max_tokens is None
    )
    model = editable("llama")
    assert moments_key(model, 1, Corpus.parse("self")) == moments_key(model, 1, Corpus.parse("self:2048"))
    assert Corpus.parse("self:1024", seed=2) == Corpus(None, 1024, seed=2)
    with pytest.raises(TetherError, match="self:many"):
        Corpus.parse("self:many")


def test_cached_moments_are_never_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of another text in the cache, whichever is newer, do not serve an edit that names no corpus."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    model = editable("llama")
    settings = {**SETTINGS, "v_num_grad_steps": 2, "prefixes": []}
    text = plain_text()
    small = tether.edit(model, FACTS[:1], out=tmp_path / "a", method="rome", settings=settings, corpus="self:1024")
    model.clear_updates()
    tether.edit(model, FACTS[:1], out=tmp_path / "b", method="rome", settings=settings, corpus=text)
    model.clear_updates()
    plain = tether.edit(model, FACTS[:1], out=tmp_path / "c", method="rome", settings=settings)
    assert [header.corpus["max_tokens"] for header in (small.header, plain.header)] == [1024, 2048]
    assert plain.header.corpus["corpus"] == "self" and plain.header.moments[1].tokens == 2048
    assert plain.header.moments[1].key != small.header.moments[1].key


def test_a_device_without_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of float32 on the device give the same moments to float32, and the same bits after a stop."""
    model = editable("llama")
    exact = collect(model, [1], tmp_path / "exact")[1]
    monkeypatch.setattr(moments_module, "has_float64", lambda device: False)
    monkeypatch.setattr(moments_module, "_BLOCK", 2)
    monkeypatch.setattr(moments_module, "_CHECKPOINT_EVERY", 2)
    whole = collect(model, [1], tmp_path / "blocks")[1]
    assert whole.C.dtype == torch.float64 and not torch.equal(whole.C, exact.C)
    torch.testing.assert_close(whole.C, exact.C, rtol=1e-5, atol=1e-6)
    seen: list[int] = []

    def stop(tokens: int, total: int | None) -> None:
        seen.append(tokens)
        if len(seen) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        collect(model, [1], tmp_path / "broken", progress=stop)
    assert torch.equal(collect(model, [1], tmp_path / "broken")[1].C, whole.C)


def test_old_sampled_moments_that_are_gone_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A ledger of an earlier version goes on, and says that its text cannot be sampled again."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    settings = {**SETTINGS, "v_num_grad_steps": 2, "prefixes": []}
    ledger = tether.edit(
        editable("llama"), FACTS[:1], out=tmp_path / "l", method="rome", settings=settings, corpus="self:1024"
    )
    old = {**ledger.header.corpus, "sha256": "seed 0"}
    moments_of = {layer: one.model_copy(update={"key": "0" * 32}) for layer, one in ledger.header.moments.items()}
    with caplog.at_level("WARNING"):
        recorded_moments(editable("llama"), ledger.header.model_copy(update={"corpus": old, "moments": moments_of}))
    assert "samples other text" in caplog.text
