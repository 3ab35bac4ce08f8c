"""Distributions over codes: a certain one, and grids drawn position by position."""

import math
from itertools import product

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.distributions import Autoregressive, PointMass


def test_point_mass() -> None:
    value = torch.tensor([[0, 2], [1, 1]])
    p = PointMass(value, 3)
    assert p.log_prob(value).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert p.log_prob(torch.tensor([0, 1])).tolist() == [[0.0, -math.inf], [-math.inf, 0.0]]
    assert torch.equal(p.sample(torch.Size((5,))), value.expand(5, 2, 2))
    grid = p.to_event(1).expand(torch.Size((4, 2)))
    assert grid.sample().shape == (4, 2, 2)
    assert torch.equal(grid.log_prob(value), torch.zeros(4, 2))
    assert grid.log_prob(torch.tensor([0, 1])).isneginf().all()  # one position of two is impossible, not NaN
    assert p.support.check(torch.tensor([0, 2, 3])).tolist() == [True, True, False]


def test_point_mass_is_a_categorical_with_its_mass_on_one_value() -> None:
    value, k = torch.tensor([0, 2, 1]), 3
    twin = dist.Categorical(torch.nn.functional.one_hot(value, k).float())
    q = dist.Categorical(logits=torch.randn(3, k))
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(kl(PointMass(value, k), q), kl(twin, q))
    torch.testing.assert_close(PointMass(value, k).entropy(), twin.entropy(), atol=1e-5, rtol=0)


def grid(num_codes: int, shape: tuple[int, int], seed: int = 0) -> Autoregressive:
    """p(z_ij | row above and code to the left), as logits that depend on all earlier codes of the grid."""
    weights = 0.5 * torch.randn(num_codes, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def logits_at(z: Tensor) -> Tensor:
        values = z.double()
        flat = values.flatten(-2)
        before = (flat.cumsum(-1) - flat).reshape(values.shape)  # the sum of all earlier codes
        features = torch.stack([before, before.sin(), (2.0 * before).cos(), torch.ones_like(before)], -1)
        return (features @ weights.mT).movedim(-1, -3)

    return Autoregressive(
        lambda z: dist.Categorical(logits=logits_at(z).movedim(-3, -1)).to_event(2),
        shape,
        support=dist.constraints.integer_interval(0, num_codes - 1),
        like=torch.empty(0, dtype=torch.long),
    )


def test_a_grid_is_normalised_and_its_draws_follow_it() -> None:
    k = 3
    p = grid(k, (2, 2))
    every = torch.tensor(list(product(range(k), repeat=4))).reshape(-1, 2, 2)
    probability = p.log_prob(every).exp()
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.manual_seed(0)
    n = 20_000
    z = p.sample(torch.Size((n,)))
    index = (z.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(-1)
    counts = torch.bincount(index, minlength=81).double()
    likely = probability * n >= 5
    chi2 = ((counts - n * probability).square() / (n * probability))[likely].sum().item()
    df = int(likely.sum()) - 1
    assert df >= 20
    assert abs(chi2 - df) < 4.0 * math.sqrt(2.0 * df)


def test_a_grid_keeps_leading_dimensions() -> None:
    p = grid(4, (2, 3)).expand(torch.Size((5, 1)))
    assert p.sample(torch.Size((2,))).shape == (2, 5, 1, 2, 3)
    z = torch.randint(4, (7, 2, 3))
    assert p.log_prob(z).shape == (5, 7)
    torch.testing.assert_close(p.log_prob(z)[3, 2], grid(4, (2, 3)).log_prob(z[2]))
    assert p.support.check(torch.full((2, 3), 4)).logical_not()
