"""Headroom: how much room a ledger's edits leave, in all and by relation, before anything is seen to break.

Of a weight with the keys K (n×q) of the live edits and M = KᵀC⁻¹K: a solve of all of them with λ answers its own key j
to the share [M (λI + M)⁻¹]_jj, and uses tr M (λI + M)⁻¹ of its q degrees of freedom. Damage begins earlier, among other
subjects of a relation: their keys lie near the edited ones. So what the sum adds to the output at such keys is measured
beside what it adds at the edited ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.joint_solve import ridge_of
from tether.editing.prepare import recorded_moments, recorded_settings
from tether.editors import editor as editor_of
from tether.editors.base import Context
from tether.editors.bystanders import keys_of
from tether.editors.memit import equality_ridge
from tether.editors.metric import Metric, cosines, of_model
from tether.errors import BadFactError, BadSettingsError
from tether.evaluation.statistics.mean import Number, cluster_mean
from tether.facts.bystanders import bystander_subjects, relation_of
from tether.facts.chat import template
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, encode, encode_fact
from tether.ledger import Ledger
from tether.ledger.ledger import Restrain
from tether.models import EditableModel
from tether.models.kinds import likeliest_kind

BYSTANDERS = 8  # subjects a relation that are looked at
_RANK = 1e-3  # of the largest eigenvalue, from which one counts


@dataclass(frozen=True)
class Room:
    """Of one weight: keys of the live edits and how many directions they span, out of q (`rank`: eigenvalues of the
    keys' Gram matrix in the metric of C, each key of length 1, above a thousandth of the largest; `condition` of it);
    `used`, percent of the q degrees of freedom that the solve of all of them takes; `left` and `most_left`, the mean
    and largest percent of a target that it leaves unwritten."""

    weight: str
    keys: int
    size: int
    rank: int
    condition: float
    used: float
    left: float
    most_left: float


@dataclass(frozen=True)
class Spill:
    """Of one relation: its live edits, the mean cosine, in percent, of a key with the nearest of another subject's (in
    the metric of C), and what the sum adds to the output, as percent of the output's norm, at the edited keys and at
    those of other subjects of the same prompts."""

    relation: str
    edits: int
    overlap: Number | None
    edited: Number
    bystanders: Number | None


@dataclass(frozen=True)
class Outlook:
    """Of a fact that is not edited yet: percent of its key that lies in the span of the live ones, the nearest live
    edit and their cosine."""

    fact: Fact
    inside: float
    nearest: int | None
    subject: str
    cosine: float


@dataclass(frozen=True)
class Headroom:
    """`rooms` by weight; `relations`, most spilt first, of the weight `weight`; `outlook` of the facts asked about."""

    edits: int
    weight: str
    rooms: tuple[Room, ...]
    relations: tuple[Spill, ...]
    outlook: tuple[Outlook, ...]

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        for one, outlook in zip(found["outlook"], self.outlook, strict=True):
            one["fact"] = outlook.fact.model_dump(mode="json", exclude_none=True)
        for one, spill in zip(found["relations"], self.relations, strict=True):
            for name in ("overlap", "edited", "bystanders"):
                value = getattr(spill, name)
                one[name] = value and value.model_dump()
        return found


def headroom(
    model: EditableModel, ledger: Ledger, facts: Sequence[Fact] = (), *, upto: int | None = None,
    restrain: Restrain = None, bystanders: int = BYSTANDERS,
) -> Headroom:  # fmt: skip
    """How much room the live edits leave, by weight and by relation, and how new `facts` would lie to them.

    The model carries afterwards what it carried before. Raises BadSettingsError for a ledger whose method keeps no
    keys, or that has no live edit.
    """
    ledger.check_model(model)
    header, hparams = ledger.header, recorded_settings(ledger.header)
    live = [e for e in ledger.live(upto) if e.fact is not None]
    moments = recorded_moments(model, header)
    layers = {model.weight_name(layer): layer for layer in moments}
    rows: list[int] = []
    stacked: dict[str, list[Tensor]] = {name: [] for name in layers}
    for place, event in enumerate(live):
        keys = ledger.vectors(event, "K")
        for name in layers:
            if name in keys:
                stacked[name].append(keys[name].double())
        rows += [place] * max((len(one) for one in keys.values()), default=0)
    names = [name for name, parts in stacked.items() if parts]
    if not names:
        why = "has no live edit" if not live else f"is of {header.method}, which keeps no keys of its edits"
        raise BadSettingsError(f"{ledger.path} {why}: headroom is measured on keys")
    context = Context(hparams, moments=moments)
    weight = float(getattr(hparams, "mom2_update_weight", 0) or 0)
    share = equality_ridge(editor_of(header.method), hparams)
    spans = {name: _Span.of(torch.cat(stacked[name]), of_model(context, layers[name]), weight, share) for name in names}
    last, place_of = names[-1], torch.tensor(rows)
    update = ledger.sums(upto, restrain, model=model).of[last].factors.to_dense().double()
    with model.unedited():
        ledger.apply(model, upto=upto, restrain=restrain)
        spills = _spills(model, live, spans[last], place_of, update, layers[last], bystanders)
        outlook = tuple(_outlook(model, fact, live, spans[last], place_of, layers[last]) for fact in facts)
    rooms = tuple(span.room(name) for name, span in spans.items())
    return Headroom(len(live), last, rooms, tuple(spills), outlook)


@dataclass(frozen=True)
class _Span:
    """Keys K (n×q), C⁻¹K as rows, M = KᵀC⁻¹K, and λ of a solve of all of them, float64."""

    K: Float[Tensor, "n q"]
    X: Float[Tensor, "n q"]
    M: Float[Tensor, "n n"]
    metric: Metric
    ridge: float

    @classmethod
    def of(cls, K: Float[Tensor, "n q"], metric: Metric, weight: float, equality_ridge: float | None) -> _Span:
        X = metric.solve(K)
        M = K @ X.mT
        M = (M + M.mT) / 2
        return cls(K, X, M, metric, max(ridge_of(M, weight=weight, equality_ridge=equality_ridge), 1e-12))

    def solved(self, right: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """(λI + M)⁻¹ times this."""
        return torch.linalg.solve(self.M + self.ridge * torch.eye(len(self.M), dtype=torch.float64), right)

    @property
    def sizes(self) -> Float[Tensor, " n"]:
        return self.M.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()

    def cosines(self, keys: Float[Tensor, "m q"]) -> Float[Tensor, "m n"]:
        """Of other keys with these, in the metric of C."""
        return cosines(keys, self.metric.solve(keys), self.K, self.X)

    def room(self, name: str) -> Room:
        values = torch.linalg.eigvalsh(self.M / (self.sizes[:, None] * self.sizes))
        shares = self.solved(self.M)
        left = 1 - shares.diagonal()
        return Room(
            name, len(self.K), self.K.shape[1], int((values > _RANK * values[-1]).sum()),
            float(values[-1] / values[0].clamp_min(torch.finfo(torch.float64).eps * float(values[-1]))),
            100 * float(shares.diagonal().sum()) / self.K.shape[1], 100 * float(left.mean()), 100 * float(left.max()),
        )  # fmt: skip


def _spills(
    model: EditableModel, live: Sequence[Any], span: _Span, place_of: Tensor, update: Float[Tensor, "p q"], layer: int,
    bystanders: int,
) -> list[Spill]:  # fmt: skip
    """By relation; of the model as it is."""
    original = model.original(model.weight_name(layer)).cpu().double()
    subjects = {" ".join(event.fact.subject.split()).casefold() for event in live}
    apart = span.cosines(span.K).abs()
    numbers = {key: number for number, key in enumerate({event.fact.subject_key for event in live})}
    subject_of = torch.tensor([numbers[event.fact.subject_key] for event in live])[place_of]
    apart[subject_of[:, None] == subject_of] = 0
    relations: dict[str, list[int]] = {}
    for place, event in enumerate(live):
        relations.setdefault(relation_of(event.fact), []).append(place)
    found = []
    for relation, places in relations.items():
        mine = torch.isin(place_of, torch.tensor(places))
        others = _bystander_keys(model, live[places[0]].fact, subjects, layer, bystanders)
        overlap = apart[mine][:, mine].max(1).values if len(places) > 1 else None
        found.append(
            Spill(
                relation,
                len(places),
                None if overlap is None else _number(overlap),
                _number(_change(span.K[mine], original, update)),
                _number(_change(others, original, update)) if len(others) else None,
            )
        )
    return sorted(found, key=lambda one: -(one.bystanders.value or 0.0) if one.bystanders else 0.0)


def _bystander_keys(
    model: EditableModel, fact: Fact, edited: set[str], layer: int, number: int
) -> Float[Tensor, "m q"]:
    """Keys of the fact's prompts asked of other subjects, none of them edited."""
    (kind,) = likeliest_kind(model, [fact])
    names = [
        n for n in bystander_subjects(fact, "measure", number + len(edited), kind=kind) if n.casefold() not in edited
    ]
    prompts: list[EncodedPrompt] = []
    for prompt in (fact.prompt, *fact.phrasings):
        for name in names[:number]:
            try:
                prompts.append(encode(model.tokenizer, template(model.tokenizer, prompt), name))
            except BadFactError:
                continue
    return keys_of(model, prompts, [layer])[layer]


def _change(
    keys: Float[Tensor, "m q"], original: Float[Tensor, "p q"], update: Float[Tensor, "p q"]
) -> Float[Tensor, " m"]:
    """The share of the output's norm that the update adds at every key."""
    before = (keys @ original.mT).norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return (keys @ update.mT).norm(dim=1) / before


def _outlook(
    model: EditableModel, fact: Fact, live: Sequence[Any], span: _Span, place_of: Tensor, layer: int
) -> Outlook:
    key = keys_of(model, [encode_fact(model.tokenizer, fact)], [layer])[layer]
    x = key @ span.X.mT
    inside = float((x @ span.solved(x.mT)) / (key @ span.metric.solve(key).mT))
    cosines = span.cosines(key)[0]
    best = int(cosines.argmax())
    event = live[int(place_of[best])]
    return Outlook(fact, 100 * inside, event.edit, event.fact.subject, float(cosines[best]))


def _number(values: Float[Tensor, " n"]) -> Number:
    return cluster_mean([value] for value in values.tolist())
