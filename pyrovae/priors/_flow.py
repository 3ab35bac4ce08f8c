"""A flow as the prior."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch

from pyrovae._checks import require_instance
from pyrovae.distributions import Flow
from pyrovae.posteriors import POSTERIORS, FlowPosterior
from pyrovae.priors._base import PosteriorAt, Prior


class FlowPrior(Prior):
    """A flow as the prior (Chen et al. 2017, arXiv:1611.02731): u = T(z) is standard normal, so that
    log p(z) = log N(T(z); 0, I) + log |det ∂T/∂z|.

    T is the flow of a posterior family, the other way round: z is what goes in. To score a point, which training does
    at every step, is one pass through T; a draw takes its inverse, two passes for couplings and Z for autoregressive
    families.

    Args:
        latent_dim: Z.
        flow: a family of flows in ``posteriors.POSTERIORS`` that can be inverted.
        flow_options: options of the family, such as ``{"num_flows": 8}``.

    Raises:
        ValueError: a family that is no flow, or has no inverse; options that it does not take.
    """

    zeros: torch.Tensor

    def __init__(
        self, latent_dim: int, *, flow: str = "neural_spline_coupling", flow_options: dict[str, Any] | None = None
    ) -> None:
        super().__init__(latent_dim)
        require_instance(str, flow=flow)
        require_instance(Mapping | None, flow_options=flow_options)
        # One context for all: the prior depends on nothing.
        self.flow = POSTERIORS.build(flow, flow_options, latent_dim=latent_dim, context_dim=1)
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)
        if not (isinstance(self.flow, FlowPosterior) and self.flow.can_score):
            can = [name for name, cls in POSTERIORS.items() if issubclass(cls, FlowPosterior) and cls.can_score]
            raise ValueError(f"flow must be a family that can be inverted, {', '.join(can)}; got {flow!r}.")
        del self.flow.base  # of the posterior: here u is standard normal

    def forward(self, posterior_at: PosteriorAt | None = None) -> dist.Distribution:
        transforms = self.flow.transforms(torch.ones_like(self.zeros[:1]))
        base = dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)
        return Flow(base, [transform.inv for transform in reversed(transforms)], can_score=True)
