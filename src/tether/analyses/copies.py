"""Section 4 of the paper: the same edit N times over, whose largest singular value is N-fold."""

import math
from collections.abc import Sequence

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Spectrum
from tether.analyses.points import CopiesPoint
from tether.constraints.base import Constraint, constrained
from tether.constraints.prune import none
from tether.evaluation.abilities.run import PERPLEXITY, AbilityRun, ability_data, ability_tasks
from tether.evaluation.measurement import Measurement
from tether.evaluation.metrics.editing import evaluate_editing
from tether.facts.fact import Fact
from tether.ledger import Ledger
from tether.models import EditableModel

COPIES = (1, 2, 5, 10, 20, 50, 100)


def copies(model: EditableModel, ledger: Ledger, restraints: Sequence[Constraint]) -> list[CopiesPoint]:
    """N copies of one live edit of the ledger on the unedited model, without a restraint and under each of
    `restraints`. It is the edit nearest to the middle by norm of those whose fact is said with one copy; without one,
    the middle one. The perplexity is of the built-in text. Of several weights σ̂_max, δ_max and κ are the largest. Empty
    where there is no live edit. The model must carry nothing, and is left so."""
    edits = _from_the_middle(ledger)
    if not edits:
        return []
    edit, fact, update = next((one for one in edits if _efficacy(model, *one) == 100), edits[0])
    spectra = {name: Spectrum(model.original(name)) for name in update}
    delta_max = max(float(one.singular_values()[0]) for one in update.values())
    abilities = AbilityRun(model, ability_tasks([PERPLEXITY], ability_data()))

    def measured(carried: dict[str, LowRank]) -> tuple[float, float | None]:
        """Perplexity, and efficacy of the edit's own prompt."""
        with model.provisional(carried):
            return abilities.measure()[PERPLEXITY].value, _efficacy(model, edit, fact, carried)

    points, inputs = [], ledger.replay(model).inputs
    chosen = dict.fromkeys([none(), *restraints])
    first = {(one, name): one.init(*inputs[name]) for one in chosen for name in update}
    for number in COPIES:
        many = {name: LowRank(number * one.A, one.B) for name, one in update.items()}
        unrestrained = measured(many)
        for restraint in chosen:
            held = {name: constrained(one, restraint, first[restraint, name]) for name, one in many.items()}
            acts = any(held[name] is not many[name] for name in many)
            ppl, efficacy = measured(held) if acts else unrestrained
            points.append(CopiesPoint(
                copies=number, restraint=str(restraint), delta_max=delta_max, perplexity=ppl, efficacy=efficacy,
                update_sigma_max=max(float(one.singular_values()[0]) for one in held.values()),
                kappa=max(spectra[name].of(one).kappa for name, one in held.items()),
            ))  # fmt: skip
    return points


def _efficacy(model: EditableModel, edit: int, fact: Fact, carried: dict[str, LowRank]) -> float | None:
    """Share of the target's tokens that the model says with `carried`, percent."""
    with model.provisional(carried):
        found = evaluate_editing(model, [(edit, fact)], Measurement(metrics=("match",)))
        return found.summary["match_tokens"]["efficacy"].value


def _from_the_middle(ledger: Ledger) -> list[tuple[int, Fact, dict[str, LowRank]]]:
    """Number, fact (its own prompt alone) and update of every live edit, from the middle one by norm outwards."""
    bare = {"paraphrases": (), "locality": (), "instances": ()}
    found = [
        (event.edit, event.fact.model_copy(update=bare), ledger.factors(event))
        for event in ledger.live()
        if event.edit is not None and event.fact is not None
    ]
    found.sort(key=lambda one: (math.hypot(*(part.norm() for part in one[2].values())), one[0]))
    middle = len(found) // 2
    return [found[place] for place in sorted(range(len(found)), key=lambda place: (abs(place - middle), place))]
