"""What every likelihood must satisfy."""

import math

import pytest
import torch

import pyrovae as pv
from pyrovae.distributions import Levels
from pyrovae.likelihoods import LIKELIHOODS, Gaussian
from tests.cases import LIKELIHOODS as CASES


def test_every_registered_family_has_a_case() -> None:
    assert {type(make()) for make in CASES.values()} == set(LIKELIHOODS.values())


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_samples_agree_with_the_mean(name: str) -> None:
    likelihood = CASES[name]().double()
    params = torch.randn(2, 3, likelihood.num_params, 4, dtype=torch.float64)
    p = likelihood(params)
    assert p.batch_shape == (2, 3)
    assert p.event_shape == (4,)
    draws = p.sample((20_000,))
    se = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - p.mean).abs() < 4.5 * se + 1e-12).all()
    assert p.log_prob(draws[:5]).shape == (5, 2, 3)
    p.expand((6, 2, 3)).log_prob(draws[:6])


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_probabilities_sum_to_one(num_levels: int) -> None:
    logits = 30 * torch.randn(num_levels, dtype=torch.float64)
    levels = torch.arange(num_levels, dtype=torch.float64) / (num_levels - 1)
    log_p = Levels(logits).log_prob(levels)
    assert log_p.logsumexp(0).item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(log_p, logits.log_softmax(0))


def test_levels_survive_float32_images() -> None:
    k = torch.arange(256, dtype=torch.uint8)
    x = k.float() / 255
    p = Levels(torch.randn(256))
    assert p.support.check(x).all()
    assert not p.support.check(torch.tensor([0.5, -1 / 255, 256 / 255])).any()
    torch.testing.assert_close(p.log_prob(x), p.logits.log_softmax(0))


def test_bernoulli_is_exact_at_extreme_logits() -> None:
    p = LIKELIHOODS["bernoulli"](1)(torch.tensor([[200.0, -200.0]]))
    assert p.log_prob(torch.tensor([1.0, 1.0])).item() == pytest.approx(-200.0)


def test_gaussian_floor_holds() -> None:
    per_pixel = Gaussian(1, scale="per_pixel", min_scale=0.01)(torch.tensor([[0.0], [-1e4]]))
    shared = Gaussian(1, min_scale=0.01)
    torch.nn.init.constant_(shared.log_scale, -1e4)
    for p in (per_pixel, shared(torch.zeros(1, 1))):
        assert p.base_dist.scale.item() == pytest.approx(0.01)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": -1.0}, {"scale": "both"}, {"min_scale": 0.0}])
def test_bad_scales_are_named(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Gaussian(1, **options)


def test_discretised_components_start_spread_and_scales_keep_their_floor() -> None:
    mixture = LIKELIHOODS["discretized_logistic_mixture"](2, num_components=4, num_levels=17)
    p = mixture(torch.zeros(5, 12, 3, 3)).base_dist.component_distribution
    torch.testing.assert_close(p.loc[0, 0, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    sharp = LIKELIHOODS["discretized_logistic"](1, num_levels=17)(torch.tensor([[0.0], [-1e4]]))
    assert sharp.base_dist.scale.item() == pytest.approx(0.1 / 16)
    assert sharp.log_prob(torch.tensor([0.5])).item() == pytest.approx(math.log(math.tanh(2.5)), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("discretized_logistic", {"num_levels": 1}),
        ("discretized_logistic", {"min_scale": 0.0}),
        ("discretized_logistic_mixture", {"num_components": 0}),
        ("discretized_logistic_mixture", {"num_levels": 2.5}),
    ],
)
def test_bad_discretised_options_are_named(name: str, options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LIKELIHOODS[name](1, **options)


@pytest.mark.parametrize("name", ["discretized_logistic", "discretized_logistic_mixture", "continuous_bernoulli"])
def test_a_vae_with_it_trains_and_is_evaluated(name: str) -> None:
    """Data off the grid, or outside [0, 1], are refused; only a mass function gets bits per dimension."""
    data = pv.datasets.load("digits")
    discrete = name.startswith("discretized")
    torch.manual_seed(0)
    options = {"num_levels": 17} if discrete else {}
    vae = pv.VAE(data.event_shape, 4, hidden=(32,), likelihood=name, likelihood_options=options)
    before = pv.log_marginal(vae, data.test[:50], num_samples=50, progress=False)
    run = pv.fit(vae, data, epochs=5, seed=0, progress=False, device="cpu")
    after = pv.log_marginal(vae, data.test[:50], num_samples=50, progress=False)
    gain = after.pointwise["log_px"] - before.pointwise["log_px"]
    assert gain.mean() > 4 * gain.std() / math.sqrt(50)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    # Uniform over 17 levels takes log2 17 = 4.09 bits.
    assert after.summary()["bits_per_dim"] < math.log2(17) if discrete else "bits_per_dim" not in after.summary()
    decoded = vae.decode(torch.randn(3, 4))
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    wrong = data.test[:5].clone()
    wrong[2, 7] = 0.51 if discrete else 1.01
    for evaluate in (pv.log_marginal, pv.elbo_terms):
        with pytest.raises(ValueError, match=r"1 value\(s\) outside the support"):
            evaluate(vae, wrong, num_samples=2, progress=False)
    with pytest.raises(ValueError, match="17 levels.*num_levels" if discrete else "outside the support"):
        pv.fit(vae, wrong, epochs=1, progress=False, device="cpu")
