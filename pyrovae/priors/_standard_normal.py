"""The standard normal prior."""

import pyro.distributions as dist
import torch

from pyrovae.priors._base import PosteriorAt, Prior


class StandardNormal(Prior):
    """The standard normal prior, p(z) = N(0, I).

    Args:
        latent_dim: Z.
    """

    zeros: torch.Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)

    def forward(self, posterior_at: PosteriorAt | None = None) -> dist.Distribution:
        return dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)
