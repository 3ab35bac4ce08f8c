"""Normals: correlated ones whose own draws are scored from their noise, and those that are made from other normals."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_broadcasting, require_instance, require_tensors
from pyrovae._compat.torch import checks_values, own_scale_tril
from pyrovae.distributions._capabilities import innermost
from pyrovae.distributions._own_draw import KeepsLastDraw
from pyrovae.distributions._sylvester import apply_matrix


class MultivariateNormal(KeepsLastDraw, dist.MultivariateNormal):
    """N(μ, L Lᵀ) as Pyro has it, but that its last draw z = μ + L ε is scored as -½ |ε|² - Σ ln Lᵢᵢ - ½ Z ln 2π.

    Any other value is scored by solving for ε. In single precision and hundreds of dimensions that can be wrong by
    millions of nats, because the condition number of a triangular L grows exponentially with its size.
    """

    def rsample(self, sample_shape: tuple[int, ...] | list[int] = ()) -> Tensor:
        noise = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        return self._keep(self.loc + apply_matrix(own_scale_tril(self), noise), noise)

    def log_prob(self, value: Tensor) -> Tensor:
        if (noise := self._kept(value)) is None:
            return super().log_prob(value)
        log_det = own_scale_tril(self).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (noise.square().sum(-1) + math.log(2.0 * math.pi) * self.event_shape[0]) - log_det


def rounding_error(p: Any) -> float:
    """By how many nats log p of a draw is wrong in its own precision, at worst of 32 draws: by any amount where a
    correlated normal solves for the noise and is nearly degenerate. 0 for other distributions.
    """
    if isinstance(p, torch.distributions.LowRankMultivariateNormal):
        parts = {"cov_factor": p.cov_factor.double(), "cov_diag": p.cov_diag.double()}
        exact: Any = torch.distributions.LowRankMultivariateNormal(p.loc.double(), **parts, validate_args=False)
    elif getattr(type(p), "log_prob", None) is torch.distributions.MultivariateNormal.log_prob:
        exact = dist.MultivariateNormal(p.loc.double(), scale_tril=p.scale_tril.double(), validate_args=False)
    else:
        return 0.0
    z = exact.sample(torch.Size((32,)))
    return float((p.log_prob(z.to(p.loc)) - exact.log_prob(z)).abs().max())


def product_of_normals(p: Any, q: Any) -> dist.Distribution:
    """The normal proportional to p(z) q(z): precisions add, and weigh the means (Sønderby et al. 2016,
    arXiv:1602.02282, eq. 17-19).

    Args:
        p: a normal, or an ``Independent`` one.
        q: another, of the same event shape; batch shapes are broadcast.
    """
    a, b = innermost(p), innermost(q)
    require_instance(torch.distributions.Normal, p=a, q=b)
    require_broadcasting(p=a.loc, q=b.loc)
    precision_a, precision_b = a.scale**-2, b.scale**-2
    variance = 1.0 / (precision_a + precision_b)
    loc = variance * (precision_a * a.loc + precision_b * b.loc)
    return dist.Normal(loc, variance.sqrt()).to_event(len(p.event_shape))


def residual_normal(
    p: Any, shift: Float[Tensor, "*batch_event"], stretch: Float[Tensor, "*batch_event"]
) -> dist.Distribution:
    """N(μ + shift, σ · stretch) for p = N(μ, σ): a posterior relative to its prior (Vahdat & Kautz 2020,
    arXiv:2007.03898, sec. 3.2).

    KL(q ‖ p) = ½ Σ (shift² / σ² + stretch² - log stretch² - 1) (their eq. 2) depends on the prior through σ alone:
    where the prior moves, the posterior goes with it.

    Args:
        p: a normal, or an ``Independent`` one.
        shift: in the units of z.
        stretch: positive.
    """
    base = innermost(p)
    require_instance(torch.distributions.Normal, p=base)
    require_tensors(finite=checks_values(), shift=shift)
    require_tensors(positive=checks_values(), stretch=stretch)
    require_broadcasting(p=base.loc, shift=shift, stretch=stretch)
    return dist.Normal(base.loc + shift, base.scale * stretch).to_event(len(p.event_shape))
