"""Annealed importance sampling and its sandwich, against exact answers."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.evaluation._run import evaluating
from pyrovae.evaluation.marginal._chains import estimate_chains
from pyrovae.evaluation.marginal._verdict import judge_chains
from pyrovae.model import Latents
from pyrovae.model._base_space import BaseSpace, as_chart
from pyrovae.testing import BetaBernoulli, DiscreteMixture, LinearGaussian, LinearMixture, grid_log_px
from tests.cases import CONTEXT, LATENT, POSTERIORS, randomized
from tests.models import Conditional, TwoSites, binary


def linear(guide: str, coupling: float = 0.12) -> LinearGaussian:
    generator = torch.Generator().manual_seed(3)
    w = coupling * torch.randn(32, 16, generator=generator)
    return LinearGaussian(w, torch.randn(32, generator=generator), 0.8, guide=guide)


def mixture() -> LinearMixture:
    generator = torch.Generator().manual_seed(3)
    means = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    w = torch.randn(6, 2, generator=generator)
    return LinearMixture(torch.tensor([0.5, 0.3, 0.2]), means, 0.5, w, torch.zeros(6), 2.0)


def run(model: pv.VAEModel, x: torch.Tensor, *covariates, **options) -> pv.AISResult:
    return pv.ais(model, x, *covariates, **{"num_temperatures": 20, "num_chains": 4, "progress": False, **options})


def standardized(p, exact) -> float:
    """Error of the mean over data in its own standard errors, the bias of order se² put back."""
    error = p["log_px"] + 0.5 * p["mc_se"] ** 2 - exact
    return float(error.sum() / np.sqrt((p["mc_se"] ** 2).sum()))


def rising(result: pv.MarginalResult) -> None:
    """L_K rises with K within its error."""
    table = result.bound_table()
    rise = table["log_px"].diff().dropna() + 4 * np.hypot(table["mc_se"], table["mc_se"].shift()).dropna()
    assert len(rise) >= 5
    assert (rise > 0).all(), table


@pytest.mark.slow
def test_sixteen_latents_every_estimator_within_four_standard_errors(device: torch.device) -> None:
    model = linear("mean_field").to(device)
    assert model.squared_cv() < 5
    x = model.sample(10, seed=1)
    exact = model.exact_log_px(x).cpu().numpy()
    sampled = pv.log_marginal(model, x, progress=False)
    p, s = sampled.pointwise, sampled.summary()
    annealed = pv.ais(model, x, progress=False)
    assert annealed.num_temperatures == 1000
    assert annealed.num_chains == 16
    figures = {
        "IS": standardized(p, exact),
        "jackknife": (p["jackknife"] - exact).mean() / s["mc_se"],
        "AIS": standardized(annealed.pointwise, exact),
    }
    print(f"errors in standard errors: {figures}; se IS {s['mc_se']:.5f}, AIS {annealed.summary()['mc_se']:.5f}")
    assert max(abs(z) for z in figures.values()) < 4
    rising(sampled)
    # Detuned and from the prior, where the chains have farther to go.
    for other, options in ((linear("detuned"), {}), (linear("mean_field"), {"start": "prior"})):
        few = pv.ais(other.to(device), x, num_temperatures=300, progress=False, **options)
        assert abs(standardized(few.pointwise, exact)) < 4


@pytest.mark.slow
@pytest.mark.parametrize("coupling", [0.12, 0.3])
def test_sandwich_contains_the_truth_and_is_thin(coupling: float) -> None:
    model = linear("mean_field", coupling)
    result = pv.bdmc(model, 10, num_temperatures=500, progress=False)
    exact, p, s = model.exact_log_px(result.x).numpy(), result.pointwise, result.summary()
    print(f"BDMC gap {s['gap']:.4f}±{s['gap_se']:.4f}: {s['lower']:.4f} to {s['upper']:.4f}, exact {exact.mean():.4f}")
    assert s["lower"] - 4 * s["lower_se"] < exact.mean() < s["upper"] + 4 * s["upper_se"]
    assert abs(s["gap"]) < 0.1
    assert (p["lower"] - 5 * p["lower_se"] < exact + 1e-3).all()
    assert (p["upper"] + 5 * p["upper_se"] > exact - 1e-3).all()


def test_the_bounds_come_from_their_sides() -> None:
    """With few temperatures both are loose, and each on its own side of the truth."""
    model = linear("detuned", 0.3)
    result = pv.bdmc(model, 100, num_temperatures=5, start="prior", progress=False)
    exact, s = model.exact_log_px(result.x).numpy(), result.summary()
    print(f"T=5 from the prior: lower {s['lower'] - exact.mean():.2f}, upper {s['upper'] - exact.mean():+.2f}")
    assert s["lower"] < exact.mean() - 1.0
    assert s["upper"] > exact.mean() + 1.0
    assert result.start == "prior"


@pytest.mark.slow
def test_several_modes_where_importance_sampling_is_flagged() -> None:
    model = mixture()
    x = model.sample(50, seed=1)
    exact = model.exact_log_px(x).numpy()
    sampled = pv.log_marginal(model, x, progress=False)
    rising(sampled)
    error = (sampled.pointwise["log_px"] - exact).mean()
    print(f"IS: error {error:.3f}±{sampled.summary()['mc_se']:.3f}. {sampled.verdict}")
    assert not sampled.reliable
    assert error < -4 * sampled.summary()["mc_se"]
    for start in ("posterior", "prior"):
        annealed = pv.ais(model, x[:20], num_chains=64, num_temperatures=400, start=start, progress=False)
        z = standardized(annealed.pointwise, exact[:20])
        print(f"AIS from the {start}: {z:.2f} standard errors, se {annealed.summary()['mc_se']:.4f}")
        assert abs(z) < 4
        assert annealed.pointwise["reliable"].all()


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["mean_field", "iaf"])
def test_digits_every_estimator_against_quadrature(posterior: str, digits_vae: Callable[[str], pv.VAE]) -> None:
    vae, x = digits_vae(posterior), pv.datasets.load("digits", binarize="static").test[:20]
    exact = grid_log_px(vae, x, points=301, half_width=7.0).numpy()
    sampled = pv.log_marginal(vae, x, progress=False)
    annealed = pv.ais(vae, x, num_temperatures=100, progress=False)
    rising(sampled)
    errors = {
        "L_5000": (sampled.pointwise["log_px"] - exact).mean(),
        "jackknife": (sampled.pointwise["jackknife"] - exact).mean(),
        "AIS": (annealed.pointwise["log_px"] - exact).mean(),
    }
    print(f"{posterior}: errors against quadrature, nats: {errors}; AIS se {annealed.summary()['mc_se']:.4f}")
    assert max(abs(e) for e in errors.values()) < 0.05
    assert abs(standardized(annealed.pointwise, exact)) < 4


def test_exact_posterior_needs_no_annealing() -> None:
    model = linear("exact").double()
    x = model.sample(5, seed=1)
    result = run(model, x)
    np.testing.assert_allclose(result.pointwise["log_px"], model.exact_log_px(x), atol=1e-9)
    assert result.pointwise["mc_se"].max() < 1e-6  # the root of a rounding error
    sandwich = pv.bdmc(model, 5, num_temperatures=10, num_chains=2, progress=False)
    assert sandwich.pointwise["gap"].abs().max() < 1e-9


class Fixed(pv.VAEModel):
    """A linear decoder and a posterior of any family at a fixed context."""

    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.event_shape = (4,)
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(4, LATENT, generator=generator).double())
        self.context = nn.Parameter(torch.randn(CONTEXT, generator=generator).double())
        self.posterior = posterior

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w.T, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.context.expand(len(x), -1)))


@pytest.mark.parametrize("name", POSTERIORS)
def test_base_space_of_every_family(name: str) -> None:
    """Densities at the guide's own draws, gradients against finite differences, the inverse where there is one; a
    family without gradients through its draws has no base space, which says where to start instead.
    """
    model = Fixed(randomized(POSTERIORS[name](), scale=0.3))
    x = torch.randn(3, 4).double()
    with evaluating(model):
        if not POSTERIORS[name].reparameterised:
            with pytest.raises(TypeError, match="pass start='prior'"):
                BaseSpace(model, (x,), 5, "posterior")
            return
        space = BaseSpace(model, (x,), 5, "posterior")
        u = space.draw()
        assert u.shape == (5, 3, LATENT)
        log_start, log_target, _, gradient = space.with_gradients(u)
        name, chart = space._static
        z, log_det = chart(u)
        torch.testing.assert_close(log_target - log_det, model.log_joint(x, latents={"z": z}))
        q = model.posterior(model.context.expand(3, -1)).expand((5, 3))
        if getattr(q, "can_score", True):
            torch.testing.assert_close(log_start - log_det, q.log_prob(z), rtol=1e-6, atol=1e-6)
        step = 1e-5
        for d in range(LATENT):
            moved = u.clone()
            moved[..., d] += step
            up = space.log_densities(moved)[1]
            moved[..., d] -= 2 * step
            slope = (up - space.log_densities(moved)[1]) / (2 * step)
            torch.testing.assert_close(gradient[..., d], slope, rtol=1e-5, atol=1e-5)
        if getattr(q, "can_score", True):
            back = space.locate(Latents({"z": z[:1]}, 0))
            torch.testing.assert_close(back[0], u[0], rtol=1e-5, atol=1e-5)
        else:
            with pytest.raises(NotImplementedError, match="no inverse in closed form"):
                space.locate(Latents({"z": z[:1]}, 0))


@pytest.mark.parametrize(
    "fn",
    [
        dist.Beta(torch.tensor([2.0, 3.0]), 1.5).to_event(1),
        dist.LogNormal(torch.tensor([0.3, 0.1]), 0.5).to_event(1),
        dist.Gamma(2.0, torch.tensor([1.0, 2.0])).to_event(1),
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(2), 1.0), [torch.distributions.AffineTransform(1.0, 2.0)]
        ).to_event(1),
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(2), 1.0),
            [dist.transforms.Planar(2)],
        ),
        dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.randn(2, 3), 1.0).to_event(1)),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_charts_keep_the_density(fn) -> None:
    """The density of u is that of z times the Jacobian, and u is drawn from it: E[∂ log p(u)/∂u] = 0."""
    fn = fn.expand([4000])
    chart = as_chart(fn)
    u = chart.draw().detach().requires_grad_()
    z, log_det = chart(u)
    log_base = chart.log_base(u)
    if "Planar" not in repr(getattr(fn, "transforms", "")):
        torch.testing.assert_close(log_base - log_det, fn.log_prob(z), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(chart.locate(z.detach()), u.detach(), rtol=1e-3, atol=1e-3)
    (score,) = torch.autograd.grad(log_base.sum(), u)
    standard = score.mean(0) / (score.std(0) / math.sqrt(4000))
    assert standard.abs().max() < 4


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["planar", "sylvester", "iaf"])
def test_flows_from_both_starts(posterior: str) -> None:
    torch.manual_seed(1)
    vae = pv.VAE((6,), 2, posterior=posterior, hidden=(16,))
    x = binary(10)
    exact = grid_log_px(vae, x, points=201).numpy()
    for start in ("posterior", "prior"):
        result = run(vae, x, num_temperatures=50, num_chains=16, start=start)
        assert abs(standardized(result.pointwise, exact)) < 4
        assert result.pointwise["acceptance"].between(0.4, 0.9).all()
    sandwich = pv.bdmc(vae, 10, num_temperatures=20, num_chains=4, progress=False)
    assert sandwich.start == ("posterior" if posterior == "iaf" else "prior")


@pytest.mark.slow
@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_two_sites(bottom_up: bool, start: str) -> None:
    torch.manual_seed(2)
    model, x = TwoSites(bottom_up=bottom_up), binary(10)
    exact = pv.log_marginal(model, x, num_samples=20_000, progress=False).pointwise
    result = run(model, x, num_temperatures=60, num_chains=16, start=start)
    p = result.pointwise
    error = (p["log_px"] + 0.5 * p["mc_se"] ** 2 - exact["log_px"]).sum()
    assert abs(error) < 4 * math.sqrt((p["mc_se"] ** 2).sum() + (exact["mc_se"] ** 2).sum())
    sandwich = pv.bdmc(model, 10, num_temperatures=30, start=start, progress=False)
    assert sandwich.summary()["gap"] > -4 * sandwich.summary()["gap_se"]
    assert sandwich.summary()["gap"] < 0.3


class Nested(pv.VAEModel):
    """A latent for every pixel beside one for every datum."""

    event_shape = (3,)
    max_plate_nesting = 2

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("pixels", 3):
                h = pyro.sample("h", dist.Normal(z, 0.7))
                pyro.sample("x", dist.Normal(h, 0.5), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.6 * x.mean(1), 0.7))
            with pyro.plate("pixels", 3):
                pyro.sample("h", dist.Normal(0.5 * (z + x.T), 0.6))


@pytest.mark.slow
def test_nested_plates() -> None:
    x = torch.randn(6, 3)
    covariance = torch.ones(3, 3) + (0.49 + 0.25) * torch.eye(3)
    exact = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(x).numpy()
    for start in ("posterior", "prior"):
        assert abs(standardized(run(Nested(), x, num_temperatures=50, num_chains=16, start=start).pointwise, exact)) < 4


@pytest.mark.slow
def test_nested_plates_enclosed_and_with_one_draw() -> None:
    class InOrder(Nested):
        """The same with x as its event, so that it can be simulated."""

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                with pyro.plate("pixels", 3):
                    h = pyro.sample("h", dist.Normal(z, 0.7))
                loc = h.movedim(-2, -1) if h.dim() == 2 else h.movedim(-2, -1).unsqueeze(-3)
                pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    for start in ("posterior", "prior"):
        sandwich = pv.bdmc(InOrder(), 20, num_temperatures=30, start=start, progress=False)
        s = sandwich.summary()
        covariance = torch.ones(3, 3) + (0.49 + 0.25) * torch.eye(3)
        exact = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(sandwich.x).mean().item()
        assert s["lower"] - 4 * s["lower_se"] < exact < s["upper"] + 4 * s["upper_se"]
        assert s["gap"] < 0.5
    assert np.isfinite(
        pv.log_marginal(Nested(), torch.randn(5, 3), num_samples=1, progress=False).pointwise["log_px"]
    ).all()


def test_an_observed_site_that_depends_on_the_latents_cannot_be_simulated() -> None:
    class Labelled(Conditional):
        def model(self, x, y):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                logits = self.decoder(torch.cat([z, z], -1))
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
                pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="site 'y' is observed and depends on what is drawn before it"):
        pv.bdmc(Labelled(), 4, torch.randn(4, 2), progress=False)


@pytest.mark.slow
def test_latents_on_an_interval() -> None:
    model, x = BetaBernoulli(10, detune=1.0), binary(30, 10)
    exact = model.exact_log_px(x).numpy()
    for start in ("posterior", "prior"):
        assert abs(standardized(run(model, x, num_temperatures=50, num_chains=16, start=start).pointwise, exact)) < 4


def test_covariates_seed_and_surroundings() -> None:
    model, x, y = Conditional().train(), binary(4), torch.randn(4, 2)
    state = torch.get_rng_state()
    a, b, c = run(model, x, y), run(model, x, y), run(model, x, y, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert a.pointwise.equals(b.pointwise)
    assert (a.pointwise["log_px"] != c.pointwise["log_px"]).all()
    assert a.provenance.data_hash == pv.log_marginal(model, x, y, num_samples=10, progress=False).provenance.data_hash


def test_a_start_far_off_is_reported() -> None:
    """Two temperatures from the prior: few chains count, and the result says so."""
    model = linear("mean_field", 0.6)
    result = run(model, model.sample(20, seed=1), num_temperatures=2, num_chains=16, start="prior")
    assert result.summary()["unreliable"] > 0.8
    assert result.pointwise["reason"].str.contains("ess").mean() > 0.8
    assert result.pointwise["reason"].str.contains("variance").mean() > 0.8
    assert not result.reliable
    assert result.mean_error == math.inf
    assert result.verdict.startswith("Unreliable: ")
    assert "use more temperatures or chains" in result.verdict


@pytest.mark.parametrize("chains", [2, 4, 9, 10])
def test_few_chains_are_never_reliable(chains: int) -> None:
    """Not even chains from the exact posterior, whose weights are equal: nothing could have shown otherwise."""
    model = linear("exact")
    result = run(model, model.sample(5, seed=1), num_chains=chains, num_temperatures=2, num_leapfrog=2, seed=1)
    assert result.reliable == result.pointwise["reliable"].all() == (chains == 10)
    if chains < 10:
        assert (result.pointwise["reason"] == "few chains").all()
        assert math.isnan(result.mean_error)


def test_error_and_bias_are_the_jackknife_s() -> None:
    log_weight = 1.5 * torch.randn(16, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = estimate_chains(log_weight)
    kept = torch.stack([torch.cat([log_weight[:i], log_weight[i + 1 :]]) for i in range(16)])
    without = kept.logsumexp(1) - math.log(15)
    torch.testing.assert_close(out["bias"], 15.0 * (without.mean(0) - out["log_px"]))
    torch.testing.assert_close(out["mc_se"], (15.0 * without.var(0, unbiased=False)).sqrt())
    one = torch.full((16, 1), -math.inf, dtype=torch.float64)
    one[3] = 0.0  # a single chain has all the weight
    assert estimate_chains(one)["mc_se"].isfinite().all()
    assert estimate_chains(one)["ess"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("variance", [0.1, 0.5, 4.0])
@pytest.mark.parametrize("chains", [16, 64])
def test_the_verdict_on_chains_of_normal_log_weights(variance: float, chains: int) -> None:
    """2000 data: the interval of reliable ones covers 90 %; those whose true ESS is over half are called so."""
    generator = torch.Generator().manual_seed(chains)
    log_weight = math.sqrt(variance) * torch.randn(chains, 2000, generator=generator, dtype=torch.float64)
    columns = estimate_chains(log_weight - 0.5 * variance)
    p = pd.DataFrame({name: values.numpy() for name, values in columns.items()}).assign(acceptance=0.7)
    p = p.join(judge_chains(p, chains))
    if math.exp(-variance) > 0.5:
        kept = p[p["reliable"]]
        assert len(kept) > 1800
        assert (kept["log_px"].abs() <= 1.96 * kept["mc_se"]).mean() >= 0.90
        for estimate in (kept["log_px"], kept["log_px"] - kept["bias"]):
            assert abs(estimate.mean()) <= 0.25 * kept["mc_se"].mean() + 2 * estimate.sem()
    else:
        assert p["reliable"].mean() < 0.01
        assert (p["log_px"].abs() <= 1.96 * p["mc_se"]).mean() < 0.85


@pytest.mark.slow
def test_what_cannot_be_annealed_says_what_is_missing() -> None:
    discrete = DiscreteMixture(torch.zeros(3), torch.randn(3, 6))
    for start in ("posterior", "prior"):
        with pytest.raises(TypeError, match=r"site 'k' \(Categorical\) is discrete.* log_marginal"):
            run(discrete, binary(4), start=start)
    with pytest.raises(TypeError, match=r"site 'k' \(Categorical\) is discrete"):
        pv.bdmc(discrete, 4, progress=False)

    class Rejection(mixture().__class__):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "z",
                    dist.MixtureSameFamily(dist.Categorical(self.weights), dist.Normal(self.means, 1.0).to_event(1)),
                )

    model = Rejection(torch.ones(2), torch.randn(2, 2), 1.0, torch.randn(3, 2), torch.zeros(3), 1.0)
    with pytest.raises(
        TypeError, match=r"site 'z' of the guide \(MixtureSameFamily\) is not reparameterised.*start='prior'"
    ):
        run(model, torch.randn(4, 3))
    assert np.isfinite(run(model, torch.randn(4, 3), start="prior").pointwise["log_px"]).all()

    class Point(Conditional):
        def guide(self, x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(x[:, :2]).to_event(1))

    with pytest.raises(ValueError, match="point mass"):
        run(Point(), binary(4), torch.randn(4, 2))
    with pytest.raises(NotImplementedError, match="no inverse"):
        pv.bdmc(pv.VAE((6,), 2, hidden=(8,), posterior="planar"), 4, start="posterior", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 1}, "num_chains must be at least 2"),
        ({"num_temperatures": 1}, "num_temperatures must be at least 2"),
        ({"num_leapfrog": 0}, "num_leapfrog"),
        ({"start": "q"}, "start must be one of 'posterior', 'prior'; got 'q'"),
        ({"schedule": "sigmoidal"}, "unknown schedule 'sigmoidal'. Did you mean 'sigmoid'"),
        ({"schedule": lambda t: 0.5 * t}, "increase from 0 to 1"),
        ({"schedule": lambda t: t[1:]}, "must give 21 values"),
        ({"target_acceptance": 1.0}, "target_acceptance must be a number in"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(Conditional(), binary(4), torch.randn(4, 2), **options)
    with pytest.raises(TypeError, match=r"needs a pyrovae\.VAEModel"):
        pv.ais(nn.Linear(2, 2), binary(4))


@pytest.mark.parametrize("schedule", ["linear", "sigmoid", "log", lambda t: t**2])
def test_every_schedule_is_unbiased(schedule) -> None:
    model = linear("detuned")
    x = model.sample(10, seed=1)
    result = run(model, x, num_temperatures=40, num_chains=32, schedule=schedule)
    assert abs(standardized(result.pointwise, model.exact_log_px(x).numpy())) < 4


@pytest.mark.slow
def test_blocks_are_halved_when_memory_runs_out_and_code_changes_rounding_alone(monkeypatch) -> None:
    model, x = linear("mean_field"), linear("mean_field").sample(12, seed=1)
    densities = BaseSpace.with_gradients

    def starved(self, u):
        if u.shape[1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return densities(self, u)

    exact = model.exact_log_px(x).numpy()
    with monkeypatch.context() as patch:
        patch.setattr(BaseSpace, "with_gradients", starved)
        result = run(model, x, num_temperatures=100)
    assert abs(standardized(result.pointwise, exact)) < 4
    plain, code = (run(model, x, num_temperatures=5, num_chains=2, compile=way) for way in ("off", "inductor"))
    # Rounding may turn an acceptance around, after which a chain is another one: not for most of so short chains.
    assert np.median(abs(plain.pointwise["log_px"] - code.pointwise["log_px"])) < 1e-3


@pytest.mark.cuda
@pytest.mark.parametrize("posterior", ["mean_field", "iaf"])
def test_captured_moves_are_the_moves(posterior: str, monkeypatch) -> None:
    """Replays draw anew, and end where the same moves end that are launched kernel by kernel."""
    model, x = pv.VAE((6,), 3, hidden=(16,), posterior=posterior).cuda(), (torch.rand(20, 6) < 0.5).float()
    options = {"num_temperatures": 30, "num_chains": 8, "num_leapfrog": 3, "compile": "off", "progress": False}
    captured = pv.ais(model, x, **options).pointwise
    monkeypatch.setattr("pyrovae.evaluation.marginal._annealing.replayed", lambda function, device: function)
    launched = pv.ais(model, x, **options).pointwise
    np.testing.assert_allclose(captured["log_px"], launched["log_px"], rtol=1e-3, atol=1e-3)
    assert (captured["log_weight_variance"] > 0).all()
