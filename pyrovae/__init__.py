"""Variational autoencoders as Pyro model/guide pairs, compared by importance-sampled log p(x)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyrovae import datasets, distributions, evaluation, likelihoods, networks, posteriors, priors, zoo
from pyrovae._distributed import is_main_process
from pyrovae._turns import turn
from pyrovae._version import __version__ as __version__
from pyrovae.evaluation import (
    AISResult,
    BDMCResult,
    Calibration,
    CollapseMonitor,
    CollapseReport,
    Disentanglement,
    ElboTerms,
    GapsResult,
    MarginalResult,
    ais,
    bdmc,
    calibration,
    collapse,
    compare,
    disentanglement,
    elbo_terms,
    inference_gaps,
    log_marginal,
    pool,
    refit_posterior,
    refit_prior,
)
from pyrovae.model import VAE, LogTerms, LossModel, VAEModel, load
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    BetaTCVAE,
    CapacityELBO,
    cosine_warmup,
    cyclical,
    linear_warmup,
)
from pyrovae.training import Checkpoint, CheckpointError, FitResult, NonFiniteLoss, fit, lagging_inference

if TYPE_CHECKING:
    from pyrovae import plots

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "VAE",
    "AISResult",
    "BDMCResult",
    "BetaTCVAE",
    "Calibration",
    "CapacityELBO",
    "Checkpoint",
    "CheckpointError",
    "CollapseMonitor",
    "CollapseReport",
    "Disentanglement",
    "ElboTerms",
    "FitResult",
    "GapsResult",
    "LogTerms",
    "LossModel",
    "MarginalResult",
    "NonFiniteLoss",
    "VAEModel",
    "ais",
    "bdmc",
    "calibration",
    "collapse",
    "compare",
    "cosine_warmup",
    "cyclical",
    "datasets",
    "disentanglement",
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
    "pool",
    "posteriors",
    "priors",
    "refit_posterior",
    "refit_prior",
    "turn",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name == "plots":  # brings matplotlib, for which many runs have no use
        return import_module("pyrovae.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
