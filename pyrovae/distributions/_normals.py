"""Normals made from other normals, dimension by dimension: what top-down posteriors are built of."""

from typing import Any

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor

from pyrovae.distributions._independent import innermost


def product_of_normals(p: Any, q: Any) -> dist.Distribution:
    """The normal proportional to p(z) q(z): precisions add, and weigh the means (Sønderby et al. 2016,
    arXiv:1602.02282, eq. 17-19).

    Args:
        p: a normal, or an ``Independent`` one.
        q: another, of the same event shape; batch shapes are broadcast.
    """
    a, b = innermost(p), innermost(q)
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
    return dist.Normal(base.loc + shift, base.scale * stretch).to_event(len(p.event_shape))
