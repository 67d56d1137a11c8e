"""How δ takes its steps, what a step reads, and keys read from low layers to high."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core import FACTS, PREFIXES, close, editable
from hypothesis import given
from hypothesis import strategies as st
from test_memit import LAYOUTS, hparams, latents

from tether.algebra.lowrank import LowRank
from tether.editors.delta import Evaluations, Group, rows_of
from tether.editors.prompts import encode_contexts
from tether.editors.settings import LatentHparams
from tether.editors.steps import RULES, Adam
from tether.models import EditableModel
from tether.models.frozen_prefix import Ascending, Steps, align, forward_until, full_forward, head_logits, hooks


def test_adam_is_torchs() -> None:
    torch.manual_seed(0)
    chosen, target, delta = hparams(v_lr=0.3), torch.randn(2, 5), torch.zeros(2, 5)
    parameter = torch.nn.Parameter(delta.clone())
    theirs, ours = torch.optim.Adam([parameter], lr=0.3), Adam(chosen, delta)
    for _ in range(7):
        theirs.zero_grad()
        (parameter - target).square().sum().backward()
        theirs.step()
        delta = ours.step(delta, 2 * (delta - target), torch.zeros(2), torch.ones(2))
        assert close(delta, parameter.detach(), 1e-5)


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_polyaks_step_reaches_where_the_tangent_is_zero(seed: int, size: float) -> None:
    """r of the way to it, along the gradient; the step before adds a share; no step is longer than its limit."""
    generator = torch.Generator().manual_seed(seed)
    gradient, loss = torch.randn(3, 6, generator=generator), size * torch.rand(3, generator=generator)
    delta, norms = torch.zeros(3, 6), torch.full((3,), 1e6)
    rule = RULES["polyak"](hparams(v_step="polyak"), delta)
    first = rule.step(delta, gradient, loss, norms)
    assert close((first * gradient).sum(1), -1.3 * loss, 1e-4)
    assert close(torch.cosine_similarity(first, gradient), -torch.ones(3), 1e-5)
    second = rule.step(first, gradient, torch.zeros(3), norms)  # no loss is left: the momentum alone
    assert close(second - first, 0.2 * first, 1e-5)
    short = RULES["polyak"](hparams(v_step="polyak", v_longest_step=0.25), delta)
    norms = 1e-3 * (1 + torch.rand(3, generator=generator))
    limited = short.step(delta, gradient, loss + 1, norms)
    assert close(limited.norm(dim=1), 0.25 * norms, 1e-4)


def test_a_rule_goes_on_with_the_facts_that_are_left() -> None:
    torch.manual_seed(1)
    for name in RULES:
        whole, few = (RULES[name](hparams(v_step=name), torch.zeros(3, 4)) for _ in range(2))
        kept, delta = torch.tensor([0, 2]), torch.zeros(3, 4)
        gradient, loss, norms = torch.randn(3, 4), torch.rand(3), torch.ones(3)
        delta = whole.step(delta, gradient, loss, norms)
        few.step(torch.zeros(3, 4), gradient, loss, norms)
        few.keep(kept)
        all_of_it = whole.step(delta, gradient, loss, norms)
        assert torch.equal(few.step(delta[kept], gradient[kept], loss[kept], norms[kept]), all_of_it[kept])


@pytest.mark.parametrize("family", LAYOUTS)
def test_polyak_needs_fewer_evaluations(family: str) -> None:
    """On tiny models: a loss as low as Adam's after 12 evaluations in at most 8, at its largest δ or below."""
    model = editable(family)
    groups = [encode_contexts(model, fact, PREFIXES) for fact in FACTS[:4]]
    slow = latents(model, groups, hparams(loss_threshold=0))
    fast = latents(model, groups, hparams(loss_threshold=0, v_step="polyak", v_num_grad_steps=8))
    for one, other in zip(slow, fast, strict=True):
        assert min(other.losses) <= one.losses[-1]


def group(model: EditableModel) -> Group:
    return encode_contexts(model, FACTS[0], PREFIXES)


def test_turns_read_the_bare_prompt_and_each_context_in_its_turn() -> None:
    whole = group(editable("llama"))
    contexts = whole.facts[0][0]
    assert len(contexts) == 3
    turns = [whole.turn(turn, 1) for turn in range(3)]
    assert [rows for _, rows in turns] == [[0, 1], [0, 2], [0, 1]]
    assert [one.facts[0][0] for one, _ in turns] == [contexts[:2], (contexts[0], contexts[2]), contexts[:2]]
    assert whole.turn(5, None)[1] == [0, 1, 2] and whole.turn(5, 7)[1] in ([0, 1, 2], [0, 2, 1])
    assert whole.turn(1, 0)[1] == [0]


@pytest.mark.parametrize("changes", [{}, {"step_prefixes": 1}, {"kl_position": "end"}, {"frozen_prefix": False}])
@pytest.mark.parametrize("family", [*LAYOUTS, "gemma3"])
def test_an_evaluation_reads_what_whole_forwards_say(family: str, changes: dict[str, Any]) -> None:
    """log P at the target's tokens and at the KL prompt, of every turn, against forwards of the whole prompts alone."""
    torch.manual_seed(2)
    model, layer = editable(family), 1
    groups = [encode_contexts(model, fact, PREFIXES) for fact in FACTS[:2]]
    chosen: LatentHparams = hparams(**changes)
    rows = align([prompt for one in groups for prompt in one], model.device)
    run = full_forward(model, rows, layer)
    evaluations = Evaluations(model, groups, rows, run, chosen)
    delta = torch.randn(2, model.hidden_size) * run.values[0].norm() / 10
    for turn in range(3):
        log_p, log_kl = evaluations(turn, delta)
        expected, kept = [], []
        for place, one in enumerate(groups):
            read, _ = one.turn(turn, chosen.step_prefixes)
            for prompt in read:
                alone = align([prompt], model.device)
                steps = Steps(model, alone, full_forward(model, alone, layer), frozen=False)
                said = head_logits(model, steps(delta[place])[0]).log_softmax(-1)  # from the anchor on
                if prompt is one.kl:
                    kept.append(said[0] if chosen.kl_position == "subject" else said[-1])
                else:
                    expected += [
                        said[at - 1 - prompt.subject_last] for at in range(prompt.target_start, len(prompt.ids))
                    ]
        assert close(log_p, torch.stack(expected), 1e-4) and close(log_kl, torch.stack(kept), 1e-4)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("family", [*LAYOUTS, "gemma3", "gpt_neox"])
def test_keys_from_low_layers_to_high_are_those_of_whole_forwards(family: str, frozen: bool) -> None:
    """With every layer below edited by then."""
    torch.manual_seed(3)
    model = editable(family)
    groups = [encode_contexts(model, fact, PREFIXES) for fact in FACTS[:3]]
    rows = align([prompt for one in groups for prompt in one], model.device)
    firsts = torch.tensor([first for first, _ in rows_of(groups)])
    ascending, updates, last = Ascending(model, rows, frozen=frozen), dict[str, LowRank](), 3
    for layer in (1, 2, 3):
        with model.provisional(updates):
            keys, states = ascending.keys(layer), ascending.states(last, firsts)
            seen: list[torch.Tensor] = []
            hook = model.projection(layer).register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0]))
            with hooks(hook):
                output = forward_until(model, model.block(last), **rows.arguments)
            assert close(keys, rows.at_anchor(seen[0]), 1e-5)
            assert close(states, output[firsts, rows.anchor], 1e-5)
            assert close(ascending.states(last), output[:, rows.anchor], 1e-5)
        name = model.weight_name(layer)
        p, q = model.weight(name).shape
        updates[name] = LowRank(torch.randn(p, 2) / 10, torch.randn(2, q) / 10)
