"""tether moments"""

from __future__ import annotations

from typing import Annotated

import typer

from tether.cli.app import AnatomyFile, Device, Dtype, Json, ModelName, app, err, every, load_model, numbers, show
from tether.editors.corpus import Corpus
from tether.editors.moments import ENOUGH, moments
from tether.editors.settings import settings_for


@app.command("moments")
def command(
    model: ModelName,
    corpus: Annotated[str, typer.Option(help="A plain text file, or 'self': text sampled from the model.")],
    method: Annotated[str, typer.Option(help="Whose settings name the layers.")] = "rome",
    layers: Annotated[str | None, typer.Option(help="Layers, with commas; default: those the settings edit.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="At most N tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampled text.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
    as_json: Json = False,
) -> None:
    """Second moments of the keys of any layers, in one pass, cached; says whether the text was enough."""
    loaded = load_model(model, dtype=dtype, device=device, anatomy=anatomy)
    chosen = numbers(layers, "--layers") or list(settings_for(method, loaded)[0].layers)
    text = Corpus.parse(corpus, seed=seed, **({} if tokens is None else {"max_tokens": tokens}))
    due = every(seconds=5)

    def progress(done: int, total: int | None) -> None:
        if due():
            err.out(f"{done} tokens" + ("" if total is None else f" of {total}"), highlight=False)

    found = moments(loaded, chosen, text, progress=progress)
    lines = []
    for layer, one in found.items():
        curve = ", ".join(f"{cosine:.4f} at {n}" for n, cosine in one.convergence) or "not measured: too little text"
        enough = bool(one.convergence) and one.convergence[-1][1] >= ENOUGH
        lines.append(f"layer {layer}: {one.tokens} tokens; mean cosine of C⁻¹k with that of half the text: {curve}"
                     f" — {'enough' if enough else f'below {ENOUGH}: more text would help'}")  # fmt: skip
    document = {str(layer): {"tokens": one.tokens, "convergence": one.convergence} for layer, one in found.items()}
    show(document, "\n".join(lines), as_json)
