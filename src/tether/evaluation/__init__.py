"""Measuring a model: what its edits did, and what it still can do."""

from tether.evaluation.abilities.perplexity import builtin_text, perplexity
from tether.evaluation.abilities.run import ABILITIES, QUICK_ITEMS, measure_abilities
from tether.evaluation.measurement import Measurement
from tether.evaluation.metrics.base import METRICS
from tether.evaluation.metrics.editing import evaluate_editing, measure_baseline
from tether.evaluation.results import Results, Row, read, write
from tether.evaluation.scores import greedy, score
from tether.evaluation.statistics.compare import compare, compare_files
from tether.evaluation.statistics.mean import Number
from tether.evaluation.suite import evaluate, evaluate_in_context, evaluate_ledger, evaluate_pair

__all__ = [
    "ABILITIES", "METRICS", "QUICK_ITEMS", "Measurement", "Number", "Results", "Row", "builtin_text", "compare",
    "compare_files", "evaluate", "evaluate_editing", "evaluate_in_context", "evaluate_ledger", "evaluate_pair",
    "greedy", "measure_abilities", "measure_baseline", "perplexity", "read", "score", "write",
]  # fmt: skip
