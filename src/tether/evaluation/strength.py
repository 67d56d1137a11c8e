"""How strong: the search that `auto` stands for, of λ of a solve and of the strength of a PRUNE restraint.

Every strength is put on the model and asked two things: how many calibration facts are said, and the perplexity of the
built-in text. Of the strengths that keep the floor, the one with most facts said is taken.

`log:auto` and `linear:auto` try strengths by what they leave. With σ̂ the largest singular value of the sums (as a
multiple of m, over the weights) the share f of its excess over m is kept:

    log:    m + log_α(σ̂/m) = m + f (σ̂ − m),   so α = exp(ln(σ̂/m) / (f (σ̂ − m)))
    linear: m + (σ̂ − m)/β  = m + f (σ̂ − m),   so β = 1/f
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tether.algebra.lowrank import LowRank
from tether.constraints.prune import Linear, Log, Restraint
from tether.errors import BadSettingsError
from tether.evaluation.abilities.perplexity import builtin_text, perplexity
from tether.evaluation.scores import score
from tether.facts.chat import render
from tether.facts.fact import Fact
from tether.ledger import Ledger
from tether.models.editable import EditableModel

logger = logging.getLogger(__name__)

AUTO = re.compile(r"(?<![\w+])(?:log|linear):auto(?![\w.+])")
FLOOR = 98.0  # percent of the unedited perplexity
_CALIBRATION = 60  # facts that are asked, spread over all
_SHARES = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)  # of the largest excess over m, that a restraint leaves
_USUAL = {"log": 1.2, "linear": 2.0}  # where there is no excess, and every strength does the same


@dataclass(frozen=True)
class Tried:
    """One strength: percent of the calibration facts that are said, and perplexity as a multiple of the unedited."""

    strength: float
    alive: float
    perplexity: float


@dataclass(frozen=True)
class Found:
    """The restraint that `written`, as `log:auto`, came to: from `facts` calibration facts and a `floor` in percent."""

    written: str
    restraint: Restraint
    facts: int
    floor: float
    curve: tuple[Tried, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "restraint": str(self.restraint)}

    def line(self) -> str:
        """For a journal: what was tried, and on what."""
        tried = ", ".join(f"{one.strength:g}: {one.alive:.1f} %, × {one.perplexity:.3f}" for one in self.curve)
        what = f"{self.written}, floor {self.floor:g} % of the unedited perplexity, {self.facts} facts"
        return f"{what} (strength: said, perplexity; {tried})"


def search(
    model: EditableModel, facts: Sequence[Fact], states: Iterable[tuple[float, Mapping[str, LowRank]]], floor: float,
    name: str,
) -> tuple[Tried, ...]:  # fmt: skip
    """The curve of every strength (called `name`) with the updates that it makes of the unedited model. At most 60 of
    the `facts`, spread over all, are asked. The model carries afterwards what it carried before."""
    some, text = calibration(facts), builtin_text()
    texts = [render(model.tokenizer, fact.asked[0]) for fact in some]
    pairs = [(one, fact.continuation(one, fact.target_new)) for one, fact in zip(texts, some, strict=True)]
    curve = []
    with model.unedited():
        unedited = perplexity(model, text).value
        for strength, updates in states:
            with model.provisional(updates):
                alive = [all(one.argmax_correct) for one in score(model, pairs, join="")]
                ratio = perplexity(model, text).value / unedited
            curve.append(Tried(strength, 100 * sum(alive) / len(alive), ratio))
            logger.info("%s %.4g: %.1f %% said, perplexity × %.3f", name, strength, curve[-1].alive, ratio)
    if curve and not any(one.perplexity <= 100 / floor for one in curve):
        logger.warning("no strength keeps %g %% of the unedited perplexity: the one nearest to it is taken", floor)
    return tuple(curve)


def chosen(curve: Sequence[Tried], floor: float) -> float:
    """Of those that keep the floor the one with most facts said, the strongest of equals; else the least damaging."""
    good = [one for one in curve if one.perplexity <= 100 / floor]
    if good:
        return max(good, key=lambda one: (one.alive, one.strength)).strength
    return min(curve, key=lambda one: one.perplexity).strength


def calibration(facts: Sequence[Fact]) -> Sequence[Fact]:
    """The facts that are asked for every strength."""
    return facts[:: -(-len(facts) // _CALIBRATION) or 1]


def find_restraint(
    model: EditableModel, sums: Mapping[str, LowRank], m: Mapping[str, float], facts: Sequence[Fact], written: str, *,
    floor: float = FLOOR,
) -> Found:  # fmt: skip
    """What `log:auto` or `linear:auto` comes to for these sums of updates, `m` being σ_max of every unedited weight.
    The model carries afterwards what it carried before. Raises BadSettingsError without facts to ask."""
    if not facts:
        raise BadSettingsError(f"{written}: there is no fact to ask, which a strength is found by; write a number")
    kind = written.partition(":")[0]
    parts = {name: (*held.svd(), m[name]) for name, held in sums.items() if held.rank}
    values = [(float(s[0]), top) for _, s, _, top in parts.values()]
    largest, top = max(values, key=lambda pair: pair[0] / pair[1], default=(0.0, 1.0))
    restraints = _candidates(kind, largest, top)

    def states() -> Iterator[tuple[float, dict[str, LowRank]]]:
        for strength, restraint in restraints.items():
            updates = {}
            for name, (u, s, vh, top) in parts.items():
                root = restraint(s, top).sqrt()
                updates[name] = LowRank(u * root, root[:, None] * vh).to(dtype=sums[name].A.dtype)
            yield strength, updates

    curve = search(model, facts, states(), floor, kind)
    strength = chosen(curve, floor)
    return Found(written, restraints[strength], len(calibration(facts)), floor, curve)


def find_restraint_of(
    ledger: Ledger, model: EditableModel, written: str, *, facts: Sequence[Fact] = (), upto: int | None = None,
    floor: float = FLOOR, recorded: bool = False,
) -> Found:  # fmt: skip
    """`find_restraint` for the sum of a ledger's live edits up to `upto`, on their facts; of imported updates, which
    have none, on the `facts` given. `recorded`: for the sum as the journal's own restraints left it."""
    own = [event.fact for event in ledger.live(upto) if event.fact is not None]
    sums = ledger.sums(upto, None if recorded else "none", model=model)
    held = {name: one.factors for name, one in sums.of.items()}
    return find_restraint(model, held, sums.m, own or facts, written, floor=floor)


def restrain_by(ledger: Ledger, model: EditableModel, found: Found) -> None:
    """Restrain the ledger's sum from now on, by what was found: its journal holds the number, and the curve as the
    reason. The model then carries the ledger."""
    with ledger.writing():
        sums = ledger.checked_sums(model)
        ledger.append_restraint(found.restraint, sums.restrain_recorded(found.restraint), found.line())
        sums.show(model)


def _candidates(kind: str, largest: float, m: float) -> dict[float, Restraint]:
    """The restraints to try by their strength, from weak to strong. `largest`: σ̂."""
    make = Log if kind == "log" else Linear
    if largest <= m * (1 + 1e-6):
        logger.info("no singular value of the sum is above m = %.4g: there is nothing to restrain", m)
        return {_USUAL[kind]: make(_USUAL[kind])}
    rate = math.log(largest / m) / (largest - m) if kind == "log" else None
    strengths = [_tidy(math.expm1(rate / share) if rate is not None else 1 / share - 1) for share in _SHARES]
    return {strength: make(strength) for strength in strengths}


def _tidy(excess: float) -> float:
    """1 + excess, with three digits of the excess."""
    return round(1 + excess, max(0, 2 - math.floor(math.log10(excess))))
