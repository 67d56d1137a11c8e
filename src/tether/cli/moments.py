"""Second moments of the keys of any layers, in one pass, cached; says whether the text was enough.

$ tether moments --model smollm2 --corpus text.txt --layers 4,5
"""

from typing import Annotated

import typer

from tether.cli.loading import engine_of, load_model
from tether.cli.options import (
    AnatomyFile,
    Answer,
    Device,
    Dtype,
    EngineName,
    ModelName,
    Workers,
    at_most_every,
    numbers,
    say,
)  # fmt: skip
from tether.editing.plan import DEFAULT_METHOD
from tether.editors import moments as second_moments
from tether.editors.corpus import Corpus
from tether.editors.settings import settings_for


def moments(
    model: ModelName,
    corpus: Annotated[str, typer.Option(help="A plain text file, or 'self': text sampled from the model.")],
    method: Annotated[str, typer.Option(help="Whose settings name the layers.")] = DEFAULT_METHOD,
    layers: Annotated[str | None, typer.Option(help="Layers, with commas; default: those the settings edit.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="At most N tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampled text.")] = 0,
    engine: EngineName = "local",
    workers: Workers = None,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
) -> Answer:
    named, using = numbers(layers, "--layers"), engine_of(engine, workers, device)
    loaded = load_model(model, dtype=dtype, device=device, anatomy=anatomy)
    chosen = named or settings_for(method, loaded)[0].layers
    size = {} if tokens is None else {"max_tokens": tokens}
    text = Corpus.parse(corpus, seed=seed, **size)
    due = at_most_every(seconds=5)

    def progress(done: int, total: int | None) -> None:
        if due():
            say(f"{done} tokens" if total is None else f"{done} tokens of {total}")

    with using as spread:
        found = second_moments.moments(loaded, chosen, text, progress=progress, engine=spread)
    document = {str(layer): {"tokens": one.tokens, "convergence": one.convergence} for layer, one in found.items()}
    return Answer(document, "\n".join(_line(layer, one) for layer, one in found.items()))


def _line(layer: int, found: second_moments.Moments) -> str:
    curve = ", ".join(f"{cosine:.4f} at {n}" for n, cosine in found.convergence) or "not measured: too little text"
    enough = bool(found.convergence) and found.convergence[-1][1] >= second_moments.ENOUGH
    verdict = "enough" if enough else f"below {second_moments.ENOUGH}: more text would help"
    return f"layer {layer}: {found.tokens} tokens; mean cosine of C⁻¹k with that of half the text: {curve} — {verdict}"
