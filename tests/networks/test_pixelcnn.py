"""Causality by gradients: what a pixel's output depends on, pixel by pixel."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from pyrovae.networks import GatedPixelCNN, RowGRU

SIZE = 7  # rows; one column more


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """Gradients of hundreds of paths: none may round to zero."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dependence(network: torch.nn.Module, channels: int = 1, **context: torch.Tensor) -> torch.Tensor:
    """``(H, W, H, W)``: whether the output at the first pixel depends on the input at the second."""
    x = torch.rand(1, channels, SIZE, SIZE + 1, requires_grad=True)
    out = network(x, **context)
    found = torch.zeros(SIZE, SIZE + 1, SIZE, SIZE + 1, dtype=torch.bool)
    for i, j in itertools.product(range(SIZE), range(SIZE + 1)):
        (gradient,) = torch.autograd.grad(out[0, :, i, j].square().sum(), x, retain_graph=True)
        found[i, j] = gradient[0].abs().amax(0) > 0
    return found


def receptive_field(layers: int, kernel: int) -> torch.Tensor:
    """What :class:`GatedPixelCNN` says that it sees, pixel by pixel in plain loops."""
    r = layers * (kernel // 2)
    sees = torch.zeros(SIZE, SIZE + 1, SIZE, SIZE + 1, dtype=torch.bool)
    for i, j, a, b in itertools.product(range(SIZE), range(SIZE + 1), range(SIZE), range(SIZE + 1)):
        sees[i, j, a, b] = (a == i and j - r <= b < j) or (i - 1 - r <= a < i and abs(b - j) <= r)
    return sees


@pytest.mark.parametrize(("layers", "kernel"), [(1, 3), (2, 3), (1, 5), (3, 5)])
@pytest.mark.parametrize("context", [None, "vector", "map"])
def test_a_pixel_depends_on_all_of_its_receptive_field_and_on_nothing_else(
    layers: int, kernel: int, context: str | None
) -> None:
    torch.manual_seed(0)
    told = {} if context is None else {"context_dim": 4, "spatial_context": context == "map"}
    network = GatedPixelCNN(2, 3, hidden=8, num_layers=layers, kernel_size=kernel, **told)
    given = {}
    if context is not None:
        given["context"] = torch.randn(1, 4, *((SIZE, SIZE + 1) if context == "map" else ()))
    assert torch.equal(dependence(network, 2, **given), receptive_field(layers, kernel))


@pytest.mark.parametrize("name", ["pixelcnn", "gru"])
def test_every_earlier_pixel_is_seen_and_no_other(name: str) -> None:
    torch.manual_seed(0)
    if name == "gru":
        network: torch.nn.Module = RowGRU(1, 1, width=SIZE + 1, hidden=16)
    else:
        network = GatedPixelCNN(1, 1, hidden=8, num_layers=SIZE, kernel_size=3)
    n = SIZE * (SIZE + 1)
    found = dependence(network).reshape(n, n)
    assert torch.equal(found, torch.ones_like(found).tril(-1))


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("kind", [GatedPixelCNN, partial(RowGRU, width=6)], ids=["pixelcnn", "gru"])
def test_leading_dimensions_of_image_and_context_broadcast(kind: Callable, spatial: bool) -> None:
    torch.manual_seed(0)
    network = kind(1, 2, hidden=4, context_dim=3, spatial_context=spatial)
    x, context = torch.rand(5, 1, 4, 6), torch.randn(2, 5, 3, *((4, 6) if spatial else ()))
    out = network(x, context)
    assert out.shape == (2, 5, 2, 4, 6)
    for k, b in itertools.product(range(2), range(5)):
        torch.testing.assert_close(out[k, b], network(x[b], context[k, b]))
    torch.testing.assert_close(network(x[..., :3, :], context), out[..., :3, :])  # a map's last row is left out
    assert not torch.allclose(network(x, context + 1), out)
    assert kind(1, 2)(torch.rand(3, 2, 1, 4, 6)).shape == (3, 2, 2, 4, 6)
    assert kind(1, 2)(torch.rand(1, 4, 6)).shape == (2, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"kernel_size": 1}, "kernel_size must be at least 3"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"context_dim": 0}, "context_dim must be at least 1"),
        ({"spatial_context": True}, "needs context_dim"),
    ],
)
def test_bad_sizes(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatedPixelCNN(1, 1, **arguments)


def test_a_context_that_is_missing_or_unexpected() -> None:
    with pytest.raises(ValueError, match="none came"):
        GatedPixelCNN(1, 1, context_dim=3)(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match="none is needed"):
        GatedPixelCNN(1, 1)(torch.rand(2, 1, 4, 4), torch.rand(2, 3))
