"""``Posterior``, the base class, and ``FlowPosterior``, that of flows."""

import math
from abc import ABC, abstractmethod

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Transform

from pyrovae._checks import require_at_least
from pyrovae.distributions import Flow

_RAW_UNIT_SCALE = math.log(math.e - 1.0)  # softplus of this is 1
MIN_SCALE = 1e-5  # keeps log q finite however far a head drifts


def softplus_scale(raw: Tensor) -> Tensor:
    """Turn an unconstrained output into a scale: softplus, shifted to 1 at zero, with the floor ``MIN_SCALE``."""
    return nn.functional.softplus(raw + _RAW_UNIT_SCALE) + MIN_SCALE


def raw_of(scale: Tensor) -> Tensor:
    """The output that :func:`softplus_scale` turns into this scale."""
    return (scale - MIN_SCALE).clamp(min=MIN_SCALE).expm1().log() - _RAW_UNIT_SCALE


class Posterior(nn.Module, ABC):
    """An amortised posterior q(z | x) as a module, from a context ``(..., C)`` to a distribution with batch ``(...)``
    and event ``(Z,)``.

    Args:
        latent_dim: Z.
        context_dim: C, the width of the encoder's output.

    Attributes:
        can_score: whether log q(z|x) can be evaluated at a ``z`` that was not drawn from it.
    """

    can_score: bool = True

    def __init__(self, latent_dim: int, context_dim: int) -> None:
        super().__init__()
        require_at_least(1, latent_dim=latent_dim, context_dim=context_dim)
        self.latent_dim, self.context_dim = latent_dim, context_dim

    @abstractmethod
    def forward(self, context: Float[Tensor, "*batch context"]) -> dist.Distribution:
        """The distribution q(z | context)."""


class NormalHead(nn.Linear):
    """An amortised diagonal normal: one affine layer from context to location and scale."""

    def __init__(self, latent_dim: int, context_dim: int) -> None:
        super().__init__(context_dim, 2 * latent_dim)

    def forward(self, context: Tensor) -> dist.Distribution:
        loc, raw = super().forward(context).chunk(2, dim=-1)
        return dist.Normal(loc, softplus_scale(raw)).to_event(1)


class FlowPosterior(Posterior):
    """An amortised diagonal normal, pushed through amortised transforms. A family defines :meth:`transforms`.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: how many transforms are composed.
    """

    def __init__(self, latent_dim: int, context_dim: int, *, num_flows: int) -> None:
        super().__init__(latent_dim, context_dim)
        require_at_least(1, num_flows=num_flows)
        self.num_flows = num_flows
        self.base = NormalHead(latent_dim, context_dim)

    @abstractmethod
    def transforms(self, context: Float[Tensor, "*batch context"]) -> list[Transform]:
        """The transforms, in the order in which a draw passes them."""

    def forward(self, context: Float[Tensor, "*batch context"]) -> Flow:
        return Flow(self.base(context), self.transforms(context), can_score=self.can_score)
