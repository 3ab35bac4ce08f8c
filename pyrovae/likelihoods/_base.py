"""``Likelihood``, the base class."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least


class Likelihood(nn.Module, ABC):
    """A likelihood p(x | z) as a module, from a decoder's output to a distribution over data.

    Args:
        event_dim: number of dimensions of one datum, e.g. 1 for vectors and 3 for ``(C, H, W)`` images.

    Attributes:
        num_params: P, decoder outputs per dimension of the data.
    """

    num_params: int = 1

    def __init__(self, event_dim: int) -> None:
        super().__init__()
        require_at_least(0, event_dim=event_dim)
        self.event_dim = event_dim

    def distribution(self, output: Tensor, batch_shape: Sequence[int], event_shape: Sequence[int]) -> dist.Distribution:
        """The distribution over data that a network's output stands for, whatever its last dimensions.

        Args:
            output: ``(*batch_shape, P, *event_shape)``, or with the dimensions after the batch's flattened in any way.
            batch_shape: leading dimensions.
            event_shape: shape of one datum.
        """
        return self(output.reshape(*batch_shape, self.num_params, *event_shape))

    @abstractmethod
    def forward(self, params: Float[Tensor, "*batch_params_event"]) -> dist.Distribution:
        """The distribution for ``params`` of shape ``(..., P, *event_shape)``: batch ``(...)``."""
