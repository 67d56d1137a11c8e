"""δ: what, added to a block's output at the subject's last token, makes the model say the new object.

One fact or many: the facts of a batch do not see each other, so their δ are found side by side, as the rows of one
padded batch from which a fact is dropped as soon as it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.editors.settings import LatentHparams
from tether.editors.steps import RULES
from tether.facts.tokens import EncodedPrompt
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import AlignedPrompts, PrefixRun, Steps, align, full_forward, head_logits

_PADDED, _PADDED_SHARE = 32, 0.25  # tokens of padding (a step's own cost is about as much), and their share, in a batch


@dataclass(frozen=True)
class Group(Sequence[EncodedPrompt]):
    """The prompts that one δ is found for. `facts`: of every fact the phrasings, of each its contexts, each with the
    target, the bare one first. The first `edited` facts are edited; the others were edited before and are kept. `kl`:
    the prompt of the KL term. As a sequence: all contexts in order, then the KL prompt.

    What the update adds at a context's subject is (δ + `shift`) times its `reach`, as far as its key lies along the new
    one; `shift` is one for all, or one a context. Without them it is δ, as the papers have it.
    """

    facts: tuple[tuple[tuple[EncodedPrompt, ...], ...], ...]
    kl: EncodedPrompt
    edited: int = 1
    reach: tuple[float, ...] | None = None
    shift: Float[Tensor, "*n p"] | None = None

    def __len__(self) -> int:
        return sum(len(contexts) for phrasings in self.facts for contexts in phrasings) + 1

    def __getitem__(self, index: Any) -> Any:
        return [*chain.from_iterable(chain.from_iterable(self.facts)), self.kl][index]

    @property
    def phrasings(self) -> list[tuple[EncodedPrompt, ...]]:
        """The contexts of every phrasing of the edited facts: each has a key of its own."""
        return list(chain.from_iterable(self.facts[: self.edited]))

    @property
    def contexts(self) -> int:
        """How many rows are of the edited facts: the first ones."""
        return sum(map(len, self.phrasings))

    def starts(self) -> list[int]:
        """The row of the bare prompt of every phrasing of the edited facts."""
        return list(accumulate(map(len, self.phrasings[:-1]), initial=0))

    def turn(self, turn: int, number: int | None) -> tuple[Group, list[int]]:
        """What the losses of one evaluation read, and its rows of the whole: of every phrasing the bare prompt and
        `number` of the other contexts, in turns (None: all of them)."""
        rows, facts, row = list[int](), [], 0
        for phrasings in self.facts:
            read = []
            for contexts in phrasings:
                others = len(contexts) - 1
                taken = range(others if number is None else min(number, others))
                chosen = [0, *(1 + (turn * len(taken) + i) % others for i in taken)]
                read.append(tuple(contexts[at] for at in chosen))
                rows += [row + at for at in chosen]
                row += len(contexts)
            facts.append(tuple(read))
        reach, shift = self.reach, self.shift
        return replace(
            self,
            facts=tuple(facts),
            reach=None if reach is None else tuple(reach[at] for at in rows),
            shift=shift if shift is None or shift.ndim == 1 or len(shift) == 1 else shift[rows],
        ), rows


@dataclass(frozen=True)
class OptimisedDelta:
    """The optimised δ (float32, size p) and the total loss at every evaluation. `said`: the search ended since the
    target was the most probable."""

    delta: Float[Tensor, " p"]
    losses: tuple[float, ...]
    said: bool = False

    def record(self) -> dict[str, float]:
        """How it went, for the record of an edit."""
        return {
            "loss_first": self.losses[0],
            "loss_last": self.losses[-1],
            "steps": float(len(self.losses)),
            "delta_norm": float(self.delta.norm()),
        }


@dataclass(frozen=True)
class Objective:
    """Which final hidden states the losses read, as (row, column from the anchor on) pairs, and what they make of them,
    for the contexts of f facts one after the other (n rows) and for their f KL prompts."""

    fact_of_row: Int[Tensor, " n"]
    reach: Float[Tensor, "n 1"]
    shift: Float[Tensor, "n p"] | None  # None: of no row
    row: Int[Tensor, " m"]
    column: Int[Tensor, " m"]
    target: Int[Tensor, " m"]
    weight: Float[Tensor, " m"]
    kl_column: Int[Tensor, " f"]

    @classmethod
    def of(cls, groups: Sequence[Group], kl_position: str, device: torch.device) -> Objective:
        """The losses over the prompts of every group: of its facts each as much, and of a fact's phrasings."""
        reads, kl, reach, shifts, facts = [], list[int](), list[float](), [], list[int]()
        for index, group in enumerate(groups):
            weights = [
                1 / (len(phrasings) * len(contexts))
                for phrasings in group.facts
                for contexts in phrasings
                for _ in contexts
            ]
            for row, (prompt, weight) in enumerate(zip(group[:-1], weights, strict=True), len(facts)):
                length = len(prompt.ids) - prompt.target_start
                for position in range(prompt.target_start, len(prompt.ids)):
                    column = position - 1 - prompt.subject_last
                    reads.append((row, column, prompt.ids[position], weight / length))
            last = group.kl
            kl.append(0 if kl_position == "subject" else len(last.ids) - 1 - last.subject_last)
            reach += group.reach or [1.0] * (len(group) - 1)
            if group.shift is not None:
                shifts.append(group.shift.expand(len(group) - 1, -1))
            facts += [index] * (len(group) - 1)
        return cls(
            torch.tensor(facts, device=device),
            torch.tensor(reach, device=device)[:, None],
            torch.cat(shifts).to(device) if shifts else None,  # ROME's one group has one, MEMIT's none
            *(torch.tensor(each, device=device) for each in (*zip(*reads, strict=True), kl)),
        )

    @property
    def columns(self) -> int:
        """How many columns of the contexts the losses read from the anchor on, the last one included."""
        return int(self.column.max()) + 1

    def added(self, delta: Float[Tensor, "f p"]) -> Float[Tensor, "n p"]:
        """What every context is given of its group's δ."""
        rows = delta[self.fact_of_row.to(delta.device)]
        rows = rows if self.shift is None else rows + self.shift.to(delta.device)
        return rows * self.reach.to(delta.device)

    def log_probabilities(
        self, model: EditableModel, hidden: Float[Tensor, "n s d"], of_kl: Float[Tensor, "f s d"]
    ) -> tuple[Tensor, Tensor]:
        """log P at every read position (m×vocab) and at every fact's KL position (f×vocab), float32; logits nowhere
        else."""
        device = hidden.device
        read = hidden[self.row.to(device), self.column.to(device)]
        kept = of_kl[torch.arange(len(of_kl), device=device), self.kl_column.to(device)]
        log_p = head_logits(model, torch.cat([read, kept])).float().log_softmax(-1)
        return log_p[: len(self.row)], log_p[len(self.row) :]

    def nll(self, log_p: Float[Tensor, "m vocab"]) -> Float[Tensor, " f"]:
        """Mean over a fact's contexts of NLL(o*)/|o*|."""
        device = log_p.device
        each = -log_p.gather(1, self.target.to(device)[:, None])[:, 0] * self.weight.to(device)
        total = torch.zeros(len(self.kl_column), dtype=each.dtype, device=device)
        return total.index_add(0, self.fact_of_row[self.row].to(device), each)

    def most_probable(self, log_p: Float[Tensor, "m vocab"]) -> list[bool]:
        """Of every fact, whether every token of every target is the most probable one, in every context."""
        missed = (log_p.argmax(1) != self.target.to(log_p.device)).to(self.fact_of_row.device)
        total = torch.zeros(len(self.kl_column), dtype=torch.long, device=missed.device)
        return (total.index_add(0, self.fact_of_row[self.row], missed.long()) == 0).tolist()


class Evaluations:
    """The forwards of the steps for the groups in hand: what each evaluation reads of their contexts (`step_prefixes`),
    and the KL prompts, whose few columns are a batch of their own. Rows as `optimise` has them."""

    def __init__(
        self, model: EditableModel, groups: Sequence[Group], rows: AlignedPrompts, run: PrefixRun,
        hparams: LatentHparams,
    ) -> None:  # fmt: skip
        self._model, self._groups, self._rows, self._run, self._hparams = model, groups, rows, run, hparams
        number = hparams.step_prefixes
        most = max(len(contexts) - 1 for group in groups for phrasings in group.facts for contexts in phrasings)
        self._turns = 1 if number is None or not 0 < number < most else most
        self._made: dict[int, tuple[Objective, Steps]] = {}
        last = [stop - 1 for _, stop in rows_of(groups)]
        self._kl = self._steps(last, int(self.objective(0).kl_column.max()) + 1)

    def objective(self, evaluation: int) -> Objective:
        return self._of(evaluation % self._turns)[0]

    def __call__(self, evaluation: int, delta: Float[Tensor, "f p"]) -> tuple[Tensor, Tensor]:
        """log P where the losses of this evaluation (from 0) read it, of `Objective.log_probabilities`."""
        objective, steps = self._of(evaluation % self._turns)
        return objective.log_probabilities(self._model, steps(objective.added(delta)), self._kl(delta))

    def _of(self, turn: int) -> tuple[Objective, Steps]:
        if turn not in self._made:
            turns = [group.turn(turn, self._hparams.step_prefixes) for group in self._groups]
            objective = Objective.of([one for one, _ in turns], self._hparams.kl_position, self._rows.ids.device)
            firsts = [first for first, _ in rows_of(self._groups)]
            index = [first + row for first, (_, rows) in zip(firsts, turns, strict=True) for row in rows]
            self._made[turn] = objective, self._steps(index, objective.columns)
        return self._made[turn]

    def _steps(self, index: list[int], columns: int) -> Steps:
        at = torch.tensor(index, device=self._rows.ids.device)
        rows, run = self._rows.select(at), self._run.select(at)
        return Steps(self._model, rows, run, columns, frozen=self._hparams.frozen_prefix)


def optimise(
    model: EditableModel,
    groups: Sequence[Group],
    rows: AlignedPrompts,
    run: PrefixRun,
    start: Float[Tensor, "f p"],
    hparams: LatentHparams,
    *,
    arithmetic: EditableModel | None = None,
) -> list[OptimisedDelta]:
    """Minimise mean NLL(o*)/|o*| + kl_factor·KL(P_δ ‖ P₀) + v_weight_decay·‖δ‖/‖start‖² over each fact's δ, by the
    rule `v_step` (`tether.editors.steps`; the papers: Adam).

    `rows` are the groups' prompts in order, `run` their full forward; δ is added after block `run.layer`; `start` is
    v₀ (ROME) or h (MEMIT) at the bare prompt. At most `v_num_grad_steps` evaluations, so one step fewer; after
    each step δ is clamped to clamp_norm_factor·‖start‖; below `loss_threshold` a fact is done and its rows are dropped.
    So it is at the evaluation that finds every token of its target the most probable for the `most_probable`-th time
    (ENCORE's early stopping, https://arxiv.org/abs/2502.01636). With `step_prefixes` an evaluation reads some contexts
    alone, and its loss, and whether a fact is done, are of those.
    `arithmetic` is a copy of the model in another dtype for the steps. Gradients are taken with respect to δ alone. The
    model is not changed.
    """
    stepper = arithmetic or model
    evaluations = Evaluations(stepper, groups, rows, run, hparams)
    with torch.no_grad():  # P₀
        last = torch.tensor([stop - 1 for _, stop in rows_of(groups)], device=run.last.device)
        at_last = run.last[last, evaluations.objective(0).kl_column.to(run.last.device)]
        before = head_logits(model, at_last).float().log_softmax(-1)
    norms = start.float().norm(dim=1)
    delta = torch.zeros_like(start, dtype=torch.float32)
    rule = RULES[hparams.v_step](hparams, delta)
    active = list(range(len(groups)))
    losses: list[list[float]] = [[] for _ in groups]
    times_said = [0] * len(groups)
    found: dict[int, Tensor] = {}
    # Facts that share a δ need as many steps as they would have taken one after another.
    limits = [hparams.v_num_grad_steps * group.edited for group in groups]
    for evaluation in range(1, max(limits) + 1):
        delta.requires_grad_(True)
        objective = evaluations.objective(evaluation - 1)
        log_p, log_kl = evaluations(evaluation - 1, delta)
        kl = (log_kl.exp() * (log_kl - before)).sum(1)
        output = (objective.nll(log_p) + hparams.kl_factor * kl).to(delta.device)
        loss = output + hparams.v_weight_decay * delta.norm(dim=1) / norms**2
        values = loss.tolist()
        at_end = [evaluation == limits[fact] for fact in active]
        if hparams.most_probable:
            for fact, said in zip(active, objective.most_probable(log_p), strict=True):
                times_said[fact] += said
        stopped = [times_said[fact] >= hparams.most_probable > 0 for fact in active]
        below = [value < hparams.loss_threshold for value in values]
        done = [any(why) for why in zip(at_end, below, stopped, strict=True)]
        for index, fact in enumerate(active):
            losses[fact].append(values[index])
            if done[index]:
                found[fact] = delta[index].detach().clone()
        if all(done):
            break
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        delta = delta.detach()
        if any(done):
            kept = torch.tensor([not d for d in done], device=delta.device).nonzero()[:, 0]
            spans = list(rows_of([groups[i] for i in active]))
            left = [row for i in kept.tolist() for row in range(*spans[i])]
            row_index = torch.tensor(left, device=rows.ids.device)
            active = [active[i] for i in kept.tolist()]
            rows, run = rows.select(row_index), run.select(row_index)
            evaluations = Evaluations(stepper, [groups[i] for i in active], rows, run, hparams)
            before = before[kept.to(before.device)]
            delta, gradient, norms, loss = (x[kept] for x in (delta, gradient, norms, loss))
            rule.keep(kept)
        delta = rule.step(delta, gradient, loss.detach(), norms)
        delta *= (hparams.clamp_norm_factor * norms / delta.norm(dim=1)).clamp(max=1)[:, None]
    enough = [times >= hparams.most_probable > 0 for times in times_said]
    return [OptimisedDelta(found[i], tuple(losses[i]), enough[i]) for i in range(len(groups))]


def within_memory(
    model: EditableModel, groups: Sequence[Group], layer: int, hparams: LatentHparams, gigabytes: float
) -> Iterator[list[int]]:
    """Facts, by index, in micro-batches whose steps keep at most about `gigabytes` for the backward pass (one fact at
    least). Facts of like lengths go together, so that little is padded; what a token costs is measured on the longest
    fact."""
    if len(groups) == 1:
        yield [0]
        return
    cpu = torch.device("cpu")
    sizes = [  # columns the losses read, columns before the anchor, rows of a step
        (
            Objective.of([group], hparams.kl_position, cpu).columns,
            max(p.subject_last for p in group),
            len(group.turn(0, hparams.step_prefixes)[1]),
        )
        for group in groups
    ]
    order = sorted(range(len(groups)), key=sizes.__getitem__)
    columns, before, n = sizes[order[-1]]
    saved, cached = _bytes_of_a_step(model, groups[order[-1]], layer, hparams)
    of_column, of_prefix = saved / (n * columns), cached / max(1, n * before)
    batch: list[int] = []
    for fact in order:
        members = [sizes[i] for i in (*batch, fact)]
        n, before = sum(rows for _, _, rows in members), max(before for _, before, _ in members)
        tokens = n * sizes[fact][0]  # the widest comes last
        padding = tokens - sum(columns * rows for columns, _, rows in members)
        too_large = tokens * of_column + n * before * of_prefix > gigabytes * 1e9
        if batch and (too_large or padding > max(_PADDED, tokens * _PADDED_SHARE)):
            yield batch
            batch = []
        batch.append(fact)
    yield batch


def _bytes_of_a_step(model: EditableModel, group: Group, layer: int, hparams: LatentHparams) -> tuple[int, int]:
    """Bytes one fact's step keeps for its backward pass, and those of its cached prefix."""
    rows = align(group, model.device)
    run = full_forward(model, rows, layer)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.hf.parameters()}
    kept: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own node keeps would never be freed

    evaluations = Evaluations(model, [group], rows, run, hparams)
    delta = torch.zeros(1, model.hidden_size, device=model.device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        log_p, log_kl = evaluations(0, delta)
        held = evaluations.objective(0).nll(log_p).sum() + log_kl.sum()
    del held
    cached = sum(2 * layer.keys.untyped_storage().nbytes() for layer in run.cache.layers) if run.cache else 0
    return sum(kept.values()), cached


def merged(groups: Sequence[Group]) -> Group:
    """One group of facts that share a δ; what each of them keeps is kept once, unless it is edited."""
    edited = tuple(phrasings for group in groups for phrasings in group.facts[: group.edited])
    asked = {contexts[0].asked for phrasings in edited for contexts in phrasings}
    others = (phrasings for group in groups for phrasings in group.facts[group.edited :])
    left = (tuple(contexts for contexts in phrasings if contexts[0].asked not in asked) for phrasings in others)
    kept = dict.fromkeys(phrasings for phrasings in left if phrasings)
    return Group((*edited, *kept), groups[0].kl, edited=len(edited))


def rows_of(groups: Sequence[Sequence[EncodedPrompt]]) -> list[tuple[int, int]]:
    """First and last-plus-one row of every group."""
    return list(pairwise(accumulate((len(group) for group in groups), initial=0)))
