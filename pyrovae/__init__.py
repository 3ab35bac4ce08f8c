"""Variational autoencoders as Pyro model/guide pairs, compared by importance-sampled log p(x)."""

__version__ = "0.1.0"

from pyrovae import distributions, likelihoods, networks, posteriors, priors
from pyrovae.model import VAE, LogTerms, VAEModel, load
from pyrovae.objectives import ELBO, IWAE, cosine_warmup, cyclical, linear_warmup

__all__ = [
    "ELBO",
    "IWAE",
    "VAE",
    "LogTerms",
    "VAEModel",
    "cosine_warmup",
    "cyclical",
    "distributions",
    "likelihoods",
    "linear_warmup",
    "load",
    "networks",
    "posteriors",
    "priors",
]
