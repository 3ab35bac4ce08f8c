"""Guides that draw outside the prior's support: such a draw has weight zero in every estimator."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from pyro.infer import Trace_ELBO
from scipy.integrate import quad
from torch import Tensor, nn

import pyrovae as pv

QUIET: dict[str, Any] = {"device": "cpu", "progress": False}
X = torch.tensor([[0.1], [0.5], [2.0]])


class Leaving(pv.VAEModel):
    """z ~ prior, x | z ~ N(z, 1); the guide is a normal around x, wherever the prior has mass."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.event_shape, self.prior, self.shift = (1,), prior, nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.7 * x[:, 0] + 0.4 + self.shift, 1.0))

    def exact(self, x: Tensor, low: float, high: float, points: tuple[float, ...] = ()) -> np.ndarray:
        """By quadrature over the support."""

        def joint(z: float, at: float) -> float:
            both = self.prior.log_prob(torch.tensor(z)) + dist.Normal(z, 1.0).log_prob(torch.tensor(at))
            return both.exp().item()

        return np.log([quad(joint, low, high, args=(at,), points=points or None)[0] for at in x[:, 0].tolist()])


UNIT, GAMMAS = dist.Exponential(torch.tensor(1.0)), dist.Gamma(torch.tensor([2.0, 9.0]), 3.0)
PRIORS: dict[str, tuple[Any, float, float]] = {
    "exponential": (UNIT, 0.0, 12.0),
    "gamma": (dist.Gamma(torch.tensor(2.0), 1.0), 1e-6, 12.0),
    "log normal": (dist.LogNormal(torch.tensor(0.0), 0.5), 1e-6, 12.0),
    "uniform": (dist.Uniform(torch.tensor(-0.5), 1.5), -0.5, 1.499999),
    "beta": (dist.Beta(torch.tensor(2.0), 2.0), 1e-6, 0.999999),
    "weibull": (dist.Weibull(torch.tensor(1.0), 2.0), 1e-6, 8.0),
    "mixture": (dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), GAMMAS), 1e-6, 12.0),
    "shifted": (dist.TransformedDistribution(UNIT, [T.AffineTransform(0.5, 2.0)]), 0.500001, 20.0),
    "masked by one": (UNIT.mask(True), 0.0, 12.0),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_importance_sampling_meets_quadrature(prior: str) -> None:
    p, low, high = PRIORS[prior]
    model = Leaving(p)
    found = pv.log_marginal(model, X, num_samples=20_000, **QUIET).pointwise
    assert ((found["log_px"] - model.exact(X, low, high)).abs() < 4 * found["mc_se"]).all()
    assert (found["mc_se"] < 0.05).all()
    assert (found["elbo"] == -np.inf).all()  # some draw of twenty thousand is outside


@pytest.mark.parametrize("prior", ["exponential", "uniform", "shifted"])
def test_annealing_meets_quadrature(prior: str) -> None:
    p, low, high = PRIORS[prior]
    model = Leaving(p)
    found = pv.ais(model, X, num_temperatures=60, num_chains=100, num_leapfrog=4, **QUIET).pointwise
    assert ((found["log_px"] - model.exact(X, low, high)).abs() < 4 * found["mc_se"]).all()
    assert (found["mc_se"] < 0.2).all()


def test_bdmc_encloses_quadrature() -> None:
    """What the start has outside the support stays in the gap: -log of its mass inside."""
    p, low, high = PRIORS["exponential"]
    model = Leaving(p)
    found = pv.bdmc(model, 4, num_temperatures=60, num_chains=100, num_leapfrog=4, **QUIET)
    exact = model.exact(found.x, low, high)
    assert (found.pointwise["lower"] < exact + 4 * found.pointwise["lower_se"]).all()
    assert (found.pointwise["upper"] > exact - 4 * found.pointwise["upper_se"]).all()


def test_iwae_has_the_gradient_of_what_is_inside() -> None:
    """Zero weights add nothing: the gradient is finite, and L_K rises to log p(x)."""
    p, low, high = PRIORS["gamma"]
    model = Leaving(p)
    torch.manual_seed(0)
    terms = model.log_terms(X, num_particles=20_000)
    bound = pv.IWAE(20_000).per_datum(terms)
    assert bound.detach().numpy() == pytest.approx(model.exact(X, low, high), abs=0.05)
    (gradient,) = torch.autograd.grad(bound.sum(), model.shift)
    assert abs(gradient.item()) < 0.2  # of log p(x), which does not depend on the guide, it is 0
    assert (pv.ELBO().per_datum(terms) == -torch.inf).all()


def test_fit_names_the_site() -> None:
    with pytest.raises(pv.NonFiniteLoss, match="site 'z' is infinite"):
        pv.fit(Leaving(PRIORS["gamma"][0]), X.repeat(30, 1), epochs=3, seed=0, **QUIET)


def test_discrete_draws_the_prior_does_not_have() -> None:
    """Five values drawn where the prior has three: a sum over three."""

    class Few(pv.VAEModel):
        def __init__(self) -> None:
            super().__init__()
            self.event_shape, self.weights = (1,), nn.Parameter(torch.tensor([0.2, 0.3, 0.5]))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Categorical(self.weights))
                pyro.sample("x", dist.Normal(k.float().unsqueeze(-1), 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("k", dist.Categorical(x.new_ones(len(x), 5)))

    found = pv.log_marginal(Few(), X, num_samples=20_000, **QUIET).pointwise
    k = torch.arange(3.0)
    exact = (dist.Normal(k, 1.0).log_prob(X) + torch.tensor([0.2, 0.3, 0.5]).log()).logsumexp(1).numpy()
    assert ((found["log_px"] - exact).abs() < 4 * found["mc_se"]).all()


def test_likelihoods_whose_support_depends_on_the_latent() -> None:
    """x ~ U(0, z), z ~ Gamma(2, 1): p(x) = exp(-x), though most of the guide's draws cannot have made x."""

    class Bounded(pv.VAEModel):
        def __init__(self) -> None:
            super().__init__()
            self.event_shape, self.unused = (1,), nn.Parameter(torch.zeros(()))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 1.0))
                pyro.sample("x", dist.Uniform(0.0, z.unsqueeze(-1)).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 1.0).expand([len(x)]))

    found = pv.log_marginal(Bounded(), X, num_samples=50_000, **QUIET).pointwise
    assert ((found["log_px"] + X[:, 0].numpy()).abs() < 4 * found["mc_se"]).all()


def test_pyros_objective_does_not_notice_and_fit_does() -> None:
    with pytest.raises(ValueError, match="the guide draws site 'z' outside the prior's support"):
        pv.fit(Leaving(PRIORS["exponential"][0]), X.repeat(30, 1), objective=Trace_ELBO(), epochs=1, **QUIET)
