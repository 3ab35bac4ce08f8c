"""Discretised logistic likelihoods, of quantised data whose levels have an order."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least, require_positive
from pyrovae.distributions import DiscretizedLogistic as Binned
from pyrovae.likelihoods._base import Likelihood


class DiscretizedLogistic(Likelihood):
    """A logistic density for every dimension, integrated over the bins of the levels k/(L-1) in [0, 1] (Kingma et al.
    2016, arXiv:1606.04934), whose outer ones take the tails (Salimans et al. 2017, arXiv:1701.05517).

    The decoder gives two numbers per dimension: the location less ½, and the scale before softplus.

    Args:
        event_dim: number of dimensions of one datum.
        num_levels: L; 256 for 8-bit images.
        min_scale: floor under the scale, in steps between levels. At 0.1 a level can have probability 0.987, and the
            outer ones 1.
    """

    num_params = 2

    def __init__(self, event_dim: int, *, num_levels: int = 256, min_scale: float = 0.1) -> None:
        super().__init__(event_dim)
        require_at_least(2, num_levels=num_levels)
        require_positive(min_scale=min_scale)
        self.num_levels, self.min_scale = num_levels, min_scale

    def forward(self, params: Float[Tensor, "*batch_params_event"]) -> dist.Distribution:
        loc, raw = params.unbind(-self.event_dim - 1)
        return Binned(0.5 + loc, self._scale(raw), self.num_levels).to_event(self.event_dim)

    def _scale(self, raw: Tensor) -> Tensor:
        """The scale, from what the decoder gives."""
        return nn.functional.softplus(raw) + self.min_scale / (self.num_levels - 1)


class DiscretizedLogisticMixture(DiscretizedLogistic):
    """A mixture of discretised logistics for every dimension, over the levels k/(L-1) in [0, 1] (Salimans et al. 2017,
    arXiv:1701.05517). Dimensions are independent given z: colour channels are not tied to each other.

    The decoder gives three numbers per dimension and component: the logit of the weight, the location less the
    component's (m + ½)/M, and the scale before softplus. So the components start out spread over [0, 1].

    Args:
        event_dim: number of dimensions of one datum.
        num_components: M.
        num_levels: L; 256 for 8-bit images.
        min_scale: floor under the scales, in steps between levels.
    """

    start: Tensor

    def __init__(
        self, event_dim: int, *, num_components: int = 5, num_levels: int = 256, min_scale: float = 0.1
    ) -> None:
        super().__init__(event_dim, num_levels=num_levels, min_scale=min_scale)
        require_at_least(1, num_components=num_components)
        self.num_components = num_components
        self.num_params = 3 * num_components
        start = (torch.arange(num_components) + 0.5) / num_components
        self.register_buffer("start", start, persistent=False)

    def forward(self, params: Float[Tensor, "*batch_params_event"]) -> dist.Distribution:
        logits, loc, raw = params.movedim(-self.event_dim - 1, -1).chunk(3, -1)
        components = Binned(self.start + loc, self._scale(raw), self.num_levels)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components).to_event(self.event_dim)
