"""Functions of tensors without the Python in between: Pyro's handlers cost a millisecond a call, a graph far less."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_unflatten

_WARM_UP = 30  # calls of one shape before tracing pays


class Graph:
    """``function``, traced to its ATen graph once it has been called often with arguments of the same shapes.

    The graph computes the same operations in the same order, random ones and ``autograd.grad`` included; what depends
    on no argument is computed once, so parameters must not change between calls. A function that cannot be traced,
    because it reads values (control flow, NumPy), keeps being called as it is. Random numbers must be torch's.

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

            self._graphs[key] = flat
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # tracing runs the function
                try:
                    # Fake tensors have no values: a function that reads any is refused, not frozen as it went once.
                    traced = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
                except Exception:  # whatever a user's code does that cannot be traced
                    traced = None
            if traced is not None:
                self._graphs[key] = _folded(traced)
        return self._graphs[key](*tensors)


def _folded(module: GraphModule) -> GraphModule:
    """Without what nobody uses, random operations excepted, and with what depends on no input computed in advance."""
    module.graph.eliminate_dead_code()
    known = {node: getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"}
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    shared = True
    for node in calls:
        constant = [used in known for used in node.all_input_nodes]
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if random or node.is_impure():  # what it changes in place must be made anew every time
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
    return module
