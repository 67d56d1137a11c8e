"""What else a ledger shows, besides its measured rows: the numbers behind the paper's figures 2, 5 and 15, table 1,
sections 3 and 4, and paired comparisons.

    analyse(model, ledger, ["spectrum", "values"], restraints=["none", "log:1.2"], at=[10, 100])
"""

import logging
from collections.abc import Callable, Sequence

from tether.analyses.bound import bound_rows
from tether.analyses.copies import copies
from tether.analyses.points import Analyses, BoundPoint, Difference, SpectrumPoint
from tether.analyses.values import values
from tether.constraints.base import AS_RECORDED, Constraint, parse
from tether.errors import TetherError
from tether.evaluation.results import Results
from tether.evaluation.statistics.compare import RowKey, compare_rows
from tether.ledger import Ledger
from tether.models import EditableModel

logger = logging.getLogger(__name__)

WANTED = ("spectrum", "values", "copies", "bound", "differences")

_POINTS = 50  # numbers of edits of the spectrum, about
_KEYS = 50  # of the bound
_WEIGHTS = 2  # of the bound; of more than so many the worst alone


def analyse(
    model: EditableModel,
    ledger: Ledger,
    wanted: Sequence[str],
    *,
    restraints: Sequence[str],
    at: Sequence[int],
    results: Results | None = None,
) -> Analyses:
    """The analyses `wanted` (of WANTED) under every restraint of `restraints`: as written for a command, or "as
    recorded", which replays the journal. The spectrum has every number of edits in `at`, and others between.

    `results` are for the differences, which are empty without them; so is the bound of a ledger without keys. Copies
    are of one update, so nothing recorded applies to them. The model carries afterwards what it carried before. Raises
    TetherError for an unknown name, a number beyond the ledger, another model.
    """
    unknown = [name for name in wanted if name not in WANTED]
    if unknown:
        raise TetherError(f"{', '.join(unknown)}: no such analysis; choose from {', '.join(WANTED)}")
    ledger.check_model(model)
    chosen = list(dict.fromkeys(None if name == AS_RECORDED else parse(name) for name in restraints))
    # By the names of the fields.
    work: dict[str, Callable[[], object]] = {
        "spectrum": lambda: spectrum(model, ledger, chosen, at),
        "values": lambda: values(model, ledger, chosen),
        "copies": lambda: copies(model, ledger, [restraint for restraint in chosen if restraint is not None]),
        "bound": lambda: bound(model, ledger, chosen),
        "differences": lambda: [] if results is None else differences(results),
    }
    found = {}
    for name in dict.fromkeys(wanted):
        logger.info("%s of %s", name, ledger.path)
        with model.unedited():
            found[name] = work[name]()
    return Analyses.model_validate(found)


def spectrum(
    model: EditableModel, ledger: Ledger, restraints: Sequence[Constraint | None], at: Sequence[int]
) -> list[SpectrumPoint]:
    """Figures 2 and 15, table 1: singular values after some fifty numbers of edits, from 0 to all. No forwards."""
    last = ledger.attempts
    numbers = sorted({*at, *(round(i * last / (_POINTS - 1)) for i in range(_POINTS))})
    return [
        SpectrumPoint(edits=row.edits, restraint=row.restraint, weight=row.weight, m=row.m, **row.extremes.to_dict())
        for row in ledger.spectra(model, at=numbers, restraints=restraints)
    ]


def bound(model: EditableModel, ledger: Ledger, restraints: Sequence[Constraint | None]) -> list[BoundPoint]:
    """The perturbation bound for at most fifty keys, at eight numbers of edits. Of more than two weights only the one
    whose update is the largest beside it. Empty where the theorem does not apply (see `bound_rows`)."""
    weights = list(ledger.header.weights)
    if len(weights) > _WEIGHTS:
        sums = ledger.sums(restrain="none", exact=False)
        weights = [max(weights, key=lambda name: sums.of[name].factors.norm() / sums.m[name])]
    points = []
    try:
        for restraint in restraints:
            for row in bound_rows(ledger, model, restrain=restraint, keys=_KEYS, weights=weights):
                shared = {name: value for name, value in vars(row).items() if name in BoundPoint.model_fields}
                points.append(BoundPoint(**shared, error_median=row.errors.median, error_max=row.errors.max))
    except TetherError as error:
        logger.warning("no bound: %s", error)
        return []
    return points


def differences(results: Results) -> list[Difference]:
    """Every row against the unrestrained one of as many edits, and rows without such a one against the unedited model:
    abilities and editing metrics, one family under Holm's correction."""
    keys = [row.key for row in results.rows]
    unedited = next((key for key in keys if key[0] == 0), None)
    pairs: list[tuple[RowKey, RowKey]] = []
    for key in keys:
        unrestrained = key[0], "none"
        other = unrestrained if unrestrained in keys and unrestrained != key else unedited
        if key[0] and other is not None:
            pairs.append((key, other))
    found = []
    for one in compare_rows(results, pairs, editing=True):
        both = {**vars(one.test), **one.document(), "measure": one.ability, "mean": one.test.difference}
        found.append(Difference(**{name: both[name] for name in Difference.model_fields}))
    return found
