"""Evaluation: estimates of log p(x) with their errors, comparisons of models by them, and what the latents carry."""

from pyrovae.evaluation.ais import AISResult, BDMCResult, ais, bdmc
from pyrovae.evaluation.collapse import CollapseReport, collapse
from pyrovae.evaluation.compare import arviz_comparison, compare
from pyrovae.evaluation.disentanglement import Disentanglement, disentanglement
from pyrovae.evaluation.factors import DCI, dci, factor_vae_score, mig, mutual_information, sap
from pyrovae.evaluation.gaps import GapsResult, inference_gaps
from pyrovae.evaluation.latent_space import completeness, continuity
from pyrovae.evaluation.log_marginal import log_marginal
from pyrovae.evaluation.monitor import CollapseMonitor
from pyrovae.evaluation.pool import pool
from pyrovae.evaluation.refit import refit_posterior
from pyrovae.evaluation.result import MarginalResult
from pyrovae.evaluation.tail import khat_threshold, pareto_khat
from pyrovae.evaluation.terms import ElboTerms, elbo_terms
from pyrovae.evaluation.weights import log_weights

__all__ = [
    "DCI",
    "AISResult",
    "BDMCResult",
    "CollapseMonitor",
    "CollapseReport",
    "Disentanglement",
    "ElboTerms",
    "GapsResult",
    "MarginalResult",
    "ais",
    "arviz_comparison",
    "bdmc",
    "collapse",
    "compare",
    "completeness",
    "continuity",
    "dci",
    "disentanglement",
    "elbo_terms",
    "factor_vae_score",
    "inference_gaps",
    "khat_threshold",
    "log_marginal",
    "log_weights",
    "mig",
    "mutual_information",
    "pareto_khat",
    "pool",
    "refit_posterior",
    "sap",
]
