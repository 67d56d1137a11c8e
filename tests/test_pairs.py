"""Any two checkpoints: measured beside each other, compared, their difference as an adapter; tables for a paper."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from command import answer, run
from core import editable
from tiny import save

from tether.algebra.lowrank import LowRank
from tether.errors import TetherError
from tether.evaluation import compare_files, read
from tether.evaluation.results import Ability, Recent, Row
from tether.evaluation.sheet import Sheet
from tether.evaluation.statistics.mean import Number
from tether.export import export_difference
from tether.models import EditableModel, load
from tether.models.load import with_adapter

QUICK = ("--paraphrases", "1", "--locality", "1", "--abilities", "perplexity", "--quick")


def random_update(model: EditableModel, name: str, rank: int, size: float = 0.2) -> LowRank:
    p, q = model.weight(name).shape
    generator = torch.Generator().manual_seed(rank)
    A, B = (torch.randn(*shape, generator=generator) for shape in ((p, rank), (rank, q)))
    return LowRank(size * A, B)


def test_the_command_takes_an_adapter_and_refuses_what_it_would_leave_out(tmp_path: Path) -> None:
    base = editable("llama")
    save(base.hf, base.tokenizer, tmp_path / "base")
    edited = editable("llama")
    name = base.weight_name(1)
    edited.set_update(name, random_update(base, name, 2).to_dense())
    export_difference(base, edited, tmp_path / "adapter")
    words = ("export", "--base", "base", "--edited", "adapter", "--to", "again", "--as", "lora")
    for more in (("--restrain", "log:1.2"), ("--upto", "1"), ("--model", "base")):
        refused = run(tmp_path, *words, *more)
        assert refused.returncode == 2 and more[0] in refused.stderr and not (tmp_path / "again").exists()
    [weight] = answer(tmp_path, *words)["adapter"]["weights"]
    assert (weight["name"], weight["rank"]) == (name, 2)
    again = with_adapter(editable("llama"), tmp_path / "again")
    torch.testing.assert_close(again.weight(name), edited.weight(name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_difference_of_two_checkpoints_is_an_adapter(family: str, tmp_path: Path) -> None:
    base, edited = editable(family), editable(family)
    first, second = (base.weight_name(layer) for layer in (0, 2))
    edited.set_update(first, random_update(base, first, 3).to_dense())
    edited.set_update(second, random_update(base, second, 2).to_dense())
    found = export_difference(base, edited, tmp_path / "adapter")
    assert {one.name: one.rank for one in found.adapter.weights} == {first: 3, second: 2}
    assert found.not_held == ()
    again = with_adapter(editable(family), tmp_path / "adapter")
    for name in (first, second):
        torch.testing.assert_close(again.weight(name), edited.weight(name), rtol=1e-5, atol=1e-5)
    truncated = export_difference(base, edited, tmp_path / "small", rank=1)
    assert all(one.rank == 1 and one.error_frobenius > 0.1 for one in truncated.adapter.weights)
    # What no adapter can hold is named.
    with torch.no_grad():
        edited.hf.get_input_embeddings().weight.add_(0.1)
    (left,) = [
        name for name in export_difference(base, edited, tmp_path / "more").not_held if "emb" in name or "wte" in name
    ]
    assert left in dict(base.hf.named_parameters())
    with pytest.raises(TetherError, match="do not have the same parameters"):
        export_difference(base, editable("llama" if family == "gpt2" else "gpt2"), tmp_path / "other")


def test_rounding_is_no_rank(tmp_path: Path) -> None:
    base, edited = editable("llama"), editable("llama")
    name = base.weight_name(1)
    edited.set_update(name, random_update(base, name, 2, size=1.0).to_dense())
    edited.hf.to(torch.bfloat16)
    found = export_difference(base, EditableModel(edited.hf, edited.tokenizer), tmp_path / "adapter")
    assert {one.name: one.rank for one in found.adapter.weights} == {name: 2}  # the other weights differ by rounding


def test_any_pair_is_measured_and_compared(place: Path) -> None:
    answer(place, "export", "ledger", "--to", "pair", "--as", "merged", "--restrain", "none")
    words = ("evaluate", "--base", "model", "--facts", "facts.jsonl", *QUICK)
    merged = answer(place, *words, "--edited", "pair", "--out", "pair.json", "--csv", "pair.csv")
    first, last = merged["rows"]
    assert (first["edits"], first["restraint"], last["restraint"]) == (0, "none", "as it is")
    edited = last["editing"]["match_tokens"]
    assert "locality_unchanged" in edited
    assert first["abilities"]["perplexity"]["value"] != last["abilities"]["perplexity"]["value"]
    lines = list(csv.DictReader(io.StringIO((place / "pair.csv").read_text())))
    assert len(lines) == 2 and float(lines[1]["match_tokens efficacy"]) == edited["efficacy"]["value"]
    assert lines[1]["match_tokens efficacy n"] == str(edited["efficacy"]["n"])
    # The same edits as an adapter, of the ledger and of the two checkpoints, and without a base.
    answer(place, "export", "--base", "model", "--edited", "pair", "--to", "difference", "--as", "lora")
    adapted = answer(place, *words, "--edited", "difference", "--out", "adapter.json")
    assert adapted["rows"][1]["editing"]["match_tokens"] == edited
    alone = answer(place, "evaluate", "--edited", "pair", "--facts", "facts.jsonl", *QUICK, "--out", "alone.json")
    assert "locality_unchanged" not in alone["rows"][0]["editing"]["match_tokens"]
    # Two files.
    shutil.copy(place / "pair.json", place / "same.json")
    shutil.copy(place / "pair.items.jsonl", place / "same.items.jsonl")
    found = answer(place, "compare", "pair.json", "adapter.json", "--editing")
    assert {one["row"][1] for one in found["comparisons"]} == {"none", "as it is"}
    assert not any(one["significant"] for one in found["comparisons"])
    assert "as it is" in run(place, "compare", "pair.json", "same.json", "--editing").stdout
    other = json.loads((place / "same.json").read_text())
    (place / "same.json").write_text(json.dumps({**other, "facts_sha256": "0" * 64}))
    refused = run(place, "compare", "pair.json", "same.json")
    assert refused.returncode == 1 and "differ in facts" in refused.stderr


def test_last_rows_are_compared_where_none_are_alike(place: Path) -> None:
    words = ("evaluate", "ledger", *QUICK, "--at", "0,2", "--out")
    answer(place, *words, "none.json", "--restrain", "none")
    answer(place, *words, "log.json", "--restrain", "log:1.2")
    both, found = compare_files(read(place / "none.json"), read(place / "log.json"), editing=True)
    assert {one.row for one in found} == {(0, "none")}  # the unedited row is in both
    assert len(both.rows) == 4
    one, other = read(place / "none.json"), read(place / "log.json")
    one.rows, other.rows = one.rows[1:], other.rows[1:]
    _, found = compare_files(one, other)
    assert {(each.row, each.baseline) for each in found} == {((2, "none"), (2, "log:1.2 (other)"))}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("evaluate", "--out", "x.json"), "give a ledger, or --edited"),
        (("evaluate", "ledger", "--edited", "model", "--out", "x.json"), "give a ledger, or --edited"),
        (("evaluate", "--edited", "model", "--out", "x.json"), "a checkpoint has no facts of its own"),
        (
            ("evaluate", "--edited", "model", "--facts", "facts.jsonl", "--at", "1", "--out", "x.json"),
            "goes with a ledger",
        ),
        (("export", "--base", "model", "--to", "x", "--as", "lora"), "give a ledger, or --base and --edited"),
        (("export", "--base", "model", "--edited", "model", "--to", "x", "--as", "merged"), "give an adapter"),
    ],
)
def test_wrong_pairs_are_wrong_command_lines(place: Path, words: tuple[str, ...], what: str) -> None:
    done = run(place, *words)
    assert done.returncode == 2 and what in done.stderr


# --- tables ---------------------------------------------------------------------------------------------------------


def number(value: float, stderr: float | None = 1.5, n: int = 4) -> Number:
    return Number(value=value, n=n, stderr=stderr, prompts=n)


def rows() -> list[tuple[dict[str, str], Row]]:
    editing = {"match_all": {"efficacy": number(50), "locality": number(75, None)}}
    recent = Recent(edits=2, editing={"match_all": {"efficacy": number(100, 0, 2)}})
    first = Row(edits=10, restraint="none", replayed=False, editing=editing, recent=recent)
    nli = Ability(value=33.3, n=9, stderr=2.0, unit="percent")
    second = Row(edits=10, restraint="log:1.2", replayed=False, editing=editing, abilities={"nli_a": nli})
    return [({"method": "rome", "restraint": "none"}, first), ({"method": "a|b & c", "restraint": "log:1.2"}, second)]


def test_a_table_for_a_paper(tmp_path: Path) -> None:
    sheet = Sheet.of(rows())
    assert sheet.measures == ("match_all efficacy", "match_all locality", "match_all efficacy (last)", "nli_a")
    read_back = list(csv.reader(io.StringIO(sheet.csv())))
    assert read_back[0][:5] == [
        "method",
        "restraint",
        "match_all efficacy",
        "match_all efficacy stderr",
        "match_all efficacy n",
    ]
    assert read_back[1] == ["rome", "none", "50.0", "1.5", "4", "75.0", "", "4", "100.0", "0.0", "2", "", "", ""]
    assert read_back[2][-3:] == ["33.3", "2.0", "9"]
    assert sheet.markdown().splitlines()[2:] == [
        "| rome | none | 50.0 ± 1.5 | 75.0 | 100.0 ± 0.0 |  |",
        r"| a\|b & c | log:1.2 | 50.0 ± 1.5 | 75.0 |  | 33.3 ± 2.0 |",
    ]
    latex = sheet.latex().splitlines()
    assert latex[:2] == [r"\begin{tabular}{llrrrr}", r"\toprule"]
    assert (
        latex[2]
        == r"method & restraint & match\_all efficacy & match\_all locality & match\_all efficacy (last) & nli\_a \\"
    )
    assert latex[5] == r"a|b \& c & log:1.2 & 50.0 $\pm$ 1.5 & 75.0 &  & 33.3 $\pm$ 2.0 \\"
    assert latex[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert sheet.main().measures == ("match_all efficacy", "nli_a")
    for suffix in ("csv", "md", "tex"):
        sheet.write(tmp_path / f"table.{suffix}")
    assert (tmp_path / "table.csv").read_text() == sheet.csv()
    with pytest.raises(TetherError, match=r"name it \.csv, \.md or \.tex"):
        sheet.write(tmp_path / "table.xlsx")
    assert Sheet.of([]).csv() == "\n"


def test_an_adapter_without_its_base_is_refused(place: Path) -> None:
    answer(place, "export", "ledger", "--to", "own", "--as", "lora", "--restrain", "none")
    done = run(place, "evaluate", "--edited", "own", "--facts", "facts.jsonl", "--out", "x.json")
    assert done.returncode == 2 and "own is an adapter: name the model it is for" in done.stderr
    other = save(*(editable("llama", width=96).hf, editable("llama").tokenizer), place / "smaller")
    with pytest.raises(TetherError, match="is no adapter of"):
        with_adapter(load(other), place / "own")
