"""Densities are zero outside the support, whatever torch returns there, and unchanged inside."""

import math
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T

from pyrovae.distributions._density import is_everywhere_positive, log_density, mask_of

t = torch.tensor
inf = math.inf

# A distribution, values inside its support, values outside.
dist.enable_validation(False)
CASES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "exponential": (dist.Exponential(1.0), [0.0, 2.0], [-0.1, -3.0]),
    "gamma": (dist.Gamma(2.0, 1.0), [0.5, 2.0], [-0.5]),
    "gamma of shape 1": (dist.Gamma(1.0, 1.0), [0.5], [-0.5]),
    "chi2": (dist.Chi2(2.0), [0.5], [-0.5]),
    "inverse gamma": (dist.InverseGamma(2.0, 1.0), [0.5], [-0.5]),
    "log normal": (dist.LogNormal(0.0, 1.0), [0.5], [-0.5]),
    "weibull": (dist.Weibull(1.0, 2.0), [0.5], [-0.5]),
    "pareto": (dist.Pareto(1.0, 2.0), [1.5], [0.5, -2.0]),
    "half normal": (dist.HalfNormal(1.0), [0.5], [-0.5]),
    "half cauchy": (dist.HalfCauchy(1.0), [0.5], [-0.5]),
    "uniform": (dist.Uniform(-1.0, 2.0), [0.0, 1.5], [-1.5, 2.5]),
    "beta": (dist.Beta(2.0, 3.0), [0.2], [-0.2, 1.2]),
    "uniform beta": (dist.Beta(1.0, 1.0), [0.2], [-0.2, 1.2]),
    "kumaraswamy": (dist.Kumaraswamy(2.0, 3.0), [0.2], [-0.2, 1.2]),
    "continuous bernoulli": (dist.ContinuousBernoulli(t(0.3)), [0.2], [-0.2, 1.2]),
    "bernoulli": (dist.Bernoulli(t(0.3)), [0.0, 1.0], [0.5, 2.0, -1.0]),
    "categorical": (dist.Categorical(t([0.2, 0.3, 0.5])), [0, 2], [3, -1, 7]),
    "poisson": (dist.Poisson(2.0), [0.0, 3.0], [-1.0, 1.5]),
    "geometric": (dist.Geometric(t(0.3)), [0.0, 3.0], [-1.0, 1.5]),
    "binomial": (dist.Binomial(4, t(0.3)), [0.0, 4.0], [5.0, -1.0, 1.5]),
    "negative binomial": (dist.NegativeBinomial(4.0, t(0.3)), [0.0, 4.0], [-1.0]),
    "beta binomial": (dist.BetaBinomial(2.0, 3.0, 4), [0.0, 4.0], [5.0, -1.0]),
    "one-hot": (dist.OneHotCategorical(t([0.2, 0.3, 0.5])), [[0.0, 1.0, 0.0]], [[1.0, 1.0, 0.0], [0.0, 0.5, 0.5]]),
    "dirichlet": (dist.Dirichlet(t([2.0, 3.0, 1.0])), [[0.2, 0.3, 0.5]], [[0.2, 0.3, 0.6], [-0.2, 0.7, 0.5]]),
    "flat dirichlet": (dist.Dirichlet(torch.ones(3)), [[0.2, 0.3, 0.5]], [[0.2, 0.3, 0.6]]),
    "independent": (dist.Exponential(torch.ones(2)).to_event(1), [[1.0, 2.0]], [[1.0, -2.0], [-1.0, -2.0]]),
    "independent twice": (dist.Gamma(torch.ones(1, 2), 1.0).to_event(1).to_event(1), [[[1.0, 2.0]]], [[[1.0, -2.0]]]),
    "expanded": (dist.TorchDistribution.expand(dist.Exponential(t(1.0)), [2]), [[1.0, 2.0]], []),
    "shifted": (dist.TransformedDistribution(dist.Exponential(1.0), [T.AffineTransform(2.0, 3.0)]), [2.5], [1.9, -5.0]),
    "squared": (
        dist.TransformedDistribution(dist.Uniform(0.0, 2.0), [T.PowerTransform(t(2.0)), T.AffineTransform(1.0, 1.0)]),
        [1.5, 4.9],
        [0.5, 5.5],
    ),
    "interval": (
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [T.SigmoidTransform(), T.AffineTransform(1.0, 2.0)]),
        [1.5, 2.9],
        [0.5, 3.5],
    ),
    "mixture of gammas": (
        dist.MixtureSameFamily(dist.Categorical(t([0.4, 0.6])), dist.Gamma(t([2.0, 1.0]), 1.0)),
        [0.5],
        [-0.5],
    ),
    "mixture in an event": (
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Exponential(torch.ones(2, 3)).to_event(1)),
        [[1.0, 2.0, 3.0]],
        [[1.0, -2.0, 3.0]],
    ),
}
dist.enable_validation(True)


@pytest.fixture(autouse=True)
def _unvalidated() -> Iterator[None]:
    """As estimators run: torch would refuse values outside."""
    with dist.validation_enabled(False):
        yield


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grad", [False, True])
def test_density_is_zero_outside_the_support(case: str, grad: bool) -> None:
    p, inside, outside = CASES[case]
    for value in inside:
        expected = p.log_prob(torch.as_tensor(value))
        assert expected.isfinite().all()
        torch.testing.assert_close(log_density(p, torch.as_tensor(value)), expected)
    for value in outside:
        z = torch.as_tensor(value)
        if grad and z.is_floating_point():
            z.requires_grad_()
        log_p = log_density(p, z)
        assert (log_p == -inf).all(), (case, value, log_p)
        if grad and z.requires_grad and log_p.requires_grad:
            (gradient,) = torch.autograd.grad(log_p.sum(), z)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("case", ["gamma", "dirichlet", "uniform beta", "weibull", "log normal"])
def test_gradients_of_a_parameter_are_those_of_what_is_inside(case: str) -> None:
    """The draws outside add nothing, where torch's own derivative there may be NaN."""
    theta = t(1.3, requires_grad=True)
    make = {
        "gamma": lambda: dist.Gamma(theta, theta),
        "dirichlet": lambda: dist.Dirichlet(theta * t([2.0, 3.0, 1.0])),
        "uniform beta": lambda: dist.Beta(theta, theta),
        "weibull": lambda: dist.Weibull(theta, theta),
        "log normal": lambda: dist.LogNormal(theta, theta),
    }[case]
    _, inside, outside = CASES[case]
    (expected,) = torch.autograd.grad(make().log_prob(t(inside)).sum(), theta)
    log_p = log_density(make(), t([*inside, *outside]))
    (got,) = torch.autograd.grad(log_p[log_p.isfinite()].sum(), theta)
    torch.testing.assert_close(got, expected)
    (weighted,) = torch.autograd.grad(log_density(make(), t([*inside, *outside])).logsumexp(0), theta)
    assert weighted.isfinite()


def test_mixtures_of_different_supports() -> None:
    """½ U(0, 1) + ½ U(0.5, 2): each component counts where it has mass."""
    p = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Uniform(t([0.0, 0.5]), t([1.0, 2.0])))
    expected = t([0.5, 0.5 + 1 / 3, 1 / 3, 0.0, 0.0]).log()
    torch.testing.assert_close(log_density(p, t([0.2, 0.7, 1.5, 2.5, -1.0])), expected)


def test_draws_are_inside_in_float32() -> None:
    """Rounding does not put a draw outside its own support: simplices of a thousand dimensions, bounded transforms."""
    torch.manual_seed(0)
    for p in (
        dist.Dirichlet(torch.full((1000,), 0.7)),
        dist.RelaxedOneHotCategorical(t(0.5), logits=torch.randn(200)),
        dist.Kumaraswamy(t(0.7), t(0.6)),
        dist.TransformedDistribution(dist.Normal(torch.zeros(50), 1.0), [T.StickBreakingTransform()]),
        dist.LKJCholesky(5, t(1.0)),
        dist.VonMises(t(0.0), t(1.0)),
        dist.ProjectedNormal(torch.ones(3)),
    ):
        z = p.sample((1000,))
        assert (log_density(p, z) > -inf).float().mean() > 0.999


def test_masked_entries_are_not_scored_wherever_they_lie() -> None:
    mask = t([True, False])
    p = dist.Exponential(torch.ones(2)).mask(mask).to_event(1)
    torch.testing.assert_close(log_density(p, t([2.0, -1.0])), t(-2.0))
    assert log_density(p, t([-2.0, 1.0])) == -inf
    assert torch.equal(mask_of(p), mask)
    outer = dist.Exponential(torch.ones(3, 2)).to_event(1).mask(t([True, False, True]))
    assert mask_of(outer).shape == (3, 1)
    both = mask_of(p.expand([3]), t([True, True, False]))
    assert torch.equal(both.expand(3, 2), t([[True, False], [True, False], [False, False]]))
    assert mask_of(dist.Normal(0.0, 1.0)) is True
    assert mask_of(dist.Normal(0.0, 1.0), True) is True
    assert mask_of(dist.Normal(0.0, 1.0).mask(False)) is False


def test_families_on_all_reals_are_scored_as_they_are() -> None:
    """Nothing is checked where there is nothing to check, and what a flow keeps of its draw is used."""
    for p in (
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.StudentT(3.0),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)),
        dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [T.AffineTransform(0.0, 2.0)]),
    ):
        assert is_everywhere_positive(p)
    assert not is_everywhere_positive(dist.TransformedDistribution(dist.Normal(0.0, 1.0), [T.ExpTransform()]))
