"""The sum of the largest singular values against torch.linalg.svdvals."""

import pytest
import torch
from torch import nn

from pyrovae.networks import SpectralSum


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4)
    )


def exact(network: nn.Module) -> torch.Tensor:
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return torch.stack([torch.linalg.svdvals(m.weight.flatten(1))[0] for m in layers]).sum()


def test_equals_svdvals_from_below(network: nn.Module) -> None:
    spectral = SpectralSum(network)
    truth = exact(network)
    at_first = spectral(network)
    assert 0.98 * truth < at_first < truth * (1 + 1e-6)
    for _ in range(200):
        spectral(network)
    torch.testing.assert_close(spectral(network), truth, rtol=1e-5, atol=0)


def test_the_gradient_is_that_of_svdvals(network: nn.Module) -> None:
    spectral = SpectralSum(network)
    for _ in range(500):
        spectral(network)
    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    ours = torch.autograd.grad(spectral(network), weights)
    theirs = torch.autograd.grad(exact(network), weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)
    assert not any(b.requires_grad for b in spectral.buffers())


def test_follows_weights_that_drift(network: nn.Module) -> None:
    spectral = SpectralSum(network)
    for _ in range(60):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.02 * torch.randn_like(p))
        estimate, truth = spectral(network), exact(network)
        assert 0.97 * truth < estimate < truth * (1 + 1e-6)


def test_trained_down_it_stays_below_and_catches_up(network: nn.Module) -> None:
    """Nothing but the penalty presses the leading singular values together, where power iteration turns slowest."""
    spectral = SpectralSum(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.002)
    start = exact(network)
    for _ in range(500):
        optimizer.zero_grad()
        estimate, truth = spectral(network), exact(network)
        assert estimate < truth * (1 + 1e-6)
        estimate.backward()
        optimizer.step()
    assert exact(network) < 0.7 * start
    for _ in range(500):
        spectral(network)
    torch.testing.assert_close(spectral(network), exact(network), rtol=1e-2, atol=0)


def test_a_weight_of_zeros_is_found_again() -> None:
    layer = nn.Linear(5, 4)
    weight = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.zero_()
    spectral = SpectralSum(layer)
    assert spectral(layer) == 0
    with torch.no_grad():
        layer.weight.copy_(weight)
    for _ in range(100):
        spectral(layer)
    torch.testing.assert_close(spectral(layer), torch.linalg.svdvals(weight)[0], rtol=1e-5, atol=0)


def test_nothing_to_regularise() -> None:
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        SpectralSum(nn.ReLU())
    with pytest.raises(ValueError, match="iterations"):
        SpectralSum(nn.Linear(2, 2), iterations=0)
