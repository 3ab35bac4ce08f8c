"""Plots. Every function draws on an ``Axes`` (a new one by default) and returns it."""

from pyrovae.plots._calibration import calibration
from pyrovae.plots._codebook import codebook_usage
from pyrovae.plots._codes import codes
from pyrovae.plots._evaluation import bounds, forest, gaps
from pyrovae.plots._images import denoising, images, reconstructions, samples
from pyrovae.plots._latent_walks import manifold, traversals
from pyrovae.plots._latents import active_units, aggregate_posterior, kl_per_dimension
from pyrovae.plots._layers import kl_per_site, layer_samples
from pyrovae.plots._training import curves
from pyrovae.plots._weights import khats, log_weights

__all__ = [
    "active_units",
    "aggregate_posterior",
    "bounds",
    "calibration",
    "codebook_usage",
    "codes",
    "curves",
    "denoising",
    "forest",
    "gaps",
    "images",
    "khats",
    "kl_per_dimension",
    "kl_per_site",
    "layer_samples",
    "log_weights",
    "manifold",
    "reconstructions",
    "samples",
    "traversals",
]
