"""What the editors that optimise δ share: the prompts a fact is read in, and when it counts as failed."""

from collections.abc import Sequence
from dataclasses import replace

from tether.editors.base import Context, EditFailedError, EditSkippedError, reading_a_fact
from tether.editors.delta import Group, OptimisedDelta
from tether.editors.settings import LatentHparams
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, encode, encode_asked, encode_fact, too_long
from tether.models.editable import EditableModel

_KEPT_PREFIXES = 2  # contexts of a fact edited before, beside its bare prompt


def group_of(model: EditableModel, fact: Fact, context: Context) -> Group:
    """The prompts of a fact, and those of the facts edited before about the same subject, unless the settings leave
    them alone. Raises EditFailedError as `encode_contexts`."""
    if context.hparams.phrasing_keys == "none":
        fact = fact.model_copy(update={"phrasings": ()})
    group = encode_contexts(model, fact, context.prefixes)
    if context.hparams.same_subject == "apart":
        return group
    kept: list[tuple[tuple[EncodedPrompt, ...], ...]] = []
    for other in context.history.of_subject(fact):
        prompts = [
            prompt
            for prompt, asked in zip((other.prompt, *other.phrasings), other.asked, strict=True)
            if asked not in fact.asked
        ]
        if prompts:  # what the fact itself is edited for is no longer kept
            other = other.model_copy(update={"prompt": prompts[0], "phrasings": tuple(prompts[1:])})
            kept += encode_contexts(model, other, context.prefixes[:_KEPT_PREFIXES]).facts
    return replace(group, facts=(*group.facts, *kept))


def encode_contexts(model: EditableModel, fact: Fact, prefixes: Sequence[str]) -> Group:
    """The bare prompt first, then after each prefix, then every phrasing alone, with the target; the KL prompt last.
    Raises EditFailedError where the subject or target has no token, or the model not enough positions."""
    tokenizer = model.tokenizer
    with reading_a_fact():
        prompts = tuple(encode_fact(tokenizer, fact, prefix) for prefix in ("", *prefixes))
        phrasings = (prompts, *((prompt,) for prompt in encode_asked(tokenizer, fact)[1:]))
        group = Group((phrasings,), encode(tokenizer, "{} is a", fact.subject))
    problem = too_long(model.limit, fact.text, [prompt.ids for prompt in group])
    if problem:
        fits_bare = not too_long(model.limit, fact.text, [prompts[0].ids])
        raise EditFailedError(f"{problem}, or take shorter prefixes (settings)" if fits_bare else problem)
    return group


def why_not_edited(
    fact: Fact, found: OptimisedDelta, hparams: LatentHparams, record: dict[str, float]
) -> EditFailedError | None:
    """Why an optimised fact is not edited: the model says it already, or its loss did not fall; None for a good one."""
    losses = found.losses
    if len(losses) == 1 and (losses[0] < hparams.loss_threshold or found.said):
        return EditSkippedError(f"the model already says {fact.text!r} -> {fact.target_new!r}", record)
    if not losses[-1] < losses[0]:
        return EditFailedError(
            f"{fact.text!r} -> {fact.target_new!r}: the loss went from {losses[0]:.3g} to {losses[-1]:.3g}; try a "
            "smaller v_lr or another layer",
            record,
        )
    limit = hparams.drop_above
    if limit is not None and losses[-1] > limit:
        return EditFailedError(
            f"{fact.text!r} -> {fact.target_new!r}: the loss is still {losses[-1]:.3g}, above drop_above {limit:g}; "
            "give it more v_num_grad_steps",
            record,
        )
    return None
