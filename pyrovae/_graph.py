"""Functions of tensors without the Python in between: Pyro's handlers cost a millisecond a call, a graph far less."""

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import torch
import torch._inductor.decomposition
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pyrovae._random import others_state, set_others_state

Compile = Literal["auto", "off", "inductor"]
COMPILE = get_args(Compile)

_WORTHWHILE = 120.0  # estimated seconds of work from which on compiling pays, which takes 5 to 30
_PER_CALL = 4e-6  # seconds of launching one operation, and of writing one byte of results: of an ordinary machine
_PER_BYTE = {"cpu": 1.6e-10, "cuda": 1e-12}
_WARM_UP = 30  # calls of one shape before tracing pays, on a CPU
_WARM_UP_ELSEWHERE = 2  # where every operation is launched
_COMPILED: dict[Any, Callable[..., Any]] = {}  # by code and shapes: models of one architecture share machine code
_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parent)


def trace(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    """The ATen graph of ``function`` at these inputs' shapes, random operations and ``autograd.grad`` included.

    Fake tensors have no values: a function that reads any (control flow, ``.item()``, NumPy) raises whatever it raises
    then; one that draws NumPy's or Python's random numbers, or makes tensors whose shape depends on values, raises a
    ``RuntimeError``. No random number of torch's is
    drawn, and no tensor changes.
    """
    numpy_state, python_state = others_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            module = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        finally:
            drawn = str(others_state()) != str((numpy_state, python_state))
            set_others_state(numpy_state, python_state)
    if drawn:
        raise RuntimeError("it draws random numbers that are not torch's")
    results = [t for node in module.graph.nodes for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    if any(not isinstance(size, int) for t in results for size in t.shape):
        raise RuntimeError("the shape of one of its tensors depends on values")
    module.graph.eliminate_dead_code()  # random operations stay
    module.recompile()
    return module


def compiled(module: GraphModule, *inputs: Tensor) -> Callable[..., Any]:
    """The graph as machine code (inductor), with the same random numbers. It keeps reading the module's tensors.

    Code is kept for the rest of the process, by graph and shapes, and by inductor itself on the disk.

    Args:
        module: from :func:`trace`.
        inputs: tensors of the shapes that it will take.

    Raises:
        Exception: whatever inductor raises, e.g. where there is no C++ compiler.
    """
    lifted, constants = _lifted(module)
    _unfuse_biases(lifted)
    every = (*constants, *inputs)
    key = (lifted.code, *((t.shape, t.stride(), t.dtype, t.device) for t in every))
    if key not in _COMPILED:
        # Its own random numbers would be others than those that everybody else draws from the same seed.
        with _random_operations_whole():
            _COMPILED[key] = torch._inductor.compile(lifted, list(every), options={"fallback_random": True})
    code = _COMPILED[key]
    return lambda *tensors: code(*constants, *tensors)


@contextmanager
def _random_operations_whole() -> Iterator[None]:
    """Inductor takes some random operations apart (bernoulli: uniforms below p), into other draws than theirs."""
    table = torch._inductor.decomposition.decompositions
    random = [op for op in table if isinstance(op, OpOverload) and is_random(op) and not op._can_decompose()]
    apart = {op: table.pop(op) for op in random}
    try:
        yield
    finally:
        table.update(apart)


def is_random(target: Any) -> bool:
    """Whether an operation draws from torch's generators."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def is_worthwhile(module: GraphModule, calls: int) -> bool:
    """Whether so many calls of a traced graph are work enough to compile it.

    The work is estimated from the graph, never timed, so that the same call gives the same bits every time.
    """
    operations = [node for node in module.graph.nodes if node.op == "call_function"]
    results = [t for node in operations for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    seconds = _PER_CALL * len(operations) + sum(_PER_BYTE.get(t.device.type, 0.0) * t.nbytes for t in results)
    return calls * seconds > _WORTHWHILE


def users_line(error: BaseException) -> str:
    """``" at file:line"`` of the last line of the user's own code that an exception passed through; nothing where it
    passed through none.
    """
    frames = traceback.extract_tb(_deepest(error))
    theirs = [f for f in frames if not any(Path(f.filename).is_relative_to(lib) for lib in _LIBRARIES)]
    theirs = [f for f in theirs if "site-packages" not in f.filename and not f.filename.startswith("<")]
    return f" at {theirs[-1].filename}:{theirs[-1].lineno} ({theirs[-1].line})" if theirs else ""


def _deepest(error: BaseException) -> TracebackType | None:
    while error.__cause__ is not None:
        error = error.__cause__
    return error.__traceback__


class Graph:
    """``function``, traced to its ATen graph once it has been called often with arguments of the same shapes.

    The graph computes the same operations in the same order, random ones and ``autograd.grad`` included; what depends
    on no argument is computed once, so parameters must not change between calls. A function that cannot be traced,
    because it reads values (control flow, NumPy), keeps being called as it is. Random numbers must be torch's.

    Args:
        function: takes and returns tensors, or nests of them; what else it takes must not change what it does to
            tensors other than through ``==``.
        compile: whether graphs become machine code (inductor): ``"auto"`` where there is work enough.
        calls: how many calls will come in all.
    """

    def __init__(self, function: Callable[..., Any], *, compile: Compile = "off", calls: int = 0) -> None:
        self._function = function
        self._compile, self._expected = compile, calls
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, *args: Any) -> Any:
        leaves, spec = tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        try:
            key = (spec, *((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in leaves))
            calls = self._calls[key] = self._calls.get(key, 0) + 1
        except TypeError:  # an argument that cannot be compared
            return self._function(*args)
        if calls < (_WARM_UP_ELSEWHERE if any(t.is_cuda for t in tensors) else _WARM_UP):
            return self._function(*args)
        if key not in self._graphs:
            self._graphs[key] = self._build(leaves, spec, tensors)
        graph, returned = self._graphs[key]
        return self._function(*args) if graph is None else tree_unflatten(graph(*tensors), returned)

    def _build(self, leaves: Sequence[Any], spec: Any, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        """The graph, from tensors to a flat list, and what the function returns; ``None`` for what is no graph."""
        returned = None

        def flat(*inputs: Tensor) -> list[Any]:
            nonlocal returned
            remaining = iter(inputs)
            whole = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            results, returned = tree_flatten(self._function(*tree_unflatten(whole, spec)))
            return results

        try:
            module = trace(flat, *tensors)
            much = self._compile == "inductor" or (self._compile == "auto" and is_worthwhile(module, self._expected))
            _fold(module)
        except Exception:  # whatever a user's code does that cannot be traced
            return None, None
        if much:
            try:
                return compiled(module, *tensors), returned
            except Exception as error:  # no compiler, or something that inductor cannot do
                warnings.warn(f"not compiled, only traced: {first_line(error)}", stacklevel=3)
                self._compile = "off"
        return module, returned


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _lifted(module: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The same graph with the tensors that it holds as its first inputs, and these tensors."""
    graph = torch.fx.Graph()
    held = [node for node in module.graph.nodes if node.op == "get_attr"]
    targets = list(dict.fromkeys(node.target for node in held))
    inputs = {target: graph.placeholder(f"held_{i}") for i, target in enumerate(targets)}
    copies = {node: inputs[node.target] for node in held}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return GraphModule(torch.nn.Module(), graph), [_attribute(module, target).detach() for target in targets]


def _unfuse_biases(module: GraphModule) -> None:
    """``addmm`` as a product and a sum: on a CPU it first copies the bias into every row, which a kernel that has to
    pass over the rows anyway, for the activation say, does for nothing.
    """
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default):
        if not node.kwargs:
            bias, left, right = node.args
            with module.graph.inserting_before(node):
                product = module.graph.call_function(torch.ops.aten.mm.default, (left, right))
                total = module.graph.call_function(torch.ops.aten.add.Tensor, (product, bias))
            node.replace_all_uses_with(total)
            module.graph.erase_node(node)
    module.recompile()


def _attribute(module: torch.nn.Module, target: str) -> Tensor:
    *path, name = target.split(".")
    return getattr(module.get_submodule(".".join(path)), name)


def _fold(module: GraphModule) -> None:
    """Compute what depends on no input in advance."""
    known = {node: _attribute(module, node.target) for node in module.graph.nodes if node.op == "get_attr"}
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    shared = True
    for node in calls:
        constant = [used in known for used in node.all_input_nodes]
        if is_random(node.target) or node.is_impure():  # what it changes in place must be made anew every time
            shared = shared and not any(constant)
        elif all(constant):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    if shared:
        for i, node in enumerate(n for n in calls if isinstance(known.get(n), Tensor)):
            if all(user in known for user in node.users):
                continue  # only the last of a chain is read
            setattr(module, f"_folded_{i}", known[node])
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.create_node("get_attr", f"_folded_{i}"))
        module.graph.eliminate_dead_code()
    module.recompile()
