"""Whether an estimate can be believed: the jackknife, the verdict, the stated errors, reproducibility."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pyrovae as pv
from pyrovae.evaluation.result import judge
from pyrovae.evaluation.stream import WeightStream
from pyrovae.testing import LinearGaussian
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
    assert flagged[bad] > 0.5
    assert flagged[good] < 0.02
    assert set(results[bad].pointwise.query("~reliable")["reason"].str.split(", ").explode()) <= {
        "khat",
        "variance",
        "halves",
        "ess",
    }
    assert results[bad].verdict.startswith("Unreliable: ")
    assert results[good].verdict.startswith("Reliable: ")
    # And rightly so: the stated errors do not cover there.
    missed = {
        m: (abs(r.pointwise["log_px"] - m.exact_log_px(m.sample(200, seed=1)).numpy()) > 1.96 * r.pointwise["mc_se"])
        for m, r in results.items()
    }
    assert missed[bad].mean() > 0.2
    assert missed[good].mean() < 0.1


def test_the_stated_interval_covers_the_truth() -> None:
    """log p̂ ± 1.96 mc_se over 200 seeds, for one datum at a time."""
    generator = torch.Generator().manual_seed(3)
    model = LinearGaussian(0.3 * torch.randn(12, 4, generator=generator), torch.zeros(12), 0.8, guide="detuned")
    x = model.sample(5, seed=1)
    exact = model.exact_log_px(x).numpy()
    runs = [pv.log_marginal(model, x, num_samples=1000, seed=seed, progress=False).pointwise for seed in range(200)]
    covered = np.mean([(abs(p["log_px"] - exact) < 1.96 * p["mc_se"]).to_numpy() for p in runs], axis=0)
    print(f"coverage of the 95 % interval over 200 seeds, five data: {covered}")
    assert (covered >= 0.90).all()
    assert (covered <= 0.99).all()


def test_every_reason_has_its_case() -> None:
    p = pd.DataFrame(
        {"log_px": 0.0, "mc_se": 0.01, "ess": 4000.0, "khat": 0.3, "non_finite": 0, "halves": 0.0}, range(8)
    )
    p.loc[1, "non_finite"] = 1
    p.loc[2, "khat"] = 0.75
    p.loc[3, "khat"] = 0.65
    p.loc[4, "ess"] = 99.0
    p.loc[5, "halves"] = -0.081
    p.loc[6, ["khat", "ess"]] = math.nan, 3.0
    p.loc[7, "log_px"] = -math.inf
    verdicts = judge(p, 5000)
    assert verdicts["reason"].tolist() == [
        "",
        "non-finite",
        "khat",
        "variance",
        "ess",
        "halves",
        "khat, ess",
        "non-finite",
    ]
    assert verdicts["reliable"].tolist() == [True] + 7 * [False]


def test_constant_weights_are_reliable_even_when_few() -> None:
    generator = torch.Generator().manual_seed(3)
    model = LinearGaussian(torch.randn(6, 2, generator=generator).double(), torch.zeros(6).double(), 1.0)
    result = pv.log_marginal(model, model.sample(5, seed=0), num_samples=60, progress=False)
    assert result.reliable
    assert result.pointwise["reason"].tolist() == 5 * [""]


@pytest.mark.parametrize("make", [lambda: pv.VAE((6,), 3, hidden=(16,), posterior="iaf"), TwoSites])
def test_a_seed_gives_the_same_numbers_whatever_the_memory(make) -> None:
    model, x = make(), binary(40)
    expected = pv.log_marginal(model, x, num_samples=3000, progress=False).pointwise.drop(columns="reason")
    for budget in (2**40, 2**22, 2**16, 100):
        p = pv.log_marginal(model, x, num_samples=3000, memory_budget=budget, progress=False).pointwise
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
    with pytest.raises(ValueError, match="proposal must be 'posterior' or 'prior'; got 'q'"):
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
