"""Planar flows, Rezende & Mohamed (2015, arXiv:1505.05770)."""

from jaxtyping import Float
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor, nn
from torch.distributions import Transform

from pyrovae.posteriors._base import FlowPosterior


class Planar(FlowPosterior):
    """A flow of amortised planar transforms z + û tanh(wᵀz + b), eq. 10 of the paper.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of planar transforms.
    """

    can_score = False

    def __init__(self, latent_dim: int, context_dim: int, *, num_flows: int = 8) -> None:
        super().__init__(latent_dim, context_dim, num_flows=num_flows)
        self.head = nn.Linear(context_dim, num_flows * (2 * latent_dim + 1))
        nn.init.normal_(self.head.bias, std=latent_dim**-0.5)  # û divides by |w|²: start away from w = 0

    def transforms(self, context: Float[Tensor, "*batch context"]) -> list[Transform]:
        z = self.latent_dim
        flows = self.head(context).unflatten(-1, (self.num_flows, 2 * z + 1)).unbind(-2)
        return [ConditionedPlanar((f[..., 2 * z :], f[..., :z], f[..., z : 2 * z])) for f in flows]
