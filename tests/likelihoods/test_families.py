"""What every likelihood must satisfy."""

import math

import pytest
import torch

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
