"""The δ-VAE: no datum's rate is under δ, trained or not."""

import math

import pytest
import torch

import pyrovae as pv
from pyrovae.zoo import delta_vae


@pytest.fixture(scope="module")
def digits() -> pv.datasets.Data:
    return pv.datasets.load("digits", binarize="static")


@pytest.mark.parametrize("beta", [1.0, 20.0])
def test_no_datum_has_a_rate_under_delta(digits, beta: float) -> None:
    """β = 20 makes the rate as dear as it can be: an ordinary VAE goes down to none, this one to δ."""
    delta = 3.0
    torch.manual_seed(0)
    vae = delta_vae(digits.event_shape, 8, delta=delta, channels=2, hidden=(64,))
    plain = pv.VAE(digits.event_shape, 8, hidden=(64,))
    objective = pv.ELBO(beta=beta)
    rates = {}
    for name, model in {"delta": vae, "plain": plain}.items():
        pv.fit(model, digits.train, objective=objective, epochs=12, seed=0, progress=False, device="cpu")
        terms = pv.elbo_terms(model, digits.test, num_samples=200, progress=False).pointwise
        rates[name] = terms["kl_exact"]
        report = pv.collapse(model, digits.test, num_samples=200, progress=False)
        assert report.rate == pytest.approx(terms["kl_exact"].mean(), rel=1e-4)
        assert report.dimensions["kl"].sum() == pytest.approx(report.rate, rel=1e-4)
        assert set(report.dimensions["kl_method"]) == {"closed form"}
        difference = terms["kl"] - terms["kl_exact"]  # Monte Carlo says the same
        assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(terms))
    assert (rates["delta"] >= delta).all()
    if beta > 1:
        assert rates["delta"].mean() < delta + 0.5
        assert rates["plain"].mean() < 0.2


@pytest.mark.slow
def test_it_is_a_vae_like_any_other(digits, tmp_path) -> None:
    vae = delta_vae(digits.event_shape, 6, delta=1.5, channels=3, hidden=(16,), likelihood="bernoulli")
    again = pv.load(vae.save(tmp_path / "vae.safetensors"))
    assert again.prior.delta == 1.5
    torch.testing.assert_close(again.sample(4, seed=0), vae.sample(4, seed=0))
    x = digits.test[:3]
    result = pv.log_marginal(vae, x, num_samples=500, progress=False).pointwise
    for start in ("posterior", "prior"):
        chain = pv.ais(vae, x, start=start, num_temperatures=100, num_chains=16, progress=False).pointwise
        error = (chain["mc_se"] ** 2 + result["mc_se"] ** 2) ** 0.5
        # Both are logarithms of unbiased means, and so too low by about half their variance.
        assert ((chain["log_px"] - result["log_px"]).abs() < 4.5 * error + 0.5 * error**2).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delta": 100.0}, "delta must be in"),
        ({"delta": 0.0}, "delta must be in"),
        ({"delta": 1.0, "posterior": "iaf"}, "posterior must be 'mean_field'"),
        ({"delta": 1.0, "posterior": pv.posteriors.FullRankNormal(6, 300)}, "FullRankNormal"),
        ({"delta": 1.0, "prior": "vamp"}, "prior is set by delta_vae"),
        ({"delta": 1.0, "prior_options": {}}, "prior_options"),
    ],
)
def test_what_commits_no_rate_is_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        delta_vae((4,), 6, **options)
    delta_vae((4,), 6, delta=1.0, posterior="Mean-Field")
