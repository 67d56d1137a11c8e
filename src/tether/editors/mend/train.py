"""Training MEND's network (Mitchell et al., 2022).

One step, for one fact: the gradient of its edit, through the network, is ΔW; then

    L = c_edit · L_e(W + ΔW) + c_loc · KL(P_W ‖ P_{W+ΔW})

with L_e the loss of the new answer to another wording and the KL on an unrelated text, and the gradient of L with
respect to the network alone. The model never changes: ΔW x is added to W x on the way.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tether.editors.mend.examples import Example, Reader, States, examples
from tether.editors.mend.file import (
    DataRecord,
    Look,
    Trained,
    TrainedRecord,
    open_trained,
    read_tensors,
    read_trained,
    write_tensors,
)
from tether.editors.mend.network import Hypernetwork, MendHparams, Pairs, gradient_pairs, mlp_weights, target_nll
from tether.editors.settings import settings_for
from tether.errors import TetherError
from tether.facts.formats import read_training_facts
from tether.facts.tokens import Continuation
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import keeps_keys
from tether.models.sampling import mixed_seed
from tether.storage.atomic import check_writable
from tether.storage.versions import versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is: edits done of all, means of the losses since the last look, the look just taken (None
    between looks), seconds left if it goes on to the last step."""

    step: int
    steps: int
    train_edit: float | None
    train_loc: float | None
    look: Look | None
    eta: float


@dataclass(frozen=True)
class Training:
    """What a training gave: the trained editor as it lies in the file, and the floating-point operations of one step,
    network included, as trained and by whole forwards of the model with logits everywhere."""

    trained: Trained
    flops: int
    flops_whole: int
    stopped_early: bool

    @property
    def work_ratio(self) -> float:
        return self.flops / self.flops_whole


def train_mend(
    model: EditableModel,
    train: str | Path,
    val: str | Path,
    out: str | Path,
    *,
    steps: int | None = None,
    settings: str | Path | Mapping[str, Any] | None = None,
    layers: Sequence[int] | None = None,
    train_limit: int | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
    prepared: Callable[[int, int], None] | None = None,
) -> Training:
    """Train MEND's network for a model and write the one with the lowest validation loss to `out`.

    `train` and `val` are files of facts, in any format that `edit` reads; `settings` are a JSON file or a mapping.
    `steps` (edits in all) goes over them, `train_limit` takes the first records. Training stops at `steps`, or when
    `patience` looks in a row were no better.

    Beside `out`, `<out>.training` holds the whole state at the last look: with `resume`, a training that was killed,
    stopped, or is to have more steps goes on from there and ends with the bytes of one never interrupted (same machine
    and thread count); with `lr_end` below 1 that holds for the same `steps` alone, since rates fall towards the last.
    `prepared` hears how many texts went through the lower blocks. The model must be unedited and is not changed.
    Raises TetherError for bad data, another model, a place that cannot be written, a loss that is not finite.
    """
    if model.edited:
        raise TetherError("the model carries edits: an editor is trained for the unedited model (load it again)")
    out = Path(out)
    check_writable(out)
    given = Path(settings) if isinstance(settings, str) else settings
    chosen = None if layers is None else tuple(layers)
    hparams: MendHparams = settings_for("mend", model, given=given, layers=chosen)[0]
    if steps is not None:
        if steps < hparams.accumulate:
            raise TetherError(
                f"steps {steps}: an optimiser's step takes {hparams.accumulate} edits; give at least that"
            )
        hparams = hparams.model_copy(update={"steps": steps})
    state = out.with_name(out.name + ".training")
    there = [path for path in (out, state) if path.exists()]
    if there and not resume:
        remedy = "go on with it (resume) or choose another name" if state in there else "choose another name"
        raise TetherError(f"{there[0]} exists: {remedy}")
    if there == [out] and (done := open_trained(out, model).record.step):
        raise TetherError(
            f"{out} is trained for {done} steps, and {state}, from which it would go on, is not there: bring it back, "
            "or choose another name"
        )
    data = _read(model, train, train_limit), _read(model, val, hparams.validation)
    states = None if cache is None else Path(cache)
    return _Training(model, hparams, *data, out, state, states, progress, prepared).go()


def _read(model: EditableModel, path: str | Path, limit: int | None) -> tuple[DataRecord, list[Example]]:
    path = Path(path)
    listed = examples(model, read_training_facts(path)[:limit])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DataRecord(name=path.name, sha256=digest, records=len(listed)), listed


@dataclass(frozen=True)
class Losses:
    """Of one edit: L_e and L_loc (differentiable), which target tokens the edited model says, and which of the tokens
    read on the unrelated text kept their argmax."""

    edit: Float[Tensor, ""]
    loc: Float[Tensor, ""]
    said: Bool[Tensor, " m"]
    kept: Bool[Tensor, " n"]

    def total(self, hparams: MendHparams) -> Float[Tensor, ""]:
        return hparams.c_edit * self.edit + hparams.c_loc * self.loc


def example_pairs(reader: Reader, names: Sequence[str], example: Example) -> dict[str, Pairs]:
    """The gradient of one example's edit."""
    targets = _targets(example.edit, reader.model)
    return gradient_pairs(reader.model, names, lambda: target_nll(reader.logits([example.edit])[0], targets))[1]


def edit_losses(network: Hypernetwork, reader: Reader, example: Example) -> Losses:
    """The losses of one example's edit, differentiable in the network."""
    updates = network(example_pairs(reader, network.names, example))
    again, after = reader.logits([example.again, example.loc], updates)
    before = reader.before(example.loc).float().log_softmax(-1)
    targets = _targets(example.again, reader.model)
    log_after = after.float().log_softmax(-1)
    kl = (before.exp() * (before - log_after)).sum(-1).mean()
    return Losses(
        target_nll(again, targets), kl, again.argmax(-1) == targets, log_after.argmax(-1) == before.argmax(-1)
    )


def _targets(text: Continuation, model: EditableModel) -> Tensor:
    return torch.tensor(text.ids[text.start :], device=model.device)


class _Training:
    """One call of `train_mend`."""

    def __init__(
        self, model: EditableModel, hparams: MendHparams, train: tuple[DataRecord, list[Example]],
        val: tuple[DataRecord, list[Example]], out: Path, state: Path, cache: Path | None,
        progress: Callable[[TrainingProgress], None] | None, prepared: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self.model, self.hparams, self.out, self.state, self.progress = model, hparams, out, state, progress
        self.train, self.val = train[1], val[1]
        names, first, states = mlp_weights(model, hparams.layers), hparams.layers[0], None
        if hparams.frozen_blocks and first > 0 and keeps_keys(model):
            states = States(model, first, [*self.train, *self.val], cache=cache, progress=prepared)
        self.reader = Reader(model, states)
        shapes = {name: (model.weight(name).shape[0], model.weight(name).shape[1]) for name in names}
        self.network = Hypernetwork(shapes, hparams).to(model.device)
        nets = [p for name, p in self.network.named_parameters() if name != "alpha"]
        self.optimizer = torch.optim.Adam([
            {"params": nets, "lr": hparams.lr}, {"params": [self.network.alpha], "lr": hparams.lr_lr},
        ])  # fmt: skip
        self.record = TrainedRecord(
            model=model.id, fingerprint=model.fingerprint(names), weights=shapes, settings=hparams,
            train=train[0], val=val[0], versions=versions(),
        )  # fmt: skip
        self.since: list[tuple[float, float]] = []  # losses of the steps since the last look
        self.last_step = hparams.steps - hparams.steps % hparams.accumulate
        epochs = range(math.ceil(hparams.steps / len(self.train)))
        self.order = [i for epoch in epochs for i in _shuffled(len(self.train), hparams.seed, epoch)]

    def go(self) -> Training:
        hparams, network = self.hparams, self.network
        if self.state.exists():
            self._restore()
        else:
            chosen = self.order[: min(hparams.statistics, len(self.train))]
            network.measure(example_pairs(self.reader, network.names, self.train[i]) for i in chosen)
            self._report(0)
        started, begun = time.monotonic(), self.record.step
        for step in range(begun, self.last_step, hparams.accumulate):
            best = self.record.best().step
            if sum(look.step > best for look in self.record.curve) >= hparams.patience:
                break
            # On a line from the settings' rates at step 0 to `lr_end` of them at the last step.
            share = 1 - (1 - hparams.lr_end) * step / self.last_step
            for group, rate in zip(self.optimizer.param_groups, (hparams.lr, hparams.lr_lr), strict=True):
                group["lr"] = rate * share
            done = step + hparams.accumulate
            for edit in range(step, done):
                self._edit(edit)
            torch.nn.utils.clip_grad_norm_(network.parameters(), hparams.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._report(done, (time.monotonic() - started) / (done - begun) * (self.last_step - done))
        tensors, content = read_tensors(self.out)
        best = self.record.best().step
        if content.get("step") != best:
            raise TetherError(
                f"{self.out} is not of step {best}, the best of {self.state}: remove both and train again"
            )
        write_tensors(self.out, tensors, {**self.record.model_dump(mode="json"), "step": best})  # with the whole curve
        trained = open_trained(self.out, self.model)
        return Training(trained, *self._work(), stopped_early=self.record.step < self.last_step)

    def _edit(self, step: int) -> None:
        """Forward and backward of one edit; gradients add up in the network."""
        losses = edit_losses(self.network, self.reader, self.train[self.order[step]])
        (losses.total(self.hparams) / self.hparams.accumulate).backward()
        values = losses.edit.item(), losses.loc.item()
        if not all(map(math.isfinite, values)):
            raise TetherError(f"the losses of step {step + 1} are {values[0]:g} and {values[1]:g}: give a smaller lr")
        self.since.append(values)

    def _report(self, step: int, eta: float = math.nan) -> None:
        """Say where the training is. When a look is due: validate, then write the editor if it is the best so far, then
        the state. A kill between the two leaves an editor of a look that the state does not know: resumed, it comes to
        the same look and writes the same bytes."""
        edit = loc = look = None
        if self.since:
            edit, loc = (math.fsum(values) / len(self.since) for values in zip(*self.since, strict=True))
        if step % self.hparams.validate_every == 0 or step == self.last_step:
            look = Look(step=step, train_edit=edit, train_loc=loc, **self._validated())
            self.record = self.record.model_copy(update={"step": step, "curve": (*self.record.curve, look)})
            if self.record.best().step == step:
                write_tensors(self.out, self.network.state_dict(), self.record.model_dump(mode="json"))
            self._save()
            self.since = []
        if self.progress:
            self.progress(TrainingProgress(step, self.last_step, edit, loc, look, eta))

    def _validated(self) -> dict[str, float]:
        """Every validation example edited alone: means over the examples of the losses and, token by token, of what is
        said and kept, under the names of `Look`."""
        with torch.no_grad():
            found = [edit_losses(self.network, self.reader, example) for example in self.val]
        edit, loc = (math.fsum(getattr(each, what).item() for each in found) / len(found) for what in ("edit", "loc"))
        said, kept = (torch.cat([getattr(each, what) for each in found]).tolist() for what in ("said", "kept"))
        loss = self.hparams.c_edit * edit + self.hparams.c_loc * loc
        return {
            "loss": loss, "edit": edit, "loc": loc, "accuracy": sum(said) / len(said), "kept": sum(kept) / len(kept)
        }  # fmt: skip

    def _save(self) -> None:
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for part, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{part}/{name}"] = value
        write_tensors(self.state, tensors, self.record.model_dump(mode="json"))

    def _restore(self) -> None:
        tensors, record = read_trained(self.state, self.model)
        free = {"steps": self.hparams.steps, "patience": self.hparams.patience}
        if record.settings.model_copy(update=free) != self.hparams:
            was, now = record.settings.model_dump(), self.hparams.model_dump()
            name = next(name for name in was if name not in free and was[name] != now[name])
            raise TetherError(
                f"{name} {now[name]}: the training in {self.state} has {was[name]}; give the same, only steps and "
                "patience may change"
            )
        for what in ("train", "val"):
            mine, its = getattr(self.record, what), getattr(record, what)
            if (mine.sha256, mine.records) != (its.sha256, its.records):
                raise TetherError(
                    f"{what} {mine.name} is not the {its.name} this training began with: give the same file"
                )
        self.record = record.model_copy(update={"settings": self.hparams})
        self.network.load_state_dict({k.removeprefix("network/"): v for k, v in tensors.items() if k[:8] == "network/"})
        parameters = dict(self.network.named_parameters())
        for key, value in tensors.items():
            if key.startswith("adam/"):
                _, part, name = key.split("/")
                kept = value if part == "step" else value.to(parameters[name].device)
                self.optimizer.state[parameters[name]][part] = kept
        logger.info("going on from step %d of %s", record.step, self.state)

    def _work(self) -> tuple[int, int]:
        """Floating-point operations of a step on the first training example, as trained and the whole way."""
        counts = []
        for reader in (self.reader, Reader(self.model, None)):
            with FlopCounterMode(display=False) as counter:
                edit_losses(self.network, reader, self.train[0]).total(self.hparams).backward()
            counts.append(counter.get_total_flops())
        self.optimizer.zero_grad(set_to_none=True)
        return counts[0], counts[1]


def _shuffled(n: int, seed: int, epoch: int) -> list[int]:
    """The order of the examples in an epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch))).tolist()
