"""Flows of zuko's masked transforms, run from base to latent space: a draw is one pass."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Transform

from pyrovae._checks import as_sizes, require_at_least
from pyrovae._compat import zuko
from pyrovae.posteriors._base import FlowPosterior


class MaskedFlow(FlowPosterior):
    """A flow of masked transforms, z_i = f(u_i; u_{<i}, h): drawing and scoring a draw is one pass. Scoring another
    point takes ``passes`` of them, by default Z.

    The order of the dimensions is reversed from one transform to the next. Every transform starts near the
    same map for all inputs, since the last layer of its network starts small.
    """

    family: ClassVar[Any]  # a flow of zuko's
    passes: ClassVar[int | None] = None

    def __init__(
        self, latent_dim: int, context_dim: int, *, num_flows: int, hidden: Sequence[int], **options: Any
    ) -> None:
        hidden = as_sizes(hidden, "hidden", empty=True)
        super().__init__(latent_dim, context_dim, num_flows=num_flows)
        # The masked networks see every draw; a narrow summary of the context keeps them cheap.
        width = min(context_dim, 64)
        self.summary = nn.Linear(context_dim, width)
        options |= {"transforms": num_flows, "hidden_features": hidden, "passes": self.passes}
        self.steps = self.family(latent_dim, width, **options).transform.transforms
        with torch.no_grad():
            for step in self.steps:
                last = [layer for layer in step.modules() if list(layer.parameters(recurse=False))][-1]
                for parameter in last.parameters():
                    parameter.mul_(0.1)

    def transforms(self, context: Float[Tensor, "*batch context"]) -> list[Transform]:
        summary = self.summary(context)
        return [step(summary) for step in self.steps]


class IAF(MaskedFlow):
    """An inverse autoregressive flow of affine steps, Kingma et al. (2016, arXiv:1606.04934).

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of autoregressive transforms.
        hidden: hidden layers of each masked network.
    """

    family = zuko.flows.MAF

    def __init__(
        self, latent_dim: int, context_dim: int, *, num_flows: int = 4, hidden: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__(latent_dim, context_dim, num_flows=num_flows, hidden=hidden)


class NeuralSpline(MaskedFlow):
    """An inverse autoregressive flow of rational-quadratic splines, Durkan et al. (2019, arXiv:1906.04032).

    The splines act on [-5, 5] and are the identity outside.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of autoregressive transforms.
        hidden: hidden layers of each masked network.
        bins: spline bins per dimension.
    """

    family = zuko.flows.NSF

    def __init__(
        self,
        latent_dim: int,
        context_dim: int,
        *,
        num_flows: int = 2,
        hidden: Sequence[int] = (128, 128),
        bins: int = 8,
    ) -> None:
        require_at_least(2, bins=bins)
        super().__init__(latent_dim, context_dim, num_flows=num_flows, hidden=hidden, bins=bins)


class RealNVP(IAF):
    """A flow of affine couplings, Dinh et al. (2017, arXiv:1605.08803): either half of the dimensions is moved as the
    other half says, in turn. A draw is one pass, scoring another point two.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of couplings.
        hidden: hidden layers of each network.
    """

    passes = 2


class NeuralSplineCoupling(NeuralSpline):
    """A flow of couplings by rational-quadratic splines, Durkan et al. (2019, arXiv:1906.04032). A draw is one pass,
    scoring another point two.

    The splines act on [-5, 5] and are the identity outside.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of couplings; half of them move every dimension.
        hidden: hidden layers of each network.
        bins: spline bins per dimension.
    """

    passes = 2

    def __init__(
        self,
        latent_dim: int,
        context_dim: int,
        *,
        num_flows: int = 4,
        hidden: Sequence[int] = (128, 128),
        bins: int = 8,
    ) -> None:
        super().__init__(latent_dim, context_dim, num_flows=num_flows, hidden=hidden, bins=bins)
