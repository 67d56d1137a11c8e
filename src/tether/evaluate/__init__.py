"""Measuring a model: what its edits did, and what it still can do."""

from tether.evaluate.abilities import ABILITIES, QUICK_ITEMS, measure_abilities
from tether.evaluate.ability import AbilityResult
from tether.evaluate.ability_data import AbilityData, ability_data
from tether.evaluate.checkpoints import evaluate, evaluate_ledger
from tether.evaluate.compare import Comparison, compare
from tether.evaluate.editing import METRICS, Baseline, EditingResult, evaluate_editing, measure_baseline
from tether.evaluate.perplexity import Perplexity, builtin_text, perplexity
from tether.evaluate.results import Results, Row, YesShare, read, write
from tether.evaluate.scores import Score, greedy, score

__all__ = [
    "ABILITIES",
    "METRICS",
    "QUICK_ITEMS",
    "AbilityData",
    "AbilityResult",
    "YesShare",
    "Baseline",
    "Comparison",
    "EditingResult",
    "Perplexity",
    "Results",
    "Row",
    "Score",
    "ability_data",
    "builtin_text",
    "compare",
    "evaluate",
    "evaluate_editing",
    "evaluate_ledger",
    "greedy",
    "measure_abilities",
    "measure_baseline",
    "perplexity",
    "read",
    "score",
    "write",
]
