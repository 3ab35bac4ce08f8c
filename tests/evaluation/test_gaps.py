"""Approximation and amortisation gaps against closed forms, and posteriors refitted to a frozen model."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

import pyrovae as pv
from pyrovae.distributions._capabilities import capabilities
from pyrovae.evaluation.inference._gaps import _RATES
from pyrovae.evaluation.inference._mean_field import MeanField
from pyrovae.evaluation.inference._own_family import OwnFamily
from pyrovae.evaluation.inference._per_datum import gradients
from pyrovae.testing import BetaBernoulli, DiscreteMixture, LinearGaussian, LinearMixture
from tests.cases import POSTERIORS
from tests.models import Conditional, TwoSites, binary

D, Z = 32, 16


def weights() -> torch.Tensor:
    return 0.3 * torch.randn(D, Z, generator=torch.Generator().manual_seed(3))


class Amortised(LinearGaussian):
    """The linear-Gaussian model, frozen, with a linear encoder and a posterior of any family."""

    def __init__(self, posterior: nn.Module, w: torch.Tensor | None = None) -> None:
        w = weights() if w is None else w
        super().__init__(w, torch.zeros(len(w)), 0.8)
        self.requires_grad_(False)
        self.encoder, self.posterior = nn.Linear(len(w), posterior.context_dim), posterior

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(x)))


def gaps(model: pv.VAEModel, x: torch.Tensor, *covariates, **options) -> pv.GapsResult:
    quick = {"steps": 5, "num_samples": 20, "progress": False}
    return pv.inference_gaps(model, x, *covariates, **{**quick, **options})


def train(model: pv.VAEModel, epochs: int) -> None:
    pv.fit(
        model,
        model.sample(5000, seed=0),
        epochs=epochs,
        learning_rate=1e-2,
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        seed=0,
        device="cpu",
        progress=False,
    )


def test_mean_field_gap_is_the_closed_form_for_every_datum() -> None:
    """And the amortisation gap is 0: the best mean-field posterior's mean is linear in x, its scales are constant."""
    model = LinearGaussian(weights(), torch.zeros(D), 0.8, guide="mean_field")
    x = model.sample(20, seed=1)
    result = gaps(model, x, log_px=model.exact_log_px(x), families=("mean_field",), steps=500, num_samples=5000)
    p, s = result.pointwise, result.summary()
    truth = model.approximation_gap()
    gap = p["mean_field_approximation"]
    print(
        f"gap {gap.mean():.4f}±{s['mean_field_approximation_mc_se']:.4f}, closed form {truth:.4f}, sd {gap.std():.4f}"
    )
    assert abs(gap.mean() - truth) < 0.02
    # The same for every x: what scatter there is comes from the draws.
    assert gap.std() < 1.5 * p["mean_field_approximation_se"].mean()
    assert (abs(gap - truth) < 4.5 * p["mean_field_approximation_se"] + 0.01).all()
    assert abs((p["mean_field"] - p["elbo"]).mean()) < 0.02
    assert (result.proposal, s["log_px_bias"], result.converged) == ("given", 0.0, True)


@pytest.mark.slow
def test_a_trained_linear_encoder_comes_near_it() -> None:
    model = Amortised(pv.posteriors.MeanFieldNormal(Z, 2 * Z))
    train(model, 60)
    x = model.sample(50, seed=1)
    s = gaps(model, x, log_px=model.exact_log_px(x), steps=1000, num_samples=5000).summary()
    print(f"trained: amortisation {s['amortization']:.4f}±{s['amortization_mc_se']:.4f}, {s['approximation']:.4f}")
    assert abs(s["approximation"] - model.approximation_gap()) < 0.02
    assert abs(s["amortization"]) < 0.02


def test_a_detuned_guide_has_the_closed_form_amortisation_gap() -> None:
    """KL from the optimum: a shift d and a stretch s of normals with precisions Λᵢᵢ, under the true posterior's Λ."""
    model = LinearGaussian(weights(), torch.zeros(D), 0.8, guide="detuned", shift=0.1, stretch=1.2)
    x = model.sample(20, seed=1)
    p = gaps(model, x, families=("mean_field",), steps=500, num_samples=5000, log_px=model.exact_log_px(x)).pointwise
    precision = model.precision().double()
    shift = 0.1 * torch.ones(Z, dtype=torch.float64)
    truth = (0.5 * shift @ precision @ shift + Z * (0.5 * (1.2**2 - 1.0) - math.log(1.2))).item()
    amortization = p["mean_field"] - p["elbo"]
    se = np.sqrt((p["mean_field_se"] ** 2 + p["elbo_se"] ** 2).sum()) / len(p)
    print(f"amortisation gap {amortization.mean():.4f}±{se:.4f}, closed form {truth:.4f}")
    assert abs(amortization.mean() - truth) < 4 * se


@pytest.mark.slow
def test_one_autoregressive_step_closes_the_gap() -> None:
    model = Amortised(pv.posteriors.IAF(Z, 2 * Z, num_flows=1, hidden=()))
    train(model, 60)
    x = model.sample(50, seed=1)
    s = gaps(model, x, log_px=model.exact_log_px(x), families=("own",), steps=1000, num_samples=5000).summary()
    print(f"one IAF step: approximation gap {s['approximation']:.4f}±{s['approximation_mc_se']:.4f}")
    assert model.approximation_gap() > 1
    assert abs(s["approximation"]) < 0.02
    assert s["amortization"] > -4 * s["amortization_mc_se"]


def test_a_family_that_cannot_be_vectorised_is_refused() -> None:
    model = Amortised(POSTERIORS["naf"](), 0.5 * torch.randn(8, 3))
    with pytest.raises(ValueError, match="takes gradients itself"):
        gaps(model, model.sample(3, seed=1), families=("own",), steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in POSTERIORS.items() if case.vectorises])
def test_every_family_improves_on_a_guide_that_is_off(name: str) -> None:
    """From an untrained guide: q* is better, and no better than log p(x)."""
    torch.manual_seed(0)
    model = Amortised(POSTERIORS[name](), 0.5 * torch.randn(8, 3))
    x = model.sample(6, seed=1)
    before = [p.clone() for p in model.parameters()]
    p = gaps(
        model, x, log_px=model.exact_log_px(x), families=("own",), steps=150, num_samples=500, learning_rate=0.05
    ).pointwise
    assert (p["amortization"] > 0).all()
    assert (p["approximation"] > -4.5 * p["approximation_se"] - 1e-3).all()
    assert p["approximation"].mean() < 0.3 * (p["approximation"] + p["amortization"]).mean()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_own_family_of_a_mean_field_guide_is_the_mean_field_family() -> None:
    vae = pv.VAE((6,), 3, hidden=(16,))
    p = gaps(vae, binary(4)).pointwise
    assert (p["own"] == p["mean_field"]).all()
    assert (p["approximation"] == p["mean_field_approximation"]).all()
    np.testing.assert_allclose(p["approximation"] + p["amortization"], p["log_px"] - p["elbo"])


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["mean_field", "iaf"])
def test_digits(posterior: str, digits_vae: Callable[[str], pv.VAE]) -> None:
    x = pv.datasets.load("digits", binarize="static").test[:15]
    result = gaps(digits_vae(posterior), x, steps=300, num_samples=1000)
    p, s = result.pointwise, result.summary()
    print(f"{posterior}: {s[['approximation', 'amortization', 'mean_field_approximation']].round(4).to_dict()}")
    for name in ("approximation", "mean_field_approximation"):
        assert (p[name] > -4.5 * p[f"{name}_se"]).all()
    assert s["amortization"] > -4 * s["amortization_mc_se"]
    assert s["approximation"] <= s["mean_field_approximation"] + 4 * s["approximation_mc_se"]


@pytest.mark.slow
@pytest.mark.parametrize("bottom_up", [False, True])
def test_several_sites_and_intervals(bottom_up: bool) -> None:
    model, x = TwoSites(bottom_up=bottom_up), binary(5)
    p = gaps(model, x, steps=50, num_samples=300).pointwise
    assert (p["own"] > p["elbo"] - 4.5 * p["amortization_se"]).all()
    model, x = BetaBernoulli(10, detune=3.0), binary(5, 10)
    p = gaps(model, x, families=("mean_field",), steps=300, num_samples=1000, log_px=model.exact_log_px(x)).pointwise
    assert (p["mean_field"] > p["elbo"]).all()
    error = p["mean_field_approximation"] - logit_normal_gap(x.sum(1).double(), 10)
    assert (abs(error) < 4.5 * p["mean_field_approximation_se"]).all()
    assert (p["mean_field_approximation_se"] < 0.005).all()


def logit_normal_gap(heads: torch.Tensor, n: int) -> np.ndarray:
    """KL from the best normal over log-odds to the posterior Beta(2 + heads, 3 + n - heads), by quadrature."""
    a, b = 2 + heads, 3 + n - heads
    nodes, w = (torch.tensor(v).double() for v in np.polynomial.hermite_e.hermegauss(80))
    loc, log_scale = (v.clone().requires_grad_() for v in ((a / b).log(), 0.5 * (1 / a + 1 / b).log()))
    optimizer = torch.optim.LBFGS([loc, log_scale], max_iter=200, line_search_fn="strong_wolfe")

    def kl() -> torch.Tensor:
        u = loc.unsqueeze(-1) + log_scale.exp().unsqueeze(-1) * nodes
        log_norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        log_posterior = a * loc - (a + b) * (nn.functional.softplus(u) @ w) / math.sqrt(2 * math.pi) - log_norm
        return -0.5 * math.log(2 * math.pi * math.e) - log_scale - log_posterior

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        kl().sum().backward()
        return kl().sum()

    optimizer.step(closure)
    return kl().detach().numpy()


class Wrong(pv.VAEModel):
    """The full-rank target of 20 latents with a mean-field posterior whose encoder is 1.5 scales off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.w, self.noise = torch.randn(24, 20) / 20**0.5, 0.8
        self.event_shape, self.posterior = (24,), pv.posteriors.MeanFieldNormal(20, 24)
        self.precision = torch.eye(20) + self.w.T @ self.w / self.noise**2
        with torch.no_grad():
            head = self.posterior.head
            head.weight.zero_()
            head.weight[:20] = torch.linalg.solve(self.precision, self.w.T) / self.noise**2
            head.bias[:20] = 1.5 * self.precision.diagonal().rsqrt()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w.T, self.noise).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))


def z_scores(p, exact: torch.Tensor) -> np.ndarray:
    return ((p["log_px"] - p["log_px_bias"] - exact.numpy()) / p["log_px_se"]).to_numpy()


def test_the_gap_to_a_full_rank_target_from_a_guide_that_is_off() -> None:
    """log p(x) of the guide's draws alone is 20 nats too low here; the mixture's is right, with its error."""
    model = Wrong()
    x = torch.randn(20, 20) @ model.w.T + 0.8 * torch.randn(20, 24)
    result = gaps(model, x, steps=500, num_samples=1000)
    p, s = result.pointwise, result.summary()
    truth = 0.5 * (model.precision.diagonal().log().sum() - model.precision.logdet()).item()
    exact = torch.distributions.MultivariateNormal(torch.zeros(24), model.w @ model.w.T + 0.64 * torch.eye(24))
    z = z_scores(p, exact.log_prob(x))
    print(f"gap {s['approximation']:.4f}±{s['approximation_mc_se']:.4f}, exact {truth:.4f}; z {z.round(1)}")
    assert truth == pytest.approx(1.5435, abs=1e-4)
    assert abs(s["approximation"] - truth) < 4 * s["approximation_mc_se"]
    assert abs(z.mean()) < 4 / math.sqrt(20)
    assert abs(z).max() < 5
    assert result.proposal == "elbo, own, wide own"
    assert result.converged


def test_a_mixture_prior_with_its_exact_log_px() -> None:
    torch.manual_seed(0)
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    model = LinearMixture(torch.tensor([0.3, 0.7]), means, 0.5, torch.randn(4, 2), torch.zeros(4), 1.0)
    x = model.sample(10, seed=2)
    p = gaps(model, x, families=("mean_field",), steps=150, num_samples=500).pointwise
    z = z_scores(p, model.exact_log_px(x))
    assert abs(z.mean()) < 4 / math.sqrt(10)
    assert abs(z).max() < 4.5
    assert (p["mean_field_approximation"] > -4 * p["mean_field_approximation_se"]).all()
    assert p["mean_field_approximation"].mean() < 0.1 < (p["mean_field"] - p["elbo"]).mean()


class Parts(pv.VAEModel):
    """u for every datum and z_p for each of three parts: x_p ~ N(w_p z_p + u, 0.7² I)."""

    event_shape, max_plate_nesting = (3, 2), 2

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.tensor([0.5, 1.0, 2.0])), nn.Linear(6, 6)

    def model(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            with pyro.plate("parts", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                loc = (self.w[:, None] * z).unsqueeze(-1) + u
                pyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x.transpose(0, 1))

    def guide(self, x):
        loc, raw = self.head(x.flatten(1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(x.mean(1), 0.5).to_event(1))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("z", dist.Normal(loc.T, (0.3 * raw.T).exp()))

    def exact(self, x):
        a = torch.zeros(6, 5)
        for p, w in enumerate(self.w.tolist()):
            a[2 * p : 2 * p + 2, p], a[2 * p : 2 * p + 2, 3:] = w, torch.eye(2)
        precision = torch.eye(5) + a.T @ a / 0.49
        normal = torch.distributions.MultivariateNormal(torch.zeros(6), a @ a.T + 0.49 * torch.eye(6))
        return normal.log_prob(x.flatten(1)), 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()


@pytest.mark.parametrize("num_particles", [1, 2])
def test_two_plates_and_two_sites(num_particles: int) -> None:
    torch.manual_seed(0)
    model, x = Parts(), torch.randn(8, 3, 2)
    exact, truth = model.exact(x)
    result = gaps(model, x, steps=200, num_samples=1000, num_particles=num_particles, families=("mean_field",))
    p, s = result.pointwise, result.summary()
    z = z_scores(p, exact)
    assert abs(z.mean()) < 4 / math.sqrt(8)
    assert abs(z).max() < 4.5
    gap, se = s["mean_field_approximation"], s["mean_field_approximation_mc_se"]
    print(f"gap {gap:.4f}±{se:.4f}, closed form {truth:.4f}")
    assert truth - 4 * se < gap < truth + 4 * se + 0.02  # of steps that are too few, at one draw a step
    with torch.no_grad():  # the same densities whoever drew
        for q in (MeanField(model, (x,)), OwnFamily(model, (x,))):
            latents, log_q = q.draw(num_particles)
            torch.testing.assert_close(q.log_prob(latents), log_q, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.log_posterior(x, latents=latents), log_q, rtol=1e-4, atol=1e-4)


class Constrained(pv.VAEModel):
    """A latent on some support, drawn by the guide there or, wrongly, from a normal."""

    event_shape = (3,)
    PRIORS = {  # noqa: RUF012
        "positive": lambda: dist.Gamma(2.0, torch.ones(2)).to_event(1),
        "interval": lambda: dist.Uniform(-1.0, 3.0 * torch.ones(2)).to_event(1),
        "simplex": lambda: dist.Dirichlet(2.0 * torch.ones(3)),
        "mixture": lambda: dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.LogNormal(torch.zeros(2, 2), 0.5).to_event(1)
        ),
    }

    def __init__(self, kind: str, *, outside: bool = False) -> None:
        super().__init__()
        self.kind, self.outside = kind, outside
        self.head, self.decoder = nn.Linear(3, 4), nn.Linear(3 if kind == "simplex" else 2, 3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.PRIORS[self.kind]())
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc, raw = self.head(x).chunk(2, -1)
        q = dist.Normal(loc, (0.3 * raw).exp()).to_event(1)
        if not self.outside:
            q = dist.TransformedDistribution(q, [biject_to(capabilities(self.PRIORS[self.kind]()).support)])
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)


@pytest.mark.slow
@pytest.mark.parametrize("kind", Constrained.PRIORS)
def test_constrained_latents_against_draws_from_the_prior(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Constrained(kind), torch.randn(5, 3)
    p = gaps(model, x, steps=40, num_samples=200, learning_rate=0.05).pointwise
    prior = pv.log_marginal(model, x, num_samples=20_000, proposal="prior", progress=False).pointwise
    z = (p["log_px"] - prior["log_px"]) / np.hypot(p["log_px_se"], prior["mc_se"])
    assert abs(z).max() < 4.5
    for family in ("own", "mean_field"):
        assert (p[family] > p["elbo"] - 4 * np.hypot(p["elbo_se"], p[f"{family}_se"])).all()
        assert (p["log_px"] > p[family] - 4 * p[f"{family}_se"]).all()


@pytest.mark.parametrize("kind", ["positive", "interval", "mixture"])
def test_a_guide_that_leaves_the_priors_support(kind: str) -> None:
    """Its bound is -inf, gradients stay finite, and log p(x) and the mean-field bound are right."""
    torch.manual_seed(0)
    model, x = Constrained(kind, outside=True), torch.randn(5, 3)
    with torch.no_grad():
        q = OwnFamily(model, (x,))
        assert all(g.isfinite().all() for g in gradients(q, model, (x,), 8))
    with pytest.warns(UserWarning, match="'own' has not converged"):
        p = gaps(model, x, steps=160, num_samples=1000, learning_rate=0.05).pointwise
    assert (p["elbo"] == -np.inf).all()
    assert (p["own"] == -np.inf).all()
    assert not p["own_converged"].any()
    prior = pv.log_marginal(model, x, num_samples=20_000, proposal="prior", progress=False).pointwise
    z = (p["log_px"] - prior["log_px"]) / np.hypot(p["log_px_se"], prior["mc_se"])
    assert abs(z).max() < 4.5
    assert p["mean_field_approximation"].between(-4 * p["mean_field_approximation_se"], 1).all()


def test_masked_latents_are_left_out_on_both_sides() -> None:
    """Two of three latents are in use: q* has no entropy of the third one to gain."""

    class Masked(LinearGaussian):
        def model(self, x):
            self.masked(x, "model")

        def guide(self, x):
            self.masked(x, "guide")

        def masked(self, x, program):
            mask = torch.tensor([True, True, False])
            with pyro.plate("data", len(x)):
                loc, scale = (self.posterior_mean(x), 0.5) if program == "guide" else (torch.zeros(3), 1.0)
                z = pyro.sample("z", dist.Normal(loc, scale).expand([len(x), 3]).mask(mask).to_event(1))
                if program == "model":
                    loc = torch.where(mask, z, 0.0) @ self.w.T
                    pyro.sample("x", dist.Normal(loc, self.noise).to_event(1), obs=x)

    torch.manual_seed(0)
    w = 0.5 * torch.randn(6, 3)
    model, reference = Masked(w, torch.zeros(6), 0.8), LinearGaussian(w[:, :2].clone(), torch.zeros(6), 0.8)
    x = reference.sample(8, seed=1)
    p = gaps(model, x, steps=200, num_samples=1000, families=("mean_field",)).pointwise
    z = z_scores(p, reference.exact_log_px(x))
    assert abs(z).max() < 4.5
    gap, se = p["mean_field_approximation"], p["mean_field_approximation_se"]
    assert (abs(gap - reference.approximation_gap()) < 4 * se + 0.02).all()


def test_a_support_that_depends_on_other_latents_is_refused() -> None:
    class Ordered(pv.VAEModel):
        event_shape = (6,)

        def model(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Gamma(2.0, x.new_ones(())))
                b = pyro.sample("b", dist.Uniform(0.0, a))
                pyro.sample("x", dist.Normal(b.unsqueeze(-1), x.new_ones(6)).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Gamma(2.0, x.new_ones(())))
                pyro.sample("b", dist.Uniform(0.0, a))

    with pytest.raises(ValueError, match="support of latent site 'b' depends on other latents"):
        gaps(Ordered(), torch.randn(4, 6), families=("mean_field",))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planar", "sylvester"])
def test_flows_that_cannot_score_others_draws_are_proposals_by_themselves(name: str) -> None:
    torch.manual_seed(0)
    model = Amortised(POSTERIORS[name](), 0.5 * torch.randn(8, 3))
    x = model.sample(6, seed=1)
    alone = gaps(model, x, families=("own",), steps=60, learning_rate=0.05, num_samples=200)
    assert alone.proposal == "own"  # L of it is higher than the guide's
    p = alone.pointwise
    assert abs(z_scores(p, model.exact_log_px(x)).mean()) < 4 / math.sqrt(6)
    mixed = gaps(model, x, families=("mean_field",), steps=5)
    assert mixed.proposal == "mean_field, wide mean_field"


def test_convergence_is_told_from_its_lack() -> None:
    model = LinearGaussian(weights(), torch.zeros(D), 0.8, guide="detuned", shift=0.5, stretch=1.2)
    x = model.sample(10, seed=1)
    options = {"families": ("mean_field",), "log_px": model.exact_log_px(x), "num_samples": 1000}
    for steps in (2, 20, 40):
        with pytest.warns(UserWarning, match=r"q\* of 'mean_field' has not converged, .* for 10 of 10 data"):
            few = gaps(model, x, steps=steps, **options)
        assert not few.converged
        assert not few.pointwise["mean_field_converged"].any()
    assert few.summary()["mean_field_converged"] == 0
    short = gaps(model, x, steps=20, learning_rate=1e-3, **options)  # steps too short to gain much
    assert short.pointwise["mean_field_gain"].max() < 0.05
    assert not short.pointwise["mean_field_converged"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough = gaps(model, x, steps=300, **options)
    assert enough.converged
    assert enough.pointwise["mean_field_converged"].all()
    gap = enough.summary()["mean_field_approximation"]
    assert few.summary()["mean_field_approximation"] > gap + 0.1
    assert abs(gap - model.approximation_gap()) < 4 * enough.summary()["mean_field_approximation_mc_se"] + 0.02


def test_an_estimate_of_log_px_below_a_bound_is_reported_as_it_is() -> None:
    model = LinearGaussian(weights(), torch.zeros(D), 0.8, guide="mean_field")
    x = model.sample(10, seed=1)
    low = model.exact_log_px(x)
    low[:3] -= 5.0
    with pytest.warns(UserWarning, match=r"below L of 'elbo' by more than 4 standard errors for 3 of 10 data"):
        p = gaps(model, x, families=("mean_field",), steps=100, num_samples=1000, log_px=low).pointwise
    assert (p["mean_field_approximation"][:3] < -3).all()  # not clamped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gaps(model, x, families=("mean_field",), steps=300, num_samples=1000, log_px=model.exact_log_px(x))


def test_annealed_log_px_on_request(monkeypatch) -> None:
    short = partial(pv.ais, num_temperatures=10)
    monkeypatch.setattr("pyrovae.evaluation.inference._gaps.ais", short)
    model = LinearGaussian(weights()[:, :3], torch.zeros(D), 0.8, guide="mean_field")
    x = model.sample(2, seed=1)
    result = gaps(model, x, families=("mean_field",), steps=4, log_px="ais")
    annealed = short(model, x, progress=False, seed=0)
    assert result.proposal == "ais"
    assert (result.pointwise["log_px"] == annealed.pointwise["log_px"]).all()


def test_seed_batches_and_covariates(monkeypatch) -> None:
    model, x, y = Conditional(), binary(6), torch.randn(6, 2)
    state = torch.get_rng_state()
    a, b = gaps(model, x, y), gaps(model, x, y)
    assert a.pointwise.equals(b.pointwise)
    assert torch.equal(state, torch.get_rng_state())
    log_px = pv.log_marginal(model, x, y, num_samples=50, progress=False)
    c = gaps(model, x, y, log_px=log_px)
    assert (c.pointwise["log_px"] == log_px.pointwise["log_px"]).all()
    assert c.provenance.data_hash == log_px.provenance.data_hash


def test_bad_arguments_are_named() -> None:
    vae, x = pv.VAE((6,), 3, hidden=(16,)), binary(4)
    for options, message in (
        ({"families": ("own", "flow")}, "families must be some of own, mean_field"),
        ({"families": ()}, "families must be some of"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"log_px": torch.zeros(3)}, r"log_px has shape \(3,\); one number for each of 4"),
        ({"log_px": pv.log_marginal(vae, binary(4), num_samples=9, progress=False)}, "evaluated on other data than x"),
    ):
        with pytest.raises(ValueError, match=message):
            gaps(vae, x, **options)
    with pytest.raises(TypeError, match="log_px must be a result of"):
        gaps(vae, x, log_px="high")
    discrete = DiscreteMixture(torch.zeros(3), torch.randn(3, 6))
    with pytest.raises(ValueError, match="latent site 'k' is discrete"):
        gaps(discrete, x, families=("mean_field",))
    with pytest.raises(ValueError, match="guide site 'k' is not reparameterised"):
        gaps(discrete, x, families=("own",))


@pytest.mark.slow
def test_refitting_leaves_the_model_and_finds_its_better_posterior() -> None:
    model = Amortised(pv.posteriors.MeanFieldNormal(4, 8), 0.5 * torch.randn(12, 4))
    x, test = model.sample(1000, seed=0), model.sample(40, seed=1)
    other = Amortised(pv.posteriors.FullRankNormal(4, 8), model.w.detach().clone())
    weights_before = {k: v.clone() for k, v in model.state_dict().items()}
    refitted, run = pv.refit_posterior(
        model, x, other, epochs=40, learning_rate=1e-2, seed=0, progress=False, device="cpu"
    )
    assert len(run.history) == 40
    for module in (model, refitted.generative):
        assert all(torch.equal(v, weights_before[k]) for k, v in module.state_dict().items())
    z = {"z": torch.randn(3, 40, 4)}
    assert torch.equal(model.log_joint(test, latents=z), refitted.log_joint(test, latents=z))
    result = pv.log_marginal(refitted, test, num_samples=500, progress=False)
    gap = model.exact_log_px(test).numpy() - result.pointwise["elbo"]
    assert gap.mean() < 0.1 < 0.5 * model.approximation_gap()
    table = pv.compare({"old": pv.log_marginal(model, test, num_samples=500, progress=False), "new": result})
    assert table["same_model"].all()


def test_a_fit_that_fell_short_is_reported(monkeypatch) -> None:
    monkeypatch.setitem(_RATES, OwnFamily, 1e-9)
    model = Amortised(pv.posteriors.FullRankNormal(3, 5), 0.5 * torch.randn(8, 3))
    x = model.sample(6, seed=1)
    with pytest.warns(UserWarning, match=r"own family ends .* nats below mean_field: its optimum was not found"):
        pv.inference_gaps(model, x, log_px=model.exact_log_px(x), steps=300, progress=False)


@pytest.mark.slow
def test_refitting_a_vae_by_name() -> None:
    data = pv.datasets.load("digits", binarize="static")
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, 4, hidden=(32,), prior="vamp")
    pv.fit(vae, data, epochs=10, seed=0, progress=False, device="cpu")
    x = data.test[:100]
    refitted, _ = pv.refit_posterior(vae, data, "iaf", epochs=10, seed=0, progress=False, device="cpu")
    assert isinstance(refitted.posterior, pv.posteriors.IAF)
    again, _ = pv.refit_posterior(vae, data, "iaf", epochs=1, seed=0, progress=False, device="cpu")
    once, _ = pv.refit_posterior(vae, data, "iaf", epochs=1, seed=0, progress=False, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))
    assert not any(p.requires_grad for p in refitted.generative.parameters())
    assert all(p.requires_grad for p in refitted.inference.parameters())
    assert all(p.requires_grad for p in vae.parameters())
    results = {n: pv.log_marginal(m, x, num_samples=100, progress=False) for n, m in (("vae", vae), ("iaf", refitted))}
    assert pv.compare(results)["same_model"].all()  # the VampPrior too, though it uses the encoder
    assert results["iaf"].provenance.model_name == "Refitted(IAF)"
    assert results["iaf"].summary()["elbo"] > results["vae"].summary()["elbo"] - 0.5


def test_a_frozen_decoder_stays_in_evaluation_mode() -> None:
    decoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6))

    class Leading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = decoder

        def forward(self, z):
            return self.layers(z.flatten(0, -2)).reshape(*z.shape[:-1], 6)

    vae = pv.VAE((6,), 3, hidden=(16,), decoder=Leading())
    buffers = {k: v.clone() for k, v in vae.named_buffers()}
    refitted, _ = pv.refit_posterior(vae, binary(50), "full_rank", epochs=3, progress=False, device="cpu")
    assert all(torch.equal(v, buffers[k]) for k, v in refitted.generative.named_buffers())
    refitted.train()
    assert refitted.training
    assert refitted.inference.training
    assert not any(m.training for m in refitted.generative.modules())


def test_what_cannot_be_refitted_says_so() -> None:
    vae, x = pv.VAE((6,), 3, hidden=(16,)), binary(10)
    with pytest.raises(ValueError, match=r"unknown posterior 'iafs'\. Did you mean 'iaf'"):
        pv.refit_posterior(vae, x, "iafs")
    with pytest.raises(ValueError, match="posterior has latent_dim=2; this model needs 3"):
        pv.refit_posterior(vae, x, pv.posteriors.IAF(2, 16))
    with pytest.raises(ValueError, match="posterior_options are for a posterior given by name"):
        pv.refit_posterior(vae, x, pv.posteriors.IAF(3, 16), posterior_options={"num_flows": 2})
    with pytest.raises(TypeError, match="needs a pyrovae"):
        pv.refit_posterior(nn.Linear(2, 2), x, "iaf")
    with pytest.raises(TypeError, match="for TwoSites pass a VAEModel"):
        pv.refit_posterior(TwoSites(), x, "iaf")
    with pytest.raises(ValueError, match="posterior is the model itself"):
        pv.refit_posterior(vae, x, vae)
    with pytest.raises(TypeError, match="posterior must be a name or a Module; got float"):
        pv.refit_posterior(vae, x, 1.0)
    with pytest.raises(ValueError, match="missing from the"):
        pv.refit_posterior(vae, x, TwoSites(), epochs=1, progress=False, device="cpu")


def test_poisoned_data_are_not_dropped() -> None:
    vae = pv.VAE((6,), 3, hidden=(16,))
    x = binary(5)

    class Poisoned(nn.Module):
        def forward(self, z):
            logits = z[..., :1].expand(*z.shape[:-1], 6)
            return torch.where(logits > 2.0, torch.nan, logits)

    vae.decoder = Poisoned()
    result = gaps(vae, x, num_samples=1000)
    assert result.pointwise["elbo"].isna().any()
    assert math.isnan(result.summary()["elbo"])


@pytest.mark.slow
def test_gaps_of_a_refitted_model_whose_posterior_has_two_paths() -> None:
    vae, x = pv.VAE((6,), 3, hidden=(16,)), binary(6)
    refitted, _ = pv.refit_posterior(vae, binary(50), "full_rank", epochs=1, progress=False, device="cpu")
    before = {name: p.clone() for name, p in refitted.named_parameters()}
    s = gaps(refitted, x, steps=800, num_samples=2000, learning_rate=0.03).summary()
    assert s["amortization"] > 4 * s["amortization_mc_se"]
    assert s["own"] > s["mean_field"] - 4 * math.hypot(s["own_mc_se"], s["mean_field_mc_se"])  # it contains it
    after = dict(refitted.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_module_of_a_custom_guide_reached_by_two_paths_is_put_back() -> None:
    model, x = TwoSites(), binary(5)
    model.parts = nn.ModuleList([model.encode_1, model.encode_2])
    before = {name: p.clone() for name, p in model.named_parameters()}
    p = gaps(model, x, families=("own",), steps=100, num_samples=500, learning_rate=0.05).pointwise
    assert p["amortization"].mean() > 0.05
    assert all(torch.equal(v, before[name]) for name, v in model.named_parameters())


def test_a_guide_that_cannot_be_vectorised_says_so() -> None:
    model, x = BetaBernoulli(6, detune=1.0), binary(4)
    with pytest.raises(ValueError, match=r"cannot be run for many parameters at once.*families=\('mean_field',\)"):
        gaps(model, x, families=("own",))


@pytest.mark.parametrize("shared", ["its posterior", "its encoder"])
def test_refitting_with_parts_of_the_model_leaves_it_alone(shared: str) -> None:
    vae, x = pv.VAE((6,), 3, hidden=(16,)), binary(50)
    before = {name: v.clone() for name, v in vae.state_dict().items()}
    other = pv.VAE((6,), 3, hidden=(16,), encoder=vae.encoder, posterior="iaf")
    posterior = vae.posterior if shared == "its posterior" else other
    refitted, _ = pv.refit_posterior(vae, x, posterior, epochs=2, progress=False, device="cpu")
    assert all(torch.equal(v, before[name]) for name, v in vae.state_dict().items())
    assert not torch.equal(refitted.inference.encoder[0].weight, vae.encoder[0].weight)


def test_refitting_a_vae_whose_posterior_is_any_module() -> None:
    class Unit(nn.Module):
        def forward(self, h):
            return pyro.distributions.Normal(h[..., :3], 1.0).to_event(1)

    vae = pv.VAE((6,), 3, hidden=(16,), posterior=Unit())
    refitted, _ = pv.refit_posterior(vae, binary(50), "full_rank", epochs=1, progress=False, device="cpu")
    assert (refitted.posterior.latent_dim, refitted.posterior.context_dim) == (3, 16)


@pytest.fixture(scope="module")
def trained() -> tuple[pv.VAE, Tensor, pv.MarginalResult]:
    torch.manual_seed(0)
    vae, x = pv.VAE((6,), 2, hidden=(16,)), binary(200)
    pv.fit(vae, x, epochs=60, learning_rate=5e-3, seed=0, progress=False, device="cpu")
    return vae, x, pv.log_marginal(vae, x, num_samples=4000, progress=False)


@pytest.mark.parametrize("family", list(pv.posteriors.POSTERIORS))
def test_every_family_is_refitted_for_the_same_model(family: str, trained: Any) -> None:
    """log p(x) stays the same number, and the new bound is the tighter the longer it is trained."""
    vae, x, known = trained
    refitted, run = pv.refit_posterior(
        vae, x, family, epochs=8, learning_rate=5e-3, seed=0, progress=False, device="cpu"
    )
    again = pv.log_marginal(refitted, x, num_samples=1000, progress=False)
    table = pv.compare({"trained": known, family: again})
    assert table.loc[family, "same_model"]
    assert abs(table.loc[family, "diff"]) < 4 * table.loc[family, "diff_mc_se"]
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    assert again.pointwise["elbo"].mean() < again.pointwise["log_px"].mean()


@pytest.mark.slow
def test_refitting_iaf_raises_the_elbo_on_digits() -> None:
    data = pv.datasets.load("digits", binarize="static")
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, 8, hidden=(100, 100))
    pv.fit(vae, data, epochs=40, seed=0, progress=False, device="cpu")
    elbo = {}
    for name in ("mean_field", "iaf"):  # the same training again for both: what is left is the family's
        refitted, _ = pv.refit_posterior(vae, data, name, epochs=40, seed=0, progress=False, device="cpu")
        elbo[name] = pv.log_marginal(refitted, data.test, num_samples=1000, progress=False).pointwise["elbo"]
    gain = elbo["iaf"] - elbo["mean_field"]
    print(f"IAF on the mean-field model: ELBO +{gain.mean():.3f}±{gain.std() / math.sqrt(len(gain)):.3f}")
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(gain))
