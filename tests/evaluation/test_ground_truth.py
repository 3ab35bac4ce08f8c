"""log_marginal against exact answers, within bounds from its own standard errors."""

import math
from collections.abc import Callable

import pytest
import torch
from pyro.infer import Trace_ELBO

import pyrovae as pv
from pyrovae.testing import BetaBernoulli, DiscreteMixture, LinearGaussian, grid_log_px
from tests.models import binary

D, Z, N = 12, 4, 50


def linear(guide: str, coupling: float = 0.5) -> LinearGaussian:
    generator = torch.Generator().manual_seed(3)
    w = coupling * torch.randn(D, Z, generator=generator)
    return LinearGaussian(w, torch.randn(D, generator=generator), 0.8, guide=guide)


def standardized_error(result: pv.MarginalResult, exact: torch.Tensor) -> float:
    """Error of the mean over data, in its own standard errors, with the known first-order bias -se²/2 put back."""
    p = result.pointwise
    error = p["log_px"].to_numpy() + 0.5 * p["mc_se"].to_numpy() ** 2 - exact.cpu().numpy()
    return float(error.mean() / (math.sqrt((p["mc_se"] ** 2).sum()) / len(p)))


def test_exact_posterior_has_no_variance(device: torch.device) -> None:
    model = linear("exact").to(device)
    x = model.sample(N, seed=1)
    result = pv.log_marginal(model, x, num_samples=20, progress=False)
    error = result.pointwise["log_px"].to_numpy() - model.exact_log_px(x).cpu().numpy()
    assert abs(error).max() < 1e-4
    assert result.pointwise["mc_se"].max() < 1e-4
    assert abs(result.pointwise["ess"] - 20).max() < 1e-2


@pytest.mark.parametrize("guide", ["mean_field", "detuned"])
@pytest.mark.parametrize("k", [200, 5000])
def test_linear_gaussian_within_its_own_errors(guide: str, k: int, device: torch.device) -> None:
    model = linear(guide).to(device)
    assert model.squared_cv() < math.inf
    x = model.sample(N, seed=1)
    exact = model.exact_log_px(x)
    result = pv.log_marginal(model, x, num_samples=k, progress=False)
    p = result.pointwise
    assert abs(standardized_error(result, exact)) < 4
    assert p["mc_se"].max() < 0.5
    # Datum by datum the errors scatter as the standard errors say.
    z = (p["log_px"] - exact.cpu().numpy()) / p["mc_se"]
    assert abs(z).max() < 5
    assert 0.7 < z.std() < 1.4


def test_standard_error_and_ess_equal_the_closed_form() -> None:
    """For the best mean-field posterior the weights' relative variance is known."""
    model = linear("mean_field", coupling=0.3)
    cv2 = model.squared_cv()
    assert 0.05 < cv2 < 1
    result = pv.log_marginal(model, model.sample(200, seed=1), num_samples=5000, progress=False)
    se = result.pointwise["mc_se"]
    assert se.mean() == pytest.approx(math.sqrt(cv2 / 5000), rel=0.03)
    assert result.pointwise["ess"].mean() == pytest.approx(5000 / (1 + cv2), rel=0.03)


def test_elbo_column_is_the_elbo_and_the_gap_is_the_closed_form() -> None:
    model = linear("mean_field")
    x = model.sample(N, seed=1)
    result = pv.log_marginal(model, x, num_samples=5000, progress=False)
    gap = model.exact_log_px(x).numpy() - result.pointwise["elbo"]
    se = result.pointwise["L_1_se"]
    assert (abs(gap - model.approximation_gap()) < 4.5 * se).all()
    reference = -Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1).loss(
        model.model, model.guide, x
    )
    combined = math.sqrt((se**2).sum() * (1 + 5000 / 2000))
    assert abs(result.pointwise["elbo"].sum() - reference) < 4 * combined


def test_bounds_rise_with_k_and_bias_is_half_the_variance() -> None:
    model = linear("mean_field")
    x = model.sample(N, seed=1)
    result = pv.log_marginal(model, x, num_samples=5000, bounds=(1, 10, 100, 1000), progress=False)
    table = result.bound_table()
    assert list(table.index) == [1, 10, 100, 500, 1000, 5000]
    steps = table["log_px"].diff().dropna()
    assert (steps.iloc[:2] > 0).all()
    bias = table["log_px"] - model.exact_log_px(x).mean().item()
    # E[L_k] = log p - CV²/2k + O(k⁻²), Rainforth et al. 2018.
    assert bias[100] == pytest.approx(
        -model.squared_cv() / 200, abs=4 * table["mc_se"][100] + model.squared_cv() ** 2 / 1e4
    )
    assert bias[1] == pytest.approx(-model.approximation_gap(), abs=4 * table["mc_se"][1])


@pytest.mark.parametrize("detune", [0.0, 1.0])
def test_beta_bernoulli(detune: float) -> None:
    model, x = BetaBernoulli(10, detune=detune), binary(30, 10)
    result = pv.log_marginal(model, x, num_samples=2000, progress=False)
    exact = model.exact_log_px(x)
    if detune == 0.0:
        assert abs(result.pointwise["log_px"] - exact.numpy()).max() < 1e-4
    else:
        assert abs(standardized_error(result, exact)) < 4


def test_discrete_latent() -> None:
    model, x = DiscreteMixture(torch.tensor([0.0, 1.0, -1.0]), 2 * torch.randn(3, 6)), binary(30)
    result = pv.log_marginal(model, x, num_samples=5000, progress=False)
    assert abs(standardized_error(result, model.exact_log_px(x).detach())) < 4


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["mean_field", "iaf", "sylvester"])
def test_digits_with_two_latents_against_quadrature(posterior: str, digits_vae: Callable[[str], pv.VAE]) -> None:
    vae, x = digits_vae(posterior), pv.datasets.load("digits", binarize="static").test[:20]
    exact, finer = grid_log_px(vae, x, points=201, half_width=7.0), grid_log_px(vae, x, points=301, half_width=7.0)
    assert (exact - finer).abs().max() < 1e-4
    result = pv.log_marginal(vae, x, num_samples=5000, progress=False)
    assert abs(standardized_error(result, finer)) < 4
    assert (abs(result.pointwise["log_px"] - finer.numpy()) < 5 * result.pointwise["mc_se"] + 1e-4).all()
    assert result.summary()["mc_se"] < 0.02
