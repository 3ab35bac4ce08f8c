"""``Prior``, the base class."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae._checks import require_at_least

PosteriorAt = Callable[[Tensor], dist.Distribution]
"""Data ``(N, *event_shape)`` to q(z|x), batch ``(N,)``, event ``(Z,)``."""


class Prior(nn.Module, ABC):
    """A prior p(z) as a module.

    Args:
        latent_dim: Z.

    Attributes:
        uses_posterior: built from the amortised posterior; such a prior is also given ``event_shape``.
    """

    uses_posterior: bool = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        require_at_least(1, latent_dim=latent_dim)
        self.latent_dim = latent_dim

    @abstractmethod
    def forward(self, posterior_at: PosteriorAt | None = None) -> dist.Distribution:
        """The distribution p(z): batch ``()``, event ``(Z,)``."""
