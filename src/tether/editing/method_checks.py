"""The contract of a method, as small checks: every method of tether passes them, and so should one of another package.

    from tether.editing.method_checks import check_method
    check_method(METHOD, model, facts)                       # AssertionError says what is broken

Use a tiny model of each layout (Linear as Llama's, Conv1D as GPT-2's) and four or more facts that the method can edit.
A check is a function of a `Case`; `CHECKS` lists them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tether.editing.loop import propose
from tether.editing.plan import EditPlan, Schedule
from tether.editing.prepare import new_header, recorded_moments, trained_editor
from tether.editors import Batch, BatchEditor, Context, EditFailedError, EditSkippedError, Method, Proposal
from tether.editors.corpus import Corpus
from tether.editors.settings import Hparams
from tether.errors import BadSettingsError
from tether.evaluation.scores import score
from tether.facts.fact import Fact
from tether.ledger import Attempt, Header, Ledger
from tether.ledger.history import LedgerHistory
from tether.models.editable import EditableModel


@dataclass(frozen=True)
class Case:
    """A method, the model and facts it is checked on, and all its edits need."""

    method: Method
    model: EditableModel
    facts: Sequence[Fact]
    header: Header
    context: Context

    @classmethod
    def of(
        cls, method: Method, model: EditableModel, facts: Sequence[Fact], *, settings: dict[str, Any] | None = None,
        editor: Path | None = None,
    ) -> Case:  # fmt: skip
        """`settings` go over those for the model; `editor` is the file of a trained editor. Moments are of a little
        text of the model's own."""
        plan = EditPlan(method=method.name, settings=settings, editor=editor)
        trained, q = trained_editor(model, method, plan), model.weight(model.weight_name(0)).shape[1]
        text = Corpus.parse(f"self:{8 * q}", window=64)
        header = new_header(model, method, plan, Schedule(), trained, text=text)
        hparams, network = method.settings.model_validate(header.settings), trained and trained.network
        return cls(
            method, model, facts, header, Context(hparams, header.prefixes, recorded_moments(model, header), network)
        )

    @property
    def weights(self) -> list[str]:
        return self.method.editor().weights(self.model, self.context.hparams)

    @property
    def together(self) -> int:
        """How many facts one proposal is asked for."""
        return 2 if isinstance(self.method.editor(), BatchEditor) else 1

    def batch(self, facts: Sequence[Fact], context: Context | None = None, editor: Any = None) -> Batch:
        """What an editor (None: a new one) proposes: for all facts together, or for the first."""
        editor = editor or self.method.editor()
        together = facts if isinstance(editor, BatchEditor) else facts[:1]
        return propose(editor, self.model, together, context or self.context)

    def proposal(self, facts: Sequence[Fact], context: Context | None = None, editor: Any = None) -> Proposal:
        """The same, where every fact can be edited."""
        batch = self.batch(facts, context, editor)
        failed = [outcome for outcome in batch.outcomes if isinstance(outcome, EditFailedError)]
        assert batch.proposal is not None and not failed, f"give facts that the method can edit: {failed}"
        return batch.proposal

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Checks that the model and the random state are as before after the block."""
        before, carried, drawn = _state(self.model), self.model.edited, torch.random.get_rng_state()
        yield
        assert _equal(before, _state(self.model)), "the model's weights are as before"
        assert self.model.edited == carried, "the model carries what it carried before"
        assert torch.equal(torch.random.get_rng_state(), drawn), "the random state is as before"
        for name, module in self.model.hf.named_modules():
            hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
            assert not hooked, f"{name}: no hook and no replaced forward is left"
        assert not any(p.requires_grad or p.grad is not None for p in self.model.hf.parameters()), "no gradient is left"


# --- checks ---------------------------------------------------------------------------------------------------------


def check_description(case: Case) -> None:
    """A name for the command line, a paper with a link, a summary on one line."""
    method = case.method
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", method.name), f"name {method.name!r}: small letters, digits, '-'"
    assert "https://" in method.paper and "\n" not in method.paper, "paper: a title and its link"
    assert re.fullmatch(".{1,100}", method.summary), "summary: one line of at most 100 characters"
    assert ("editor" in method.needs) == (method.open_trained is not None), "open_trained goes with the need 'editor'"


def check_settings(case: Case) -> None:
    """Settings come back from JSON as they were, are frozen, and refuse an unknown key."""
    kind, hparams = case.method.settings, case.context.hparams
    assert issubclass(kind, Hparams) and isinstance(hparams, kind), "settings: a class of Hparams"
    assert kind.model_validate_json(hparams.model_dump_json()) == hparams, "settings: the same after JSON"
    refused: list[dict[str, Any]] = [{"no_such_setting": 1}, {"layers": []}]
    for broken in refused:
        try:
            kind.model_validate({**hparams.model_dump(), **broken})
        except ValueError:
            continue
        raise AssertionError(f"settings: {broken} must be refused")


def check_weights(case: Case) -> None:
    """The weights it names are matrices of the model."""
    names = case.weights
    assert names and len(set(names)) == len(names), "weights: each once, at least one"
    assert all(case.model.weight(name).ndim == 2 for name in names), "weights: matrices of the model"


def check_proposal(case: Case) -> None:
    """Updates are finite, float32, of the weights' shapes, and of no other weights; vectors fit them."""
    batch, edited = case.batch(case.facts), len(case.facts)
    proposal = case.proposal(case.facts)
    assert proposal.updates and set(proposal.updates) <= set(case.weights), "updates: of weights that `weights` names"
    for name, update in proposal.updates.items():
        shape = tuple(case.model.weight(name).shape)
        assert update.shape == shape, f"{name}: the update is {update.shape}, the weight {shape}"
        assert update.A.dtype == update.B.dtype == torch.float32, f"{name}: factors in float32"
        assert update.A.isfinite().all() and update.B.isfinite().all(), f"{name}: finite factors"
        assert update.norm() > 0, f"{name}: an update that is not zero"
        if case.together > 1 and not batch.whole:
            assert update.rank == sum(batch.columns or [1] * edited), f"{name}: the columns of every edited fact"
            assert {f"{name}/K", f"{name}/H"} <= proposal.vectors.keys(), f"{name}: K and H for an undo"
    for key, vector in proposal.vectors.items():
        name, kind = key.rsplit("/", 1)
        assert name in proposal.updates and kind in ("K", "V", "H"), f"vectors {key!r}: <weight>/K, /V or /H"
        p, q = proposal.updates[name].shape
        width = {"K": q, "V": p, "H": edited}[kind]
        assert vector.shape[-1] == width and vector.isfinite().all(), f"vectors {key!r}: finite, {width} wide"


def check_pure(case: Case) -> None:
    """A proposal changes nothing: no weight, no hook, no random state; also on a model that carries edits."""
    updates = case.proposal(case.facts).updates
    with case.model.provisional({name: replace(u, B=-0.5 * u.B) for name, u in updates.items()}), case.unchanged():
        case.batch(case.facts)
    with case.unchanged():
        case.batch(case.facts)


def check_deterministic(case: Case) -> None:
    """The same editor again, and a new one, propose the same bits."""
    editor = case.method.editor()
    first, *others = (case.proposal(case.facts, editor=one).updates for one in (editor, editor, None))
    for other in others:
        for name, update in first.items():
            same = torch.equal(update.A, other[name].A) and torch.equal(update.B, other[name].B)
            assert same, f"{name}: the same bits for the same fact and model"


def check_the_target_gets_likelier(case: Case) -> None:
    """With the proposal on top, the model says the new object of the first fact with a smaller loss."""
    pair = (case.facts[0].text, case.facts[0].target)
    (before,) = score(case.model, [pair], join="")
    with case.model.provisional(case.proposal(case.facts[: case.together]).updates):
        (after,) = score(case.model, [pair], join="")
    assert after.log_likelihood > before.log_likelihood, f"{pair[0]!r} -> {pair[1]!r}: no likelier than before"


def check_a_failing_fact_is_named(case: Case) -> None:
    """A prompt longer than the model takes fails with one line that names it; the facts beside it are edited."""
    if case.model.limit is None:
        return
    start = "A prompt without an end"
    long = case.facts[0].model_copy(update={"prompt": f"{start} {'and so on ' * case.model.limit}{{}} is"})
    with case.unchanged():
        batch = case.batch([long, *case.facts[1:]])
    if case.together > 1:
        assert len(batch.outcomes) == len(case.facts), "outcomes: one for every fact"
        assert batch.proposal is not None, "the facts beside a failing one are edited"
    failed = batch.outcomes[0]
    assert isinstance(failed, EditFailedError), "a prompt longer than the model takes must fail"
    assert not isinstance(failed, EditSkippedError), "a failing fact is not a known one"
    assert "\n" not in str(failed) and start in str(failed), f"one line that names the fact, not {str(failed)!r}"


def check_undo(case: Case) -> None:
    """Through a ledger: the undo of an edit is exact, and the history says what is live. Facts that share one update
    are undone together, and a part of them is refused."""
    model, size = case.model, case.together
    before = _state(model)
    with tempfile.TemporaryDirectory() as folder, model.provisional({}):
        ledger, alone = (Ledger.create(Path(folder) / name, case.header) for name in ("both", "alone"))
        history, numbers = LedgerHistory(ledger), range(1, 2 * size + 1)
        for facts in (case.facts[:size], case.facts[size : 2 * size]):
            ledger.apply(model)
            batch = case.batch(facts, replace(case.context, history=history))
            _append(ledger, facts, batch)
        _append(alone, facts, batch)
        whole = batch.whole and size > 1
        if whole:
            with suppress(BadSettingsError):
                ledger.undo(numbers[0])
            assert history.edits == tuple(numbers), "the undo of a part of what facts share is refused"
        for edits in [numbers[:size]] if whole else [numbers[at : at + 1] for at in range(size)]:
            ledger.undo(*edits)
            ledger.apply(model)
            assert all(value.isfinite().all() for value in _state(model).values()), "finite after an undo"
            assert history.edits == tuple(numbers[edits[-1] :]), f"the history after the undo of {edits[-1]}"
            for name in case.weights:
                p, q = model.weight(name).shape
                keys, residuals, rows = history.keys(name), history.residuals(name), history.rows(name)
                assert history.updates(name).shape == (p, q), f"{name}: the history's update"
                fits = keys.shape == (len(rows), q) and residuals.shape == (len(rows), p)
                assert fits, f"{name}: a row for every key"
                assert set(rows) <= set(history.edits), f"{name}: rows of live edits"
                assert residuals.isfinite().all(), f"{name}: finite residuals"
        after = _state(alone.apply(model))
        assert _equal(after, _state(ledger.apply(model))), "an undo: as if the edit had not been added"
        ledger.undo(*numbers[size:])
        assert _equal(before, _state(ledger.apply(model))), "every edit undone: the model's own bits"


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_description,
    check_settings,
    check_weights,
    check_proposal,
    check_pure,
    check_deterministic,
    check_the_target_gets_likelier,
    check_a_failing_fact_is_named,
    check_undo,
)


def check_method(
    method: Method, model: EditableModel, facts: Sequence[Fact], *, settings: dict[str, Any] | None = None,
    editor: str | Path | None = None,
) -> None:  # fmt: skip
    """Run every check. Raises AssertionError that names the method, the check and the rule. The model is as before.

    `settings` go over those that the method has for the model, for fewer steps; `editor` is the file of a method that
    edits with a trained one.
    """
    case = Case.of(method, model, facts, settings=settings, editor=None if editor is None else Path(editor))
    for check in CHECKS:
        try:
            check(case)
        except AssertionError as error:
            raise AssertionError(f"{method.name}, {check.__name__}: {error}") from error


def _state(model: EditableModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _append(ledger: Ledger, facts: Sequence[Fact], batch: Batch) -> None:
    assert batch.proposal is not None, f"give facts that the method can edit: {batch.outcomes}"
    updates = {name: update.to("cpu", torch.float32) for name, update in batch.proposal.updates.items()}
    columns = [0] * len(facts) if batch.whole else batch.columns or [1] * len(facts)
    attempts = [Attempt("edit", fact, {}, columns=own) for fact, own in zip(facts, columns, strict=True)]
    with ledger.writing():
        ledger.append(attempts, updates, batch.proposal.vectors)
