"""The continuous Bernoulli by its logit, at logits of any size."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrovae.distributions import ContinuousBernoulli

LOGITS = [0.0, 1e-12, 1e-6, 1e-3, 0.01, 0.29, 0.31, 1.0, 5.0, 16.0, 40.0, 200.0, 3e4]


def symmetric(dtype: torch.dtype) -> Tensor:
    return torch.tensor([-logit for logit in LOGITS] + LOGITS, dtype=dtype)


def exact(logit: float, x: float) -> tuple[float, float]:
    """log p(x) and the mean with 80 digits."""
    with localcontext() as context:
        context.prec = 80
        a = Decimal(logit)
        if not a:
            return 0.0, 0.5
        normaliser = (a.exp() - 1) / a
        return float(a * Decimal(x) - normaliser.ln()), float(1 + 1 / (a.exp() - 1) - 1 / a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0.0, 0.3, 0.5, 1.0])
def test_log_density_and_mean_are_exact(dtype: torch.dtype, x: float) -> None:
    eps = torch.finfo(dtype).eps
    for logit in symmetric(dtype):
        p = ContinuousBernoulli(logit)
        value = torch.tensor(x, dtype=dtype)
        log_p, mean = exact(logit.item(), value.item())
        assert abs(p.log_prob(value).item() - log_p) <= 4 * eps * (1 + abs(logit.item()))
        assert abs(p.mean.item() - mean) <= max(4 * eps, 1e-12)


def test_density_integrates_to_one_in_float32() -> None:
    """Gauss-Legendre on pieces that grow geometrically from both ends, where the mass is at large logits."""
    edges = torch.cat([torch.zeros(1), torch.logspace(-7, math.log10(0.5), 60)]).double()
    edges = torch.cat([edges, 1 - edges.flip(0)[1:]])
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(20))
    width, middle = edges.diff() / 2, (edges[1:] + edges[:-1]) / 2
    x, w = (middle[:, None] + width[:, None] * nodes).flatten(), (width[:, None] * weights).flatten()
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        logits = symmetric(dtype)
        logits = logits[logits.abs() <= 200]
        mass = w @ ContinuousBernoulli(logits).log_prob(x.to(dtype).unsqueeze(-1)).double().exp()
        torch.testing.assert_close(mass, torch.ones(len(logits)).double(), rtol=0, atol=tolerance)


def test_it_is_torchs_law_where_that_is_accurate_and_not_beyond() -> None:
    x, logits = torch.rand(9).double(), torch.linspace(-12, 12, 9).double() + 0.1
    torchs = torch.distributions.ContinuousBernoulli
    torch.testing.assert_close(ContinuousBernoulli(logits).log_prob(x), torchs(logits=logits).log_prob(x))
    far, one = torch.tensor(200.0), torch.tensor(1.0)
    truth = math.log(200.0)
    assert ContinuousBernoulli(far).log_prob(one).item() == pytest.approx(truth, abs=1e-4)
    assert abs(torchs(logits=far).log_prob(one).item() - truth) > 2.0  # why there is a class of ours


def test_gradient_is_x_less_the_mean_everywhere() -> None:
    """An exponential family: d log p / dl = x - E x, at l = 0 too."""
    logits = symmetric(torch.float64).requires_grad_()
    ContinuousBernoulli(logits).log_prob(torch.tensor(0.7, dtype=torch.float64)).sum().backward()
    mean = ContinuousBernoulli(logits).mean.detach()
    torch.testing.assert_close(logits.grad, 0.7 - mean, rtol=1e-9, atol=1e-9)


def test_samples_follow_the_density() -> None:
    """By the distribution function (e^(lx) - 1)/(e^l - 1), which makes draws uniform: their first two moments."""
    torch.manual_seed(0)
    logits = torch.tensor([-60.0, -3.0, 1e-9, 0.4, 9.0]).double()
    x = ContinuousBernoulli(logits).sample((100_000,))
    assert ((x >= 0) & (x <= 1)).all()
    u = torch.expm1(logits * x) / torch.expm1(logits)
    for power in (1, 2, 3):
        moment = u.pow(power)
        assert ((moment.mean(0) - 1 / (power + 1)).abs() < 4.5 * moment.std(0) / math.sqrt(len(x))).all()
