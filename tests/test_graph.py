"""Graphs compute what the function does, with the same random numbers, and leave the function be where they cannot."""

from collections.abc import Iterator

import pyro
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import _graph
from pyrovae._graph import Graph
from tests.models import TwoSites, binary


@pytest.fixture(autouse=True)
def _soon(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(_graph, "_WARM_UP", 2)
    with pyro.validation_enabled(False):  # checks of values are control flow
        yield


@pytest.mark.parametrize("posterior", ["mean_field", "iaf", "sylvester", "planar", None])
@torch.no_grad()
def test_equal_to_the_function_bit_for_bit(posterior: str | None) -> None:
    model = TwoSites() if posterior is None else pv.VAE((6,), 3, hidden=(16,), posterior=posterior)
    x, other = binary(4), binary(4)

    def score(latents: dict, data: torch.Tensor) -> torch.Tensor:
        return model.log_joint(data, latents=latents)

    for function, args in (
        (lambda k, data: model.draw_posterior(data, num_particles=k), (5, x)),
        (lambda k, data: model.draw_prior(data, num_particles=k), (5, x)),
        (score, (model.draw_posterior(x, num_particles=5)[0], x)),
    ):
        graph = Graph(function)
        for data in (x, other, x, other):
            args = (*args[:-1], data)
            torch.manual_seed(3)
            expected = function(*args)
            state = torch.get_rng_state()
            torch.manual_seed(3)
            got = graph(*args)
            assert torch.equal(state, torch.get_rng_state())
            for a, b in zip(*(torch.utils._pytree.tree_leaves(v) for v in (expected, got)), strict=True):
                assert torch.equal(a, b)
        assert isinstance(next(iter(graph._graphs.values())), torch.fx.GraphModule)


def test_gradients_inside() -> None:
    layer = nn.Linear(3, 1)

    def slope(u: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            return torch.autograd.grad(layer(u).tanh().sum(), u)[0]

    graph = Graph(slope)
    for _ in range(4):
        u = torch.randn(5, 3)
        assert torch.equal(graph(u), slope(u))


def test_shapes_and_settings_have_graphs_of_their_own() -> None:
    graph = Graph(lambda x, power: x**power)
    for _ in range(3):
        for n, power in ((2, 1), (2, 3), (4, 3)):
            x = torch.randn(n)
            assert torch.equal(graph(x, power), x**power)
    assert len(graph._graphs) == 3


def test_draws_are_fresh_tensors() -> None:
    """Nothing that is filled in place may be computed in advance: two results must not share memory."""
    graph = Graph(lambda x: torch.empty(3).normal_() + 0.0 * x.sum() if len(x) > 5 else torch.empty(3).normal_())
    results = [graph(torch.zeros(4)) for _ in range(5)]
    assert len({r.data_ptr() for r in results}) == 5
    assert len({r[0].item() for r in results}) == 5


def test_control_flow_on_values_stays_python() -> None:
    def twofold(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1

    graph = Graph(twofold)
    for value in (1.0, -1.0, 2.0, -2.0, 3.0, -3.0):
        x = torch.full((2,), value)
        assert torch.equal(graph(x), twofold(x))


def test_constants_are_computed_once() -> None:
    scale = torch.tensor([2.0, 3.0])
    graph = Graph(lambda x: x * scale.log().exp().square())
    for _ in range(3):
        x = torch.randn(2)
        torch.testing.assert_close(graph(x), 4 * x * torch.tensor([1.0, 2.25]))
    (module,) = graph._graphs.values()
    assert [n.target.__name__ for n in module.graph.nodes if n.op == "call_function"] == ["mul.Tensor"]
