"""VAEs as Pyro model/guide pairs, and the per-datum terms that everything above is computed from."""

from pyrovae.model.base import VAEModel
from pyrovae.model.latents import Latents
from pyrovae.model.log_terms import LogTerms, log_terms
from pyrovae.model.loss_model import LossModel
from pyrovae.model.stored import load
from pyrovae.model.vae import VAE

__all__ = [
    "VAE",
    "Latents",
    "LogTerms",
    "LossModel",
    "VAEModel",
    "load",
    "log_terms",
]
