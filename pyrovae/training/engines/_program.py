"""Work on a batch as a graph of ATen operations: Pyro's handlers run once, when it is traced."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyrovae._code import compiled
from pyrovae._compat.torch import is_fake, renew_cache, tensor_places
from pyrovae._graph import trace
from pyrovae.training.engines._task import Task

_MANAGED = frozenset(vars(PyroModule()))  # attributes that torch and Pyro manage themselves
_MAX_DEPTH = 4  # to which the attributes of a model are searched


class Untraceable(Exception):
    """Why a step cannot be a graph."""


class Program:
    """``compute`` at batches of one shape, as a graph of the model's parameters, buffers, the objective's weights,
    and the batch. It reads and changes the model's own memory.

    Args:
        task: whose model and objective ``compute`` uses.
        compute: from a batch to results; nothing that it does besides is part of the graph.
        raw: a batch.

    Attributes:
        module: the graph.
        code: the same as machine code, where it was made into that.

    Raises:
        Exception: ``compute`` cannot be traced.
    """

    def __init__(self, task: Task, compute: Callable[..., list[Tensor | None]], *raw: Tensor) -> None:
        objective, model = task.objective, task.model
        if objective is not None and not hasattr(objective, "differentiable_loss"):
            raise Untraceable(f"{type(objective).__name__} has no differentiable_loss")
        self._task, self._compute = task, compute
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = dict(model.named_buffers())
        places = [(place, key, b) for place in tensor_places(model, parameters=False) for key, b in place.items()]
        self._memory = _memory(task)
        self._values = {n: torch.zeros((), dtype=torch.float64, device=task.device) for n in task.weights}
        self._filled: list[float] = []
        self._replaced: set[int] = set()
        self._places: list[tuple[dict[str, Any], str, Tensor]] = []  # where the model has buffers that it replaces
        self._own = [*(p.detach() for p in self._parameters.values()), *self._buffers.values(), *self._values.values()]
        self.fill()
        with _nothing_left_behind(model), _unfused(model):
            self.module = trace(self._pure, *self._own, *raw)
        self._places = [(place, key, b) for place, key, b in places if id(b) in self._replaced]
        self.code: Callable[..., Any] | None = None

    def compile(self, *raw: Tensor) -> None:
        """Make machine code of the graph."""
        self.code = compiled(self.module, *self._own, *raw)

    @property
    def is_stale(self) -> bool:
        """Whether parameters or buffers have other memory than when it was traced: the model was moved and back, say,
        or something was frozen.
        """
        return self._memory != _memory(self._task, {id(place[key]): own for place, key, own in self._places})

    def fill(self) -> None:
        """Take over what is not read from the model's memory: weights, buffers that were replaced."""
        values = [float(self._task.weights[name]) for name in self._values]
        if values != self._filled:
            for own, value in zip(self._values.values(), values, strict=True):
                own.fill_(value)
            self._filled = values
        for place, key, own in self._places:
            if (theirs := place[key]) is not own:  # by a run outside the graph
                place[key] = own.copy_(theirs)

    @torch.no_grad()
    def __call__(self, *raw: Tensor) -> list[Tensor | None]:
        self.fill()
        return (self.code or self.module)(*self._own, *raw)

    def _pure(self, *inputs: Tensor) -> list[Tensor | None]:
        """The results as a function of everything that changes; buffers are updated in place."""
        remaining = iter(inputs)
        parameters = {name: next(remaining).detach().requires_grad_() for name in self._parameters}
        buffers = {name: next(remaining) for name in self._buffers}
        values = {name: next(remaining) for name in self._values}
        tensors: dict[str, Tensor] = {**parameters, **buffers}
        task, weights = self._task, self._task.weights
        try:
            task.weights = {**values}
            with torch.enable_grad(), _in_place_of_its_own(task.model, tensors):
                results = self._compute(*remaining)
        finally:
            task.weights = weights
        for name, buffer in buffers.items():
            if tensors[name] is not buffer:  # replaced rather than changed
                if (tensors[name].shape, tensors[name].dtype) != (buffer.shape, buffer.dtype):
                    raise Untraceable(f"the model replaces its buffer {name} by one of another shape or dtype")
                self._replaced.add(id(self._buffers[name]))
                buffer.copy_(tensors[name])
        return results


def _memory(task: Task, replaced: dict[int, Tensor] | None = None) -> list[Any]:
    """What a graph knows a model's tensors by; of what the model has in place of ``replaced`` buffers, by these."""
    model, own = task.model, replaced or {}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    buffers = [(name, own.get(id(b), b)) for name, b in model.named_buffers()]
    return [(name, t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for name, t in (*trained, *buffers)]


@contextmanager
def _unfused(model: torch.nn.Module) -> Iterator[None]:
    """Recurrent layers step by step: cuDNN's fused ones cannot be traced."""

    def disable(*args: Any) -> None:
        torch.backends.cudnn.enabled = False

    def enable(*args: Any) -> None:
        torch.backends.cudnn.enabled = True

    layers = [m for m in model.modules() if isinstance(m, torch.nn.RNNBase)] if torch.backends.cudnn.enabled else []
    hooks = [m.register_forward_pre_hook(disable) for m in layers] + [m.register_forward_hook(enable) for m in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if layers:
            enable()


@contextmanager
def _in_place_of_its_own(model: torch.nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The model with these parameters and buffers, wherever it has them; afterwards ``tensors`` holds those that it has
    by then. (torch's own way, for ``functional_call``, does not put back a module that has two names.)
    """
    own = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers()) if name in tensors}
    places = [(place, key, t) for place in tensor_places(model) for key, t in place.items() if id(t) in own]
    absent = [(place, key) for place in tensor_places(model, parameters=False) for key, b in place.items() if b is None]
    try:
        for place, key, t in places:
            place[key] = tensors[own[id(t)]]
        yield
    finally:
        for place, key, t in places:
            tensors[own[id(t)]] = place[key]
            place[key] = t
        made = [key for place, key in absent if place[key] is not None]
        for place, key in absent:
            place[key] = None
    if made:
        raise Untraceable(f"the model makes its buffer {made[0]} as it runs")


@contextmanager
def _nothing_left_behind(model: torch.nn.Module) -> Iterator[None]:
    """Refuse a model that keeps tensors of the traced run: they are placeholders, and would never change again."""
    before = {m: {k: (v, _shallow(v)) for k, v in vars(m).items() if k not in _MANAGED} for m in model.modules()}
    kept = []
    try:
        yield
    finally:
        for m, attributes in before.items():
            for name, value in list(vars(m).items()):
                if name in _MANAGED or not _holds_placeholders(value):
                    continue
                if renew_cache(m, name):
                    continue
                kept.append(f"{type(m).__name__}.{name}")
                vars(m).pop(name)
                if name in attributes:
                    vars(m)[name], content = attributes[name]
                    if content is not None:
                        vars(m)[name].clear()
                        (vars(m)[name].extend if type(content) is list else vars(m)[name].update)(content)
    if kept:
        raise Untraceable(f"the model sets {', '.join(kept)} as it runs")


def _shallow(value: Any) -> Any:
    return copy.copy(value) if type(value) in (dict, list, set) else None


def _holds_placeholders(value: Any, depth: int = _MAX_DEPTH) -> bool:
    """Whether a value is, or holds in containers or attributes, a tensor of a traced run."""
    if isinstance(value, Tensor):
        return is_fake(value)
    if depth == 0 or isinstance(value, (str, bytes, int, float, type, FunctionType, MethodType, torch.nn.Module)):
        return False
    inside = list(value.values()) if isinstance(value, dict) else []
    inside += list(value) if isinstance(value, (list, tuple, set)) else []
    inside += list(vars(value).values()) if hasattr(value, "__dict__") else []
    return any(_holds_placeholders(v, depth - 1) for v in inside)
