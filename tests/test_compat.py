"""What is relied on of torch, Pyro and zuko beyond what they promise. A failure names the version that broke it."""

import ast
import operator
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.func import vmap

import pyrovae
from pyrovae._compat import pyro as of_pyro
from pyrovae._compat import torch as of_torch
from pyrovae._compat import zuko as of_zuko
from pyrovae.model import Latents

ROOT = Path(pyrovae.__file__).parent
PACKAGES = {"torch": "torch", "pyro": "pyro-ppl", "zuko": "zuko"}
CANARIES: set[str] = set()


def canary(library: str, *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of names in ``pyrovae._compat``, whose failure says which version of the library they fail with."""
    CANARIES.update(f"{library}.{name}" for name in names)

    def says_which(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                test(*args, **kwargs)
            except (Exception, pytest.fail.Exception) as error:
                found = f"{PACKAGES[library]} {version(PACKAGES[library])}"
                used = ", ".join(f"pyrovae._compat.{library}.{name}" for name in names)
                raise AssertionError(f"{found} is not what {used} was written for: {error}") from error

        return run

    return says_which


def test_a_canary_names_the_version() -> None:
    @canary("torch")
    def failing(number: int) -> None:
        assert number == 2

    failing(2)
    with pytest.raises(AssertionError, match=rf"^torch {version('torch')} is not what .*1 == 2".replace("+", r"\+")):
        failing(1)


def test_every_name_that_is_used_has_a_canary_and_every_function_is_used() -> None:
    used, defined = set(), set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ImportFrom(module=str(module)) if module.startswith("pyrovae._compat."):
                    used |= {f"{module.removeprefix('pyrovae._compat.')}.{alias.name}" for alias in node.names}
                case ast.Attribute(value=ast.Name(id="zuko"), attr=name):
                    used.add(f"zuko.{name}")
                case ast.FunctionDef(name=name) if path.parent.name == "_compat" and not name.startswith("_"):
                    defined.add(f"{path.stem}.{name}")
    assert used == CANARIES
    assert defined <= used


# -- torch: graphs -----------------------------------------------------------------------------------------


@canary("torch", "tree_flatten", "tree_leaves", "tree_map_only", "tree_unflatten")
def test_nests_of_tensors() -> None:
    a, b = torch.rand(2), torch.rand(3)
    nest = {"a": (a, 3, None), "b": [b, "text"]}
    leaves, spec = of_torch.tree_flatten(nest)
    assert [type(leaf) for leaf in leaves] == [Tensor, int, type(None), Tensor, str]
    assert of_torch.tree_unflatten(leaves, spec) == nest
    assert of_torch.tree_leaves(nest) == leaves
    assert of_torch.tree_leaves(None) == [None]
    same, other = (of_torch.tree_flatten(n)[1] for n in ({"a": (b, 4, None), "b": [a, ""]}, [a, b]))
    assert spec == same
    assert spec != other
    assert {spec: 1}[same] == 1  # a key
    doubled = of_torch.tree_map_only(Tensor, lambda t: 2 * t, nest)
    assert doubled["a"][1:] == (3, None)
    assert torch.equal(doubled["b"][0], 2 * b)


@canary("torch", "register_pytree_node")
def test_latents_are_a_nest() -> None:
    latents = Latents({"z": torch.rand(2, 1, 3)}, 1)
    leaves, spec = of_torch.tree_flatten((latents, 1))
    assert leaves[0] is latents["z"]
    again = of_torch.tree_unflatten(leaves, spec)[0]
    assert (type(again), again.num_plates, again["z"]) == (Latents, 1, leaves[0])
    assert spec != of_torch.tree_flatten((Latents({"z": leaves[0]}, 0), 1))[1]
    assert spec != of_torch.tree_flatten((Latents({"y": leaves[0]}, 1), 1))[1]


@canary("torch", "DispatchMode")
def test_a_mode_sees_every_operation_of_the_backward_pass_too() -> None:
    seen = []

    class Mode(of_torch.DispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    aten, x = torch.ops.aten, torch.rand(3, requires_grad=True)
    with Mode():
        torch.zeros(2)
        x.exp().sum().backward()
    assert {aten.zeros.default, aten.exp.default, aten.sum.default, aten.mul.Tensor} <= set(seen)
    torch.zeros(2)
    assert seen.count(aten.zeros.default) == 1


@canary("torch", "aten_graph")
def test_graphs_hold_random_operations_gradients_and_changes_in_place() -> None:
    held, aten = torch.rand(3), torch.ops.aten

    def function(x: Tensor, buffer: Tensor) -> list[Tensor]:
        x = x.requires_grad_()
        buffer.add_(1.0)
        noise = torch.rand(3)
        torch.rand(7)  # of which nothing comes, but other numbers
        x.exp()
        (gradient,) = torch.autograd.grad((x.square() * held * noise).sum(), x)
        return [gradient, noise]

    module = of_torch.aten_graph(function, torch.rand(3), torch.zeros(3))
    assert module.graph.eliminate_dead_code()
    module.recompile()
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(aten.rand.default) == 2
    assert aten.add_.Tensor in targets
    assert aten.exp.default not in targets
    vals = [node.meta["val"] for node in module.graph.nodes if node.op == "call_function"]
    assert all(isinstance(val, Tensor) and of_torch.is_fake(val) for val in vals)
    assert {tuple(val.shape) for val in vals} >= {(3,), (7,)}
    constants = [getattr(module, node.target) for node in module.graph.find_nodes(op="get_attr")]
    assert any(torch.equal(constant, held) for constant in constants)
    x, buffer = torch.rand(3), torch.zeros(3)
    torch.manual_seed(0)
    gradient, noise = module(x, buffer)
    torch.manual_seed(0)
    expected, drawn = function(x.clone(), torch.zeros(3))
    assert torch.equal(gradient, expected)
    assert torch.equal(noise, drawn)
    assert torch.equal(buffer, torch.ones(3))


@canary("torch", "aten_graph")
def test_no_graph_of_a_function_that_reads_values() -> None:
    for function in (lambda x: x if x.sum() > 0 else -x, lambda x: x + torch.from_numpy(x.numpy())):
        with pytest.raises((RuntimeError, TypeError)):
            of_torch.aten_graph(function, torch.rand(3))


@pytest.mark.slow
@canary("torch", "machine_code")
def test_machine_code_takes_a_list_of_tensors_in_any_layout_and_gives_one() -> None:
    assert {"layout_optimization", "max_fusion_size"} <= set(torch._inductor.list_options())
    layer = nn.Conv2d(2, 3, 3).requires_grad_(False)
    x = torch.rand(2, 2, 5, 5)
    with torch.no_grad():
        module = of_torch.aten_graph(lambda x, w: [nn.functional.conv2d(x, w).relu(), x.sum(0)], x, layer.weight)
        code = of_torch.machine_code(module, [x, layer.weight], "cpu")
        for given in (x, torch.rand(2, 2, 5, 5)):
            convolved, summed = code(given, layer.weight)
            torch.testing.assert_close(convolved, nn.functional.conv2d(given, layer.weight).relu())
            torch.testing.assert_close(summed, given.sum(0))
            assert convolved.is_contiguous()


@canary("torch", "schema_of")
def test_operations_state_what_they_write_to() -> None:
    aten = torch.ops.aten
    written = {a.name: a.alias_info.is_write for a in of_torch.schema_of(aten.add_.Tensor).arguments if a.alias_info}
    assert written == {"self": True}
    viewed = {a.name: a.alias_info.is_write for a in of_torch.schema_of(aten.view.default).arguments if a.alias_info}
    assert viewed == {"self": False}
    assert not any(a.alias_info for a in of_torch.schema_of(aten.add.Tensor).arguments)
    assert of_torch.schema_of(operator.getitem) is None


@canary("torch", "is_fake", "storage_id")
def test_fake_tensors_are_known_and_have_memory_of_their_own() -> None:
    found = []

    def function(x: Tensor) -> Tensor:
        view, copy = x.view(-1), x.clone()
        found.append([of_torch.is_fake(t) for t in (x, view, copy, nn.Parameter(copy))])
        found.append(of_torch.storage_id(view) == of_torch.storage_id(x) != of_torch.storage_id(copy))
        return copy

    x = torch.rand(2, 2)
    of_torch.aten_graph(function, x)
    function(x)
    assert found == [[True] * 4, True, [False] * 4, True]


# -- torch: modules and optimisers -------------------------------------------------------------------------


@canary("torch", "tensor_places")
def test_what_is_put_into_a_modules_places_is_what_it_uses() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)).eval()
    x, weight = torch.rand(3, 2), torch.rand(2, 2)
    for place in of_torch.tensor_places(module):
        if "weight" in place and place["weight"] is not None:
            place["weight"] = weight  # no parameter
        if "running_mean" in place:
            place["running_mean"] = torch.ones(2)
    expected = (x @ weight.mT + module[0].bias - 1.0) / (1.0 + module[1].eps) ** 0.5
    torch.testing.assert_close(module(x), expected)
    keys = [set(place) for place in of_torch.tensor_places(module, parameters=False)]
    assert keys == [set(), set(), {"running_mean", "running_var", "num_batches_tracked"}]
    absent = of_torch.tensor_places(nn.BatchNorm1d(2, track_running_stats=False), parameters=False)
    assert absent == [dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"))]


@canary("torch", "part_of")
def test_parts_are_found_past_getattr() -> None:
    class Refusing(nn.Module):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    module = Refusing()
    module.part = nn.Linear(1, 1)
    assert isinstance(of_torch.part_of(module, "part"), nn.Linear)
    assert of_torch.part_of(module, "other") is None
    assert of_torch.part_of(nn.Module.__new__(nn.Module), "part") is None


@canary("torch", "is_compiled", "uncompiled")
def test_what_compile_wraps_has_the_name_that_it_had() -> None:
    plain = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    wrapped = nn.Sequential(torch.compile(plain[0]), nn.ReLU())
    assert [of_torch.uncompiled(name) for name in wrapped.state_dict()] == list(plain.state_dict())
    assert [of_torch.is_compiled(part) for part in wrapped] == [True, False]
    assert not any(of_torch.is_compiled(m) for m in plain.modules())


@canary("torch", "is_made_by_hook")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_normed_weights_are_made_by_hooks() -> None:
    for norm in (nn.utils.spectral_norm, nn.utils.weight_norm):
        layer = norm(nn.Linear(2, 2))
        layer(torch.rand(1, 2))
        made = [name for name in vars(layer) if not name.startswith("_") and of_torch.is_made_by_hook(layer, name)]
        assert made == ["weight"]
    assert not of_torch.is_made_by_hook(nn.Linear(2, 2), "weight")


@canary("torch", "renew_cache")
def test_recurrent_layers_find_their_parameters_by_a_cache() -> None:
    layer, other, x = nn.GRU(2, 3), nn.GRU(2, 3), torch.rand(4, 1, 2)
    own, before = dict(layer._parameters), layer(x)[0]
    layer._parameters.update(other._parameters)
    assert torch.equal(layer(x)[0], other(x)[0])
    layer._parameters.update(own)
    assert all(a is b for a, b in zip(vars(layer)["_flat_weights"], other.parameters(), strict=True))
    assert of_torch.renew_cache(layer, "_flat_weights")
    assert all(a is b for a, b in zip(vars(layer)["_flat_weights"], own.values(), strict=True))
    assert torch.equal(layer(x)[0], before)
    assert not of_torch.renew_cache(layer, "hidden_size")
    assert not of_torch.renew_cache(nn.Linear(1, 1), "_flat_weights")


@canary("torch", "full_precision")
def test_no_tf32_inside_and_the_users_settings_afterwards() -> None:
    def settings() -> tuple[Any, ...]:
        matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
        return matmul.fp32_precision, convolution.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision

    before, precision = settings(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        chosen = settings()
        with of_torch.full_precision():
            assert set(settings()) <= {"ieee", "none"}
            assert settings()[0] == "ieee"
        assert settings() == chosen != before
    finally:
        torch.set_float32_matmul_precision(precision)


@canary("torch", "own_settings")
def test_nothing_that_the_caller_has_set_inside() -> None:
    cpu, x = torch.device("cpu"), torch.rand(3, 3)
    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        with of_torch.own_settings(cpu):
            assert (x @ x).dtype == torch.float32
            assert torch.zeros(1).device == cpu
            assert not (x + 1).is_inference()
        assert (x @ x).dtype == torch.bfloat16
        assert torch.zeros(1).is_meta
        assert (x + 1).is_inference()


@canary("torch", "without_autocast")
def test_no_autocast_inside() -> None:
    x = torch.rand(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        with of_torch.without_autocast():
            assert (x @ x).dtype == torch.float32
            assert (x @ x).is_inference()
        assert (x @ x).dtype == torch.bfloat16


@canary("torch", "CheckedIndices")
@pytest.mark.parametrize("bad", [-4, 3])
def test_an_index_out_of_range_is_found_before_it_is_used(bad: int) -> None:
    table, index = torch.rand(3, 3), torch.tensor([0, 1, 2])
    wrong = torch.tensor([0, bad, 2])
    lookups: list[Callable[[Tensor], Tensor]] = [
        lambda i: torch.nn.functional.embedding(i, table),
        lambda i: table[i],
        lambda i: table[:, i],
        lambda i: table.gather(1, i.unsqueeze(1)),
        lambda i: table.index_select(0, i),
        lambda i: table.scatter(1, i.unsqueeze(1), 1.0),
        lambda i: dist.Categorical(logits=table, validate_args=False).log_prob(i),
    ]
    with of_torch.CheckedIndices():
        for look_up in lookups:
            look_up(index)
            with pytest.raises(IndexError, match=f"index {bad} is out of range for size 3"):
                look_up(wrong)
        assert table[table > 0.5].dim() == 1


@canary("torch", "ConvNd")
def test_convolutions_are_of_one_class() -> None:
    names = [f"{kind}{d}d" for kind in ("Conv", "ConvTranspose", "LazyConv") for d in (1, 2, 3)]
    assert all(issubclass(getattr(nn, name), of_torch.ConvNd) for name in names)
    assert not any(issubclass(cls, of_torch.ConvNd) for cls in (nn.Linear, nn.Bilinear, nn.Embedding))
    assert nn.ConvTranspose2d(2, 3, 5).weight.flatten(1).shape == (2, 75)


# -- torch: distributions and errors -----------------------------------------------------------------------


@canary("torch", "validate", "is_outside_support")
def test_validation_tells_shapes_from_supports() -> None:
    p = dist.Bernoulli(logits=torch.zeros(3), validate_args=True)
    of_torch.validate(p, torch.ones(5, 3))
    for value, outside in ((torch.full((3,), 0.5), True), (torch.ones(2), False)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            of_torch.validate(p, value)
        assert of_torch.is_outside_support(caught.value) == outside
        of_torch.validate(dist.Bernoulli(logits=torch.zeros(3), validate_args=False), value)
    with pyro.validation_enabled(True), pytest.raises(ValueError) as caught:  # noqa: PT011
        poutine.trace(
            lambda: pyro.sample("x", dist.Exponential(1.0), obs=torch.tensor(-1.0))
        ).get_trace().log_prob_sum()
    assert of_torch.is_outside_support(caught.value)


@canary("torch", "checks_values")
@pytest.mark.parametrize("on", [True, False])
def test_values_are_looked_at_where_validation_is_on(on: bool) -> None:
    with pyro.distributions.validation_enabled(on):
        assert of_torch.checks_values() == on
        compiled = torch.compile(lambda x: x + of_torch.checks_values(), backend="eager", fullgraph=True)
        assert compiled(torch.zeros(1)) == 0  # where a look would break the graph


@canary("torch", "own_scale_tril")
def test_a_multivariate_normal_keeps_its_matrix_as_it_was_given() -> None:
    tril = torch.eye(2) + 1.0
    p = dist.MultivariateNormal(torch.zeros(5, 2), scale_tril=tril.tril())
    assert of_torch.own_scale_tril(p).shape == (2, 2)
    assert torch.equal(of_torch.own_scale_tril(p).expand(5, 2, 2), p.scale_tril)
    assert of_torch.own_scale_tril(p.expand([7, 5])).shape == (2, 2)
    # The other way about: what is computed comes from it, in a subclass that has its own.
    chain = pyrovae.distributions.AR1(torch.tensor([0.5]), 3)
    torch.testing.assert_close(chain.covariance_matrix[0], torch.tensor([1.0, 0.5, 0.25]))


@canary("torch", "is_inverted", "has_inverse")
def test_transforms_say_whether_they_can_be_undone() -> None:
    """zuko, which is imported, gives torch's class of inverses another name."""

    class OneWay(torch.distributions.Transform):
        def _call(self, x: Tensor) -> Tensor:
            return x

    affine, one_way = dist.transforms.AffineTransform(1.0, 2.0), OneWay()
    assert [of_torch.is_inverted(t) for t in (affine, affine.inv, affine.inv.inv)] == [False, True, False]
    assert affine.inv.inv is affine
    assert [of_torch.has_inverse(t) for t in (affine, one_way)] == [True, False]
    with pytest.raises(NotImplementedError):
        one_way.inv(torch.zeros(2))


@canary("torch", "is_out_of_memory")
def test_memory_that_is_not_there(device) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device=device)
    assert of_torch.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2, device=device) @ torch.zeros(3, device=device)
    assert not of_torch.is_out_of_memory(caught.value)


@canary("torch", "is_not_vectorised")
def test_what_cannot_be_run_under_vmap() -> None:
    x, recurrent = torch.rand(3, 2), nn.GRU(2, 2)
    for function in (
        lambda row: row if row.sum() > 0 else -row,
        lambda row: row * row.sum().item(),
        lambda row: dist.Beta(row + 1.0, 1.0).rsample(),
        lambda row: dist.Dirichlet(row + 1.0).rsample(),
        lambda row: recurrent(row.unsqueeze(0))[0],
    ):
        with pytest.raises(RuntimeError) as caught:
            vmap(function, randomness="different")(x)
        assert of_torch.is_not_vectorised(caught.value)
    with pytest.raises(RuntimeError) as caught:
        vmap(lambda row: row @ torch.zeros(3))(x)
    assert not of_torch.is_not_vectorised(caught.value)


# -- Pyro --------------------------------------------------------------------------------------------------


def program(x: Tensor) -> Tensor:
    with pyro.plate("rows", 10, subsample_size=2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.param("free", torch.zeros(2))
    return z


@canary("pyro", "handlers", "set_handlers")
def test_what_an_interrupted_run_leaves_behind_can_be_forgotten() -> None:
    with poutine.block():
        before = of_pyro.handlers()
        plate, trace = pyro.plate("data", 2), poutine.trace()
        plate.__enter__(), trace.__enter__()  # which nothing leaves
        assert of_pyro.handlers() != before
        of_pyro.set_handlers(before)
        assert of_pyro.handlers() == before
        with pyro.plate("data", 3):
            assert pyro.sample("z", dist.Normal(0.0, 1.0)).shape == (3,)


@canary("pyro", "is_sample_site")
def test_what_is_random_in_a_trace() -> None:
    nodes = poutine.trace(program).get_trace(torch.zeros(2)).nodes
    assert {"_INPUT", "_RETURN", "rows", "z", "twice", "x", "free"} == set(nodes)
    assert [name for name, site in nodes.items() if of_pyro.is_sample_site(site)] == ["z", "x"]


@canary("pyro", "Messenger", "is_sample_site")
def test_a_messenger_sees_and_answers_sample_statements() -> None:
    seen = {}

    class Answering(of_pyro.Messenger):
        def _pyro_sample(self, message: Any) -> None:
            if of_pyro.is_sample_site(message):
                seen[message["name"]] = [(f.dim, f.size, f.full_size) for f in message["cond_indep_stack"]]
                assert message["scale"] == 10 / 2
                message["scale"] = message["scale"] / 5
                if not message["is_observed"]:
                    message["value"], message["done"] = torch.full((2,), 7.0), True

    with poutine.trace() as kept, Answering():
        assert program(torch.zeros(2)).tolist() == [7.0, 7.0]
    assert seen == {"z": [(-1, 2, 10)], "x": [(-1, 2, 10)]}
    assert kept.trace.nodes["z"]["scale"] == 1.0
    program(torch.zeros(2))
    assert len(seen) == 2


@canary("pyro", "own_mask")
def test_masked_distributions_keep_their_mask() -> None:
    p, mask = dist.Normal(torch.zeros(2), 1.0), torch.tensor([True, False])
    assert of_pyro.own_mask(p.mask(mask)) is mask
    assert [of_pyro.own_mask(p.mask(flag)) for flag in (True, False)] == [True, False]
    assert p.mask(mask).log_prob(torch.zeros(2))[1] == 0.0


@canary("pyro", "param_statements")
def test_param_statements_of_a_module_are_kept_in_it() -> None:
    class Model(PyroModule):
        @pyro_method
        def run(self) -> Tensor:
            pyro.module("net", self.layer)
            return pyro.param("stray", torch.zeros(2)) + self.layer.weight.sum()

    with pyro.settings.context(module_local_params=True):
        model = Model()
        model.layer = nn.Linear(1, 1)
        model.run()
        kept = of_pyro.param_statements(model)
        assert {name for name, p in kept.items() if p in set(model.parameters())} == set(kept) - {"stray"}
        assert len(kept) == 3
        assert not pyro.get_param_store()
        kept["stray"].data += 1.0
        assert model.run()[0] == 1.0 + model.layer.weight.item()
        of_pyro.param_statements(model).clear()  # another dictionary after every run
        assert model.run()[0] == model.layer.weight.item()
        assert len(of_pyro.param_statements(model)) == 3


@canary("pyro", "reason")
def test_errors_are_read_without_the_table_of_shapes() -> None:
    def failing() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
        raise RuntimeError("the reason.\nIts second line.")

    with pytest.raises(RuntimeError) as caught:
        poutine.trace(failing).get_trace()
    assert "z dist" in str(caught.value)
    assert of_pyro.reason(caught.value) == "the reason.\nIts second line."


@canary("pyro", "scale_and_mask")
def test_what_is_masked_is_zero_whatever_it_was() -> None:
    terms = torch.tensor([1.0, torch.nan])
    assert of_pyro.scale_and_mask(terms, 1.0, None) is terms
    assert of_pyro.scale_and_mask(terms, 1.0, torch.tensor([True, False])).tolist() == [1.0, 0.0]
    assert of_pyro.scale_and_mask(terms, 1.0, False).tolist() == [0.0, 0.0]


# -- zuko --------------------------------------------------------------------------------------------------


@canary("zuko", "transforms")
def test_transforms_give_image_and_determinant_in_one_pass() -> None:
    assert torch.distributions.Distribution._validate_args  # which zuko switches off
    exp, affine, x = dist.transforms.ExpTransform(), dist.transforms.AffineTransform(0.0, 3.0), torch.rand(4)
    y, log_det = exp.call_and_ladj(x)
    assert torch.equal(y, x.exp())
    assert torch.equal(log_det, x)
    both = of_zuko.transforms.ComposedTransform(exp, affine)
    assert list(both.transforms) == [exp, affine]
    y, log_det = both.call_and_ladj(x)
    torch.testing.assert_close(y, 3.0 * x.exp())
    torch.testing.assert_close(log_det, x + torch.tensor(3.0).log())
    again, back = both.inv.call_and_ladj(y)
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(back, -log_det)
    numerical = of_zuko.transforms.MonotonicTransform(torch.sinh, bound=5.0)  # whose inverse is found by bisection
    torch.testing.assert_close(numerical.inv(torch.sinh(x)), x, rtol=1e-4, atol=1e-4)
    assert issubclass(of_zuko.transforms.FreeFormJacobianTransform, torch.distributions.Transform)


@canary("zuko", "made_of")
def test_what_an_autoregressive_transform_applies_to_every_dimension() -> None:
    of = {}
    for family in (of_zuko.flows.MAF, of_zuko.flows.NSF, of_zuko.flows.NAF, of_zuko.flows.NICE):
        for size in (1, 3) if family is not of_zuko.flows.NICE else (3,):
            step = family(size, 2, transforms=1).transform.transforms[0]
            part = of_zuko.made_of(step(torch.zeros(2)))
            while (inner := of_zuko.made_of(part)) is not None:
                part = inner
            of[family.__name__, size] = type(part).__name__
    assert of == {
        **{("MAF", n): "MonotonicAffineTransform" for n in (1, 3)},
        **{("NSF", n): "MonotonicRQSTransform" for n in (1, 3)},
        **{("NAF", n): "MonotonicTransform" for n in (1, 3)},
        ("NICE", 3): "MonotonicAffineTransform",
    }
    assert of_zuko.made_of(dist.transforms.ExpTransform()) is None


@canary("zuko", "flows")
def test_flows_are_lazy_transforms_with_networks_that_end_in_a_layer() -> None:
    for family, options in ((of_zuko.flows.MAF, {}), (of_zuko.flows.NSF, {"bins": 5})):
        flow = family(3, 2, transforms=2, hidden_features=(8,), **options)
        steps = flow.transform.transforms
        assert len(steps) == 2
        x, context = torch.rand(4, 3), torch.rand(4, 2)
        for step in steps:
            assert next(step.hyper[-1].parameters()).shape[1] == 8
            _, log_det = step(context).call_and_ladj(x)
            assert log_det.shape == (4,)
            with torch.no_grad():
                for parameter in step.hyper[-1].parameters():
                    parameter.mul_(0.0)
            assert torch.equal(step(context)(x), step(0 * context)(x))  # then it is one map for all
