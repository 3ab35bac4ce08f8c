"""VAEs as Pyro model/guide pairs, and the per-datum terms that everything above is computed from."""

from pyrovae.model._base import VAEModel
from pyrovae.model._latents import Latents
from pyrovae.model._log_terms import LogTerms, log_terms
from pyrovae.model._loss_model import LossModel
from pyrovae.model._saving import load
from pyrovae.model._vae import VAE

__all__ = ["VAE", "Latents", "LogTerms", "LossModel", "VAEModel", "load", "log_terms"]
