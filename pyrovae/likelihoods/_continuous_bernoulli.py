"""The continuous Bernoulli likelihood, of intensities in [0, 1]."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor

from pyrovae.distributions import ContinuousBernoulli as ByLogits
from pyrovae.likelihoods._base import Likelihood


class ContinuousBernoulli(Likelihood):
    """Independent continuous Bernoulli dimensions for intensities in [0, 1] (Loaiza-Ganem & Cunningham 2019,
    arXiv:1907.06845); the decoder gives logits.

    A density: log p(x) is unbounded above where data are exactly 0 or 1, and gives no bits per dimension.

    Args:
        event_dim: number of dimensions of one datum.
    """

    def forward(self, params: Float[Tensor, "*batch_params_event"]) -> dist.Distribution:
        return ByLogits(params.squeeze(-self.event_dim - 1)).to_event(self.event_dim)
