"""The posterior that is a mixture of normals."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least
from pyrovae.distributions._mixture import MixtureOfNormals
from pyrovae.posteriors._base import Posterior, softplus_scale


class Mixture(Posterior):
    """A mixture of diagonal normals, q(z | x) = Σ_k π_k(x) N(μ_k(x), diag σ_k(x)²). Its draws carry gradients to
    everything, the weights too (see ``pyrovae/distributions/_mixture.py``).

    Args:
        latent_dim: Z; the head has K (2 Z + 1) outputs.
        context_dim: C.
        num_components: K.
    """

    def __init__(self, latent_dim: int, context_dim: int, *, num_components: int = 4) -> None:
        super().__init__(latent_dim, context_dim)
        require_at_least(1, num_components=num_components)
        self.num_components = num_components
        self.logits = nn.Linear(context_dim, num_components)
        self.head = nn.Linear(context_dim, 2 * latent_dim * num_components)

    def forward(self, context: Float[Tensor, "*batch context"]) -> dist.Distribution:
        shape = (self.num_components, 2 * self.latent_dim)
        loc, raw = self.head(context).unflatten(-1, shape).chunk(2, dim=-1)
        components = dist.Normal(loc, softplus_scale(raw)).to_event(1)
        return MixtureOfNormals(dist.Categorical(logits=self.logits(context)), components)
