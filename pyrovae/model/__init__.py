"""VAEs as Pyro model/guide pairs, and the per-datum terms that everything above is computed from."""

from pyrovae.model.base import VAEModel, load
from pyrovae.model.log_terms import LogTerms, log_joint, log_terms
from pyrovae.model.vae import VAE

__all__ = ["VAE", "LogTerms", "VAEModel", "load", "log_joint", "log_terms"]
