"""The normal posterior whose covariance is of low rank, beside a diagonal."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least
from pyrovae.posteriors._base import Posterior, softplus_scale


class LowRankNormal(Posterior):
    """A normal with a covariance of low rank beside a diagonal, q(z | x) = N(μ(x), W(x) W(x)ᵀ + diag σ(x)²).

    Args:
        latent_dim: Z; the head has (R + 2) Z outputs.
        context_dim: C.
        rank: R, columns of W.
    """

    def __init__(self, latent_dim: int, context_dim: int, *, rank: int = 2) -> None:
        super().__init__(latent_dim, context_dim)
        require_at_least(1, rank=rank)
        self.rank = rank
        self.head = nn.Linear(context_dim, 2 * latent_dim)
        self.factor = nn.Linear(context_dim, latent_dim * rank)

    def forward(self, context: Float[Tensor, "*batch context"]) -> dist.Distribution:
        loc, raw = self.head(context).chunk(2, dim=-1)
        factor = self.factor(context).unflatten(-1, (self.latent_dim, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, softplus_scale(raw).square())
