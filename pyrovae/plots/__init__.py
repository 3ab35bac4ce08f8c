"""Pictures. Every function draws on an ``Axes`` (a new one by default) and returns it."""

from pyrovae.plots.evaluation import bounds, forest, gaps
from pyrovae.plots.images import images, reconstructions, samples
from pyrovae.plots.latents import active_units, aggregate_posterior, kl_per_dimension
from pyrovae.plots.training import curves
from pyrovae.plots.weights import khats, log_weights

__all__ = [
    "active_units",
    "aggregate_posterior",
    "bounds",
    "curves",
    "forest",
    "gaps",
    "images",
    "khats",
    "kl_per_dimension",
    "log_weights",
    "reconstructions",
    "samples",
]
