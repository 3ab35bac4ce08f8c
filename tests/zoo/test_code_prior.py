"""The PixelCNN over codes is a distribution over grids, and draws what it scores."""

import math
from itertools import product

import pytest
import torch

import pyrovae as pv
from pyrovae.zoo import PixelCNNPrior, UniformCodes
from tests.cases import randomized


def test_every_grid_is_counted_once() -> None:
    torch.manual_seed(0)
    prior = randomized(PixelCNNPrior((2, 3), 2, hidden=6, num_layers=2, embedding_dim=3))
    every = torch.tensor(list(product(range(2), repeat=6))).reshape(-1, 2, 3)
    with torch.no_grad():
        probability = prior().log_prob(every).exp()
        draws = prior().sample(torch.Size((20_000,)))
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0, dtype=torch.float64))
    counts = torch.bincount((draws.flatten(1) * 2 ** torch.arange(5, -1, -1)).sum(-1), minlength=64)
    expected = 20_000 * probability
    likely = expected >= 5
    chi2 = ((counts - expected).square() / expected)[likely].sum().item()
    df = int(likely.sum()) - 1
    assert df >= 10
    assert abs(chi2 - df) < 4.0 * math.sqrt(2.0 * df)


def test_upper_rows_alone_have_the_logits_of_the_whole() -> None:
    torch.manual_seed(0)
    prior = randomized(PixelCNNPrior((5, 4), 7, hidden=6, num_layers=3))
    z = torch.randint(7, (3, 5, 4))
    for rows in range(1, 6):
        torch.testing.assert_close(prior.logits(z[:, :rows]), prior.logits(z)[:, :, :rows])


def test_the_uniform_prior() -> None:
    p = UniformCodes((2, 3), 5)()
    z = p.sample(torch.Size((1000,)))
    assert z.shape == (1000, 2, 3)
    assert p.log_prob(z).numpy() == pytest.approx(-6 * math.log(5))


@pytest.mark.slow
def test_it_learns_a_rule_and_is_saved(tmp_path) -> None:
    """Codes repeat along a row: after the first of a row nothing is left to chance."""
    torch.manual_seed(0)
    z = torch.randint(4, (500, 3, 1)).expand(500, 3, 3).contiguous()
    prior = PixelCNNPrior((3, 3), 4, hidden=12, num_layers=2)
    pv.fit(prior, z.float(), epochs=40, learning_rate=1e-2, seed=0, progress=False, device="cpu")
    with torch.no_grad():
        entropy = 3 * math.log(4)
        assert entropy - 0.1 < prior.loss(z.float()).mean().item() < entropy + 0.2
    draws = prior().sample(torch.Size((200,)))
    assert (draws == draws[:, :, :1]).float().mean() > 0.98
    prior.save(tmp_path / "prior.safetensors")
    again = pv.load(tmp_path / "prior.safetensors")
    assert torch.equal(again().log_prob(z), prior().log_prob(z))


def test_bad_sizes_are_named() -> None:
    for options, name in (
        ({"num_codes": 1}, "num_codes"),
        ({"grid_shape": (0, 3)}, "grid_shape"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"kernel_size": 4}, "kernel_size"),
    ):
        with pytest.raises(ValueError, match=name):
            PixelCNNPrior(**{"grid_shape": (3, 3), "num_codes": 4} | options)
    for grid_shape, num_codes, name in (((0, 4), 4, "grid_shape"), ((4, 4), 0, "num_codes"), ((4, 4), 1, "num_codes")):
        with pytest.raises(ValueError, match=name):
            UniformCodes(grid_shape, num_codes)
