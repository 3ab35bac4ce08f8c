"""Discretised logistics: a mass function for any parameters, exact in the far tails, in float32 too."""

import math
from decimal import Decimal, localcontext

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.distributions import DiscretizedLogistic, Levels

LOCS = (-20.0, -0.3, 0.0, 0.2, 0.5012, 1.0, 8.0)
SCALES = (1e-4, 4e-4, 2e-3, 0.03, 0.7, 40.0, 1e4)


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    loc, scale = torch.cartesian_prod(torch.tensor(LOCS, dtype=dtype), torch.tensor(SCALES, dtype=dtype)).unbind(-1)
    return loc, scale


def levels(num_levels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.arange(num_levels, dtype=dtype) / (num_levels - 1)


def exact(k: int, last: int, loc: float, scale: float) -> float:
    """log P of a level with 60 digits, by subtracting the distribution function at the edges."""
    with localcontext() as context:
        context.prec, context.Emin = 60, -(10**12)

        def cdf(edge: Decimal) -> Decimal:
            t = (edge - Decimal(loc)) / Decimal(scale)
            return 1 / (1 + (-t).exp()) if t > 0 else t.exp() / (1 + t.exp())

        def tail(edge: Decimal) -> Decimal:
            return cdf(2 * Decimal(loc) - edge)  # by symmetry: without it digits are lost in the upper tail

        low, high = ((Decimal(k) + Decimal(h)) / last for h in ("-0.5", "0.5"))
        if k == 0:
            return float(cdf(high).ln())
        if k == last:
            return float(tail(low).ln())
        upper = low > Decimal(loc)
        return float((tail(low) - tail(high) if upper else cdf(high) - cdf(low)).ln())


@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_to_one_over_the_levels(num_levels: int, dtype: torch.dtype) -> None:
    loc, scale = grid(dtype)
    log_p = DiscretizedLogistic(loc, scale, num_levels).log_prob(levels(num_levels, dtype).unsqueeze(-1)).double()
    assert log_p.shape == (num_levels, len(loc))
    assert log_p.isfinite().all()
    # An edge is shared by two bins. In float32 its place is rounded, but for both alike; what is left is σ(b) σ(-a)'s.
    torch.testing.assert_close(log_p.logsumexp(0).exp(), torch.ones(len(loc)).double(), rtol=0, atol=1e-6)


def test_a_mixture_sums_to_one_over_the_levels() -> None:
    torch.manual_seed(0)
    components = DiscretizedLogistic(2.0 * torch.randn(50, 4), torch.randn(50, 4).mul(3.0).exp() + 4e-4, 256)
    p = dist.MixtureSameFamily(dist.Categorical(logits=10.0 * torch.randn(50, 4)), components)
    log_p = p.log_prob(levels(256, torch.float32).unsqueeze(-1)).double()
    torch.testing.assert_close(log_p.logsumexp(0).exp(), torch.ones(50).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probability_is_exact_far_into_the_tails(dtype: torch.dtype) -> None:
    """Where rounding k/(L-1) - loc moves the argument by δ = ε (1 + |loc|)/scale, log P moves by at most 2δ."""
    loc, scale = grid(dtype)
    eps = torch.finfo(dtype).eps
    some = [0, 1, 51, 128, 200, 254, 255]
    log_p = DiscretizedLogistic(loc, scale, 256).log_prob((torch.tensor(some, dtype=dtype) / 255).unsqueeze(-1))
    lowest = 0.0
    for i, k in enumerate(some):
        for j, (m, s) in enumerate(zip(loc.tolist(), scale.tolist(), strict=True)):
            truth = exact(k, 255, m, s)
            bound = 2 * eps * (1 + abs(m)) / s + 4 * eps * abs(truth) + 1e-6 * (dtype is torch.float32) + 1e-13
            assert abs(log_p[i, j].item() - truth) <= bound, (k, m, s)
            lowest = min(lowest, truth)
    assert lowest < -1e5  # the grid does reach far


@pytest.mark.parametrize(("loc", "scale"), [(0.4, 0.05), (-0.1, 0.1), (0.93, 0.02), (1.3, 0.004), (0.5, 0.004)])
def test_samples_and_mean_agree_with_the_probabilities(loc: float, scale: float) -> None:
    torch.manual_seed(0)
    p = DiscretizedLogistic(torch.tensor(loc).double(), torch.tensor(scale).double(), 17)
    x = p.sample((100_000,))
    counts = torch.bincount((x * 16).round().long(), minlength=17)
    assert p.support.check(x).all()
    probabilities = p.log_prob(levels(17)).exp()
    se = (probabilities * (1 - probabilities) / len(x)).sqrt()
    bound = 4.5 * se + 4.5**2 / 3 / len(x)  # Bernstein's inequality, so that rare levels are bounded too
    assert ((counts / len(x) - probabilities).abs() <= bound).all()
    assert p.mean.item() == pytest.approx((probabilities * levels(17)).sum().item(), abs=1e-12)


def test_gradients_are_finite_and_exact() -> None:
    loc, scale = (v.requires_grad_() for v in grid(torch.float64))
    x = levels(17)[[0, 3, 16]].unsqueeze(-1)
    DiscretizedLogistic(loc, scale, 17).log_prob(x).sum().backward()
    assert loc.grad.isfinite().all()
    assert scale.grad.isfinite().all()
    few = [v.detach()[SCALES.index(0.03) :: len(SCALES)].clone().requires_grad_() for v in (loc, scale)]
    assert torch.autograd.gradcheck(lambda m, s: DiscretizedLogistic(m, s, 17).log_prob(x), few)


def test_levels_of_float32_images_are_recognised() -> None:
    """A pixel that is a rounding off its level counts as the level: with a small scale it would differ by 1e-3."""
    x = torch.arange(256, dtype=torch.uint8).float() / 255
    p = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(1e-4), 256)
    torch.testing.assert_close(p.log_prob(x), p.log_prob(x * (1 + 1e-7)), rtol=0, atol=0)
    assert repr(p.support) == repr(Levels(torch.zeros(256)).support)
    assert p.support.is_discrete
    assert not p.support.check(torch.tensor([0.5, -1 / 255, 256 / 255, math.nan])).any()
