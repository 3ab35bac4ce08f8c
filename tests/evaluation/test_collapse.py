"""collapse and CollapseMonitor against models whose latents are known."""

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.testing import BetaBernoulli, DiscreteMixture, LinearGaussian
from tests.cases import randomized
from tests.models import Conditional, TwoSites, binary


def linear(coupling: float = 0.3, guide: str = "exact", dead: tuple[int, ...] = (), z: int = 3) -> LinearGaussian:
    generator = torch.Generator().manual_seed(3)
    w = coupling * torch.randn(12, z, generator=generator)
    w[:, list(dead)] = 0.0
    return LinearGaussian(w, torch.zeros(12), 0.8, guide=guide)


def report(model: pv.VAEModel, *args, **kwargs) -> pv.CollapseReport:
    return pv.collapse(model, *args, **{"progress": False, **kwargs})


# -- I(x; z) and KL(q(z) || p(z)) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_data", [100, 1000])
def test_mixture_estimate_of_a_linear_gaussian(num_data: int) -> None:
    """With the exact posterior q(z) = N(0, I): the rate is all information, I(x; z) = ½ ln |Λ|."""
    model = linear()
    precision = model.precision().detach().double()
    exact = 0.5 * precision.logdet().item()
    assert exact == pytest.approx(0.926, abs=1e-3)
    r = report(model, model.sample(1000, seed=1), num_data=num_data, num_draws=5)
    assert r.estimator == "mixture"
    assert r.reason == ""
    assert r.mutual_information_bound == pytest.approx(math.log(num_data))
    # I - E[estimate] lies in [0, ln(1 + χ²/M)], and 1 + χ² = E q(z | x) / q(z) = |Λ| here.
    bias = math.log1p((precision.det().item() - 1) / num_data)
    assert bias < 0.06
    assert -bias - 4 * r.mutual_information_se < r.mutual_information - exact < 4 * r.mutual_information_se
    assert -4 * r.marginal_kl_se < r.marginal_kl < bias + 4 * r.marginal_kl_se
    assert r.mutual_information + r.marginal_kl == pytest.approx(r.rate, abs=1e-9)
    assert abs(r.rate - exact) < 4 * r.rate_se
    assert 0 < r.mutual_information_se < 0.1
    assert 0 < r.marginal_kl_se < 0.1


@pytest.mark.slow
def test_bias_of_a_small_mixture_and_scatter_of_its_estimates() -> None:
    """M = 8 data: over 100 sets the mean lies below the truth by no more than the bound; the scatter is as stated."""
    model = linear()
    exact, det = 0.5 * model.precision().logdet().item(), model.precision().det().item()
    x = model.sample(800, seed=1)
    runs = [report(model, part, num_samples=2, num_draws=4) for part in x.split(8)]
    values = np.array([r.mutual_information for r in runs])
    se = values.std(ddof=1) / math.sqrt(len(values))
    assert exact - math.log1p((det - 1) / 8) - 4 * se < values.mean() < exact - 4 * se
    assert all(r.mutual_information <= r.mutual_information_bound for r in runs)
    stated = math.sqrt(np.mean([r.mutual_information_se**2 for r in runs]))
    assert 0.7 < stated / values.std(ddof=1) < 1.4


def test_a_saturated_mixture_gives_its_bound() -> None:
    """½ ln |Λ| far above ln N: every datum is told from every other, which is all that N data can show."""
    model = linear(coupling=20.0, z=6)
    assert 0.5 * model.precision().logdet().item() > 20
    r = report(model, model.sample(50, seed=1))
    assert r.mutual_information_bound == math.log(50)
    assert math.log(50) - 0.01 < r.mutual_information <= math.log(50) + 1e-12


def test_discrete_information_against_enumeration() -> None:
    """k is discrete: q(k) of the N data is a mean of N categoricals."""
    model, x = DiscreteMixture(torch.tensor([0.0, 1.0, -1.0]), 2 * torch.randn(3, 6)), binary(300)
    with torch.no_grad():
        model.encoder.weight.mul_(5)
        q = model.encoder(x).double().softmax(-1)
        p = model.log_weights.double().softmax(-1)
    mean = q.mean(0)
    r = report(model, x, num_draws=50)
    information = (q * (q / mean).log()).sum(1).mean().item()
    assert information > 0.1
    assert abs(r.mutual_information - information) < 4 * r.mutual_information_se
    assert abs(r.marginal_kl - (mean * (mean / p).log()).sum().item()) < 4 * r.marginal_kl_se
    assert r.rate == pytest.approx((q * (q / p).log()).sum(1).mean().item(), rel=1e-5)  # closed form: no error
    assert r.dimensions["activity"].isna().all()
    assert r.dimensions["kl"].item() == pytest.approx(r.rate)
    assert r.sites.loc["k", ["active", "dimensions"]].tolist() == [0, 0]
    assert r.verdict == (
        f"No latent has an activity (discrete, masked or under priors per datum); rate {r.rate:.3g} nats."
    )


def two_kinds(can_score: bool) -> pv.VAE:
    """An IAF at the identity: z₀ ~ N(±3, 0.3²) by the kind of datum, z₁ ~ N(0, 1); it may refuse to score points."""
    model = pv.VAE((2,), 2, posterior="iaf", encoder=torch.nn.Identity(), hidden=(2,))
    with torch.no_grad():
        for step in model.posterior.steps:
            for parameter in step.parameters():
                parameter.zero_()
        base = model.posterior.base
        base.weight.zero_()
        base.weight[0, 0] = 6.0
        base.bias.copy_(torch.tensor([-3.0, 0.0, math.log(math.expm1(0.3)) - math.log(math.expm1(1.0)), 0.0]))
    model.posterior.can_score = can_score
    return model


@pytest.mark.slow
def test_gaussian_bound_lies_above_the_mixture_of_a_scorable_twin() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).repeat(200, 1)
    mixture, bound = (report(two_kinds(can_score), x, num_data=400) for can_score in (True, False))
    assert (mixture.estimator, bound.estimator) == ("mixture", "gaussian bound")
    assert bound.reason.startswith("the posterior at ['z'] cannot be scored at a point it did not draw")
    assert math.isnan(bound.mutual_information_bound)
    # q(z₀) has two modes that tell the kind, ln 2 nats; a normal of its variance would let z₀ tell ½ ln(9.09 / 0.09).
    rate, of_moments = 0.5 * (9.09 - 1 - math.log(0.09)), 0.5 * (9.09 - 1 - math.log(9.09))
    assert mixture.mutual_information == pytest.approx(math.log(2), abs=1e-4)
    assert abs(mixture.marginal_kl - (rate - math.log(2))) < 4 * mixture.marginal_kl_se
    assert abs(bound.marginal_kl - of_moments) < 4 * bound.marginal_kl_se
    assert abs(bound.mutual_information - (rate - of_moments)) < 4 * bound.mutual_information_se < 0.1
    assert bound.mutual_information > mixture.mutual_information
    assert bound.marginal_kl < mixture.marginal_kl
    assert bound.rate == pytest.approx(mixture.rate)
    assert bound.mutual_information + bound.marginal_kl == pytest.approx(bound.rate, abs=1e-9)


def test_sylvester_without_bends_equals_its_normal_base() -> None:
    """R = 0 makes the flow the identity: the twin is the mean-field posterior, which can be scored."""
    sylvester = randomized(pv.VAE((6,), 3, posterior="sylvester", hidden=(16,)), scale=0.4).float()
    with torch.no_grad():
        for head in (sylvester.posterior.triangles, sylvester.posterior.diagonals):
            head.weight.zero_()
            head.bias.zero_()
    twin = pv.VAE((6,), 3, hidden=(16,))
    weights = {k.replace("posterior.base", "posterior.head"): v for k, v in sylvester.state_dict().items()}
    twin.load_state_dict({k: weights[k] for k in twin.state_dict()})
    x = binary(400)
    bound, mixture = report(sylvester, x), report(twin, x, num_data=400, num_draws=4)
    assert (bound.estimator, mixture.estimator) == ("gaussian bound", "mixture")
    with torch.no_grad():
        q = twin.q(x).base_dist
        per_draw = (0.5 * (1 - q.variance).square() + q.mean.square() * q.variance).sum(1)  # Var log q - log p
    assert abs(bound.rate - mixture.rate) < 4 * math.sqrt(per_draw.mean().item() / (400 * 64))
    error = math.hypot(mixture.mutual_information_se, bound.mutual_information_se)
    assert bound.mutual_information > mixture.mutual_information - 4 * error
    # Dimension by dimension: moments of 64 draws against the closed form of the twin, and means against known means.
    assert set(bound.dimensions["kl_method"]) == {"normal approximation"}
    assert set(mixture.dimensions["kl_method"]) == {"closed form"}
    np.testing.assert_allclose(bound.dimensions["kl"], mixture.dimensions["kl"], rtol=0.05)
    # Means of 64 draws are the known means and noise of variance s: Σ over data of (m + noise)² has Var 4 m² s + 2 s².
    activity, noise = mixture.dimensions["activity"].to_numpy(), q.variance.mean(0).numpy() / 64
    error = np.sqrt((4 * activity * noise + 2 * noise**2) / 400)
    assert (abs(bound.dimensions["activity"] - activity) < 4 * error).all()


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 1000])
def test_gaussian_bound_is_exact_for_a_normal_aggregate(n: int) -> None:
    """q(z) = N(0, I): the bound is tight, and the jackknife takes out the bias from having N data."""

    class Own(dist.MultivariateNormal):
        can_score = False

        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            if value is not getattr(self, "last", None):
                raise NotImplementedError
            return super().log_prob(value)

        def rsample(self, sample_shape=torch.Size()):  # noqa: B008
            self.last = super().rsample(sample_shape)
            return self.last

        def expand(self, batch_shape, _instance=None):
            return super().expand(batch_shape, self._get_checked_instance(Own, _instance))

    class Unscorable(LinearGaussian):
        def guide(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", Own(self.posterior_mean(x), precision_matrix=self.precision()))

    w = 0.5 * torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
    model = Unscorable(w, torch.zeros(12), 0.8)
    exact = 0.5 * model.precision().logdet().item()
    values = [report(model, model.sample(n, seed=seed), num_samples=8) for seed in range(20)]
    assert {r.estimator for r in values} == {"gaussian bound"}
    error = np.array([r.marginal_kl for r in values])
    se = error.std(ddof=1) / math.sqrt(20)
    assert abs(error.mean()) < 4 * se
    # Without the jackknife KL(N(m, S) || N(0, I)) would lie near Z (Z + 3) / 4N above 0 where z told all of x.
    assert se < 0.2 * 8 * 11 / (4 * n)
    assert abs(np.mean([r.mutual_information for r in values]) - exact) < 4 * np.mean(
        [r.mutual_information_se for r in values]
    ) / math.sqrt(20)
    assert np.std([r.mutual_information for r in values]) == pytest.approx(
        np.mean([r.mutual_information_se for r in values]), rel=0.6
    )


def test_no_estimate_says_why() -> None:
    model = pv.VAE((6,), 3, posterior="sylvester", prior="mixture", hidden=(16,))
    r = report(model, binary(20))
    assert r.estimator == "none"
    assert r.reason == (
        "the posterior at ['z'] cannot be scored at a point it did not draw, and the prior at ['z'] is not standard "
        "normal"
    )
    for value in (r.mutual_information, r.mutual_information_se, r.marginal_kl, r.mutual_information_bound):
        assert math.isnan(value)
    assert math.isfinite(r.rate)


# -- dimensions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["mean_field", "exact"])
def test_active_units_are_the_columns_of_w(guide: str) -> None:
    model = linear(0.7, guide, dead=(1, 4), z=6)
    x = model.sample(500, seed=1)
    r = report(model, x, num_samples=16)
    assert r.dimensions["active"].tolist() == [True, False, True, True, False, True]
    assert r.verdict == f"4 of 6 latent dimensions are active; rate {r.rate:.1f} nats."
    assert r.sites.loc["z", ["active", "dimensions"]].tolist() == [4, 6]
    # Var_x of the posterior mean is I - Λ⁻¹ in the population; of these data it is known.
    mean = model.posterior_mean(x).detach().double()
    np.testing.assert_allclose(r.dimensions["activity"], mean.var(0), rtol=1e-4, atol=1e-9)
    population = (1 - model.precision().detach().inverse().diagonal()).numpy()
    assert (abs(r.dimensions["activity"] - population) < 4 * r.dimensions["activity_se"] + 1e-6).all()


def test_kl_by_dimension_sums_to_the_rate_for_mean_field() -> None:
    model = linear(0.7, "mean_field", dead=(1,), z=4)
    x = model.sample(300, seed=1)
    r = report(model, x)
    assert r.dimensions["kl"].sum() == pytest.approx(r.rate, rel=1e-5)
    variance, mean = 1 / model.precision().detach().double().diagonal(), model.posterior_mean(x).detach().double()
    exact = 0.5 * (mean.square() + variance - 1 - variance.log())
    np.testing.assert_allclose(r.dimensions["kl"], exact.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(r.dimensions["kl_se"], exact.std(0) / math.sqrt(300), rtol=1e-3, atol=1e-6)


def test_normal_approximation_is_unbiased_at_few_draws() -> None:
    """The exact guide is normal with correlations, so the marginals' KL is known; K = 4 draws, ten times over."""
    model = linear(0.7, z=4)
    x = model.sample(1000, seed=1)
    reports = [report(model, x, num_samples=4, num_data=2, seed=seed) for seed in range(10)]
    values = np.stack([r.dimensions["kl"] for r in reports])
    covariance = model.precision().detach().double().inverse()
    variance, mean = covariance.diagonal(), model.posterior_mean(x).detach().double()
    exact = (0.5 * (mean.square() + variance - 1 - variance.log())).mean(0).numpy()
    se = values.std(0, ddof=1) / math.sqrt(10)
    assert (abs(values.mean(0) - exact) < 4 * se).all()
    # Uncorrected, the variance of a mean of 4 draws would add v/8, the logarithm's bias ½ (ln 1.5 - ψ(1.5)) = 0.18.
    assert (8 * se < variance.numpy() / 8).any()
    assert set(reports[0].dimensions["kl_method"]) == {"normal approximation"}
    assert all(r.dimensions["kl"].sum() < r.rate for r in reports)


def test_activity_of_sampled_means_is_debiased() -> None:
    """An IAF whose mean is not known: at K = 2 draws the noise alone would pass for activity ½."""
    model = pv.VAE((6,), 3, posterior="iaf", hidden=(16,))
    with torch.no_grad():
        model.posterior.base.weight.zero_()
        model.posterior.summary.weight.zero_()  # q does not depend on x
    r = report(model, binary(2000), num_samples=2, num_data=2)
    assert (abs(r.dimensions["activity"]) < 4 * r.dimensions["activity_se"]).all()
    assert (r.dimensions["activity_se"] < 0.05).all()


@pytest.mark.parametrize("bottom_up", [False, True])
def test_two_sites_each_with_its_dimensions(bottom_up: bool) -> None:
    model, x = randomized(TwoSites(bottom_up=bottom_up), scale=0.3).float(), binary(100)
    r = report(model, x, num_samples=500, num_draws=2)
    assert r.dimensions[["site", "dim"]].to_numpy().tolist() == [
        *(["z2", i] for i in range(2)),
        *(["z1", i] for i in range(3)),
    ]
    assert r.sites["dimensions"].tolist() == [2, 3]
    assert r.sites["kl"].sum() == pytest.approx(r.rate)
    by_site = r.dimensions.groupby("site", sort=False)["kl"].sum()
    exact = ["z2"] if bottom_up else ["z2", "z1"]
    for site in exact:
        assert set(r.dimensions.query("site == @site")["kl_method"]) == {"closed form"}
        assert by_site[site] == pytest.approx(r.sites.loc[site, "kl"], rel=1e-5)
    assert r.estimator == "mixture"
    assert r.mutual_information <= math.log(100)
    p = pv.elbo_terms(model, x, num_samples=500, progress=False).summary()
    assert r.elbo == pytest.approx(p["elbo"], abs=6 * p["elbo_mc_se"])
    assert -r.distortion == pytest.approx(p["reconstruction"], abs=6 * p["elbo_mc_se"])
    assert r.elbo == pytest.approx(-r.distortion - r.rate)


def test_scalar_latents_and_nested_plates() -> None:
    r = report(BetaBernoulli(10), binary(200, 10))
    assert r.dimensions[["site", "dim", "kl_method"]].to_numpy().tolist() == [["theta", 0, "closed form"]]
    assert r.dimensions["kl"].item() == pytest.approx(r.rate)
    assert r.estimator == "mixture"
    # θ has a prior of variance 0.04, not 1: the usual threshold misses it, and the verdict does not call that collapse.
    assert r.verdict.startswith("No latent dimension of 1 is active at threshold 0.01, yet the rate is 0.33 nats")
    verdict = report(BetaBernoulli(10), binary(200, 10), threshold=1e-3).verdict
    assert verdict == "1 of 1 latent dimensions is active; rate 0.3 nats."

    class Columns(pv.VAEModel):
        """A latent for every pixel: each is a dimension. The second one's posterior is the prior."""

        max_plate_nesting = 2

        def model(self, x):
            with pyro.plate("data", len(x)), pyro.plate("pixels", x.shape[1], dim=-2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x.T)

        def guide(self, x):
            loc = x.T * torch.tensor([0.8, 0.0, 0.8]).unsqueeze(-1)
            scale = torch.tensor([0.4, 1.0, 0.4]).unsqueeze(-1)
            with pyro.plate("data", len(x)), pyro.plate("pixels", x.shape[1], dim=-2):
                pyro.sample("z", dist.Normal(loc, scale))

    x = torch.randn(100, 3)
    r = report(Columns(), x)
    assert r.dimensions["active"].tolist() == [True, False, True]
    np.testing.assert_allclose(r.dimensions["activity"], (0.64 * x.var(0) * torch.tensor([1, 0, 1])), rtol=1e-4)
    exact = 0.5 * ((0.8 * x).square().mean(0) + 0.16 - 1 - math.log(0.16))
    np.testing.assert_allclose(r.dimensions["kl"], exact * torch.tensor([1, 0, 1]), rtol=1e-4, atol=1e-7)
    assert r.dimensions["kl"].sum() == pytest.approx(r.rate, rel=1e-5)
    assert 1.0 < r.mutual_information < math.log(100)


# -- the report ----------------------------------------------------------------------------------------------------


def test_a_decoder_that_ignores_z() -> None:
    model = linear(0.0, z=5)
    r = report(model, torch.randn(100, 12))
    assert not r.dimensions["active"].any()
    assert abs(r.rate) < 1e-5
    assert abs(r.mutual_information) < 1e-5
    assert abs(r.marginal_kl) < 1e-5
    assert r.verdict == (
        "Posterior collapse: none of 5 latent dimensions is active (rate 0.00 nats): the decoder ignores z."
    )


@pytest.mark.slow
def test_a_collapsed_vae_and_a_healthy_one() -> None:
    data = torch.tensor([[1.0] * 6, [0.0] * 6]).repeat(200, 1)
    reports = {}
    for beta in (1.0, 20.0):
        torch.manual_seed(0)
        model = pv.VAE((6,), 2, hidden=(16,))
        pv.fit(
            model,
            data,
            objective=pv.ELBO(beta=beta),
            epochs=60,
            learning_rate=1e-2,
            seed=0,
            progress=False,
            device="cpu",
        )
        reports[beta] = report(model, data, num_data=400)
    healthy, dead = reports[1.0], reports[20.0]
    assert healthy.dimensions["active"].any()
    # Two kinds of data: a latent can tell ln 2 about which.
    assert abs(healthy.mutual_information - math.log(2)) < 0.1
    assert healthy.distortion < 1.0
    assert not dead.dimensions["active"].any()
    assert "Posterior collapse: none of 2 latent dimensions is active" in dead.verdict
    assert abs(dead.mutual_information) < 4 * dead.mutual_information_se + 1e-3
    assert dead.distortion == pytest.approx(6 * math.log(2), abs=0.1)


def test_summary_covariates_seed_and_the_callers_state() -> None:
    model, x, y = Conditional().train(), binary(30), torch.randn(30, 2)
    state = torch.get_rng_state()
    r = report(model, x, y, num_data=10)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    row = r.summary()
    assert row["N"] == 30
    assert row["dimensions"] == 2
    assert row["elbo"] == r.elbo
    assert row["mutual_information_bound"] == pytest.approx(math.log(10))
    assert row["estimator"] == "mixture"
    assert row.equals(report(model, x, y, num_data=10).summary())
    assert report(model, x, y, seed=1).distortion != r.distortion


def test_bad_arguments_are_named() -> None:
    model, x = linear(), torch.randn(4, 12)
    with pytest.raises(ValueError, match="x holds one datum"):
        report(model, x[:1])
    for bad in ({"num_samples": 1}, {"num_data": 1}, {"num_draws": 0}, {"threshold": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            report(model, x, **bad)
    with pytest.raises(TypeError, match=r"collapse needs a pyrovae.VAEModel.*Linear"):
        report(torch.nn.Linear(6, 6), x)


# -- the monitor ---------------------------------------------------------------------------------------------------


DATA = torch.tensor([[1.0] * 3 + [0.0] * 3, [0.0] * 3 + [1.0] * 3]).repeat(100, 1)


def train(beta, callbacks=(), *, epochs: int = 12, seed: int = 0, **options) -> pv.FitResult:
    torch.manual_seed(0)
    model = pv.VAE(
        (6,),
        2,
        encoder=torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Tanh(), torch.nn.Dropout(0.1)
        ),
        hidden=(16,),
    )
    return pv.fit(
        model,
        DATA,
        objective=pv.ELBO(beta=beta),
        epochs=epochs,
        learning_rate=1e-2,
        batch_size=20,
        seed=seed,
        device="cpu",
        progress=False,
        callbacks=callbacks,
        **options,
    )


def test_monitor_warns_once_of_a_model_trained_at_beta_20() -> None:
    with pytest.warns(UserWarning, match="posterior collapse") as caught:
        run = train(20.0, [pv.CollapseMonitor(DATA)])
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "0 of 2 latent dimensions are active" in text
    assert "KL weight 20." in text
    for remedy in ("warm the KL up", "free bits", "lower beta", "weaker decoder"):
        assert remedy in text
    epoch = int(text.split("epoch ")[1].split(":")[0])
    history = run.history
    assert (history["active_units"].loc[epoch - 4 : epoch] == 0).all()
    assert history["rate"].iloc[-1] < 0.05
    assert (history["rate"] >= 0).all()


@pytest.mark.parametrize("beta", [1.0, pv.linear_warmup(6)])
def test_monitor_is_quiet_about_a_healthy_model(beta) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(beta, [pv.CollapseMonitor(DATA)])
    assert run.history["active_units"].iloc[-1] >= 1
    model_report = report(run.model, DATA)
    assert run.history["active_units"].iloc[-1] == model_report.dimensions["active"].sum()
    assert run.history["rate"].iloc[-1] == pytest.approx(model_report.rate, rel=1e-5)


def test_monitor_leaves_the_trajectory_as_it_was_bit_for_bit() -> None:
    grads = []

    def keep(run: pv.FitResult) -> None:
        assert run.model.training
        grads.append([p.grad.clone() for p in run.model.parameters()])

    for seed in (0, None):
        grads.clear()
        plain = train(1.0, [keep], epochs=4, seed=seed, validation=0.2)
        torch.manual_seed(0)
        watched = train(1.0, [pv.CollapseMonitor(DATA, num_samples=7), keep], epochs=4, seed=seed, validation=0.2)
        assert (plain.history["loss"] == watched.history["loss"]).all()
        assert (plain.history["val_loss"] == watched.history["val_loss"]).all()
        for name, value in plain.model.state_dict().items():
            assert torch.equal(value, watched.model.state_dict()[name]), name
        assert all(
            torch.equal(a, b)
            for one, other in zip(grads[:4], grads[4:], strict=True)
            for a, b in zip(one, other, strict=True)
        )
        assert "rate" in watched.history
        assert "rate" not in plain.history


def test_monitor_records_every_site_where_there_are_several() -> None:
    x = binary(30)
    run = pv.fit(TwoSites(), x, epochs=3, seed=0, callbacks=[pv.CollapseMonitor(x)], progress=False, device="cpu")
    assert (run.history["kl_z1"] + run.history["kl_z2"]).tolist() == pytest.approx(run.history["rate"].tolist())
    terms = run.model.log_terms(x, num_particles=2000)
    for site in ("z2", "z1"):  # in closed form given the draws before it: none for z2
        kl = terms.closed_form_kl(site).mean(1).detach()
        se = float(kl.std()) * (1 / 16 + 1 / 2000) ** 0.5
        assert run.history[f"kl_{site}"].iloc[-1] == pytest.approx(float(kl.mean()), abs=4.5 * se + 1e-6)
    assert "kl_z" not in train(1.0, [pv.CollapseMonitor(DATA)], epochs=1).history


class Records(pv.FitResult):
    """A run whose looks are scripted."""

    def look(self, monitor: pv.CollapseMonitor, active: int, beta: float) -> None:
        self.records.append({"epoch": len(self.records), "beta": beta})
        with torch.no_grad():
            self.model.w.zero_()
            self.model.w[:, :active] = 1.0
        monitor(self)


@pytest.mark.parametrize(
    ("active", "beta", "warns_at"),
    [
        ([6, 6, *[0] * 7], [1.0] * 9, 6),  # five looks in a row
        ([6, *[2] * 5], [1.0] * 6, 5),  # fewer than half
        ([6, *[3] * 6], [1.0] * 7, None),  # half
        ([6, 2, 2, 2, 2, 6, 2, 2, 2, 2], [1.0] * 10, None),  # not in a row
        ([0] * 9 + [2, 3], [1.0] * 11, None),  # woke up
        ([0] * 10, [1.0] * 10, 9),  # never did
        ([0] * 12, [0.0] * 12, None),  # no KL
        ([6, 6, 5, *[2] * 8], [0.0, 0.2, 0.4, 0.6, 0.8, *[1.0] * 6], None),  # a warm-up prunes
        ([6, 6, 5, *[0] * 5], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0], 7),
    ],
)
def test_when_the_monitor_warns(active: list[int], beta: list[float], warns_at: int | None) -> None:
    run = Records(linear(z=6, guide="mean_field"))
    monitor = pv.CollapseMonitor(5 * torch.randn(50, 12))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for a, b in zip(active, beta, strict=True):
            run.look(monitor, a, b)
            assert run.records[-1]["active_units"] == a
    assert [str(w.message).split(":")[0] for w in caught] == (
        [] if warns_at is None else [f"posterior collapse at epoch {warns_at}"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("cut", [3, 6, 8])
def test_a_monitor_goes_on_where_its_run_does(cut: int, tmp_path) -> None:
    """The warning comes at the epoch at which it would have come, and once; another run is watched anew."""

    def watched(epochs: int, folder: Any, monitor: pv.CollapseMonitor) -> tuple[pd.DataFrame, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = train(20.0, [monitor], epochs=epochs, checkpoint=folder)
        said = [str(w.message).split(":")[0] for w in caught if "posterior collapse" in str(w.message)]
        return run.history.drop(columns="seconds"), said

    whole, kept = pv.CollapseMonitor(DATA), pv.CollapseMonitor(DATA)
    expected, said = watched(12, None, whole)
    assert len(said) == 1
    before = watched(cut, tmp_path, pv.CollapseMonitor(DATA))[1]
    history, after = watched(12, tmp_path, kept)
    assert before + after == said
    pd.testing.assert_frame_equal(history, expected)
    assert kept.state_dict() == whole.state_dict()
    over = pv.CollapseMonitor(DATA)
    assert watched(12, tmp_path, over)[1] == []  # nothing is left to do
    assert over.state_dict() == whole.state_dict()
    assert watched(12, None, over)[1] == said


def test_monitor_every_few_epochs_and_bad_arguments() -> None:
    run = train(1.0, [pv.CollapseMonitor(DATA, every=3)], epochs=5)
    assert run.history["rate"].notna().tolist() == [True, False, False, True, False]
    for bad in ({"every": 0}, {"num_samples": 1}, {"threshold": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            pv.CollapseMonitor(DATA, **bad)
    with pytest.raises(ValueError, match="number of data in x must be at least 2"):
        train(1.0, [pv.CollapseMonitor(DATA[:1])], epochs=1)
    with pytest.raises(ValueError, match=r"x has shape \(200, 5\); the model needs"):
        train(1.0, [pv.CollapseMonitor(DATA[:, :5])], epochs=1)


# -- priors per datum, covariates, masks ------------------------------------------------------------------------------


class GivenLabel(pv.VAEModel):
    """p(z | y) = N(10 y, 1) and q(z | x, y) = N(10 y + a x, 1): a says how much z knows of x beyond y."""

    def __init__(self, a: float = 0.0) -> None:
        super().__init__()
        self.event_shape, self.a, self.w = (1,), a, nn.Parameter(torch.zeros(1))

    def prior(self, x: Tensor, y: Tensor) -> Any:
        return dist.Normal(10.0 * y[:, None], 1.0).to_event(1)

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x, y))
            pyro.sample("x", dist.Normal(0 * z + self.w, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(10.0 * y[:, None] + self.a * x, 1.0).to_event(1))


class ScaledByLabel(GivenLabel):
    def prior(self, x: Tensor, y: Tensor) -> Any:
        return dist.Normal(x.new_zeros(1), 1.0 + y[:, None]).to_event(1)


class PriorOfX(GivenLabel):
    def prior(self, x: Tensor, y: Tensor) -> Any:
        return dist.Laplace(x, 1.0).to_event(1)


@pytest.mark.parametrize("model", [GivenLabel(), GivenLabel(0.5), ScaledByLabel(), PriorOfX()])
def test_priors_per_datum_have_no_split_and_no_activity(model: pv.VAEModel) -> None:
    x, y = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)), (torch.arange(200) % 2).float()
    report = pv.collapse(model, x, y, progress=False)
    assert report.estimator == "none"
    assert "prior at ['z'] differs from datum to datum" in report.reason
    assert math.isnan(report.mutual_information)
    assert math.isnan(report.marginal_kl)
    assert report.dimensions["activity"].isna().all()
    assert not report.dimensions["active"].any()
    assert "No latent has an activity" in report.verdict
    if type(model) is GivenLabel:  # the rate itself is right: a² x² / 2
        assert report.rate == pytest.approx(model.a**2 * float((x**2).mean()) / 2, abs=1e-5)


def test_covariates_that_leave_the_prior_alone_split_the_rate() -> None:
    """z knows y and nothing else: I is ln 2, and the rest of the rate is KL(q(z) ‖ p(z))."""

    class Posterior(GivenLabel):
        def prior(self, x: Tensor, y: Tensor) -> Any:
            return dist.Normal(x.new_zeros(1), 1.0).to_event(1)

    x, y = torch.randn(200, 1), (torch.arange(200) % 2).float()
    report = pv.collapse(Posterior(), x, y, progress=False)
    assert report.estimator == "mixture"
    assert report.mutual_information == pytest.approx(math.log(2.0), abs=1e-4)
    assert report.marginal_kl == pytest.approx(report.rate - math.log(2.0), abs=1e-4)
    assert report.marginal_kl > 0


@pytest.mark.parametrize("inside", [False, True])
def test_masked_latents_say_so(inside: bool) -> None:
    """Half of the data have no z: the rate is that of the others, dimensions and split are not defined."""

    class Masked(GivenLabel):
        def draw(self, p: Any, y: Tensor) -> Tensor:
            if inside:
                return pyro.sample("z", p.expand([len(y)]).mask(y > 0))
            with poutine.mask(mask=y > 0):
                return pyro.sample("z", p)

        def model(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = self.draw(dist.Normal(x.new_zeros(1), 1.0).to_event(1), y)
                pyro.sample("x", dist.Normal(0 * z + self.w, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                self.draw(dist.Normal(x, 1.0).to_event(1), y)

    x, y = torch.randn(200, 1), (torch.arange(200) % 2).float()
    report = pv.collapse(Masked(), x, y, num_samples=500, progress=False)
    exact = float((y * x[:, 0] ** 2 / 2).mean())
    assert abs(report.rate - exact) < 0.05
    assert report.estimator == "none"
    assert "masked at ['z']" in report.reason
    assert report.dimensions["kl"].isna().all()
    assert list(report.dimensions["kl_method"]) == ["masked"]


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "one-hot", "gamma", "beta"])
def test_families_whose_kl_does_not_broadcast(family: str) -> None:
    """The closed form over particles is that of one particle, expanded."""
    make = {
        "bernoulli": lambda h: dist.Bernoulli(logits=h).to_event(1),
        "categorical": lambda h: dist.Categorical(logits=h),
        "one-hot": lambda h: dist.OneHotCategorical(logits=h),
        "gamma": lambda h: dist.Gamma(h.exp(), 1.0).to_event(1),
        "beta": lambda h: dist.Beta(h.exp(), 1.0 + 0 * h).to_event(1),
    }[family]

    class Model(pv.VAEModel):
        def __init__(self) -> None:
            super().__init__()
            self.event_shape, self.e = (3,), nn.Linear(3, 2)

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", make(x.new_zeros(2)))
                shift = z.float().reshape(*z.shape[: z.dim() - len(make(x.new_zeros(2)).event_shape)], -1).sum(-1)
                pyro.sample("x", dist.Normal(shift.unsqueeze(-1) + torch.zeros(3), 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", make(self.e(x)))

    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 3)
    one, several = (model.log_terms(x, num_particles=k).closed_form_kl("z") for k in (1, 5))
    assert one is not None
    assert several is not None
    torch.testing.assert_close(several, one.expand(5, 4))
    draws = model.log_terms(x, num_particles=20_000)
    sampled = draws.log_posterior["z"] - draws.log_prior["z"]
    assert ((sampled.mean(0) - one[0]).abs() < 4 * sampled.std(0) / 20_000**0.5 + 1e-6).all()
    assert pv.collapse(model, x, progress=False).rate == pytest.approx(float(one.detach().mean()), rel=1e-5)
