"""Graphs compute what the function does, with the same random numbers, and leave the function be where they cannot."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import _code, _graph
from pyrovae._graph import Graph
from pyrovae._random import get_state
from tests.models import TwoSites, binary


@pytest.fixture(autouse=True)
def _soon(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(_graph, "_WARM_UP_CALLS", 2)
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
        assert isinstance(next(iter(graph._graphs.values()))[0], torch.fx.GraphModule)


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


READERS = {
    "tolist": lambda x: x * sum(x.tolist()),
    "numpy": lambda x: x * float(x.numpy().max()),
    "number of ones": lambda x: x * len(x.nonzero()),
    "boolean index": lambda x: x * x[x > 0].shape[0],
    "unique": lambda x: x * sum(1 + 0 * x.sum() for _ in x.unique()),
    "item": lambda x: x * x.sum().item(),
}


@pytest.mark.parametrize("name", READERS)
def test_whatever_reads_values_is_not_frozen(name: str) -> None:
    graph = Graph(READERS[name])
    for n in (0, 1, 2, 3, 4, 2, 1):
        x = torch.tensor([1.0] * n + [0.0] * (4 - n)) * torch.arange(1, 5)
        assert torch.equal(graph(x), READERS[name](x))


@pytest.mark.slow
def test_a_decoder_that_loops_over_classes_is_evaluated_right() -> None:
    class ByClass(pv.VAEModel):
        event_shape = (6,)

        def __init__(self) -> None:
            super().__init__()
            self.decoders = nn.ModuleList(nn.Linear(2, 6) for _ in range(3))

        def model(self, x, y):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                logits = z.new_zeros(*z.shape[:-1], 6)
                for c in y.unique().tolist():
                    logits = torch.where((y == c).unsqueeze(-1), 5 * self.decoders[int(c)](z), logits)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(self, x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    model, x, y = ByClass(), binary(60), torch.arange(60) % 3
    together = pv.log_marginal(model, x, y, num_samples=300, memory_budget=1000, progress=False).pointwise["log_px"]
    for c in range(3):
        rows = y == c
        alone = pv.log_marginal(model, x[rows], y[rows], num_samples=300, progress=False).pointwise
        assert (abs(together[rows.numpy()].to_numpy() - alone["log_px"]) < 6 * alone["mc_se"] + 0.01).all()


def test_constants_are_computed_once() -> None:
    scale = torch.tensor([2.0, 3.0])
    graph = Graph(lambda x: x * scale.log().exp().square())
    for _ in range(3):
        x = torch.randn(2)
        torch.testing.assert_close(graph(x), 4 * x * torch.tensor([1.0, 2.25]))
    ((module, _),) = graph._graphs.values()
    assert [n.target.__name__ for n in module.graph.nodes if n.op == "call_function"] == ["mul.Tensor"]


@pytest.mark.parametrize("posterior", ["mean_field", "iaf"])
@torch.no_grad()
def test_machine_code_draws_the_same_and_scores_alike(posterior: str) -> None:
    model, x = pv.VAE((6,), 3, hidden=(16,), posterior=posterior), binary(4)

    def score(latents: dict, data: torch.Tensor) -> torch.Tensor:
        return model.log_joint(data, latents=latents)

    draw = Graph(lambda k, data: (*model.draw_posterior(data, num_particles=k), None), compile="inductor")
    scored = Graph(score, compile="inductor")
    for _ in range(3):
        torch.manual_seed(3)
        latents, log_q = model.draw_posterior(x, num_particles=5)
        torch.manual_seed(3)
        got, got_log_q, nothing = draw(5, x)
        assert nothing is None
        torch.testing.assert_close(got["z"], latents["z"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got_log_q, log_q, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scored(got, x), score(latents, x), rtol=1e-5, atol=1e-5)
    for graph in (draw, scored):
        ((code, _),) = graph._graphs.values()
        assert not isinstance(code, torch.fx.GraphModule)


@torch.no_grad()
def test_models_of_one_architecture_share_machine_code_and_keep_their_weights(monkeypatch) -> None:
    x, z = torch.rand(2, 6), torch.rand(5, 2, 3)
    monkeypatch.setattr(_code, "_COMPILED", {})
    for seed in (0, 1):
        torch.manual_seed(seed)
        decoder = pv.networks.MLP(3, [7], 6)
        graph = Graph(lambda z, x, decoder=decoder: (decoder(z) - x).square().sum(-1), compile="inductor")
        for _ in range(3):
            torch.testing.assert_close(graph(z, x), (decoder(z) - x).square().sum(-1))
    assert len(_code._COMPILED) == 1


def test_machine_code_of_the_programs_used_last_is_kept(monkeypatch) -> None:
    made = []
    monkeypatch.setattr(_code, "machine_code", lambda module, inputs, device: made.append(1) or module)
    monkeypatch.setattr(_code, "_COMPILED", {})
    monkeypatch.setattr(_code, "_MAX_KEPT", 2)
    x = torch.rand(3)

    def codes(*factors: float) -> list[Callable]:
        return [_code.compiled(_graph.trace(lambda x: [factor * x], x), x) for factor in factors]  # noqa: B023

    def are_right(functions: list[Callable], *factors: float) -> bool:
        return all(torch.equal(f(x)[0], factor * x) for f, factor in zip(functions, factors, strict=True))

    first = codes(2.0, 3.0, 2.0)
    assert len(made) == 2
    rest = codes(4.0)  # in place of 3.0
    assert (len(made), len(_code._COMPILED)) == (3, 2)
    again = codes(2.0, 4.0)
    assert len(made) == 3
    assert are_right(first + rest + again, 2.0, 3.0, 2.0, 4.0, 2.0, 4.0)  # what is in use stays
    anew = codes(3.0)  # in place of 2.0
    assert (len(made), len(_code._COMPILED)) == (4, 2)
    assert are_right(anew + codes(4.0, 2.0), 3.0, 4.0, 2.0)
    assert len(made) == 5


def test_without_a_compiler_graphs_are_traced_and_say_so(monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    graph, x = Graph(lambda x: x.square() + 17, compile="inductor"), torch.rand(3)
    graph(x)
    with pytest.warns(UserWarning, match="not compiled, only traced: RuntimeError: no C\\+\\+ compiler$"):
        torch.testing.assert_close(graph(x), x.square() + 17)
    torch.testing.assert_close(graph(x), x.square() + 17)


def test_auto_compiles_by_the_amount_of_work_alone() -> None:
    module = _graph.trace(lambda x: x.exp() + 1, torch.rand(1000))  # two operations with results of 4000 bytes
    threshold = int(_graph._WORTHWHILE_SECONDS / (2 * _graph._CALL_SECONDS + 8000 * _graph._BYTE_SECONDS["cpu"]))
    assert not _graph.is_worthwhile(module, threshold - 1)
    assert _graph.is_worthwhile(module, threshold + 1)


def test_random_numbers_of_others_are_refused() -> None:
    with pytest.raises(RuntimeError, match="not torch's"):
        _graph.trace(lambda x: x + float(np.random.rand()), torch.rand(2))  # noqa: NPY002
    with pytest.raises(RuntimeError, match="not torch's"):
        _graph.trace(lambda x: x + random.random(), torch.rand(2))


P = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
RANDOM = {
    "bernoulli": torch.bernoulli,
    "bernoulli in place": lambda p: torch.empty_like(p).bernoulli_(0.3),
    "binomial": lambda p: torch.binomial((10.0 * p).round(), p.sigmoid()),
    "cauchy": lambda p: torch.empty_like(p).cauchy_(),
    "dirichlet": lambda p: torch._sample_dirichlet(p + 1.0),
    "dropout": lambda p: torch.nn.functional.dropout(p, 0.3),
    "exponential": lambda p: torch.empty_like(p).exponential_(),
    "gamma": lambda p: torch._standard_gamma(p + 1.0),
    "geometric": lambda p: torch.empty_like(p).geometric_(0.3),
    "log normal": lambda p: torch.empty_like(p).log_normal_(),
    "multinomial": lambda p: torch.multinomial(p + 0.1, 3),
    "normal": lambda p: torch.normal(p, 1.0),
    "normal of two": lambda p: torch.normal(p, p + 1.0),
    "poisson": torch.poisson,
    "rand": lambda p: torch.rand(3, 4, device=p.device) + p.sum(),
    "rand_like": torch.rand_like,
    "random": lambda p: torch.empty_like(p).random_(9),
    "randint": lambda p: torch.randint(0, 7, (5,), device=p.device) + p.sum(),
    "randn": lambda p: torch.randn(3, 4, device=p.device) * p.sum(),
    "randn_like": lambda p: torch.randn_like(p.T) + p.T,
    "randperm": lambda p: torch.randperm(5, device=p.device) + p.sum(),
    "uniform": lambda p: torch.empty_like(p).uniform_(),
}


def test_random_operations_are_all_that_torch_says_are() -> None:
    """Those named above, in one spelling or another; the rest are parts of layers."""
    overloads = [name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if name[:6] == "aten::"]
    tagged = set()
    for packet, _, overload in (name.partition(".") for name in overloads):
        if _code.is_random(getattr(getattr(torch.ops.aten, packet), overload or "default")):
            tagged.add(packet.strip("_"))
    named = {op.__name__.split(".")[0].strip("_") for f in RANDOM.values() for op in drawn(f, P)}
    layers = ("attention", "sdp", "rnn", "gru", "lstm", "dropout", "rrelu", "nested")
    forgotten = {name for name in tagged - named if not any(layer in name for layer in layers)}
    assert len(tagged) > 30
    assert forgotten <= {"randint_like", "normal_functional"}


def drawn(function, *inputs: torch.Tensor) -> list:
    """The random operations of a traced function, in order."""
    nodes = _graph.trace(lambda *p: [function(*p)], *inputs).graph.nodes
    return [node.target for node in nodes if _code.is_random(node.target)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_random_operations_stay_whole_and_in_order_in_machine_code(name: str, device, monkeypatch) -> None:
    """Before and after draws of other kinds, some of which depend on it: the same numbers, none of them inductor's."""
    seen = []
    compile = torch._inductor.compile
    monkeypatch.setattr(torch._inductor, "compile", lambda m, *rest, **o: (seen.append(m), compile(m, *rest, **o))[1])

    def function(p: torch.Tensor) -> list[torch.Tensor]:
        first = RANDOM[name](p.sqrt())
        noise = torch.randn(3, 4, device=p.device)
        weight = torch.rand_like(p * first.double().mean())
        second = RANDOM[name](weight * p)
        return [first, noise * first.double().sum(), second, torch.nn.functional.dropout(second.double().exp())]

    x = P.to(device)
    module = _graph.trace(function, x)
    order = [node.target for node in module.graph.nodes if _code.is_random(node.target)]
    assert len(order) >= 5
    code = _code.compiled(module, x)
    assert seen
    assert not any(_code.is_random(node.target) for m in seen for node in m.graph.nodes)
    for seed in range(3):
        torch.manual_seed(seed)
        expected, state = function(x), get_state()
        torch.manual_seed(seed)
        got = code(x)
        assert all(torch.equal(a, b) for a, b in zip(get_state(), state, strict=True))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_is_changed_in_place_is_drawn_from_as_it_was() -> None:
    """A buffer that is drawn from, changed and drawn from again."""

    def function(rate: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        first = torch.bernoulli(rate)
        rate.mul_(0.5).add_(0.25 * x.mean())
        return [first, torch.bernoulli(rate), torch.zeros(6).add_(x[0]).bernoulli_(0.5)]

    x, rate = P[:2], torch.full((100, 6), 0.9)
    code = _code.compiled(_graph.trace(function, rate, x), rate, x)
    expected, got = rate.clone(), rate.clone()
    for _ in range(3):
        torch.manual_seed(1)
        a = function(expected, x)
        torch.manual_seed(1)
        b = code(got, x)
        assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
        torch.testing.assert_close(got, expected)


def _filled_after_it_was_read(x, b):
    n = torch.zeros(4)
    a = (n + 1) * x
    return [a + n.normal_()]


def _noise_after_it_was_used(x, b):
    y = x * b
    b.normal_()
    return [y, b + 0]


def _written_through_a_view(x, b):
    b[1:].mul_(0.0)
    return [torch.bernoulli(b) + x]


def _drawn_and_written_through_a_view(x, b):
    n = torch.randn(4)
    n[:2].mul_(0.0)
    return [torch.normal(n, 1.0) + x]


def _read_through_a_view_later(x, b):
    v = b[0:2]
    h = torch.bernoulli((0.3 * x).sigmoid())
    v.add_(h[:2])
    return [2 * b + x]


def _written_between_draws(x, b):
    y = 2 * x
    first = torch.bernoulli(y.sigmoid())
    y.add_(1)
    return [first + torch.bernoulli(y.sigmoid()) + y]


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        _filled_after_it_was_read,
        _noise_after_it_was_used,
        _written_through_a_view,
        _drawn_and_written_through_a_view,
        _read_through_a_view_later,
        _written_between_draws,
    ],
)
def test_random_operations_keep_their_place_among_changes_of_memory(function) -> None:
    """What is read before or after a change in place, through a view or not, is read before or after it."""
    x, b = P.flatten()[:4].clone(), P.flatten()[4:8].clone()
    code = _code.compiled(_graph.trace(function, x, b), x, b)
    theirs, ours = (x.clone(), b.clone()), (x.clone(), b.clone())
    for seed in range(3):
        torch.manual_seed(seed)
        expected = function(*theirs)
        torch.manual_seed(seed)
        got = code(*ours)
        for u, v in zip([*got, *ours], [*expected, *theirs], strict=True):
            torch.testing.assert_close(u, v)


@pytest.mark.slow
def test_machine_code_is_kept_on_the_disk(capsys) -> None:
    """By inductor's own count, in a second process, of a function that nobody compiled before."""
    program = f"""
import torch
from pyrovae._code import compiled
from pyrovae._graph import trace
from torch._dynamo.utils import counters
def hits():
    return counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
def function(x):
    return [(x @ x * {random.SystemRandom().random()} + torch.randn(4, 4)).relu().sum(0)]
before, x = hits(), torch.rand(4, 4)
compiled(trace(function, x), x)
print(hits() - before)
"""
    exec(program, {})
    assert int(capsys.readouterr().out) == 0
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # for which the code is made
    again = subprocess.run([sys.executable, "-c", program], env=os.environ | threads, capture_output=True, check=True)
    assert int(again.stdout) >= 1
