"""Evaluation: estimates of log p(x) with their errors, comparisons of models by them, and what the latents carry."""

from pyrovae.evaluation._result import Provenance, Result
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.inference._calibration import Calibration, calibration
from pyrovae.evaluation.inference._gaps import inference_gaps
from pyrovae.evaluation.inference._gaps_result import GapsResult
from pyrovae.evaluation.inference._refit import refit_posterior
from pyrovae.evaluation.inference._refit_prior import refit_prior
from pyrovae.evaluation.latents._collapse import CollapseReport, collapse
from pyrovae.evaluation.latents._monitor import CollapseMonitor
from pyrovae.evaluation.latents._terms import ElboTerms, elbo_terms
from pyrovae.evaluation.marginal._ais import AISResult, ais
from pyrovae.evaluation.marginal._bdmc import BDMCResult, bdmc
from pyrovae.evaluation.marginal._compare import arviz_comparison, compare
from pyrovae.evaluation.marginal._log_marginal import log_marginal
from pyrovae.evaluation.marginal._pool import pool
from pyrovae.evaluation.marginal._result import MarginalResult
from pyrovae.evaluation.marginal._tail import khat_threshold, pareto_khat
from pyrovae.evaluation.marginal._verdict import judge, judge_chains, mean_error, mean_error_of_chains
from pyrovae.evaluation.marginal._weights import log_weights
from pyrovae.evaluation.representation._disentanglement import Disentanglement, disentanglement
from pyrovae.evaluation.representation._factors import DCI, dci, factor_vae_score, mig, mutual_information, sap
from pyrovae.evaluation.representation._latent_space import completeness, continuity

__all__ = [
    "DCI",
    "AISResult",
    "BDMCResult",
    "Calibration",
    "CollapseMonitor",
    "CollapseReport",
    "Disentanglement",
    "ElboTerms",
    "EvaluationRun",
    "GapsResult",
    "MarginalResult",
    "Provenance",
    "Result",
    "ais",
    "arviz_comparison",
    "bdmc",
    "calibration",
    "collapse",
    "compare",
    "completeness",
    "continuity",
    "dci",
    "disentanglement",
    "elbo_terms",
    "factor_vae_score",
    "inference_gaps",
    "judge",
    "judge_chains",
    "khat_threshold",
    "log_marginal",
    "log_weights",
    "mean_error",
    "mean_error_of_chains",
    "mig",
    "mutual_information",
    "pareto_khat",
    "pool",
    "refit_posterior",
    "refit_prior",
    "sap",
]
