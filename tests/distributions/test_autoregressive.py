"""Distributions over tiny images, of which all can be listed."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyrovae.distributions import Autoregressive
from pyrovae.likelihoods import Bernoulli, Categorical, Likelihood
from pyrovae.zoo import PixelDecoder
from tests.cases import randomized

CASES = {
    "bernoulli": (Bernoulli(3), (1, 2, 3), 2),
    "two_channels": (Bernoulli(3), (2, 2, 2), 2),
    "levels": (Categorical(3, num_levels=3), (1, 2, 2), 3),
}


def decoder(likelihood: Likelihood, shape: tuple[int, ...], network: str, latent_dim: int = 0) -> PixelDecoder:
    upsample = torch.nn.Linear(latent_dim, 4 * shape[1] * shape[2]) if latent_dim else None
    built = PixelDecoder(
        shape,
        likelihood,
        network=network,
        network_options={"hidden": 6} | ({"num_layers": 3} if network == "pixelcnn" else {}),
        upsample=upsample,
        context_dim=4,
    )
    return randomized(built, scale=0.7).eval()


def every_image(shape: tuple[int, ...], levels: int) -> Tensor:
    values = torch.linspace(0, 1, levels, dtype=torch.float64).tolist()
    return torch.tensor(list(itertools.product(values, repeat=math.prod(shape))), dtype=torch.float64).reshape(
        -1, *shape
    )


@pytest.mark.parametrize("network", ["pixelcnn", "gru"])
@pytest.mark.parametrize("case", CASES)
def test_it_sums_to_one_over_all_images_and_its_draws_follow_it(case: str, network: str) -> None:
    likelihood, shape, levels = CASES[case]
    z = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        p = decoder(likelihood, shape, network, 3)(z)
        images = every_image(shape, levels)
        probabilities = p.log_prob(images.unsqueeze(1)).exp()
    assert probabilities.shape == (len(images), 2)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float((probabilities[:, 0] - probabilities[:, 1]).abs().sum()) > 0.1  # z matters

    torch.manual_seed(0)
    n = 4000
    draws = p.sample(torch.Size((n,)))
    assert draws.shape == (n, 2, *shape)
    for b in range(2):
        same = (draws[:, b].flatten(1).unsqueeze(1) - images.flatten(1)).abs().amax(2) < 1e-9
        counts, expected = same.sum(0).double(), n * probabilities[:, b]
        assert counts.sum() == n
        rare = expected < 5
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]]).clamp_min(1e-9)
        chi2, dof = float(((counts - expected).square() / expected).sum()), len(expected) - 1
        assert chi2 < dof + 4 * math.sqrt(2 * dof)


def test_any_batch_shape_and_expand() -> None:
    likelihood, shape, _ = CASES["bernoulli"]
    network = decoder(likelihood, shape, "pixelcnn", 3)
    z = torch.randn(4, 1, 3, dtype=torch.float64)
    with torch.no_grad():
        p = network(z)
        assert (p.batch_shape, p.event_shape) == ((4, 1), shape)
        x = p.expand(torch.Size((2, 4, 5))).sample(torch.Size((3,)))
        assert x.shape == (3, 2, 4, 5, *shape)
        assert not x.requires_grad
        log_prob = p.log_prob(x)
        assert log_prob.shape == (3, 2, 4, 5)
        torch.testing.assert_close(p.expand(torch.Size((2, 4, 5))).log_prob(x), log_prob)
        for i in range(4):
            torch.testing.assert_close(network(z[i, 0]).log_prob(x[:, :, i]), log_prob[:, :, i])
    assert p.sample().shape == (4, 1, *shape)
    assert p.mean.shape == (4, 1, *shape)


def test_the_mean_is_that_of_the_listed_images() -> None:
    likelihood, shape, levels = CASES["bernoulli"]
    images = every_image(shape, levels)
    torch.manual_seed(0)
    with torch.no_grad():
        p = decoder(likelihood, shape, "gru")(None)
        exact = (p.log_prob(images).exp()[:, None, None, None] * images).sum(0)
        p.mean_draws = 4000
        se = (exact * (1 - exact) / p.mean_draws).sqrt()
        assert ((p.mean - exact).abs() < 4 * se).all()


def test_a_conditional_is_given_the_rows_down_to_the_pixel_drawn() -> None:
    seen = []

    def conditional(x: Tensor) -> torch.distributions.Distribution:
        seen.append(tuple(x.shape))
        return Bernoulli(3)(torch.zeros(*x.shape[:-3], 1, *x.shape[-3:]))

    Autoregressive(conditional, (1, 3, 2), (5,)).sample()
    assert seen == [(5, 1, 1, 2)] * 2 + [(5, 1, 2, 2)] * 2 + [(5, 1, 3, 2)] * 2
