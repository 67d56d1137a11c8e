"""Every form in which the edits leave the house, by the name that `--as` gives it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError
from tether.export.adapter import LoraReport, make_adapter
from tether.export.card import Provenance, model_card
from tether.export.folder import export_merged, new_folder, write_card_and_manifest
from tether.export.gguf_files import write_gguf_adapter, write_gguf_model
from tether.export.lora import write_lora
from tether.export.mlx import write_mlx
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

Form = Literal["merged", "lora", "gguf-lora", "gguf", "mlx"]
FORMS: tuple[str, ...] = get_args(Form)
WHOLE = ("merged", "gguf")  # forms that hold the weights, and no factors
NAMING = ("lora", "gguf-lora")  # forms that name their base model
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_form(
    form: str, rank: int | None = None, adapter_dtype: str | None = None, base_name: str | None = None
) -> None:
    """Raise BadSettingsError for a form that is none, and for an option that the form does not have."""
    if form not in FORMS:
        raise BadSettingsError(f"export as {form!r}: choose {', '.join(FORMS)}")
    if adapter_dtype is not None and adapter_dtype not in DTYPES:
        raise BadSettingsError(f"adapter dtype {adapter_dtype!r}: choose {', '.join(DTYPES)}")
    for name, given in (("rank", rank), ("adapter dtype", adapter_dtype)):
        if form in WHOLE and given is not None:
            raise BadSettingsError(f"{name} {given} is for an adapter: {form} holds the weights whole")
    if base_name is not None and form not in NAMING:
        raise BadSettingsError(f"base name {base_name!r}: {form} names no base model ({' and '.join(NAMING)} do)")


def export_whole(form: str, model: EditableModel, to: str | Path, about: Provenance) -> None:
    """Write the weights that `model` carries, in one of the forms WHOLE, with card and manifest."""
    if form == "merged":
        export_merged(model, to, model_card(about), about.manifest())
        return
    with new_folder(to) as folder:
        write_gguf_model(model, folder)
        write_card_and_manifest(folder, model_card(about, library="gguf"), about.manifest())


def export_adapter(
    form: str,
    model: EditableModel,
    updates: Mapping[str, LowRank],
    to: str | Path,
    about: Provenance,
    *,
    rank: int | None = None,
    adapter_dtype: str | None = None,
    base_name: str | None = None,
    facts: Sequence[Fact] = (),
    smallest: Mapping[str, float] | None = None,
) -> LoraReport:
    """Write `updates` as an adapter of the unedited model in one of the forms that hold factors, in `adapter_dtype`
    (float32), with card and manifest. The rest as for `make_adapter`, which is also what it raises."""
    adapter = make_adapter(
        model, updates, rank=rank, dtype=DTYPES[adapter_dtype or "float32"], served=form == "lora", facts=facts,
        smallest=smallest,
    )  # fmt: skip
    library = {"lora": "peft", "mlx": "mlx", "gguf-lora": "gguf"}[form]
    with new_folder(to) as folder:
        if form == "lora":
            write_lora(adapter, model, folder, base_name=base_name)
        elif form == "mlx":
            write_mlx(adapter, model, folder)
        else:
            write_gguf_adapter(adapter, model, folder, base_name=base_name)
        card = model_card(about, details=adapter.details(), library=library)
        write_card_and_manifest(folder, card, about.manifest(adapter.report))
    return adapter.report
