"""δ: what, added to the projection's output at the subject's last token, makes the model say the new object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.editors.hparams import RomeHparams
from tether.facts.tokens import EncodedPrompt
from tether.model.editable import EditableModel
from tether.model.suffix import Plain, Rows, Run, Suffix, head_logits, projection_adds


@dataclass(frozen=True)
class Latent:
    """The optimised δ (float32, size p) and the total loss at every evaluation."""

    delta: Float[Tensor, " p"]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Objective:
    """Which final hidden states the loss reads, as (row, column from the anchor on) pairs, and what it makes of them.

    The last row is the KL prompt's; every other row is a context of the edit prompt, target behind it.
    """

    row: Int[Tensor, " m"]
    column: Int[Tensor, " m"]
    target: Int[Tensor, " m"]
    weight: Float[Tensor, " m"]
    kl_row: int
    kl_column: int

    @classmethod
    def of(cls, prompts: Sequence[EncodedPrompt], kl_position: str, device: torch.device) -> Objective:
        """The loss over `prompts`, whose last one is the KL prompt."""
        reads = []
        contexts = prompts[:-1]
        for row, prompt in enumerate(contexts):
            length = len(prompt.ids) - prompt.target_start
            for position in range(prompt.target_start, len(prompt.ids)):
                column = position - 1 - prompt.subject_last
                reads.append((row, column, prompt.ids[position], 1 / (len(contexts) * length)))
        kl = prompts[-1]
        kl_column = 0 if kl_position == "subject" else len(kl.ids) - 1 - kl.subject_last
        return cls(
            torch.tensor([r[0] for r in reads], device=device),
            torch.tensor([r[1] for r in reads], device=device),
            torch.tensor([r[2] for r in reads], device=device),
            torch.tensor([r[3] for r in reads], device=device),
            len(contexts),
            kl_column,
        )

    @property
    def columns(self) -> int:
        """How many columns from the anchor on the loss reads, the last one included."""
        return max(int(self.column.max()), self.kl_column) + 1

    def log_probabilities(self, model: EditableModel, hidden: Float[Tensor, "n s d"]) -> tuple[Tensor, Tensor]:
        """log P at every read position (m×vocab) and at the KL position (vocab), float32; logits nowhere else."""
        read = torch.cat([hidden[self.row, self.column], hidden[self.kl_row, self.kl_column][None]])
        log_p = head_logits(model, read).float().log_softmax(-1)
        return log_p[:-1], log_p[-1]


def optimise(
    model: EditableModel,
    prompts: Sequence[EncodedPrompt],
    rows: Rows,
    run: Run,
    hparams: RomeHparams,
    *,
    arithmetic: EditableModel | None = None,
) -> Latent:
    """Minimise mean NLL(o*)/|o*| + kl_factor·KL(P_δ ‖ P₀) + v_weight_decay·‖δ‖/‖v₀‖² over δ with Adam.

    `prompts` are the contexts of the edit prompt with the target behind each, the bare one first, and the KL prompt
    last; `run` is their full forward. At most `v_num_grad_steps` evaluations, so one Adam step fewer; after each step δ
    is clamped to clamp_norm_factor·‖v₀‖; stops below `loss_threshold`. `arithmetic` is a copy of the model in another
    dtype for the steps. Gradients are taken with respect to δ alone. The model is not changed.
    """
    objective = Objective.of(prompts, hparams.kl_position, rows.ids.device)
    stepper = arithmetic or model
    step = _step(model, stepper, rows, run, objective.columns, frozen=hparams.frozen_prefix)
    with torch.no_grad():
        _, before = objective.log_probabilities(model, run.last)  # P₀
    v0_norm = run.values[0].float().norm()
    delta = torch.zeros_like(run.values[0], dtype=torch.float32, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=hparams.v_lr)
    losses = []
    for evaluation in range(hparams.v_num_grad_steps):
        log_p, log_kl = objective.log_probabilities(stepper, step(delta))
        nll = -(log_p.gather(1, objective.target[:, None])[:, 0] * objective.weight).sum()
        kl = (log_kl.exp() * (log_kl - before)).sum()
        loss = nll + hparams.kl_factor * kl + hparams.v_weight_decay * delta.norm() / v0_norm**2
        losses.append(loss.item())
        if losses[-1] < hparams.loss_threshold or evaluation == hparams.v_num_grad_steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, delta)
        adam.step()
        with torch.no_grad():
            delta.mul_((hparams.clamp_norm_factor * v0_norm / delta.norm()).clamp(max=1))
    return Latent(delta.detach(), tuple(losses))


def _step(
    model: EditableModel, stepper: EditableModel, rows: Rows, run: Run, columns: int, *, frozen: bool
) -> Callable[[Tensor], Tensor]:
    adds = projection_adds(model, run.layer)
    if not frozen or (run.layer == 0 and not adds):
        return Plain(stepper, rows, run)
    return Suffix(stepper, rows, run, adds=adds, columns=columns)
