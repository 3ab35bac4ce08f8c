"""Radial flows, Rezende & Mohamed (2015, arXiv:1505.05770)."""

from jaxtyping import Float
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor, nn
from torch.distributions import Transform

from pyrovae.posteriors._base import FlowPosterior


class Radial(FlowPosterior):
    """A flow of amortised radial transforms z + β (z - z₀) / (α + |z - z₀|), eq. 14 of the paper.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of radial transforms.
    """

    can_score = False

    def __init__(self, latent_dim: int, context_dim: int, *, num_flows: int = 8) -> None:
        super().__init__(latent_dim, context_dim, num_flows=num_flows)
        self.head = nn.Linear(context_dim, num_flows * (latent_dim + 2))

    def transforms(self, context: Float[Tensor, "*batch context"]) -> list[Transform]:
        z = self.latent_dim
        flows = self.head(context).unflatten(-1, (self.num_flows, z + 2)).unbind(-2)
        return [ConditionedRadial((f[..., :z], f[..., z : z + 1], f[..., z + 1 :])) for f in flows]
