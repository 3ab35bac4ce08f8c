"""Draws of a mixture carry the right gradient, to the weights too."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.distributions._mixture import MixtureOfNormals


def of(logits: Tensor, loc: Tensor, log_scale: Tensor) -> MixtureOfNormals:
    return MixtureOfNormals(dist.Categorical(logits=logits), dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("spread", [0.5, 1.5])
@pytest.mark.parametrize("dim", [1, 4])
def test_gradients_of_an_expectation_that_is_known(dim: int, spread: float) -> None:
    """E cos(a·z) = Σ π exp(-½ Σ a²σ²) cos(a·μ), for components that overlap more, and less."""
    generator = torch.Generator().manual_seed(dim)
    parts = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3,), (3, dim), (3, dim))]
    logits, loc, log_scale = (0.5 * parts[0], spread * parts[1], 0.4 * parts[2])
    parameters = [p.requires_grad_() for p in (logits, loc, log_scale)]
    a = torch.linspace(0.3, 0.9, dim, dtype=torch.float64)
    damped = torch.exp(-0.5 * (a * log_scale.exp()).square().sum(1)) * torch.cos(loc @ a)
    exact = torch.autograd.grad((logits.softmax(0) * damped).sum(), parameters)
    torch.manual_seed(0)
    draws = []
    for _ in range(100):
        z = of(*parameters).rsample((4000,))
        draws.append(torch.autograd.grad(torch.cos(z @ a).mean(), parameters))
    for truth, found in zip(exact, zip(*draws, strict=True), strict=True):
        each = torch.stack(found)
        se = each.std(0) / math.sqrt(len(each))
        assert ((each.mean(0) - truth).abs() < 4.5 * se + 1e-12).all()
        assert (se < 0.05).all()


def test_values_are_those_of_a_plain_mixture() -> None:
    parameters = [torch.zeros(2), torch.tensor([[-2.0], [2.0]]), torch.zeros(2, 1)]
    p, plain = (
        of(*parameters),
        dist.MixtureSameFamily(dist.Categorical(logits=parameters[0]), of(*parameters)._component_distribution),
    )
    torch.manual_seed(0)
    z = p.rsample((5,))
    torch.manual_seed(0)
    assert torch.equal(z, plain.sample((5,)))
    assert torch.equal(p.log_prob(z), plain.log_prob(z))
    with torch.enable_grad():
        grads = [q.requires_grad_() for q in parameters]
        torch.manual_seed(0)
        assert torch.equal(of(*grads).rsample((5,)), z)
    wide = of(*grads).expand((3, 7))
    assert wide.has_rsample
    assert wide.rsample((2,)).shape == (2, 3, 7, 1)


def test_gradients_under_functional_transforms() -> None:
    parameters = [torch.randn(3), torch.randn(3, 2), torch.zeros(3, 2)]

    def drawn(*given: Tensor) -> Tensor:
        torch.manual_seed(0)
        return of(*given).rsample().sum()

    expected = torch.autograd.grad(drawn(*(p.requires_grad_() for p in parameters)), parameters)
    found = torch.func.grad(drawn, argnums=(0, 1, 2))(*(p.detach() for p in parameters))
    for a, b in zip(expected, found, strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b)


def test_far_out_in_the_tails_gradients_are_finite() -> None:
    parameters = [torch.tensor([0.0, -60.0]), torch.tensor([[0.0], [40.0]]), torch.tensor([[0.0], [-3.0]])]
    parameters = [p.requires_grad_() for p in parameters]
    for value in (-9.0, 9.0, 40.0):
        p = of(*parameters)
        p.sample = lambda shape, v=value: torch.full((1,), v)  # type: ignore[method-assign]
        gradients = torch.autograd.grad(p.rsample().sum(), parameters)
        assert all(g.isfinite().all() for g in gradients), value
