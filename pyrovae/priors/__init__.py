"""Priors p(z): modules that return a distribution over ``(Z,)``.

``forward(posterior_at)`` receives the amortised posterior as a function of data; only priors built from the
posterior (``uses_posterior``) need it. To add one, write its file, its line in ``PRIORS`` and its test case.
"""

from pyrovae.priors.base import Prior
from pyrovae.priors.mixture import MixtureOfGaussians
from pyrovae.priors.standard_normal import StandardNormal
from pyrovae.priors.vamp import VampPrior

PRIORS: dict[str, type[Prior]] = {
    "standard_normal": StandardNormal,
    "mixture": MixtureOfGaussians,
    "vamp": VampPrior,
}

__all__ = ["PRIORS", "MixtureOfGaussians", "Prior", "StandardNormal", "VampPrior"]
