"""Priors p(z): modules that return a distribution over ``(Z,)``.

``forward(posterior_at)`` receives the amortised posterior as a function of data; only priors built from the
posterior (``uses_posterior``) need it. To add one, write its file, its line in ``PRIORS`` and its test case.
"""

from torch import nn

from pyrovae._parts import Registry
from pyrovae.priors._ar1 import AR1
from pyrovae.priors._base import Prior
from pyrovae.priors._flow import FlowPrior
from pyrovae.priors._mixture import MixtureOfGaussians
from pyrovae.priors._standard_normal import StandardNormal
from pyrovae.priors._vamp import VampPrior

PRIORS: Registry[Prior] = Registry(
    "prior",
    nn.Module,
    standard_normal=StandardNormal,
    mixture=MixtureOfGaussians,
    vamp=VampPrior,
    ar1=AR1,
    flow=FlowPrior,
)

__all__ = ["AR1", "PRIORS", "FlowPrior", "MixtureOfGaussians", "Prior", "StandardNormal", "VampPrior"]
