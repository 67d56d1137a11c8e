"""Write the edited model as whole weights or as an adapter, with a model card; say what engines do with such a folder.

$ tether export my-edits --to merged --as merged
$ tether export my-edits --to adapter --as lora --restrain log:1.2 --check vllm,ollama
$ tether export my-edits --to restrained --as merged --restrain log:auto
$ tether export my-edits --to adapter --as lora --push-to my-team/facts --private
$ tether export my-edits --to for-llama.cpp --as gguf-lora
$ tether export --base smollm2 --edited checkpoint --to adapter --as lora --rank 64
$ tether export adapter --check vllm,mlx
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tether.cli.loading import load_edited, load_model, open_ledger, restraint
from tether.cli.options import (
    Answer,
    Base,
    Device,
    Dtype,
    Edited,
    Floor,
    ModelOrRecorded,
    RestraintOrAuto,
    Upto,
    parse_option,
)
from tether.cli.tables import count, found_lines
from tether.errors import TetherError
from tether.evaluation.strength import AUTO, find_restraint_of
from tether.export import ENGINES, WHOLE, Finding, Form, LoraReport, check_adapter, check_form, export_difference, push
from tether.export.adapter import weight_line
from tether.export.push import check_repo

FOLDER = typer.Argument(
    metavar="[LEDGER]", help="Folder of a ledger; none with --edited; with --check alone, what to check."
)
KIND = typer.Option(
    "--as",
    help="merged: whole weights for transformers and vLLM; lora: an adapter for peft, vLLM, SGLang, Ollama; gguf-lora, "
    "gguf: an adapter, or whole weights, for llama.cpp and Ollama; mlx: an adapter for mlx-lm.",
)
NAME = typer.Option(help="What an adapter calls its base model; default: its hub id, else where it lies.")
PUSH = typer.Option("--push-to", help="Also upload the folder to this repository of the hub.", metavar="REPO")
PRIVATE = typer.Option("--private", help="With --push-to: a new repository is private.")
RANK = typer.Option(min=1, help="Truncate an adapter to this rank; what that loses is measured.")
FACTORS = typer.Option(help="Of an adapter's factors: float32 (default), bfloat16 or float16.")
CHECK = typer.Option(
    metavar="ENGINE,…",
    help=f"Say what {', '.join(ENGINES)} would do with what was written, or with a folder that is there. Exit code 1 "
    "where one would answer wrongly or refuse it.",
)


def export(
    *,
    ledger: Annotated[Path | None, FOLDER] = None,
    base: Base = None,
    edited: Edited = None,
    to: Annotated[Path | None, typer.Option(help="A new or empty folder.")] = None,
    kind: Annotated[Form | None, KIND] = None,
    model: ModelOrRecorded = None,
    restrain: RestraintOrAuto = None,
    floor: Floor = 98.0,
    upto: Upto = None,
    rank: Annotated[int | None, RANK] = None,
    adapter_dtype: Annotated[str | None, FACTORS] = None,
    base_name: Annotated[str | None, NAME] = None,
    check: Annotated[str | None, CHECK] = None,
    push_to: Annotated[str | None, PUSH] = None,
    private: Annotated[bool, PRIVATE] = False,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    engines = _engines(check)
    if kind is None and to is None and ledger is not None and engines and edited is None:
        return _checked(Answer({}, ""), ledger, engines)
    if to is None or kind is None:
        missing = "--to" if to is None else "--as"
        raise typer.BadParameter("an export needs --to and --as; --check alone needs neither", param_hint=missing)
    if (ledger is None) == (edited is None) or (edited is None) != (base is None):
        raise typer.BadParameter("give a ledger, or --base and --edited", param_hint="LEDGER")
    try:
        check_form(kind, rank, adapter_dtype, base_name)
    except TetherError as error:
        raise typer.BadParameter(str(error), param_hint="--as") from None
    if push_to is not None:
        parse_option("--push-to", check_repo, push_to)
    elif private:
        raise typer.BadParameter("goes with --push-to", param_hint="--private")
    if ledger is None:
        if kind in WHOLE:
            raise typer.BadParameter("two checkpoints give an adapter: lora, gguf-lora or mlx", param_hint="--as")
        for option, given in (("--restrain", restrain), ("--upto", upto), ("--model", model)):
            if given is not None:
                raise typer.BadParameter("goes with a ledger, and not with --edited", param_hint=option)
        second = load_edited(str(edited), base, dtype=dtype, device=device)
        first = load_model(str(base), dtype=dtype, device=device)
        found = export_difference(
            first, second, to, form=kind, rank=rank, adapter_dtype=adapter_dtype, base_name=base_name
        )
        lines = [f"{to}: {kind}, {edited} - {base}", *_report(found.adapter)]
        lines += [f"not in the adapter: {', '.join(found.not_held)}"] if found.not_held else []
        held: dict[str, Any] = {"adapter": asdict(found.adapter), "not_held": found.not_held}
        done = Answer({"to": str(to), "as": kind, **held}, "\n".join(lines))
        return _pushed(_checked(done, to, engines), to, push_to, private)
    auto = restrain if restrain is not None and AUTO.fullmatch(restrain) else None
    chosen = None if auto else restraint(restrain)
    opened, loaded = open_ledger(ledger, model, dtype, device)
    found_strength = find_restraint_of(opened, loaded, auto, upto=upto, floor=floor) if auto else None
    chosen = chosen if found_strength is None else found_strength.restraint
    report = opened.export(
        loaded, to, as_=kind, restrain=chosen, upto=upto, rank=rank, base_name=base_name, adapter_dtype=adapter_dtype
    )
    lines = [f"{to}: {kind}, {count(len(opened.live(upto)), 'edit')}", *(_report(report) if report else ())]
    written: dict[str, Any] = {"to": str(to), "as": kind, "adapter": report and asdict(report)}
    if found_strength is not None:
        written["strength"] = found_strength.to_dict()
        lines = [found_lines(written["strength"]), *lines]
    return _pushed(_checked(Answer(written, "\n".join(lines)), to, engines), to, push_to, private)


def _pushed(answer: Answer, folder: Path, repo: str | None, private: bool) -> Answer:
    """The answer, with where the folder went where it was to go somewhere: not where a check of it failed."""
    if repo is None or answer.code:
        return answer
    address = push(folder, repo, private=private)
    return Answer({**answer.document, "pushed": address}, f"{answer.text}\npushed to {address}")


def _engines(check: str | None) -> list[str]:
    def known(word: str) -> str:
        if word not in ENGINES:
            raise TetherError(f"engine {word!r}: choose {', '.join(ENGINES)}")
        return word

    return [] if check is None else [parse_option("--check", known, word.strip()) for word in check.split(",")]


def _checked(done: Answer, folder: Path, engines: Sequence[str]) -> Answer:
    """The answer with what the engines would do with the folder."""
    if not engines:
        return done
    findings: list[Finding] = check_adapter(folder, engines)
    document: dict[str, Any] = {**done.document, "checks": [asdict(finding) for finding in findings]}
    bad = any(finding.verdict in ("wrong", "refused") for finding in findings)
    text = "\n".join(filter(None, [done.text, *(finding.line() for finding in findings)]))
    return Answer(document, text, 1 if bad else 0)


def _report(report: LoraReport) -> list[str]:
    lines = [f"rank {report.rank}, {report.dtype}", *map(weight_line, report.weights)]
    return lines if report.loss is None else [*lines, report.loss.line()]
