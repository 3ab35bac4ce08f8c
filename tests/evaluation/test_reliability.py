"""Whether an estimate can be believed: the jackknife, the verdict, the stated errors, reproducibility."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.distributions import PointMass
from pyrovae.evaluation.marginal._log_marginal import stream_columns
from pyrovae.evaluation.marginal._pool import pooled
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.evaluation.marginal._verdict import judge, mean_error, shrunk, verdict
from pyrovae.testing import DiscreteMixture, LinearGaussian
from tests.models import TwoSites, binary


def correlated(rho: float) -> LinearGaussian:
    """A two-dimensional latent whose posterior precision has correlation ``rho``."""
    s = 1.0 / (1.0 - abs(rho)) - 1.0  # W'W = sI + r(J - I): precision 1 + s on the diagonal, r beside it
    r = rho * (1.0 + s)
    w = torch.linalg.cholesky(torch.tensor([[s + 1e-9, r], [r, s + 1e-9]], dtype=torch.float64)).T
    model = LinearGaussian(w, torch.zeros(2, dtype=torch.float64), 1.0, guide="mean_field")
    precision = model.precision()
    assert (precision[0, 1] / precision[0, 0]).item() == pytest.approx(rho, abs=1e-6)
    return model


@pytest.mark.parametrize("k", [2, 5, 20, 129, 1000, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 10.0])
def test_jackknife_equals_leaving_out_each_draw(k: int, spread: float) -> None:
    w = spread * torch.randn(k, 5, dtype=torch.float64)
    stream = WeightStream(5, k, (1, k), torch.device("cpu"))
    for part in w.split(max(k // 3, 1)):
        stream.update(part)
    everything = w.logsumexp(0) - math.log(k)
    without = torch.stack([torch.cat([w[:i], w[i + 1 :]]).logsumexp(0) for i in range(k)]) - math.log(k - 1)
    torch.testing.assert_close(stream.jackknife, k * everything - (k - 1) * without.mean(0), rtol=0, atol=1e-9)


def test_jackknife_takes_out_the_bias() -> None:
    """With few draws L_K lies CV²/2K below log p(x), and the jackknife far less."""
    generator = torch.Generator().manual_seed(3)
    w = 0.5 * torch.randn(12, 4, generator=generator)
    model = LinearGaussian(w, torch.zeros(12), 0.8, guide="mean_field")
    assert 0.5 < model.squared_cv() < 5
    x = model.sample(6000, seed=1)
    result = pv.log_marginal(model, x, num_samples=20, progress=False)
    p, exact = result.pointwise, model.exact_log_px(x).numpy()
    se = result.summary()["mc_se"]
    bias, corrected = (p["log_px"] - exact).mean(), (p["jackknife"] - exact).mean()
    print(f"bias of L_20 {bias:.4f}, of the jackknife {corrected:.4f}, Monte Carlo se {se:.4f}")
    assert bias < -6 * se
    assert abs(corrected) < 4 * se + (model.squared_cv() / 20) ** 2


@pytest.mark.parametrize("k", [1000, 5000])
def test_infinite_variance_is_flagged_and_its_well_behaved_twin_is_not(k: int) -> None:
    bad, good = correlated(0.8), correlated(0.3)
    assert bad.squared_cv() == math.inf
    assert good.squared_cv() < 0.5
    results = {m: pv.log_marginal(m, m.sample(200, seed=1), num_samples=k, progress=False) for m in (bad, good)}
    flagged = {m: (~r.pointwise["reliable"]).mean() for m, r in results.items()}
    print(f"K={k}: flagged {flagged[bad]:.0%} against {flagged[good]:.0%}; {results[bad].verdict}")
    for result in results.values():
        table = result.bound_table()
        assert (table["log_px"].diff().dropna() > -4 * np.hypot(table["mc_se"], table["mc_se"].shift()).dropna()).all()
    assert not results[bad].reliable
    assert results[good].reliable
    assert flagged[bad] > 0.95
    assert flagged[good] < 0.02
    assert set(results[bad].pointwise.query("~reliable")["reason"].str.split(", ").explode()) <= {"khat", "ess"}
    assert results[bad].verdict.startswith("Unreliable: ")
    assert results[good].verdict.startswith("Mean good to about 0.00")
    # What is said of the mean holds of both; 2.5 standard errors at least are in it, and 4 are allowed.
    for model, result in results.items():
        off = (result.pointwise["log_px"] - model.exact_log_px(model.sample(200, seed=1)).numpy()).mean()
        assert abs(off) < 1.6 * result.mean_error
    # And rightly so: the stated errors do not cover there.
    missed = {
        m: (abs(r.pointwise["log_px"] - m.exact_log_px(m.sample(200, seed=1)).numpy()) > 1.96 * r.pointwise["mc_se"])
        for m, r in results.items()
    }
    assert missed[bad].mean() > 0.2
    assert missed[good].mean() < 0.1


def test_the_stated_interval_covers_the_truth() -> None:
    """log p̂ ± 1.96 mc_se over 200 estimates from draws of their own, for one datum at a time."""
    generator = torch.Generator().manual_seed(3)
    model = LinearGaussian(0.3 * torch.randn(12, 4, generator=generator), torch.zeros(12), 0.8, guide="detuned")
    x = model.sample(5, seed=1)
    exact = model.exact_log_px(x).numpy()
    p = pv.log_marginal(model, x.repeat(200, 1), num_samples=1000, progress=False).pointwise
    error, mc_se = (p["log_px"].to_numpy().reshape(200, 5) - exact), p["mc_se"].to_numpy().reshape(200, 5)
    covered = (abs(error) < 1.96 * mc_se).mean(axis=0)
    print(f"coverage of the 95 % interval over 200 estimates, five data: {covered}")
    assert (covered >= 0.90).all()
    assert (covered <= 0.99).all()


def judged(n: int, **columns) -> pd.DataFrame:
    good = {"log_px": 0.0, "mc_se": 0.01, "ess": 4000.0, "khat": 0.3, "non_finite": 0, "draws": 5000, "rise": 0.001}
    p = pd.DataFrame({**good, "jackknife": 0.0001}, range(n))
    for name, values in columns.items():
        for row, value in values.items():
            p.loc[row, name] = value
    return p


def test_every_reason_has_its_case() -> None:
    p = judged(
        10,
        non_finite={1: 1},
        khat={2: 1.1, 4: math.nan, 5: math.inf, 6: -math.inf, 8: math.nan},
        ess={3: 19.0, 8: 5.0},
        log_px={7: -math.inf},
        draws={8: 20, 9: 200},
    )
    verdicts = judge(p, 5000, bound=np.arange(10) == 9)
    expected = ["", "non-finite", "khat", "ess", "khat", "khat", "", "non-finite", "few draws", "bound"]
    assert verdicts["reason"].tolist() == expected
    assert verdicts["reliable"].tolist() == [reason == "" for reason in expected]


def test_a_khat_is_read_beside_those_of_the_other_data() -> None:
    """Scatter that the sampling error of k̂ explains is no reason; data that stand out are; alone it has its error."""
    rng = np.random.default_rng(0)
    error = 1.3 * 213 / 223 / math.sqrt(213)  # of k = .3 from the 213 largest of 5000
    p = judged(400)
    p["khat"] = 0.45 + error * rng.standard_normal(400)
    assert (p["khat"] > 0.6).sum() > 10
    assert judge(p, 5000)["reliable"].all()
    p["khat"] += 0.25
    assert (p["khat"] < 0.58).sum() > 10
    assert not judge(p, 5000)["reliable"].any()
    p["khat"] = np.where(np.arange(400) < 200, 0.1, 0.9)
    assert judge(p, 5000)["reliable"].tolist() == (np.arange(400) < 200).tolist()
    assert judge(judged(1, khat={0: 0.6}), 5000)["reliable"].all()
    assert not judge(judged(1, khat={0: 0.75}), 5000)["reliable"].any()


def test_shrinkage_is_empirical_bayes() -> None:
    rng = np.random.default_rng(1)
    variance = rng.uniform(0.5, 2.0, 20_000)
    truth = 3.0 + rng.standard_normal(20_000)
    values, error = shrunk(truth + np.sqrt(variance) * rng.standard_normal(20_000), variance)
    exact = 1.0 / (1.0 + 1.0 / variance)  # posterior variance of a normal mean
    assert error**2 == pytest.approx(exact, rel=0.05)
    standardized = (values - truth) / error
    assert abs(standardized.mean()) < 4 / math.sqrt(20_000)
    assert standardized.std() == pytest.approx(1.0, abs=0.03)
    left, _ = shrunk(np.array([1.0, math.nan, math.inf, 1.2]), np.full(4, 0.5))
    assert left[[0, 3]] == pytest.approx([1.1, 1.1])
    assert np.isnan(left[1])
    assert left[2] == math.inf


@pytest.mark.parametrize("k", [2, 5, 20])
def test_few_draws_are_called_few(k: int) -> None:
    for model in (correlated(0.3), correlated(0.8)):
        result = pv.log_marginal(model, model.sample(50, seed=1), num_samples=k, progress=False)
        assert (result.pointwise["reason"] == "few draws").all()
        assert not result.reliable
        assert math.isnan(result.mean_error)


def test_coverage_of_what_is_called_reliable() -> None:
    """A small ``benchmarks.calibration``: results of 100 data from normal guides with wrong mean and scale."""
    generator = torch.Generator().manual_seed(0)
    kept, good, stated = [], [], []
    for c2, shift in product((0.3, 0.5, 0.7, 0.9, 1.3), (0.2, 0.8)):
        log_square = math.inf if c2 <= 0.5 else 5 * math.log(c2**2 / (2 * c2 - 1)) / 2 + shift**2 / (2 * c2 - 1)
        for k in (200, 1000):
            u = torch.randn(k, 200, 5, generator=generator, dtype=torch.float64)
            z = math.sqrt(c2) * u
            z[..., 0] += shift
            w = 0.5 * (u.square() - z.square()).sum(2) + 2.5 * math.log(c2)
            stream = WeightStream(200, k, (1, k // 10, k // 2, k), torch.device("cpu"))
            stream.update(w)
            p = pd.DataFrame({n: v.numpy() for n, v in stream_columns(stream, k, (1, k)).items()})
            p = p.join(judge(p, k))
            kept.append(p[p["reliable"]])
            if math.expm1(log_square) / k < 0.01:
                good.append(p["reliable"])
            stated.append((abs(p["log_px"].mean()), mean_error(p, k)))
    p = pd.concat(kept)
    coverage, n = (p["log_px"].abs() <= 1.96 * p["mc_se"]).mean(), len(p)
    print(f"{n} of 4000 reliable, coverage {coverage:.3f}; of good ones {pd.concat(good).mean():.3f}")
    assert n > 1500
    assert coverage > 0.90
    for estimate in ("log_px", "jackknife"):
        assert abs(p[estimate].mean()) <= 0.25 * p["mc_se"].mean() + 2 * p[estimate].sem()
    assert pd.concat(good).mean() > 0.90
    off, size = np.array([(o, s) for o, s in stated if math.isfinite(s)]).T
    assert len(off) >= 15
    assert (off <= size).mean() >= 0.85


def test_the_mean_is_judged_by_what_is_flagged_in_it() -> None:
    """One datum in ten hopeless: the error is that of its weight in the mean."""
    ten = range(10)
    p = judged(100, khat=dict.fromkeys(ten, 0.85), rise=dict.fromkeys(ten, 0.1), ess=dict.fromkeys(ten, 200.0))
    p = p.join(judge(p, 5000))
    assert (~p["reliable"]).sum() == 10
    expected = 0.9 * 0.0001 + 0.1 * 2 * 0.1 + 2.5 * math.sqrt(90 * 0.01**2 + 10 * 0.02**2) / 100
    assert mean_error(p, 5000) == pytest.approx(expected)
    assert verdict(p, mean_error(p, 5000), "L", "").startswith(
        "Mean good to about 0.02 nats: 10 of 100 data are flagged"
    )
    p.loc[:9, "khat"] = 1.5
    assert mean_error(p, 5000) == math.inf
    assert verdict(p, math.inf, "L", "more").startswith("Unreliable: 10 of 100 data are flagged (khat: 10).")


class Certain(DiscreteMixture):
    """A guide that is sure of one component, as a Delta, a point mass or a categorical would say it."""

    def __init__(self, how: str) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__(torch.zeros(3), torch.randn(3, 6, generator=generator))
        self.how = how

    def guide(self, x):
        best = dist.Bernoulli(logits=self.logits).to_event(1).log_prob(x.unsqueeze(1)).argmax(1)
        make = {
            "delta": lambda: dist.Delta(best),
            "point mass": lambda: PointMass(best, 3),
            "categorical": lambda: dist.Categorical(probs=torch.nn.functional.one_hot(best, 3).to(x)),
        }[self.how]
        with pyro.plate("data", len(x)):
            pyro.sample("k", make())


@pytest.mark.parametrize("how", ["point mass", "categorical", "delta"])
@pytest.mark.parametrize("k", [1, 2, 300])
def test_a_guide_that_is_certain_makes_a_bound(how: str, k: int) -> None:
    model, x = Certain(how), binary(40)
    result = pv.log_marginal(model, x, num_samples=k, progress=False)
    assert (result.pointwise["log_px"] < model.exact_log_px(x).detach().numpy()).all()
    assert result.pointwise["reason"].str.contains("bound").all()
    assert not result.reliable
    assert result.verdict.startswith("Bound: ")
    uncertain = pv.log_marginal(DiscreteMixture(torch.zeros(3), model.logits), x, num_samples=300, progress=False)
    assert not uncertain.pointwise["reason"].str.contains("bound").any()


def test_a_point_mass_on_a_continuous_latent_has_no_density() -> None:
    class Point(LinearGaussian):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.posterior_mean(x)).to_event(1))

    model = Point(torch.ones(3, 2), torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match="site 'z' of the guide is a point mass"):
        pv.log_marginal(model, model.sample(5, seed=0), num_samples=50, progress=False)


def test_a_target_is_reached_without_bias() -> None:
    generator = torch.Generator().manual_seed(3)
    model = LinearGaussian(0.5 * torch.randn(12, 4, generator=generator), torch.zeros(12), 0.8, guide="mean_field")
    x = model.sample(1000, seed=1)
    exact = model.exact_log_px(x).numpy()
    result = pv.log_marginal(model, x, num_samples=3200, target_mc_se=0.06, bounds=(10, 100), progress=False)
    p = result.pointwise
    assert ((p["mc_se"] <= 0.06) | (p["draws"] == 3200)).all()
    assert p["draws"].min() == 200
    assert p["draws"].nunique() > 3
    assert result.summary()["draws"] == p["draws"].mean() < 700
    error = p["log_px"] - exact
    assert abs(error.mean()) <= 0.25 * p["mc_se"].mean()
    assert abs(error.mean()) <= result.mean_error
    assert (error.abs() <= 1.96 * p["mc_se"]).mean() > 0.9
    for k in (1, 10, 100):  # bounds of all data, each by its own draws
        plain = pv.log_marginal(model, x, num_samples=200, bounds=(10, 100), seed=1, progress=False).bound_table()
        table = result.bound_table()
        assert abs(table.loc[k, "log_px"] - plain.loc[k, "log_px"]) < 4 * math.hypot(
            table.loc[k, "mc_se"], plain.loc[k, "mc_se"]
        )
    assert p.loc[p["draws"] < 3200, "L_3200"].isna().all()
    pd.testing.assert_frame_equal(
        p, pv.log_marginal(model, x, num_samples=3200, target_mc_se=0.06, bounds=(10, 100), progress=False).pointwise
    )
    everything = pv.log_marginal(model, x[:20], num_samples=300, target_mc_se=1e-9, progress=False).pointwise
    assert (everything["draws"] == 300).all()
    assert everything["L_300"].to_numpy() == pytest.approx(everything["log_px"].to_numpy())
    with pytest.raises(ValueError, match="target_mc_se must be positive and finite; got 0"):
        pv.log_marginal(model, x, target_mc_se=0, progress=False)


def test_two_runs_pool_to_the_sums_of_their_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(700, 6, generator=generator, dtype=torch.float64)
    parts = []
    for part in (w[:200], w[200:], w):
        k = len(part)
        stream = WeightStream(6, k, {1, 10, k // 10, k // 2, k}, torch.device("cpu"))
        stream.update(part)
        parts.append({name: v.numpy() for name, v in stream_columns(stream, k, (1, 10)).items()})
    both = pooled(*parts[:2])
    for name in ("log_px", "mc_se", "ess", "elbo", "draws", "L_1", "L_10", "non_finite"):
        np.testing.assert_allclose(both[name], parts[2][name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(both["jackknife"], parts[2]["jackknife"], atol=1e-3)
    np.testing.assert_allclose(both["L_1_se"], parts[2]["L_1_se"], rtol=0.01)


def test_constant_weights_are_reliable_even_when_few() -> None:
    generator = torch.Generator().manual_seed(3)
    model = LinearGaussian(torch.randn(6, 2, generator=generator).double(), torch.zeros(6).double(), 1.0)
    result = pv.log_marginal(model, model.sample(5, seed=0), num_samples=60, progress=False)
    assert result.reliable
    assert result.pointwise["reason"].tolist() == 5 * [""]


@pytest.mark.parametrize("make", [lambda: pv.VAE((6,), 3, hidden=(16,), posterior="iaf"), TwoSites])
def test_a_seed_gives_the_same_numbers_whatever_the_memory(make) -> None:
    model, x = make(), binary(20)
    expected = pv.log_marginal(model, x, num_samples=200, progress=False).pointwise.drop(columns="reason")
    for budget in (2**40, 2**22, 2**16, 100):
        p = pv.log_marginal(model, x, num_samples=200, memory_budget=budget, progress=False).pointwise
        if budget == 2**40:
            pd.testing.assert_frame_equal(p.drop(columns="reason"), expected)
        np.testing.assert_allclose(p["log_px"], expected["log_px"], rtol=1e-5)
        np.testing.assert_allclose(p["elbo"], expected["elbo"], rtol=1e-5)
        np.testing.assert_allclose(p["halves"], expected["halves"], atol=1e-5)


def test_naive_monte_carlo_from_the_prior() -> None:
    generator = torch.Generator().manual_seed(3)
    model = LinearGaussian(0.3 * torch.randn(4, 2, generator=generator), torch.zeros(4), 1.0, guide="mean_field")
    x = model.sample(100, seed=1)
    exact = model.exact_log_px(x).numpy()
    prior = pv.log_marginal(model, x, num_samples=5000, proposal="prior", progress=False)
    guide = pv.log_marginal(model, x, num_samples=5000, progress=False)
    z = (prior.pointwise["log_px"] + 0.5 * prior.pointwise["mc_se"] ** 2 - exact) / prior.pointwise["mc_se"]
    assert abs(z.mean()) < 4 / math.sqrt(100)
    assert abs(z).max() < 5
    assert prior.summary()["mc_se"] > 3 * guide.summary()["mc_se"]
    assert (prior.pointwise["elbo"] < guide.pointwise["elbo"]).all()
    with pytest.raises(ValueError, match="proposal must be one of 'posterior', 'prior'; got 'q'"):
        pv.log_marginal(model, x, proposal="q", progress=False)


def test_worst_data_come_first() -> None:
    model, x = pv.VAE((6,), 3, hidden=(16,)), binary(40)
    result = pv.log_marginal(model, x, num_samples=500, progress=False)
    p = result.pointwise
    assert result.worst(3)["khat"].tolist() == p["khat"].nlargest(3).tolist()
    assert result.worst(3, by="log_px").index.tolist() == p["log_px"].nsmallest(3).index.tolist()
    assert result.worst(1, by="halves").index[0] == p["halves"].abs().idxmax()
    p.loc[7, "khat"] = math.nan
    assert result.worst(1).index[0] == 7
    with pytest.raises(ValueError, match="by must be a column of pointwise; got 'k'"):
        result.worst(by="k")
