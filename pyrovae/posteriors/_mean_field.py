"""The mean-field normal posterior of Kingma & Welling (2014, arXiv:1312.6114)."""

from typing import Literal

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_one_of
from pyrovae.posteriors._base import NormalHead, Posterior, softplus_scale


class MeanFieldNormal(Posterior):
    """A mean-field normal, q(z | x) = N(μ(x), diag σ²(x)).

    Args:
        latent_dim: Z.
        context_dim: C.
        scale: ``"amortized"``, or ``"constant"`` for one learnt σ that is the same for all data, which is all that a
            linear model needs (Lucas et al. 2019, arXiv:1911.02469, eq. 6).

    Raises:
        ValueError: another ``scale``.
    """

    def __init__(
        self, latent_dim: int, context_dim: int, *, scale: Literal["amortized", "constant"] = "amortized"
    ) -> None:
        super().__init__(latent_dim, context_dim)
        require_one_of(("amortized", "constant"), scale=scale)
        self.scale = scale
        if scale == "amortized":
            self.head: nn.Linear = NormalHead(latent_dim, context_dim)
        else:
            self.head = nn.Linear(context_dim, latent_dim)
            self.raw_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, context: Float[Tensor, "*batch context"]) -> dist.Distribution:
        if self.scale == "amortized":
            return self.head(context)
        loc = self.head(context)
        return dist.Normal(loc, softplus_scale(self.raw_scale).expand_as(loc)).to_event(1)
