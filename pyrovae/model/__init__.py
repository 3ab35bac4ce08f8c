"""VAEs as Pyro model/guide pairs, and the per-datum terms that everything above is computed from."""

from pyrovae.model.base import VAEModel
from pyrovae.model.capabilities import Capabilities, capabilities
from pyrovae.model.charts import Chart, register_chart
from pyrovae.model.latents import Latents
from pyrovae.model.log_terms import LogTerms, log_joint, log_terms
from pyrovae.model.loss_model import LossModel
from pyrovae.model.stored import load
from pyrovae.model.vae import VAE

__all__ = [
    "VAE",
    "Capabilities",
    "Chart",
    "Latents",
    "LogTerms",
    "LossModel",
    "VAEModel",
    "capabilities",
    "load",
    "log_joint",
    "log_terms",
    "register_chart",
]
