"""Section 4 of the paper: the same edit N times over, whose largest singular value is N-fold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tether.evaluate.abilities import PERPLEXITY, AbilityRun, ability_tasks
from tether.evaluate.ability_data import ability_data
from tether.evaluate.editing import evaluate_editing
from tether.experiment.stored import CopiesPoint
from tether.facts.fact import Fact
from tether.ledger import Ledger
from tether.lowrank import LowRank
from tether.model import EditableModel
from tether.restraint import Restraint, none, restrain
from tether.spectrum import Spectrum

COPIES = (1, 2, 5, 10, 20, 50, 100)


def copies(model: EditableModel, ledger: Ledger, restraints: Sequence[Restraint]) -> list[CopiesPoint]:
    """N copies of one live edit of the ledger, the median by norm, on the unedited model, without a restraint and under
    each of `restraints`; the perplexity is of the built-in text. Of several weights σ̂_max, δ_max and κ are the largest.
    Empty where there is no live edit. The model must carry nothing, and is left so."""
    chosen = _median_edit(ledger)
    if chosen is None:
        return []
    edit, fact, update = chosen
    spectra = {name: Spectrum(model.original(name)) for name in update}
    delta_max = max(_sigma_max(one) for one in update.values())
    abilities = AbilityRun(model, ability_tasks([PERPLEXITY], ability_data()))

    def measured(carried: dict[str, LowRank]) -> tuple[float | None, float | None]:
        """Perplexity, and efficacy of the edit's own prompt."""
        with model.provisional(carried):
            ppl = abilities.measure()[PERPLEXITY].value
            tokens = evaluate_editing(model, [(edit, fact)], metrics=["match"]).summary["match_tokens"]
        return (ppl if math.isfinite(ppl) else None), tokens["efficacy"]["value"]

    points = []
    for number in COPIES:
        many = {name: LowRank(number * one.A, one.B) for name, one in update.items()}
        unrestrained = measured(many)
        for restraint in dict.fromkeys([none(), *restraints]):
            held = {name: restrain(one, ledger.header.weights[name].sigma_max, restraint) for name, one in many.items()}
            acts = any(held[name] is not many[name] for name in many)
            ppl, efficacy = measured(held) if acts else unrestrained
            kappa = max(spectra[name].of(one).kappa for name, one in held.items())
            points.append(
                CopiesPoint(
                    copies=number,
                    restraint=str(restraint),
                    update_sigma_max=max(_sigma_max(one) for one in held.values()),
                    delta_max=delta_max,
                    kappa=kappa if math.isfinite(kappa) else None,
                    perplexity=ppl,
                    efficacy=efficacy,
                )
            )
    return points


def _median_edit(ledger: Ledger) -> tuple[int, Fact, dict[str, LowRank]] | None:
    """Number, fact (its own prompt alone) and update of the live edit in the middle by norm; None for no live edit."""
    found = []
    for event in ledger.live():
        if event.edit is not None and event.fact is not None:
            update = ledger.factors(event)
            found.append((math.hypot(*(one.norm() for one in update.values())), event.edit, event.fact, update))
    if not found:
        return None
    _, edit, fact, update = sorted(found, key=lambda one: one[:2])[len(found) // 2]
    return edit, fact.model_copy(update={"paraphrases": (), "locality": (), "instances": ()}), update


def _sigma_max(update: LowRank) -> float:
    return float(update.singular_values()[0])
