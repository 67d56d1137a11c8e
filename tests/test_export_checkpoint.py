"""PRUNE on two folders of safetensors, against the dense SVD; and the numerics beneath it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from core import editable, random_update
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import save
from torch import Tensor

from tether.algebra.large_singular_values import above, largest
from tether.constraints.base import Data, Weight, constrained, parse
from tether.constraints.prune import linear, log
from tether.errors import TetherError
from tether.export import restrain_checkpoint
from tether.models import load


def matrix(p: int, q: int, s: Tensor, seed: int = 0) -> Tensor:
    """A float32 p×q matrix with singular values `s` (then zeros)."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(p, len(s), generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(q, len(s), generator=generator, dtype=torch.float64))[0]
    return ((u * s) @ v.mT).float()


def check_triplets(D: Tensor, floor: float) -> int:
    U, S, Vh = torch.linalg.svd(D.double(), full_matrices=False)
    k = int((floor < S).sum())
    u, s, vh, top = above(D, floor)
    assert largest(D) == pytest.approx(float(S[0]), rel=1e-5) and top == pytest.approx(float(S[0]), rel=1e-5)
    assert len(s) == k
    torch.testing.assert_close(s, S[:k], rtol=1e-6, atol=0)
    assert float(((u * s) @ vh - (U[:, :k] * S[:k]) @ Vh[:k]).norm()) <= 1e-5 * float(S.norm())
    return k


@pytest.mark.parametrize("shape", [(330, 250), (250, 330), (2500, 120), (40, 500), (1, 300)])
@pytest.mark.parametrize("decay", [0.3, 0.9, 0.99])
def test_triplets_above_a_floor_equal_the_dense_svd(shape: tuple[int, int], decay: float) -> None:
    check_triplets(matrix(*shape, 200 * decay ** torch.arange(float(min(shape)), dtype=torch.float64)), 20.3)


def test_triplets_of_hard_spectra() -> None:
    ones = torch.ones(250, dtype=torch.float64)
    twenty = torch.cat([50 * ones[:20], ones[20:]])  # more copies than a block holds
    assert check_triplets(matrix(330, 250, twenty), 5.0) == 20
    assert check_triplets(3 * torch.eye(300, 200), 1.0) == 200
    assert check_triplets(torch.diag(torch.arange(260.0)), 130.5) == 129
    assert check_triplets(torch.outer(torch.ones(300), torch.ones(200)), 1.0) == 1
    noise = torch.randn(330, 250, generator=torch.Generator().manual_seed(1))
    assert check_triplets(noise, 40.0) == 0  # ‖·‖_F = 287: only the factorisation can tell
    assert check_triplets(noise, 30.0) > 10
    assert largest(torch.zeros(5, 3)) == 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 140), st.integers(1, 140), st.integers(1, 12), st.floats(0.05, 0.95), st.integers(0, 99))
def test_triplets_of_any_sum_of_edits(p: int, q: int, rank: int, at: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    D = torch.randn(p, rank, generator=generator) @ torch.randn(rank, q, generator=generator)
    S = torch.linalg.svdvals(D.double())
    floor = at * float(S[0])
    if float((S / floor - 1).abs().min()) > 1e-4:
        check_triplets(D, floor)


# --- folders ----------------------------------------------------------------------------------------------------------


def write(folder: Path, *shards: dict[str, Tensor], config: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True)
    for i, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt", "note": "kept"})
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"} | (config or {})))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def read(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def base_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    s = 10 * 0.97 ** torch.arange(110, dtype=torch.float64)
    return {
        "a.weight": matrix(160, 110, s, 1).to(dtype),
        "b.weight": matrix(110, 160, s, 2).to(dtype),
        "embed.weight": matrix(900, 110, s, 3).to(dtype),
        "norm.weight": torch.ones(110, dtype=dtype),
        "same.weight": matrix(110, 110, s, 4).to(dtype),
    }


def edit(weights: dict[str, Tensor], spectra: dict[str, list[float]]) -> dict[str, Tensor]:
    edited = dict(weights)
    for seed, (name, s) in enumerate(spectra.items(), 10):
        W = weights[name]
        D = matrix(*W.shape, torch.tensor(s, dtype=torch.float64), seed)
        edited[name] = (W.float() + D).to(W.dtype)
    return edited


def expected(A: Tensor, B: Tensor, restraint: object) -> tuple[Tensor, Tensor, float]:
    """W̄, σ̂ and m in float64, from dense decompositions."""
    m = float(torch.linalg.svdvals(A.double())[0])
    u, s, vh = torch.linalg.svd(B.double() - A.double(), full_matrices=False)
    new = restraint(s, m)  # type: ignore[operator]
    return A.double() + (u * new) @ vh, s, m


SPECTRA = {"a.weight": [400.0, 39.0, 10.5, 9.0, 0.5], "embed.weight": [25.0, 24.0], "b.weight": [9.5, 9.0, 8.0]}


@pytest.mark.parametrize("text, restraint", [("log:1.2", log(1.2)), ("linear:2", linear(2))])
def test_restrained_checkpoint_equals_the_dense_formula(tmp_path: Path, text: str, restraint: object) -> None:
    A = base_weights()
    B = edit(A, SPECTRA)
    write(tmp_path / "A", A)
    write(tmp_path / "B", B)
    before = tree(tmp_path / "A"), tree(tmp_path / "B")
    report = restrain_checkpoint(tmp_path / "A", tmp_path / "B", tmp_path / "C", restrain=text)
    out = read(tmp_path / "C")
    assert {x.name: x.above for x in report.matrices} == {"a.weight": 3, "b.weight": 0, "embed.weight": 2}
    assert report.restrained == ("a.weight", "embed.weight") and report.equal == 2 and not report.copied
    for row in report.matrices:
        W, s, m = expected(A[row.name], B[row.name], restraint)
        assert row.sigma_max == pytest.approx(m, rel=1e-5)
        assert row.update_norm == pytest.approx(float(s.norm()), rel=1e-5)
        assert row.update_sigma_max == pytest.approx(float(s[0]), rel=1e-5)
        assert row.update_sigma_max_after == pytest.approx(float(restraint(s, m)[0]), rel=1e-5)  # type: ignore[operator]
        assert float((out[row.name].double() - W).norm() / W.norm()) < 1e-6
        once_more = torch.linalg.svdvals(out[row.name].double() - A[row.name].double())
        assert float(once_more[0]) == pytest.approx(float(restraint(s, m).max()), rel=1e-5)  # type: ignore[operator]
    for name in ("b.weight", "norm.weight", "same.weight"):
        assert torch.equal(out[name], B[name])
    assert (tree(tmp_path / "A"), tree(tmp_path / "B")) == before
    assert "| a.weight | 160×110 | 10 |" in (tmp_path / "C/README.md").read_text().replace("\\", "")
    manifest = json.loads((tmp_path / "C/manifest.json").read_text())
    assert manifest["restraint"] == text and manifest["base"]["model"] == "A" and len(manifest["matrices"]) == 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_restraint_that_tells_rows_from_columns_sees_the_weight_as_a_ledger_does(tmp_path: Path, family: str) -> None:
    model, restraint = editable(family), parse("sphere:0.5,0.5")
    save(model.hf, model.tokenizer, tmp_path / "A")
    name = model.weight_name(1)
    W, update = model.original(name), random_update(*model.weight(name).shape, 3, seed=5)
    state = restraint.init(Weight(tuple(W.shape), 1.0, lambda: W), Data())
    wanted = W + constrained(update, restraint, state).to_dense()
    model.set_update(name, update.to_dense())
    save(model.hf, model.tokenizer, tmp_path / "B")
    restrain_checkpoint(tmp_path / "A", tmp_path / "B", tmp_path / "C", restrain=restraint)
    torch.testing.assert_close(load(tmp_path / "C").weight(name), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    A = base_weights(dtype)
    B = edit(A, SPECTRA)
    write(tmp_path / "A", A)
    write(tmp_path / "B", B)
    report = restrain_checkpoint(tmp_path / "A", tmp_path / "B", tmp_path / "C")
    out = read(tmp_path / "C")
    assert report.restrained == ("a.weight", "embed.weight")
    for name in report.restrained:
        W = expected(A[name], B[name], log(1.2))[0]
        assert out[name].dtype == dtype
        torch.testing.assert_close(out[name].double(), W, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)
    assert torch.equal(out["b.weight"], B["b.weight"])


def test_any_sharding_on_each_side_and_every_other_file(tmp_path: Path) -> None:
    A = base_weights()
    B = edit(A, SPECTRA)
    write(
        tmp_path / "A",
        {k: A[k] for k in ("a.weight", "norm.weight")},
        {k: A[k] for k in ("b.weight", "embed.weight", "same.weight")},
    )
    write(
        tmp_path / "B",
        {k: B[k] for k in ("embed.weight",)},
        {k: B[k] for k in ("same.weight", "a.weight")},
        {k: B[k] for k in ("b.weight", "norm.weight")},
    )
    (tmp_path / "B/sub").mkdir()
    (tmp_path / "B/sub/tokenizer.json").write_text("{}")
    (tmp_path / "B/README.md").write_text("theirs")
    (tmp_path / "B/.git").mkdir()
    restrain_checkpoint(tmp_path / "A", tmp_path / "B", tmp_path / "C")
    theirs, ours = tree(tmp_path / "B"), tree(tmp_path / "C")
    assert ours.pop("README.edited.md") == theirs.pop("README.md") == b"theirs"
    assert {k for k in ours if ours[k] != theirs.get(k)} == {
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "README.md", "manifest.json",
    }  # fmt: skip
    write(tmp_path / "A1", A)
    write(tmp_path / "B1", B)
    restrain_checkpoint(tmp_path / "A1", tmp_path / "B1", tmp_path / "C1")
    one, many = read(tmp_path / "C1"), read(tmp_path / "C")
    assert one.keys() == many.keys() and all(torch.equal(one[k], many[k]) for k in one)


def test_where_nothing_exceeds_m_every_byte_is_the_edited_checkpoints(tmp_path: Path) -> None:
    A = base_weights(torch.bfloat16)
    B = edit(A, {"a.weight": [9.0] * 4, "b.weight": [3.0], "embed.weight": [9.5] * 8})
    write(tmp_path / "A", A)
    write(tmp_path / "B", {k: B[k] for k in list(B)[:2]}, {k: B[k] for k in list(B)[2:]})
    report = restrain_checkpoint(tmp_path / "A", tmp_path / "B", tmp_path / "C")
    ours = tree(tmp_path / "C")
    assert {"README.md", "manifest.json"} == ours.keys() - tree(tmp_path / "B").keys()
    assert {k: v for k, v in ours.items() if k not in ("README.md", "manifest.json")} == tree(tmp_path / "B")
    rows = {x.name: x for x in report.matrices}
    assert not report.restrained
    assert rows["b.weight"].update_sigma_max is None  # its Frobenius norm settles it
    assert rows["a.weight"].update_sigma_max == pytest.approx(9.0, rel=2e-2)


def test_what_is_no_changed_matrix_is_copied_and_listed(tmp_path: Path) -> None:
    A = base_weights() | {"gone": torch.ones(2, 2), "zero": torch.zeros(4, 4), "cast": torch.ones(4, 4)}
    B = edit(base_weights(), {"a.weight": [40.0]}) | {
        "norm.weight": torch.full((110,), 2.0),
        "b.weight": torch.ones(111, 160),
        "new": torch.ones(3, 3),
        "zero": torch.ones(4, 4),
        "cast": torch.ones(4, 4, dtype=torch.bfloat16),
        "same.weight": base_weights()["same.weight"],
    }
    write(tmp_path / "A", A)
    write(tmp_path / "B", B)
    report = restrain_checkpoint(tmp_path / "A", tmp_path / "B", tmp_path / "C")
    assert report.restrained == ("a.weight",)
    assert set(report.copied) == {"norm.weight", "b.weight", "new", "zero"}
    assert "1 dimensions" in report.copied["norm.weight"] and "[110, 160]" in report.copied["b.weight"]
    assert report.only_in_base == ("gone",)
    out = read(tmp_path / "C")
    assert all(torch.equal(out[name], B[name]) for name in B if name != "a.weight")
    assert json.dumps(report.to_dict())


def test_a_bare_transformers_base_matches_the_prefixed_names(tmp_path: Path) -> None:
    A = base_weights()
    B = edit(A, SPECTRA)
    write(tmp_path / "A", A)
    write(tmp_path / "B", {f"transformer.{k}": v for k, v in B.items()} | {"lm_head.weight": torch.ones(4, 4)})
    report = restrain_checkpoint(tmp_path / "A", tmp_path / "B", tmp_path / "C")
    assert report.restrained == ("transformer.a.weight", "transformer.embed.weight")
    report = restrain_checkpoint(tmp_path / "B", tmp_path / "A", tmp_path / "D")
    assert [x.name for x in report.matrices] == ["a.weight", "b.weight", "embed.weight"] and report.equal == 2


def test_a_small_m_is_warned_of_and_the_cap_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    W = matrix(120, 100, torch.ones(100, dtype=torch.float64))
    B = write(tmp_path / "B", edit({"w": W}, {"w": [1.2]}))
    (B / "pytorch_model.bin").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "tether"):
        report = restrain_checkpoint(write(tmp_path / "A", {"w": W}), B, tmp_path / "C")
    assert "1/ln α = 5.48" in caplog.text and report.matrices[0].above == 1 and not report.restrained
    assert (tmp_path / "C/model.safetensors").read_bytes() == (B / "model.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING, "tether"):
        restrain_checkpoint(tmp_path / "A", B, tmp_path / "D", restrain="linear:2")
    assert "pytorch_model.bin is copied as it is" in caplog.text


def test_wrong_inputs_are_refused_in_one_line_and_leave_nothing(tmp_path: Path) -> None:
    W = {"w": matrix(20, 10, torch.ones(10, dtype=torch.float64))}
    good, base = write(tmp_path / "good", edit(W, {"w": [5.0]})), write(tmp_path / "base", W)
    other = write(tmp_path / "other", {"v": torch.ones(3, 3)})
    nan = write(tmp_path / "nan", {"w": W["w"] * torch.nan})
    ints = write(tmp_path / "ints", {"w": torch.ones(20, 10, dtype=torch.int8)})
    fp8 = write(tmp_path / "fp8", {"w": torch.ones(20, 10).to(torch.float8_e4m3fn)})
    quantised = write(tmp_path / "quantised", W, config={"quantization_config": {"bits": 4}})
    alien = write(tmp_path / "alien", W, config={"model_type": "alien"})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    short = write(tmp_path / "short", W)
    data = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(data[:-4])
    twice = write(tmp_path / "twice", W)
    (twice / "copy.safetensors").write_bytes(data)
    out = tmp_path / "out"
    cases: list[tuple[Path, Path, Path, str]] = [
        (base, tmp_path / "nowhere", out, "no folder"),
        (base, tmp_path / "bin", out, "only pytorch_model.bin"),
        (tmp_path / "empty", good, out, "has none"),
        (base, other, out, "share no matrix"),
        (base, nan, out, "not finite"),
        (base, ints, out, "quantised"),
        (base, fp8, out, "quantised"),
        (quantised, good, out, "is quantised"),
        (base, alien, out, "of type alien"),
        (base, tmp_path / "broken", out, "no safetensors file"),
        (base, short, out, "ends early"),
        (base, twice, out, "is in copy.safetensors and in"),
        (base, good, other, "not an empty folder"),
        (base, good, good / "out", "lies in"),
    ]
    before = tree(tmp_path)
    for a, b, to, message in cases:
        with pytest.raises(TetherError, match=message) as error:
            restrain_checkpoint(a, b, to)
        assert "\n" not in str(error.value)
    with pytest.raises(TetherError, match="no restraint"):
        restrain_checkpoint(base, good, out, restrain="log")
    assert tree(tmp_path) == before and not out.exists()


def test_a_link_out_of_the_edited_checkpoint_is_refused(tmp_path: Path) -> None:
    """What it leads to would be copied, and perhaps given away with the checkpoint."""
    W = {"w": matrix(20, 10, torch.ones(10, dtype=torch.float64))}
    base, edited = write(tmp_path / "base", W), write(tmp_path / "edited", edit(W, {"w": [5.0]}))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("private")
    (edited / "sub").mkdir()
    link = edited / "sub/notes.txt"
    for target in (tmp_path / "secret/key", tmp_path / "secret", tmp_path / "gone", edited, Path("../../secret/key")):
        link.symlink_to(target)
        with pytest.raises(TetherError, match=r"notes\.txt leads to .* only what lies inside is copied") as error:
            restrain_checkpoint(base, edited, tmp_path / "out")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
        link.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(link)
        with pytest.raises(TetherError, match=r"notes\.txt"):
            restrain_checkpoint(base, edited, tmp_path / "out")
        link.unlink()
    link.symlink_to(edited / "config.json")
    restrain_checkpoint(base, edited, tmp_path / "out")
    copied = tmp_path / "out/sub/notes.txt"
    assert not copied.is_symlink() and copied.read_bytes() == (edited / "config.json").read_bytes()


def test_a_snapshot_of_the_hubs_cache_is_links_into_its_blobs(tmp_path: Path) -> None:
    W = {"w": matrix(20, 10, torch.ones(10, dtype=torch.float64))}
    base, plain = write(tmp_path / "base", W), write(tmp_path / "plain", edit(W, {"w": [5.0]}))
    blobs, snapshot = tmp_path / "models--me--it/blobs", tmp_path / "models--me--it/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(plain.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert restrain_checkpoint(base, snapshot, tmp_path / "out", "linear:2").restrained == ("w",)
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to measure peak memory")
def test_memory_is_bounded_by_a_matrix_and_not_by_the_checkpoint(tmp_path: Path) -> None:
    def status(key: str) -> float:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) / 1024

    W = matrix(1024, 512, 10 * 0.9 ** torch.arange(200, dtype=torch.float64))  # 2 MB
    write(tmp_path / "A", {f"w{i}": W.clone() for i in range(48)})
    edited = edit({"w": W}, {"w": [50.0, 20.0]})["w"]
    write(tmp_path / "B", {f"w{i}": edited.clone() for i in range(48)})
    restrain_checkpoint(write(tmp_path / "a", {"w": W}), write(tmp_path / "b", {"w": edited}), tmp_path / "c")
    Path("/proc/self/clear_refs").write_text("5")
    start = status("VmRSS")
    report = restrain_checkpoint(tmp_path / "A", tmp_path / "B", tmp_path / "C")
    assert len(report.restrained) == 48
    assert status("VmHWM") - start < 48  # two checkpoints of 96 MB each


def test_a_head_that_only_the_edited_checkpoint_stores_is_compared_with_the_embeddings(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 40}
    embeddings, other = torch.randn(40, 16), torch.randn(16, 16)
    far = embeddings + matrix(40, 16, torch.tensor([50.0, 30.0], dtype=torch.float64))
    tied = {"model.embed_tokens.weight": embeddings, "model.layers.0.weight": other}
    base = write(tmp_path / "base", tied, config=config)
    edited = write(tmp_path / "edited", {**tied, "lm_head.weight": far}, config=config)
    report = restrain_checkpoint(base, edited, tmp_path / "out")
    assert report.restrained == ("lm_head.weight",) and report.copied == {} and report.only_in_base == ()
    assert report.matrices[0].above == 2 and report.equal == 2
    same = write(tmp_path / "same", {**tied, "lm_head.weight": embeddings.clone()}, config=config)
    report = restrain_checkpoint(base, same, tmp_path / "again")
    assert report.matrices == () and report.equal == 3


@pytest.mark.parametrize("wide", ["base", "edited"])
def test_rounding_to_another_dtype_is_no_change(tmp_path: Path, wide: str) -> None:
    first, second = torch.randn(30, 20), torch.randn(30, 20)
    second = second.bfloat16().float() if wide == "edited" else second
    first = first.bfloat16().float() if wide == "edited" else first
    changed = second + matrix(30, 20, torch.tensor([80.0], dtype=torch.float64))
    plain, whole = {"a": first, "b": second}, {"a": first, "b": changed}
    half = {name: tensor.bfloat16() for name, tensor in (whole if wide == "base" else plain).items()}
    base = write(tmp_path / "base", plain if wide == "base" else half)
    edited = write(tmp_path / "edited", half if wide == "base" else whole)
    report = restrain_checkpoint(base, edited, tmp_path / "out")
    assert report.rounded == 1
    assert [one.name for one in report.matrices] == ["b"] and report.restrained == ("b",)
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 2


def test_rounding_is_told_apart_in_vectors_and_where_the_result_is_stored_wide_again(tmp_path: Path) -> None:
    W, bias = torch.randn(30, 20), torch.randn(20)
    near = W + 1e-4 * torch.randn(30, 20)  # the same in bfloat16, nearly everywhere, and a change
    base = write(tmp_path / "base", {"W": W, "near": W.clone(), "bias": bias, "changed": bias.clone()})
    edited = {"W": W.bfloat16().float(), "near": near, "bias": bias.bfloat16(), "changed": bias + 1}
    report = restrain_checkpoint(base, write(tmp_path / "edited", edited), tmp_path / "out")
    assert (report.rounded, report.equal) == (2, 0)
    assert [one.name for one in report.matrices] == ["near"] and list(report.copied) == ["changed"]


def test_a_stored_head_is_found_beside_other_tables_of_the_vocabulary(tmp_path: Path) -> None:
    config = {"model_type": "gemma4", "text_config": {"vocab_size": 40}}
    tied = {"embed_tokens.weight": torch.randn(40, 16), "embed_tokens_per_layer.weight": torch.randn(40, 24)}
    far = tied["embed_tokens.weight"] + matrix(40, 16, torch.tensor([50.0], dtype=torch.float64))
    base = write(tmp_path / "base", tied, config=config)
    edited = write(tmp_path / "edited", {**tied, "lm_head.weight": far}, config=config)
    assert restrain_checkpoint(base, edited, tmp_path / "out").restrained == ("lm_head.weight",)
