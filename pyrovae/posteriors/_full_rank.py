"""The normal posterior with a full covariance matrix."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae.distributions import MultivariateNormal
from pyrovae.posteriors._base import Posterior, softplus_scale


class FullRankNormal(Posterior):
    """A normal with full covariance, q(z | x) = N(μ(x), L(x) L(x)ᵀ), ``L`` lower triangular with a positive diagonal.

    Args:
        latent_dim: Z; the head has Z² + 2Z outputs.
        context_dim: C.
    """

    def __init__(self, latent_dim: int, context_dim: int) -> None:
        super().__init__(latent_dim, context_dim)
        self.head = nn.Linear(context_dim, 2 * latent_dim)
        self.off_diagonal = nn.Linear(context_dim, latent_dim**2)

    def forward(self, context: Float[Tensor, "*batch context"]) -> dist.Distribution:
        loc, raw = self.head(context).chunk(2, dim=-1)
        full = self.off_diagonal(context).unflatten(-1, (self.latent_dim, self.latent_dim))
        return MultivariateNormal(loc, scale_tril=full.tril(-1) + softplus_scale(raw).diag_embed())
