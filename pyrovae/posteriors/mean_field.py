"""The mean-field normal posterior of Kingma & Welling (2014, arXiv:1312.6114)."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor

from pyrovae.posteriors.base import NormalHead, Posterior


class MeanFieldNormal(Posterior):
    """q(z|x) = N(μ(x), diag σ²(x)).

    Args:
        latent_dim: Z.
        context_dim: C.
    """

    def __init__(self, latent_dim: int, context_dim: int) -> None:
        super().__init__(latent_dim, context_dim)
        self.head = NormalHead(latent_dim, context_dim)

    def forward(self, context: Float[Tensor, "*batch context"]) -> dist.TorchDistribution:
        return self.head(context)
