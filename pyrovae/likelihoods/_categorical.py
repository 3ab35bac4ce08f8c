"""The categorical likelihood, of quantised data such as 8-bit images."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_at_least
from pyrovae.distributions import Levels
from pyrovae.likelihoods._base import Likelihood


class Categorical(Likelihood):
    """An independent categorical distribution for every dimension, over the levels k/(L-1) in [0, 1].

    Args:
        event_dim: number of dimensions of one datum.
        num_levels: L; 256 for 8-bit images.
    """

    def __init__(self, event_dim: int, *, num_levels: int = 256) -> None:
        super().__init__(event_dim)
        require_at_least(2, num_levels=num_levels)
        self.num_params = num_levels

    def forward(self, params: Float[Tensor, "*batch_params_event"]) -> dist.Distribution:
        return Levels(params.movedim(-self.event_dim - 1, -1)).to_event(self.event_dim)
