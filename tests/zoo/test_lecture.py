"""What the VAE lecture derives: the KL's closed form, the gradients and their variance, the decoders."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.testing import BetaBernoulli, DiscreteMixture
from tests.cases import CONTEXT, LATENT, POSTERIORS, randomized
from tests.models import TwoSites, binary

# -- the KL in closed form ---------------------------------------------------------------------------------


MODELS = {
    **{
        name: lambda make=make: randomized(pv.VAE((6,), LATENT, hidden=(CONTEXT,), posterior=make()))
        for name, make in POSTERIORS.items()
    },
    "beta": lambda: BetaBernoulli(6, detune=2.0),
    "categorical": lambda: DiscreteMixture(torch.randn(3), torch.randn(3, 6)),
    "two sites": TwoSites,
}
KNOWN = {"mean_field", "mean_field_constant", "full_rank", "low_rank", "beta", "categorical", "two sites"}


@pytest.mark.parametrize("name", MODELS)
def test_closed_form_kl_is_what_monte_carlo_converges_to(name: str) -> None:
    model = MODELS[name]()
    x, k = binary(10).to(model.placement), 20_000
    with torch.no_grad():
        terms = model.log_terms(x, num_particles=k)
        exact = {site: terms.closed_form_kl(site) for site in terms.posterior}
    assert all(kl is not None for kl in exact.values()) == (name in KNOWN)
    for site, kl in exact.items():
        if kl is None:
            continue
        # Given the sites before it the closed form is exact draw by draw, so the difference has mean zero.
        difference = terms.kl(site, closed_form=False) - kl
        z = difference.mean(0) / (difference.std(0) / math.sqrt(k))
        assert z.abs().max() < 4.5
        assert difference.std() > 1e-3  # the draws do scatter


# -- gradients: how many draws, and of which kind --------------------------------------------------------------


class FreeNormal(pv.VAEModel):
    """A model's p(x, z) with one normal q for each of many copies of a datum: so many gradients in one pass."""

    def __init__(self, of: pv.VAEModel, loc: Tensor, scale: Tensor, copies: int, family: type = dist.Normal) -> None:
        super().__init__()
        self.of, self.family, self.event_shape = of, family, of.event_shape
        self.loc, self.scale = nn.Parameter(loc.repeat(copies, 1)), scale

    def model(self, x: Tensor) -> None:
        self.of.model(x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.family(self.loc, self.scale).to_event(1))

    def gradients(self, x: Tensor, objective: pv.ELBO) -> Tensor:
        """Of the ELBO of ``x`` (one datum) with respect to every copy's location, ``(copies, Z)``."""
        loss = objective.differentiable_loss(self.model, self.guide, x.expand(len(self.loc), *x.shape[1:]))
        return -torch.autograd.grad(loss, self.loc)[0]


@pytest.fixture(scope="module")
def digits_vae() -> tuple[pv.VAE, Tensor]:
    data = pv.datasets.load("digits", binarize="dynamic")
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, 4, hidden=(64,))
    pv.fit(vae, data, epochs=20, seed=0, progress=False, device="cpu")
    return vae, data.test[:1]


def free(of: pv.VAE, x: Tensor, copies: int, family: type = dist.Normal) -> FreeNormal:
    with torch.no_grad():
        q = of.q(x).base_dist
    return FreeNormal(of, q.loc, q.scale, copies, family)


@pytest.mark.parametrize("family", [dist.Normal, NonreparameterizedNormal], ids=["reparameterised", "score function"])
def test_the_gradients_variance_falls_as_one_over_the_number_of_draws(digits_vae, family: type) -> None:
    """The score function's faster, as every draw is compared with the mean of the others."""
    vae, x = digits_vae
    counts, logs, errors = [1, 2, 4, 8, 16, 32], [], []
    for draws in counts:
        g = free(vae, x, 2000, family).gradients(x, pv.ELBO(num_particles=draws))
        square = (g - g.mean(0)).square().sum(1)
        logs.append(square.mean().log().item())
        errors.append((square.std() / square.mean() / math.sqrt(len(g))).item())
    w = 1.0 / np.square(errors)
    t = np.log(counts) - np.average(np.log(counts), weights=w)
    slope, error = np.sum(w * t * logs) / np.sum(w * t**2), 1.0 / math.sqrt(np.sum(w * t**2))
    print(f"{family.__name__}: variance ~ L^{slope:.3f} ± {error:.3f}; at L = 1: {math.exp(logs[0]):.3g}")
    assert error < 0.05
    if family is dist.Normal:
        assert abs(slope + 1.0) < 4 * error
    else:
        assert slope < -1.0
        assert logs[0] - logs[1] > math.log(20.0)


class OneNormal(pv.VAEModel):
    """z ~ N(0, 1), x ~ N(z, s²)."""

    event_shape = (1,)
    noise = 0.5

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, self.noise).to_event(1), obs=x)


def test_both_gradients_have_the_mean_and_variance_of_theory() -> None:
    """With z = μ + σε: reparameterised (x-z)/s² - μ, score function (ε/σ) (log p(x|z) - KL) - μ. Gauss-Hermite
    quadrature is exact for their moments, which are polynomials in ε.
    """
    mu, sigma, x, s, copies = 0.3, 0.6, 1.7, OneNormal.noise, 200_000
    e, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    kl = 0.5 * (sigma**2 + mu**2 - 1.0) - math.log(sigma)
    z = mu + sigma * e
    log_likelihood = -0.5 * ((x - z) / s) ** 2 - math.log(s) - 0.5 * math.log(2.0 * math.pi)
    expected = {
        dist.Normal: (x - z) / s**2 - mu,
        NonreparameterizedNormal: e / sigma * (log_likelihood - kl) - mu,
    }
    variances = {}
    for family, values in expected.items():
        model = FreeNormal(OneNormal(), torch.full((1, 1), mu), torch.tensor([sigma]), copies, family)
        g = model.gradients(torch.full((1, 1), x), pv.ELBO()).squeeze(1).double()
        mean, variance = np.sum(weights * values), np.sum(weights * values**2) - np.sum(weights * values) ** 2
        assert mean == pytest.approx((x - mu) / s**2 - mu)  # the same for both: the gradient of the ELBO
        assert abs(g.mean() - mean) < 4.5 * math.sqrt(variance / copies)
        square = (g - g.mean()).square()
        assert abs(square.mean() - variance) < 4.5 * square.std() / math.sqrt(copies)
        variances[family] = variance
    ratio = variances[NonreparameterizedNormal] / variances[dist.Normal]
    print(f"variances {variances[dist.Normal]:.3f} and {variances[NonreparameterizedNormal]:.3f}, ratio {ratio:.1f}")
    assert ratio > 5


def test_on_digits_the_score_function_is_as_right_and_far_noisier(digits_vae) -> None:
    vae, x = digits_vae
    copies = 20_000
    one, other = (
        free(vae, x, copies, family).gradients(x, pv.ELBO()) for family in (dist.Normal, NonreparameterizedNormal)
    )
    error = ((one.var(0) + other.var(0)) / copies).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all()
    ratio = (other.var(0).sum() / one.var(0).sum()).item()
    print(f"variance ratio {ratio:.0f}")
    assert ratio > 20


# -- decoders ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_decoders_beat_independent_pixels(likelihood: str) -> None:
    """Against the best model without latents: each pixel's mean, and one scale for all of them."""
    data = pv.datasets.load("digits", binarize="static" if likelihood == "bernoulli" else None)
    mean = data.train.mean(0)
    if likelihood == "bernoulli":
        smoothed = (data.train.sum(0) + 1.0) / (len(data.train) + 2.0)
        alone = dist.Bernoulli(smoothed).to_event(1)
    else:
        alone = dist.Normal(mean, (data.train - mean).square().mean().sqrt()).to_event(1)
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, 8, hidden=(128,), likelihood=likelihood)
    # A learnt scale starts at 1, and at the usual rate of 1e-3 takes thousands of steps to come down.
    pv.fit(vae, data, epochs=40, learning_rate=5e-3, seed=0, progress=False, device="cpu")
    gain = pv.elbo_terms(vae, data.test, progress=False).pointwise["elbo"] - alone.log_prob(data.test).numpy()
    print(f"{likelihood}: ELBO over independent pixels {gain.mean():.2f} ± {gain.sem():.2f} nats")
    assert gain.mean() > 5 * gain.sem()
    assert vae.sample(5, seed=0).shape == (5, 64)
    means = vae.decode(vae.sample_latents(500, seed=0)).mean(0)  # what is generated is in the place of digits
    assert torch.corrcoef(torch.stack([means, mean]))[0, 1] > 0.9
