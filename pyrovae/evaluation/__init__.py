"""Evaluation: estimates of log p(x) with their errors, comparisons of models by them, and what the latents carry."""

from pyrovae.evaluation.collapse import CollapseReport, collapse
from pyrovae.evaluation.compare import compare
from pyrovae.evaluation.log_marginal import MarginalResult, log_marginal
from pyrovae.evaluation.monitor import CollapseMonitor
from pyrovae.evaluation.tail import khat_threshold, pareto_khat
from pyrovae.evaluation.terms import ElboTerms, elbo_terms

__all__ = [
    "CollapseMonitor",
    "CollapseReport",
    "ElboTerms",
    "MarginalResult",
    "collapse",
    "compare",
    "elbo_terms",
    "khat_threshold",
    "log_marginal",
    "pareto_khat",
]
