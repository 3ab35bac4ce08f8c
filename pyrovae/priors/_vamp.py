"""The VampPrior, Tomczak & Welling (2018, arXiv:1705.07120)."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae._checks import as_sizes, require_at_least
from pyrovae.priors._base import PosteriorAt, Prior


class VampPrior(Prior):
    """A mixture of posteriors at K learnt pseudo-inputs in [0, 1], p(z) = 1/K Σ_k q(z | u_k) (eq. 9).

    Needs a posterior that can be scored at a point it did not draw (``can_score``).

    Args:
        latent_dim: Z.
        event_shape: shape of one datum.
        num_pseudo_inputs: K.
    """

    uses_posterior = True
    zeros: torch.Tensor

    def __init__(self, latent_dim: int, *, event_shape: Sequence[int], num_pseudo_inputs: int = 500) -> None:
        super().__init__(latent_dim)
        require_at_least(1, num_pseudo_inputs=num_pseudo_inputs)
        self.event_shape = as_sizes(event_shape, "event_shape")
        self.raw = nn.Parameter(torch.randn(num_pseudo_inputs, *self.event_shape))
        self.register_buffer("zeros", torch.zeros(num_pseudo_inputs), persistent=False)

    @property
    def pseudo_inputs(self) -> torch.Tensor:
        """The pseudo-inputs, shape ``(K, *event_shape)``."""
        return self.raw.sigmoid()

    def forward(self, posterior_at: PosteriorAt | None = None) -> dist.Distribution:
        if posterior_at is None:
            raise ValueError("VampPrior needs posterior_at, the function from data to q(z|x).")
        return dist.MixtureSameFamily(dist.Categorical(logits=self.zeros), posterior_at(self.pseudo_inputs))
