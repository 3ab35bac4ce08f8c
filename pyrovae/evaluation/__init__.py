"""Evaluation: estimates of log p(x) with their errors, and comparisons of models by them."""

from pyrovae.evaluation.ais import AISResult, BDMCResult, ais, bdmc
from pyrovae.evaluation.compare import arviz_comparison, compare
from pyrovae.evaluation.log_marginal import log_marginal
from pyrovae.evaluation.result import MarginalResult
from pyrovae.evaluation.tail import khat_threshold, pareto_khat

__all__ = [
    "AISResult",
    "BDMCResult",
    "MarginalResult",
    "ais",
    "arviz_comparison",
    "bdmc",
    "compare",
    "khat_threshold",
    "log_marginal",
    "pareto_khat",
]
