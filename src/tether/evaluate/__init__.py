"""Measuring a model: what its edits did, and what it still can do."""

from tether.evaluate.abilities import ABILITIES, AbilityResult, measure_abilities
from tether.evaluate.checkpoints import evaluate, evaluate_ledger
from tether.evaluate.editing import METRICS, EditingResult, evaluate_editing, measure_baseline
from tether.evaluate.perplexity import Perplexity, builtin_text, perplexity
from tether.evaluate.results import Results, Row, read, write
from tether.evaluate.scores import Score, greedy, score

__all__ = [
    "ABILITIES",
    "METRICS",
    "AbilityResult",
    "EditingResult",
    "Perplexity",
    "Results",
    "Row",
    "Score",
    "builtin_text",
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
