"""The mixture-of-Gaussians prior."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least, require_tensors
from pyrovae.distributions._mixture import SharedMixture
from pyrovae.posteriors._base import raw_of, softplus_scale
from pyrovae.priors._base import PosteriorAt, Prior


class MixtureOfGaussians(Prior):
    """A mixture of Gaussians, p(z) = Σ_k π_k N(μ_k, diag σ_k²), with learnt weights, means and scales.

    Args:
        latent_dim: Z.
        num_components: K.
    """

    def __init__(self, latent_dim: int, *, num_components: int = 10) -> None:
        super().__init__(latent_dim)
        require_at_least(1, num_components=num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.raw_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def start_at(self, draws: Float[Tensor, "draws latent"]) -> None:
        """Put the means on draws chosen at random, and the scales where the components overlap."""
        require_tensors(finite=True, draws=draws)
        if draws.dim() != 2 or draws.shape[1] != self.latent_dim or len(draws) < 2:
            raise ValueError(f"draws must be two or more of size {self.latent_dim}; got shape {tuple(draws.shape)}.")
        with torch.no_grad():
            chosen = torch.randint(len(draws), (len(self.loc),), device=draws.device)
            self.loc.copy_(draws[chosen])
            self.raw_scale.copy_(raw_of(draws.std(0)))

    def forward(self, posterior_at: PosteriorAt | None = None) -> dist.Distribution:
        components = dist.Normal(self.loc, softplus_scale(self.raw_scale)).to_event(1)
        return SharedMixture(dist.Categorical(logits=self.logits), components)
