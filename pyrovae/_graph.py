"""Functions of tensors without the Python in between: Pyro's handlers cost a millisecond a call, a graph far less."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

_WARM_UP = 30  # calls of one shape before tracing pays


class Graph:
    """``function``, traced to its ATen graph once it has been called often with arguments of the same shapes.

    The graph computes the same operations in the same order, random ones and ``autograd.grad`` included. Tensors that
    are not arguments (parameters) are read when the graph runs. A function that cannot be traced, because its control
    flow depends on values, keeps being called as it is.

    Args:
        function: takes and returns tensors, or nests of them; what else it takes must not change what it does to
            tensors other than through ``==``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        leaves, spec = tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        try:
            key = (spec, *((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in leaves))
            calls = self._calls[key] = self._calls.get(key, 0) + 1
        except TypeError:  # an argument that cannot be compared
            return self._function(*args)
        if calls < _WARM_UP:
            return self._function(*args)
        if key not in self._graphs:

            def flat(*inputs: Tensor) -> Any:
                remaining = iter(inputs)
                whole = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                return self._function(*tree_unflatten(whole, spec))

            try:
                with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # tracing runs the function
                    graph = make_fx(flat)(*tensors)
                graph.graph.eliminate_dead_code()  # random operations stay, used or not
                graph.recompile()
                self._graphs[key] = graph
            except Exception:
                self._graphs[key] = flat
        return self._graphs[key](*tensors)
