"""Which of the paper's findings a grid shows: a stated rule for each, applied to every editor, never a reader's eye."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tether.evaluation.statistics.compare import LEVEL
from tether.experiment.results import StoredGrid
from tether.report.grid import rules
from tether.report.grid.row_difference import ERRORS, FEW
from tether.report.grid.rules import CHECKPOINTS, EXACT, INSTANCE, LOSS, RISE, TREND, CannotSay
from tether.report.grid.series import Editor, editors

Word = Literal["seen", "not seen", "cannot say"]

_CHANCE = (
    f"More than chance: the paired test on the same items ({FEW} or more), Holm's correction, p < 0.05 (several seeds: "
    f"in more than half of them); on fewer items nothing is said; where no test is stored, more than {ERRORS} combined "
    "standard errors."
)
_IDLE = "Cannot say where no σ̂ exceeds m, for then PRUNE changes nothing."
_PRUNE = "PRUNE: log:1.2 applied once, or the first log restraint measured; after the most edits."


@dataclass(frozen=True)
class Claim:
    """A finding of the paper, where it says so, the rule that decides on it, and the function that applies the rule."""

    key: str
    name: str
    place: str
    rule: str
    judge: Callable[[Editor], rules.Judgement]

    def of(self, editor: Editor) -> Finding:
        verdict: Word
        try:
            seen, numbers = self.judge(editor)
            verdict = "seen" if seen else "not seen"
        except CannotSay as reason:
            verdict, numbers = "cannot say", str(reason)
        return Finding(**vars(self), editor=editor.name, verdict=verdict, numbers=numbers)


@dataclass(frozen=True)
class Finding(Claim):
    """A claim, and whether one editor's data show it."""

    editor: str
    verdict: Word
    numbers: str

    @property
    def sentence(self) -> str:
        return f"{self.verdict.capitalize()} for {self.editor}: {self.numbers}."


def findings(grid: StoredGrid) -> list[Finding]:
    """Every claim of the paper, judged for every editor of the grid."""
    return [claim.of(editor) for claim in CLAIMS for editor in editors(grid)]


CLAIMS: tuple[Claim, ...] = (
    Claim("kappa-climbs", "κ and σ_max climb with the number of edits", "Section 3.3, figure 2",
          f"Worst weight (largest κ after the most edits), no restraint, three checkpoints or more with the unedited "
          f"one: κ and σ_max both end more than {RISE - 1:.0%} above the unedited weight's, and their rank "
          f"correlation with the edits is above {TREND}.", rules.kappa_climbs),
    Claim("sigma-min-stays", "σ_min hardly moves", "Section 4, figure 2",
          f"Worst weight, no restraint: σ_min is nowhere more than {RISE - 1:.0%} from the unedited weight's.",
          rules.sigma_min_stays),
    Claim("update-grows", "σ̂_max of the summed updates grows with N, beyond m", "Section 4, table 1",
          f"Weight with the largest σ̂_max/m, no restraint: σ̂_max at the largest N is more than {RISE - 1:.0%} "
          f"above that at the smallest, its rank correlation with N is above {TREND}, and it is above m.",
          rules.update_grows),
    Claim("kappa-restrained", "PRUNE holds κ down", "Appendix C.4, figure 15",
          f"{_PRUNE} Worst weight: κ is more than a factor {RISE} below that without a restraint. {_IDLE}",
          rules.kappa_restrained),
    Claim("bound-holds", "The bound on the perturbation of keys holds", "Section 3.2, theorem 3.1",
          "No measured relative error of a key exceeds the bound, before or after a restraint.", rules.bound_holds),
    Claim("edit-bound-grows", "The bound of a single edit grows with its number", "Section 3.3, first conclusion",
          f"No restraint, worst weight, {CHECKPOINTS} edits or more: Spearman's ρ of the bound (A = W_(j-1), E = "
          f"ΔW_j) with j is positive, p < {LEVEL}.", rules.bound_grows("edit")),
    Claim("sum-bound-grows", "The bound of all edits together grows", "Section 3.3, second conclusion",
          f"No restraint, worst weight, {CHECKPOINTS} checkpoints or more: Spearman's ρ of the bound (A = W₀, E = "
          f"ΣΔW) with the edits is positive, p < {LEVEL}.", rules.bound_grows("sum")),
    Claim("bound-restrained", "PRUNE lowers the bound", "Section 4",
          f"{_PRUNE} The bound of the sum is more than a factor {RISE} below that without a restraint. {_IDLE}",
          rules.bound_restrained),
    Claim("copies-add-up", "N copies of one update have N times its σ_max", "Section 4, motivation",
          f"Two numbers of copies or more: σ̂_max is within {EXACT:.0%} of N·δ_max at all of them.",
          rules.copies_add_up),
    Claim("copies-restrained", "A restraint takes the redundancy and leaves the edit", "Section 4, motivation",
          f"log:1.2 (or the first log restraint) at the most copies: σ̂_max more than a factor {RISE} lower and "
          f"perplexity no higher than without, efficacy no more than {LOSS:.0f} points below that of the fewest "
          "copies; cannot say where the edit did not hold there.", rules.copies_restrained),
    Claim("abilities-fall", "Unrestrained editing costs general abilities", "Section 5.4, figures 3, 7-9",
          "Of the abilities (perplexity included) in which the unedited model scores more than two standard errors, "
          f"more than half are worse after the most edits, by more than chance. {_CHANCE}", rules.abilities_fall),
    Claim("abilities-kept", "PRUNE keeps more of the general abilities", "Section 5.4, figures 3, 7-9",
          f"{_PRUNE} At least one ability is better than without a restraint by more than chance, and none worse. "
          f"{_CHANCE} {_IDLE}", rules.abilities_kept),
    Claim("forgotten", "Earlier edits are forgotten as edits add up", "Section 5.5, figures 4, 10-12",
          f"No restraint: efficacy on all edits so far is lower after the most edits than after the fewest, by more "
          f"than chance. {_CHANCE}", partial(rules.falls, kind="efficacy", from_unedited=False)),
    Claim("locality-falls", "Unrelated facts are perturbed as edits add up", "Section 5.5, figures 4, 10-12",
          f"No restraint: locality is lower after the most edits than at the first checkpoint, by more than chance. "
          f"{_CHANCE}", partial(rules.falls, kind="locality", from_unedited=True)),
    Claim("editing-kept", "PRUNE keeps the editing performance", "Section 5.5, figures 4, 10-12",
          f"{_PRUNE} Neither efficacy, generalization nor locality is worse than without a restraint by more than "
          f"chance, and none by more than {LOSS:.0f} points. {_CHANCE} {_IDLE}", rules.editing_kept),
    Claim("editing-improved", "At many edits PRUNE improves the editing performance", "Section 5.5, figures 4, 10-12",
          f"{_PRUNE} At least one of efficacy, generalization and locality is better than without a restraint by more "
          f"than chance, and none worse. {_CHANCE} {_IDLE}", rules.editing_improved),
    Claim("locality-abilities", "Where locality is low, general abilities are low", "Section 5.5",
          f"No restraint, {CHECKPOINTS} checkpoints or more: Spearman's ρ of locality with the share of the abilities "
          f"kept is positive, p < {LEVEL}.", rules.locality_with_abilities),
    Claim("instances-stay", "Changing a concept's definition hardly changes its instances", "Section 5.6, table 2",
          f"No restraint: instance change is at most {INSTANCE:.0f} points (the paper's largest) at every checkpoint.",
          rules.instances_stay),
    Claim("values-closer", "PRUNE keeps the values of early edits", "Section 5.7, figure 5",
          f"The mean distance of the values of the first 100 facts from those when edited, relative to the norm, is "
          f"more than a factor {RISE} smaller with PRUNE than without. {_IDLE}", rules.values_closer),
    Claim("log-beats-linear", "The log restraint does better than the linear one", "Appendix C.3, figures 13, 14",
          f"{_PRUNE} Abilities and editing scores against the linear restraint: at least one better by more than "
          f"chance, none worse. {_CHANCE} {_IDLE}", rules.log_beats_linear),
    Claim("kappa-abilities", "Where κ is high, general abilities are low", "Appendix C.5, figure 16",
          f"No restraint, {CHECKPOINTS} checkpoints or more: Spearman's ρ of the worst weight's κ with the share of "
          f"the abilities kept is negative, p < {LEVEL}.", rules.kappa_with_abilities),
    Claim("multiple-beats-once", "Applying PRUNE several times does better than once", "Appendix C.6, table 6",
          "After the most edits both have: at least one ability or editing score is better by more than chance with "
          f"the restraint every so many edits than with it once, and none worse. {_CHANCE} {_IDLE}",
          rules.multiple_beats_once),
)  # fmt: skip
