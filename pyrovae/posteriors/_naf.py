"""A neural autoregressive flow: monotone networks of one dimension each, inverted by bisection."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform

from pyrovae._checks import as_sizes, require_at_least
from pyrovae._compat import zuko
from pyrovae.distributions import Flow
from pyrovae.posteriors._base import FlowPosterior

_REACH = 1e4  # of the bisection: it looks for u in [-10⁴, 10⁴]


class _Monotone(zuko.flows.neural.MNN):
    """A monotone network, inverted wherever a float32 has six digits: zuko looks no further than 10, and takes that for
    the inverse of all that lies beyond.
    """

    def forward(self, signal: Tensor) -> Transform:
        transform = super().forward(signal)
        transform.bound = _REACH
        return transform


class NeuralAutoregressive(FlowPosterior):
    """A neural autoregressive flow, Huang et al. (2018, arXiv:1804.00779): z_i = f(u_i; u_{<i}, h) with f a monotone
    network. A draw is one pass; scoring another point takes Z bisections for each transform, to 1e-6.

    A standard normal passes the networks, and location and scale come last.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of autoregressive transforms.
        hidden: hidden layers of the masked networks.
        signal: what a masked network tells a monotone one, numbers per dimension.
        monotone: hidden layers of the monotone networks.
    """

    def __init__(
        self,
        latent_dim: int,
        context_dim: int,
        *,
        num_flows: int = 2,
        hidden: Sequence[int] = (128, 128),
        signal: int = 8,
        monotone: Sequence[int] = (32,),
    ) -> None:
        hidden, monotone = as_sizes(hidden, "hidden", empty=True), as_sizes(monotone, "monotone")
        require_at_least(1, signal=signal)
        super().__init__(latent_dim, context_dim, num_flows=num_flows)
        width = min(context_dim, 64)
        self.summary = nn.Linear(context_dim, width)
        order = torch.arange(latent_dim)
        self.steps = nn.ModuleList(
            zuko.flows.MaskedAutoregressiveTransform(
                latent_dim,
                width,
                order=order.flip(0) if i % 2 else order,
                univariate=_Monotone(signal, stack=latent_dim, hidden_features=monotone),
                shapes=[(signal,)],
                hidden_features=hidden,
            )
            for i in range(num_flows)
        )

    def transforms(self, context: Float[Tensor, "*batch context"]) -> list[Transform]:
        summary = self.summary(context)
        return [step(summary) for step in self.steps]

    def forward(self, context: Float[Tensor, "*batch context"]) -> Flow:
        last = self.base(context).base_dist
        unit = Normal(torch.zeros_like(last.loc), 1.0).to_event(1)
        return Flow(unit, [*self.transforms(context), AffineTransform(last.loc, last.scale, 1)], can_score=True)
