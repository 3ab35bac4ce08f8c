"""Variational autoencoders as Pyro model/guide pairs, compared by importance-sampled log p(x)."""

__version__ = "0.1.0"

from pyrovae import datasets, distributions, evaluation, likelihoods, networks, plots, posteriors, priors, zoo
from pyrovae._distributed import is_main_process
from pyrovae.evaluation import (
    AISResult,
    BDMCResult,
    CollapseMonitor,
    CollapseReport,
    ElboTerms,
    GapsResult,
    MarginalResult,
    ais,
    bdmc,
    collapse,
    compare,
    elbo_terms,
    inference_gaps,
    log_marginal,
    refit_posterior,
)
from pyrovae.model import VAE, LogTerms, LossModel, VAEModel, load
from pyrovae.objectives import ELBO, IWAE, cosine_warmup, cyclical, linear_warmup
from pyrovae.training import CheckpointError, NonFiniteLoss, Run, fit, lagging_inference

__all__ = [
    "ELBO",
    "IWAE",
    "VAE",
    "AISResult",
    "BDMCResult",
    "CheckpointError",
    "CollapseMonitor",
    "CollapseReport",
    "ElboTerms",
    "GapsResult",
    "LogTerms",
    "LossModel",
    "MarginalResult",
    "NonFiniteLoss",
    "Run",
    "VAEModel",
    "ais",
    "bdmc",
    "collapse",
    "compare",
    "cosine_warmup",
    "cyclical",
    "datasets",
    "distributions",
    "elbo_terms",
    "evaluation",
    "fit",
    "inference_gaps",
    "is_main_process",
    "lagging_inference",
    "likelihoods",
    "linear_warmup",
    "load",
    "log_marginal",
    "networks",
    "plots",
    "posteriors",
    "priors",
    "refit_posterior",
    "zoo",
]
