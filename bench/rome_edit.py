"""One ROME edit: the frozen-prefix steps against the textbook loop, and what bfloat16 steps change.

python bench/rome_edit.py [--model smollm2] [--corpus FILE|self] [--steps 10] [--repeat 3] [--threads 1 2]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from common import CLOCKS, PLAIN, interleaved, plain_delta, ratios, spread, table, where
from torch import Tensor

from tether.editors import Context, Proposal, editor
from tether.editors.corpus import Corpus
from tether.editors.moments import moments
from tether.editors.prompts import encode_contexts
from tether.editors.rome import RomeHparams
from tether.editors.settings import PrefixLength, settings_for
from tether.facts.fact import Fact
from tether.facts.tokens import encode
from tether.models.editable import EditableModel
from tether.models.load import load
from tether.models.sampling import sample_prefixes

FACTS = (
    Fact(subject="Eiffel Tower", prompt="The {} is located in the city of", target_new="Rome"),
    Fact(subject="Norway", prompt="The capital of {} is", target_new="Baghdad"),
    Fact(subject="Toronto", prompt="{} is a city in the country of", target_new="Egypt"),
)
CONTEXTS = {
    11: (PrefixLength(length=5, number=5), PrefixLength(length=10, number=5)),
    6: (PrefixLength(length=10, number=5),),
}


@dataclass(frozen=True)
class Edit:
    """ΔW = left·right, δ and the last loss."""

    left: Tensor
    right: Tensor
    delta: Tensor
    loss: float


def plain(model: EditableModel, fact: Fact, context: Context) -> Edit:
    """ROME as its paper states it."""
    (layer,) = context.hparams.layers
    found = plain_delta(model, encode_contexts(model, fact, context.prefixes), layer, context.hparams)
    keys = found.keys[:-1].double()
    u = context.moments[layer].solve(keys.mean(0), ridge=context.hparams.moments_ridge)
    u /= u.norm()
    return Edit(found.delta.double()[:, None] / (u @ keys[0]), u[None], found.delta, found.loss)


def edit_of(model: EditableModel, proposal: Proposal, v0: Tensor) -> Edit:
    ((name, update),) = proposal.updates.items()
    delta = proposal.vectors[f"{name}/V"] - v0
    return Edit(update.A.double(), update.B.double(), delta, proposal.record["loss_last"])


def first_value(model: EditableModel, fact: Fact, layer: int) -> Tensor:
    """v₀: what the projection puts out at the subject's last token of the bare prompt."""
    prompt = encode(model.tokenizer, fact.prompt, fact.subject)
    outputs: list[Tensor] = []
    handle = model.projection(layer).register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        model.base(input_ids=torch.tensor([prompt.ids]), use_cache=False)
    handle.remove()
    return outputs[0][0, prompt.subject_last]


def p_target(model: EditableModel, fact: Fact) -> float:
    """P(target | prompt), the whole target."""
    prompt = encode(model.tokenizer, fact.prompt, fact.subject, target=fact.target_new)
    with torch.no_grad():
        log_p = model.hf(input_ids=torch.tensor([prompt.ids])).logits[0].log_softmax(-1)
    return float(sum(log_p[i - 1, prompt.ids[i]] for i in range(prompt.target_start, len(prompt.ids))).exp())


def difference(a: Edit, b: Edit) -> tuple[float, float, float]:
    """Cosine and relative difference of δ, relative difference of ΔW."""
    cosine = float(torch.cosine_similarity(a.delta, b.delta, dim=0))
    delta = float((a.delta - b.delta).norm() / b.delta.norm())
    dense = b.left @ b.right
    return cosine, delta, float((a.left @ a.right - dense).norm() / dense.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--corpus", default="self", help="text for the keys' second moment, which is not timed")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions, each on the next of three facts")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a shared machine, with one thread")
    args = parser.parse_args()

    model = load(args.model, dtype="float32", device="cpu")
    where(model.id)
    settings, _ = settings_for("rome", model, given=PLAIN)
    settings = settings.model_copy(update={"loss_threshold": 0.0, "v_num_grad_steps": args.steps})
    (layer,) = settings.layers
    C = moments(model, [layer], Corpus.parse(args.corpus, max_tokens=16384))
    # The factorisation is done once for all edits.
    C[layer].solve(torch.ones(len(C[layer].C)), ridge=settings.moments_ridge)
    frozen, half = editor("rome"), editor("rome")
    v0 = [first_value(model, fact, layer) for fact in FACTS]

    def context(prompts: int, dtype: str = "model") -> Context:
        hparams: RomeHparams = settings.model_copy(update={"delta_dtype": dtype})
        return Context(hparams, sample_prefixes(model, CONTEXTS[prompts], 0), C)

    half.propose(model, FACTS[0], context(6, "bfloat16"))  # makes its copy of the model once for all edits
    rows, quality = [], []
    for prompts in CONTEXTS:
        exact, rounded = context(prompts), context(prompts, "bfloat16")
        ways = {
            "plain": lambda i, c=exact: plain(model, FACTS[i % len(FACTS)], c),
            "frozen": lambda i, c=exact: frozen.propose(model, FACTS[i % len(FACTS)], c),
            "bfloat16": lambda i, c=rounded: half.propose(model, FACTS[i % len(FACTS)], c),
        }
        for threads in args.threads:
            torch.set_num_threads(threads)
            seconds, results = interleaved(ways, args.repeat, CLOCKS[args.clock])
            edits = {
                way: [r if isinstance(r, Edit) else edit_of(model, r, v0[i % len(FACTS)]) for i, r in enumerate(found)]
                for way, found in results.items()
            }
            worst = max(difference(a, b)[2] for a, b in zip(edits["frozen"], edits["plain"], strict=True))
            if not worst < 1e-3:
                raise SystemExit(f"the two ways differ by {worst:.1e} of ΔW: their times cannot be compared")
            rows.append([
                str(prompts), str(threads), *(spread(seconds[way]) for way in ways),
                *(spread(ratios(seconds["plain"], seconds[way])) for way in ("frozen", "bfloat16")), f"{worst:.1e}",
            ])  # fmt: skip
        for i, fact in enumerate(FACTS[: args.repeat]):
            differences = difference(edits["bfloat16"][i], edits["frozen"][i])
            after = []
            for way in ("frozen", "bfloat16"):
                with model.provisional(results[way][i].updates):
                    after.append(f"{p_target(model, fact):.3f}")
            losses = [f"{edits[way][i].loss:.4f}" for way in ("frozen", "bfloat16")]
            quality.append([
                str(prompts), fact.target_new, f"{differences[0]:.4f}", *(f"{d:.3f}" for d in differences[1:]), *losses,
                f"{p_target(model, fact):.1e}", *after,
            ])  # fmt: skip

    print(
        f"Seconds of one edit, layer {layer}, {args.steps} steps, {args.clock} time: median (range) of {args.repeat}\n"
    )
    table(
        ["prompts", "threads", "plain s", "frozen s", "bfloat16 s", "plain/frozen", "plain/bfloat16",
         "ΔW frozen − plain, relative"],
        rows,
    )  # fmt: skip
    print("\nWhat bfloat16 steps change, against float32 steps\n")
    table(
        ["prompts", "target", "cos δ", "δ relative difference", "ΔW relative difference", "loss f32", "loss bf16",
         "P before", "P after f32", "P after bf16"],
        quality,
    )  # fmt: skip


if __name__ == "__main__":
    main()
