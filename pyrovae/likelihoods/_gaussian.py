"""The Gaussian likelihood, of continuous data."""

from typing import Literal

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_one_of, require_positive
from pyrovae.likelihoods._base import Likelihood


class Gaussian(Likelihood):
    """Independent normal dimensions, for real data.

    Args:
        event_dim: number of dimensions of one datum.
        scale: a number for a fixed scale; ``"shared"`` for one learnt scale; ``"per_pixel"`` for a second
            decoder output per dimension.
        min_scale: floor under a learnt scale. Without one the likelihood of continuous images is unbounded.
    """

    def __init__(
        self, event_dim: int, *, scale: float | Literal["shared", "per_pixel"] = "shared", min_scale: float = 1e-3
    ) -> None:
        super().__init__(event_dim)
        if isinstance(scale, str):
            require_one_of(("shared", "per_pixel"), scale=scale)
        else:
            require_positive(scale=scale)
        require_positive(min_scale=min_scale)
        self.scale, self.min_scale = scale, min_scale
        self.num_params = 2 if scale == "per_pixel" else 1
        if scale == "shared":
            self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, params: Float[Tensor, "*batch_params_event"]) -> dist.Distribution:
        loc, *raw = params.unbind(-self.event_dim - 1)
        scale: Tensor
        if raw:
            scale = nn.functional.softplus(raw[0]) + self.min_scale
        elif isinstance(self.scale, str):
            scale = self.log_scale.exp() + self.min_scale
        else:
            scale = torch.full((), self.scale, dtype=loc.dtype, device=loc.device)
        return dist.Normal(loc, scale).to_event(self.event_dim)
