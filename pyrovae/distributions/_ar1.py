"""Stationary Gaussian chains: the AR(1) process."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae._checks import as_sizes, require_at_least, require_broadcasting, require_tensors
from pyrovae._compat.torch import checks_values


class AR1(dist.MultivariateNormal):
    """C independent stationary chains of length n, one after the other in a vector of C·n.

    In each, z₁ ~ N(0, 1) and z_t = α z_{t-1} + σ ε_t with ε_t ~ N(0, 1) and σ² = 1 - α². Every z_t is N(0, 1), and
    Corr(z_s, z_t) = α^|s-t|. It is the multivariate normal with that correlation matrix, with a density in time linear
    in n.

    Args:
        alpha: α of each chain, ``(C,)``, in (-1, 1).
        length: n.
        scale: σ of each chain, ``(C,)``; by default √((1 - α)(1 + α)). Near α = 1 pass it: it is lost in rounding α.
        batch_shape: of independent copies.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        alpha: Float[Tensor, "chains"],
        length: int,
        *,
        scale: Float[Tensor, "chains"] | None = None,
        batch_shape: tuple[int, ...] | list[int] = (),
    ) -> None:
        require_tensors(finite=checks_values(), alpha=alpha, scale=alpha if scale is None else scale)
        require_at_least(1, length=length)
        if alpha.dim() != 1:
            raise ValueError(f"alpha must be one number for each chain, (C,); got shape {tuple(alpha.shape)}.")
        require_broadcasting(alpha=alpha, scale=alpha if scale is None else scale)
        batch_shape = as_sizes(batch_shape, "batch_shape", minimum=0, empty=True)
        self.alpha, self.length = alpha, length
        self.scale = ((1.0 - alpha) * (1.0 + alpha)).sqrt() if scale is None else scale
        TorchDistribution.__init__(self, batch_shape, torch.Size([len(alpha) * length]), validate_args=False)

    def expand(self, batch_shape: tuple[int, ...] | list[int], _instance: Any = None) -> "AR1":
        return AR1(self.alpha, self.length, scale=self.scale, batch_shape=torch.Size(batch_shape))

    @property
    def loc(self) -> Tensor:
        return self.alpha.new_zeros(()).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.alpha.new_ones(()).expand(self.batch_shape + self.event_shape)

    @property
    def _factor(self) -> Float[Tensor, "chains length length"]:
        """Each chain as a linear map of its noise: α^(t-s) σ for s ≤ t, without σ at the first s."""
        t = torch.arange(self.length, device=self.alpha.device)
        lag = t.unsqueeze(-1) - t
        powers = self.alpha[:, None, None] ** lag.clamp(min=0)
        return torch.where(t == 0, powers, powers * self.scale[:, None, None]).tril()

    @property
    def _unbroadcasted_scale_tril(self) -> Tensor:  # all that the base class computes comes from it
        return torch.block_diag(*self._factor)

    def rsample(self, sample_shape: tuple[int, ...] | list[int] = ()) -> Tensor:
        shape = (*torch.Size(sample_shape), *self.batch_shape, len(self.alpha), self.length)
        noise = torch.randn(shape, dtype=self.alpha.dtype, device=self.alpha.device)
        return torch.einsum("cts,...cs->...ct", self._factor, noise).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        z = value.unflatten(-1, (-1, self.length))
        steps = self.steps(z)
        squares = z[..., 0].square() + steps.square().sum(-1)
        log_scale = (self.length - 1) * self.scale.log()
        total = -(0.5 * squares + log_scale).sum(-1) - 0.5 * math.log(2.0 * math.pi) * self.event_shape[0]
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def steps(self, z: Float[Tensor, "*batch chains length"]) -> Float[Tensor, "*batch chains length-1"]:
        """(z_t - α z_{t-1}) / σ for t = 2 … n."""
        return (z[..., 1:] - self.alpha.unsqueeze(-1) * z[..., :-1]) / self.scale.unsqueeze(-1)
