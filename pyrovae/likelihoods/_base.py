"""What every likelihood is."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn


class Likelihood(nn.Module, ABC):
    """p(x|z) as a module.

    Args:
        event_dim: number of dimensions of one datum, e.g. 1 for vectors and 3 for ``(C, H, W)`` images.

    Attributes:
        num_params: P, decoder outputs per dimension of the data.
    """

    num_params: int = 1

    def __init__(self, event_dim: int) -> None:
        super().__init__()
        self.event_dim = event_dim

    @abstractmethod
    def forward(self, params: Float[Tensor, "*batch_params_event"]) -> dist.Distribution:
        """The distribution for ``params`` of shape ``(..., P, *event_shape)``: batch ``(...)``."""
