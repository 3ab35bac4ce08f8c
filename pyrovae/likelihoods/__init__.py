"""Likelihoods p(x | z): modules that turn a decoder's output into a distribution over data.

The decoder's output has shape ``(..., P, *event_shape)``, with ``P = num_params`` parameters per dimension.
To add one, write its file, its line in ``LIKELIHOODS`` and its test case.
"""

from pyrovae._parts import Registry
from pyrovae.likelihoods._base import Likelihood
from pyrovae.likelihoods._bernoulli import Bernoulli
from pyrovae.likelihoods._categorical import Categorical
from pyrovae.likelihoods._continuous_bernoulli import ContinuousBernoulli
from pyrovae.likelihoods._discretized_logistic import DiscretizedLogistic, DiscretizedLogisticMixture
from pyrovae.likelihoods._gaussian import Gaussian

LIKELIHOODS: Registry[Likelihood] = Registry(
    "likelihood",
    Likelihood,
    bernoulli=Bernoulli,
    gaussian=Gaussian,
    categorical=Categorical,
    discretized_logistic=DiscretizedLogistic,
    discretized_logistic_mixture=DiscretizedLogisticMixture,
    continuous_bernoulli=ContinuousBernoulli,
)

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Likelihood",
]
