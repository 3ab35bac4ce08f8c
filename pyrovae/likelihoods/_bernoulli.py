"""The Bernoulli likelihood, of binary data."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor

from pyrovae.distributions import IndependentBernoulli
from pyrovae.likelihoods._base import Likelihood


class Bernoulli(Likelihood):
    """Independent Bernoulli dimensions, for data in {0, 1}; the decoder gives logits, which are never clamped.

    Args:
        event_dim: number of dimensions of one datum.
    """

    def forward(self, params: Float[Tensor, "*batch_params_event"]) -> dist.Distribution:
        return IndependentBernoulli(params.squeeze(-self.event_dim - 1), self.event_dim)
