"""The AR(1) prior: a multivariate normal, with a least distance to every factorised posterior."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence

from pyrovae.distributions import AR1 as Process
from pyrovae.distributions._kl import kl_by_dimension
from pyrovae.priors import AR1

# latent_dim, channels, delta: one chain, the shortest chains, several, weak and strong correlation.
CHAINS = [(8, 1, 2.0), (8, 4, 2.0), (12, 3, 0.05), (12, 3, 20.0), (2, 1, 1e-4), (30, 2, 12.0)]


def dense(prior: AR1) -> MultivariateNormal:
    """The same law by its covariance α^|i-j| within a chain and 0 between chains."""
    t = torch.arange(prior.length, dtype=torch.float64)
    chain = prior.alpha ** (t[:, None] - t).abs()
    covariance = torch.block_diag(*[chain] * prior.channels)
    return MultivariateNormal(torch.zeros(prior.latent_dim, dtype=torch.float64), covariance)


def normal(loc: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(loc, scale), 1)


def least_kl(p: Process, log_scale: Tensor, loc: Tensor, scales) -> tuple[float, Tensor]:
    """The minimum of KL(N(loc, diag scale²) ‖ p) by L-BFGS, and the scales at it."""
    free = [loc.requires_grad_(), log_scale.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        free, max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = kl_divergence(normal(loc, scales(log_scale)), p)
        loss.backward()
        return loss

    optimizer.step(closure)
    return closure().item(), scales(log_scale).detach()


@pytest.mark.parametrize(("latent_dim", "channels", "delta"), CHAINS)
def test_density_and_moments_are_those_of_the_dense_normal(latent_dim: int, channels: int, delta: float) -> None:
    torch.manual_seed(0)
    prior = AR1(latent_dim, delta=delta, channels=channels).double()
    p, truth = prior(), dense(prior)
    z = truth.sample((4, 3))
    torch.testing.assert_close(p.log_prob(z), truth.log_prob(z), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.covariance_matrix, truth.covariance_matrix, rtol=0, atol=1e-14)
    torch.testing.assert_close(p.entropy(), truth.entropy())
    torch.testing.assert_close(p.variance, truth.variance)
    wide = p.expand(torch.Size([4, 3]))
    assert wide.batch_shape == (4, 3)
    torch.testing.assert_close(wide.log_prob(z), truth.log_prob(z), rtol=1e-9, atol=1e-9)
    assert wide.log_prob(z[0, 0]).shape == (4, 3)
    assert wide.rsample((5,)).shape == (5, 4, 3, latent_dim)


@pytest.mark.parametrize(("latent_dim", "channels", "delta"), CHAINS)
def test_draws_have_the_covariance(latent_dim: int, channels: int, delta: float) -> None:
    """Var of an empirical covariance of normals: (1 + ρ²)/N."""
    torch.manual_seed(0)
    prior = AR1(latent_dim, delta=delta, channels=channels).double()
    truth, z = dense(prior).covariance_matrix, prior().rsample((20_000,))
    se = ((1.0 + truth.square()) / len(z)).sqrt()
    assert ((z.T @ z / len(z) - truth).abs() < 4.5 * se).all()


@pytest.mark.parametrize(("latent_dim", "channels", "delta"), CHAINS)
def test_kl_is_the_dense_formula_and_its_terms_are_not_negative(latent_dim: int, channels: int, delta: float) -> None:
    torch.manual_seed(0)
    prior = AR1(latent_dim, delta=delta, channels=channels).double()
    p, truth = prior(), dense(prior)
    loc, scale = torch.randn(2, 5, latent_dim).double(), (torch.randn(2, 5, latent_dim).double() - 0.5).exp()
    q = normal(loc, scale)
    exact = kl_divergence(MultivariateNormal(loc, scale_tril=scale.diag_embed()), truth)
    torch.testing.assert_close(kl_divergence(q, p), exact, rtol=1e-8, atol=1e-8)
    terms = kl_by_dimension(q, p)
    assert terms.shape == (2, 5, latent_dim)
    torch.testing.assert_close(terms.sum(-1), exact, rtol=1e-8, atol=1e-8)
    assert (terms >= 0).all()
    full = MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(truth.covariance_matrix))
    torch.testing.assert_close(kl_divergence(full, p), kl_divergence(full, truth))  # a full-rank posterior has one too
    assert kl_by_dimension(full, p) is None
    with pytest.raises(NotImplementedError):
        kl_divergence(Independent(Laplace(loc, scale), 1), p)


def test_kl_is_the_monte_carlo_mean() -> None:
    torch.manual_seed(1)
    p = AR1(8, delta=2.0, channels=2).double()()
    q = normal(torch.randn(3, 8).double(), torch.rand(3, 8).double() + 0.2)
    z = q.sample((200_000,))
    terms = q.log_prob(z) - p.log_prob(z)
    assert ((terms.mean(0) - kl_divergence(q, p)).abs() < 4 * terms.std(0) / math.sqrt(len(z))).all()


@pytest.mark.parametrize(("latent_dim", "channels", "delta"), CHAINS)
def test_the_nearest_factorised_posterior_is_delta_away(latent_dim: int, channels: int, delta: float) -> None:
    """The closed-form minimum, against L-BFGS over all means and scales from a random start."""
    torch.manual_seed(0)
    prior = AR1(latent_dim, delta=delta, channels=channels).double()
    loc, log_scale = torch.randn(2, latent_dim, dtype=torch.float64)
    least, scale = least_kl(prior(), log_scale, loc, torch.exp)
    assert least == pytest.approx(delta, rel=1e-6)
    precision = torch.linalg.inv(dense(prior).covariance_matrix)
    torch.testing.assert_close(scale, precision.diagonal().rsqrt(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("latent_dim", "channels", "delta"), CHAINS[:3])
def test_constrained_scales_can_only_lie_farther_away(latent_dim: int, channels: int, delta: float) -> None:
    """One scale shared by all: the least KL is ½ [n ln(tr Λ / n) + (n-1) ln(1-α²)] in each chain. Scales kept over 1.1,
    where the best are under 1: it is at 1.1.
    """
    torch.manual_seed(0)
    prior = AR1(latent_dim, delta=delta, channels=channels).double()
    n, a2 = prior.length, prior.alpha**2
    trace = (2.0 + (n - 2) * (1.0 + a2)) / (1.0 - a2)
    shared = 0.5 * channels * (n * math.log(trace / n) + (n - 1) * math.log1p(-a2))
    loc, log_scale = torch.randn(latent_dim).double(), torch.zeros(1).double()
    least, _ = least_kl(prior(), log_scale, loc, lambda raw: raw.exp().expand(latent_dim))
    assert least == pytest.approx(shared, rel=1e-6)
    assert shared >= delta * (1 - 1e-12)
    loc, raw = torch.randn(2, latent_dim, dtype=torch.float64)
    kept, _ = least_kl(prior(), raw, loc, lambda raw: 1.1 + 0.4 * raw.sigmoid())
    at_bound = shared - 0.5 * latent_dim * math.log(trace / n) + 0.5 * channels * trace * 1.1**2
    at_bound -= latent_dim * (0.5 + math.log(1.1))
    assert kept == pytest.approx(at_bound, rel=1e-6)
    assert kept > delta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("latent_dim", "channels", "delta"), CHAINS)
def test_no_posterior_has_a_lower_rate(latent_dim: int, channels: int, delta: float, dtype: torch.dtype) -> None:
    """From far away to next to the optimum, where all that can take it under δ is rounding of sums of O(1) terms."""
    torch.manual_seed(0)
    prior = AR1(latent_dim, delta=delta, channels=channels)
    best = torch.linalg.inv(dense(prior).covariance_matrix).diagonal().rsqrt()
    prior = prior.to(dtype)
    rounding = 2 * latent_dim * torch.finfo(dtype).eps * (1.0 + delta)
    for distance in (3.0, 1.0, 0.1, 1e-3, 0.0):
        loc, raw = distance * torch.randn(2, 2000, latent_dim, dtype=torch.float64)
        kl = kl_divergence(normal((best * loc).to(dtype), (best * raw.exp()).to(dtype)), prior())
        assert kl.min() >= delta - rounding
    assert kl.max() <= delta + rounding


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delta": 0.0}, r"delta must be in \(0, 8\.987\] nats"),
        ({"delta": -1.0}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"delta": "two"}, "delta must not be negative, NaN or infinite; got 'two'"),
        ({"delta": 9.0}, "More channels"),
        ({"delta": 1.0, "channels": 3}, "channels must divide"),
        ({"delta": 1.0, "channels": 8}, "at least 2"),
        ({"delta": 1.0, "channels": 0}, "channels"),
    ],
)
def test_what_cannot_be_reached_is_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AR1(8, **options)
    assert AR1(8, delta=9.0, channels=4).alpha < AR1(8, delta=8.9).alpha
