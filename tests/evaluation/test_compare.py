import dataclasses
import math

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae.evaluation import arviz_comparison
from pyrovae.testing import LinearGaussian
from tests.models import binary, from_elsewhere


def results() -> tuple[LinearGaussian, dict[str, pv.MarginalResult]]:
    """Three guides of one model: log p(x) is the same, so every difference is noise."""
    generator = torch.Generator().manual_seed(3)
    w, b = 0.5 * torch.randn(12, 4, generator=generator), torch.zeros(12)
    models = {g: LinearGaussian(w, b, 0.8, guide=g) for g in ("mean_field", "detuned", "exact")}
    x = models["exact"].sample(100, seed=2)
    return models["exact"], {
        name: pv.log_marginal(m, x, num_samples=2000, seed=i, progress=False)
        for i, (name, m) in enumerate(models.items())
    }


def test_paired_differences_and_their_errors() -> None:
    _, r = results()
    table = pv.compare(r)
    assert table.loc["mean_field", ["diff", "diff_se", "diff_mc_se"]].tolist() == [0.0, 0.0, 0.0]
    d = r["detuned"].pointwise["log_px"] - r["mean_field"].pointwise["log_px"]
    assert table.loc["detuned", "diff"] == pytest.approx(d.mean())
    assert table.loc["detuned", "diff_se"] == pytest.approx(d.std() / math.sqrt(100))
    # Same model: the differences are Monte Carlo noise only, and far smaller than the spread over data.
    for name in ("detuned", "exact"):
        row = table.loc[name]
        assert abs(row["diff"]) < 4 * row["diff_mc_se"] + 2e-3
        assert row["diff_se"] == pytest.approx(row["diff_mc_se"], rel=0.5)
        assert row["diff_se"] < 0.1 * row["se_data"]
    assert (np.diff(table["log_px"]) <= 0).all()


def test_reference_and_refusals() -> None:
    _, r = results()
    assert pv.compare(r, reference="exact").loc["exact", "diff"] == 0.0
    with pytest.raises(ValueError, match="reference 'x' is not among the results: mean_field"):
        pv.compare(r, reference="x")
    for empty in ({}, {"a": []}):
        with pytest.raises(ValueError, match="results is empty"):
            pv.compare(empty)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1; got 95"):
        pv.compare(r, confidence=95)
    model = LinearGaussian(torch.ones(12, 1), torch.zeros(12), 1.0)
    x = model.sample(5, seed=0)
    unlike = {str(k): pv.log_marginal(model, x, num_samples=k, progress=False) for k in (10, 20)}
    with pytest.warns(UserWarning, match="different numbers of draws"):
        pv.compare(unlike)
    vae = pv.VAE((6,), 3, hidden=(16,))
    a = pv.log_marginal(vae, binary(5), num_samples=10, progress=False)
    b = pv.log_marginal(vae, binary(5), num_samples=10, progress=False)
    with pytest.raises(ValueError, match=r"'b' evaluated on other data than the rest \(content"):
        pv.compare({"a": a, "b": b})
    gaussian = pv.VAE((6,), 3, hidden=(16,), likelihood="gaussian")
    x = binary(5)
    mixed = {m.likelihood: pv.log_marginal(m, x, num_samples=10, progress=False) for m in (vae, gaussian)}
    with pytest.raises(ValueError, match="probability mass function and a density"):
        pv.compare(dict(zip("ab", mixed.values(), strict=True)))


def test_columns_and_same_model() -> None:
    model, r = results()
    table = pv.compare(r)
    assert table["same_model"].all()  # three guides of one model
    assert (table["diff_low"] <= table["diff"]).all()
    row = table.loc["detuned"]
    assert row["diff_high"] - row["diff"] == pytest.approx(1.984 * row["diff_se"], rel=1e-3)  # t with 99 degrees
    for name, result in r.items():
        p, row = result.pointwise, table.loc[name]
        assert row["neg_elbo"] == pytest.approx(-p["L_1"].mean())
        assert row["rise"] == pytest.approx((p["L_2000"] - p["L_200"]).mean())
        assert row["jackknife"] == pytest.approx(p["jackknife"].mean())
        assert row["unreliable"] == (~p["reliable"]).mean()
    assert table.loc["exact", "neg_elbo"] < table.loc["detuned", "neg_elbo"]
    other = LinearGaussian(1.01 * model.w.detach(), model.b.detach(), 0.8)
    x = model.sample(100, seed=2)
    r["other"] = pv.log_marginal(other, x, num_samples=2000, progress=False)
    assert pv.compare(r)["same_model"].to_dict() == {"mean_field": True, "detuned": True, "exact": True, "other": False}


def test_several_seeds() -> None:
    """The means' spread over seeds enters the interval; a shift shared by all data is not mistaken for certain."""
    _, r = results()
    base = r["exact"]

    def shifted(by: float) -> pv.MarginalResult:
        pointwise = base.pointwise.assign(log_px=base.pointwise["log_px"] + by)
        return from_elsewhere(base, pointwise=pointwise, fingerprint=(by,))

    shifts = np.array([0.5, 0.1, 0.3])
    table = pv.compare({"one": base, "three": [shifted(by) for by in shifts]})
    row = table.loc["three"]
    assert row["seeds"] == 3
    assert row["diff"] == pytest.approx(0.3)
    assert row["seed_sd"] == pytest.approx(0.2)
    assert row["claim"] == "training, if both vary alike"
    assert row["diff_se"] == pytest.approx(0.2 * math.sqrt(1 + 1 / 3), rel=1e-6)
    assert row["diff_high"] - row["diff"] == pytest.approx(4.3027 * row["diff_se"], rel=1e-3)  # t with 2 degrees
    assert math.isnan(table.loc["one", "seed_sd"])
    assert row["mc_se"] == pytest.approx(base.summary()["mc_se"] / math.sqrt(3))
    with pytest.raises(ValueError, match=r"'a\[1\]' evaluated on other data"):
        pv.compare({"b": base, "a": [base, from_elsewhere(base, data_hash="0" * 16)]})


@pytest.mark.slow
def test_interval_covers_the_truth() -> None:
    """Two models whose expected log p(x) is known, over 200 test sets: the 95 % interval covers in 90 to 99 %."""
    generator = torch.Generator().manual_seed(3)
    w = 0.5 * torch.randn(12, 4, generator=generator)
    a, b = (LinearGaussian(w, torch.zeros(12), s) for s in (0.8, 0.9))
    # E log p_b(x) - E log p_a(x) for x from a, both normal with mean 0.
    s, t = (w @ w.T + m.noise**2 * torch.eye(12) for m in (a, b))
    truth = 0.5 * (12 - torch.linalg.solve(t, s).trace() + s.logdet() - t.logdet()).item()
    x = torch.cat([a.sample(60, seed=seed) for seed in range(200)])
    whole = {n: pv.log_marginal(m, x, num_samples=2, progress=False) for n, m in (("a", a), ("b", b))}
    covered = []
    for start in range(0, len(x), 60):
        some = {n: r.pointwise.iloc[start : start + 60].reset_index(drop=True) for n, r in whole.items()}
        row = pv.compare({n: dataclasses.replace(r, pointwise=some[n]) for n, r in whole.items()}).loc["b"]
        covered.append(row["diff_low"] < truth < row["diff_high"])
    print(f"coverage of the 95 % interval of a difference: {np.mean(covered):.3f}")
    assert 0.90 <= np.mean(covered) <= 0.99


def test_annealed_estimates_and_gaps_beside() -> None:
    model, r = results()
    x = model.sample(100, seed=2)[:5]
    annealed = pv.ais(model, x, num_temperatures=5, num_chains=2, progress=False)
    table = pv.compare(r, ais={"exact": annealed})
    assert table.loc["exact", "ais"] == annealed.summary()["log_px"]
    assert math.isnan(table.loc["detuned", "ais"])
    with pytest.raises(ValueError, match="ais has 'x', which is not among the results"):
        pv.compare(r, ais={"x": annealed})
    elsewhere = pv.ais(model, model.sample(5, seed=9), num_temperatures=5, num_chains=2, progress=False)
    with pytest.raises(ValueError, match="ais of 'exact' is of another model than its result, or not on the first"):
        pv.compare(r, ais={"exact": elsewhere})
    assert table.loc["exact", "ais_N"] == 5
    other = pv.ais(model, x[:4], num_temperatures=5, num_chains=2, progress=False)
    with pytest.raises(ValueError, match="ais: 'detuned' evaluated on other data"):
        pv.compare(r, ais={"exact": annealed, "detuned": other})


def test_arviz_draws_the_comparison() -> None:
    import arviz
    import matplotlib.pyplot as plt

    _, r = results()
    table = arviz_comparison(r)
    if int(arviz.__version__.split(".")[0]) == 0:
        ax = arviz.plot_compare(table, insample_dev=False)
    else:
        arviz.plot_compare(table)
        (ax,) = plt.gcf().axes
    assert ax.get_yticklabels()[0].get_text() == table.index[0]
    plt.close("all")
    top = table.iloc[0]
    assert top[["elpd_diff", "dse"]].tolist() == [0.0, 0.0]
    assert top["elpd"] == pytest.approx(r[table.index[0]].pointwise["log_px"].sum())
    assert (table["elpd_diff"] >= 0).all()


def test_siblings_of_bad_input() -> None:
    """Results of ais among the results, a NaN datum, unequal draws among seeds, a confidence near one."""
    model, r = results()
    annealed = pv.ais(model, model.sample(100, seed=2)[:5], num_temperatures=5, num_chains=2, progress=False)
    with pytest.raises(TypeError, match="'a' must be a result of log_marginal or a sequence of them; got AISResult"):
        pv.compare({"a": annealed})
    broken = r["detuned"].pointwise.assign(log_px=r["detuned"].pointwise["log_px"].where(lambda v: v.index != 3))
    table = pv.compare({**r, "detuned": dataclasses.replace(r["detuned"], pointwise=broken)})
    columns = ["diff", "diff_se", "diff_low", "simultaneous_high"]
    assert table.loc["detuned", columns].isna().all()
    assert table.loc["exact", columns].notna().all()
    sure = pv.compare(r, confidence=1 - 1e-9).loc["exact"]
    assert sure["diff_low"] < sure["diff"] < sure["diff_high"] < math.inf
    assert sure["simultaneous_high"] > sure["diff_high"]
    with pytest.raises(ValueError, match="resolve must be positive and finite; got 0"):
        pv.compare(r, resolve=0)
    x = model.sample(100, seed=2)
    few = pv.log_marginal(model, x, num_samples=50, seed=9, progress=False)
    other = from_elsewhere(few, model_hash="another training", fingerprint=(1.0,))
    with pytest.warns(UserWarning, match="different numbers of draws"):
        table = pv.compare({"a": [r["exact"], other]})
    assert table.loc["a", "K"] == 50
    with pytest.warns(UserWarning, match="different numbers of draws") as caught:
        arviz_comparison({"a": r["exact"], "b": other})
    assert [w.filename for w in caught] == [__file__]
    again = arviz_comparison(r)
    n, best = 100, again.index[0]
    for name in again.index[1:]:
        d = r[name].pointwise["log_px"] - r[best].pointwise["log_px"]
        assert again.loc[name, "dse"] == pytest.approx(math.sqrt(n) * d.std())
        assert again.loc[name, "elpd_diff"] == pytest.approx(-d.sum())
