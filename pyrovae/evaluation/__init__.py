"""Evaluation: estimates of log p(x) with their errors, and comparisons of models by them."""

from pyrovae.evaluation.compare import compare
from pyrovae.evaluation.log_marginal import log_marginal
from pyrovae.evaluation.result import MarginalResult
from pyrovae.evaluation.tail import khat_threshold, pareto_khat

__all__ = ["MarginalResult", "compare", "khat_threshold", "log_marginal", "pareto_khat"]
