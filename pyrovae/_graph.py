"""Functions of tensors without the Python in between: Pyro's handlers cost a millisecond a call, a graph far less."""

import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyrovae._code import compiled, fold, move_constants
from pyrovae._compat.torch import aten_graph, tree_flatten, tree_leaves, tree_unflatten
from pyrovae._interrupt import uninterrupted
from pyrovae._random import others_state, restored_state, set_others_state

Compile = Literal["auto", "off", "inductor"]
COMPILE = get_args(Compile)

_WORTHWHILE_SECONDS = 120.0  # estimated seconds of work from which on compiling pays, which takes 5 to 30
_CALL_SECONDS = 4e-6  # of launching one operation, on an ordinary machine
_BYTE_SECONDS = {"cpu": 1.6e-10, "cuda": 1e-12}  # of writing one byte of results
_WARM_UP_CALLS = 30  # calls of one shape before tracing pays, on a CPU
_EARLY_WARM_UP_CALLS = 3  # the same where that many calls are known to come, or every operation has to be launched
_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parent)


def trace(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    """The ATen graph of ``function`` at these inputs' shapes, random operations and ``autograd.grad`` included.

    Fake tensors have no values: a function that reads any (control flow, ``.item()``, NumPy) raises whatever it raises
    then; one that draws NumPy's or Python's random numbers, or makes tensors whose shape depends on values, raises a
    ``RuntimeError``. No random number of torch's is drawn, and no tensor changes. Ctrl-C waits for the end.
    """
    others = others_state()
    with restored_state(), uninterrupted():
        try:
            module = aten_graph(function, *inputs)
        finally:
            drawn = others_state() != others
            set_others_state(others)
    if drawn:
        raise RuntimeError("it draws random numbers that are not torch's")
    results = [t for node in module.graph.nodes for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    if any(not isinstance(size, int) for t in results for size in t.shape):
        raise RuntimeError("the shape of one of its tensors depends on values")
    module.graph.eliminate_dead_code()  # random operations stay
    module.recompile()
    if elsewhere := next((t.device for t in inputs if t.device.type != "cpu"), None):
        move_constants(module, elsewhere)
    return module


def is_worthwhile(module: GraphModule, calls: int) -> bool:
    """Whether so many calls of a traced graph are work enough to compile it.

    The work is estimated from the graph, never timed, so that the same call gives the same bits every time.
    """
    operations = [node for node in module.graph.nodes if node.op == "call_function"]
    results = [t for node in operations for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    seconds = _CALL_SECONDS * len(operations) + sum(_BYTE_SECONDS.get(t.device.type, 0.0) * t.nbytes for t in results)
    return calls * seconds > _WORTHWHILE_SECONDS


def users_line(error: BaseException) -> str:
    """``" at file:line"`` of the last line of the user's own code that an exception passed through; nothing where it
    passed through none.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not any(Path(f.filename).is_relative_to(lib) for lib in _LIBRARIES)]
    theirs = [f for f in theirs if "site-packages" not in f.filename and not f.filename.startswith("<")]
    return f" at {theirs[-1].filename}:{theirs[-1].lineno} ({theirs[-1].line})" if theirs else ""


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
        early = self._expected >= _WARM_UP_CALLS or any(t.is_cuda for t in tensors)
        if calls < (min(_EARLY_WARM_UP_CALLS, _WARM_UP_CALLS) if early else _WARM_UP_CALLS):
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
            fold(module)
        except Exception as error:  # whatever a user's code does that cannot be traced
            if self._compile == "inductor":
                warnings.warn(f"not compiled, because it cannot be traced: {first_line(error)}", stacklevel=3)
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
