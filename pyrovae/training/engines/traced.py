"""The step as a graph: Pyro's handlers run once, when it is traced."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule

from pyrovae._graph import first_line, trace, users_line
from pyrovae.objectives import Objective
from pyrovae.training.engines.eager import Eager, Task
from pyrovae.training.trainable import NothingTrains

# Of the loss and of the gradient's norm against Pyro's, without and with bfloat16.
_TOLERANCE = {False: (1e-5, 1e-3), True: (2e-2, 2e-1)}
_TORCHS = frozenset(vars(torch.nn.Module()))  # attributes that torch manages itself
_DEPTH = 4  # to which the attributes of a model are searched


class Untraceable(Exception):
    """Why a step cannot be a graph."""


class Traced(Eager):
    """The loss and its gradients as an ATen graph, run operation by operation: the same bits as :class:`Eager`.

    Batches smaller than the others (the ragged last) go through Pyro. So does everything once the model turns out not
    to be traceable.
    """

    name = "graph"

    def __init__(self, task: Task, num_steps: int = 0) -> None:
        super().__init__(task, num_steps)
        self._function: Callable[..., Any] | None = None
        self._shape: Any = None
        self._given_up = False
        self._unchecked = True

    @property
    def in_use(self) -> str:
        return "off" if self._given_up else self.name

    def begin_epoch(self) -> None:
        self._unchecked = True

    def gradients(self, *raw: Tensor) -> Tensor:
        if self._given_up or not self._is_full(*raw):
            return super().gradients(*raw)
        if self._unchecked:
            self._check(*raw)
            if self._given_up:
                return super().gradients(*raw)
        loss, gradients = self._run(*raw)
        for p, gradient in zip(self._trained, gradients, strict=True):
            p.grad = gradient
        return loss

    def _is_full(self, *raw: Tensor) -> bool:
        """Whether the batch has the shape that is traced: that of a whole batch, whichever comes first."""
        shape = [(t.shape, t.dtype) for t in raw]
        if self._shape is None and self.task.batch_size in (None, len(raw[0])):
            self._shape = shape
        return shape == self._shape

    def _run(self, *raw: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        assert self._function is not None
        with torch.no_grad():
            loss, *gradients = self._function(*self._state(), *raw)
        return loss, gradients

    # -- tracing -----------------------------------------------------------------------------------------

    def _check(self, *raw: Tensor) -> None:
        """Trace what is not traced yet, or no longer what Pyro computes; give up where that does not help."""
        self._unchecked = False
        try:
            fresh = self._function is None or self._memory() != self._traced_memory
            if fresh:
                self._trace(*raw)
            self._buffers = dict(self.task.model.named_buffers())
            if self._agrees(*raw):
                return
            if not fresh:
                self._trace(*raw)  # something was changed between epochs, by a callback say
                if self._agrees(*raw):
                    return
            raise Untraceable(
                "its loss or gradient differs from Pyro's at the same draws: something in the model, the objective or "
                "batch_transform changes from call to call other than through torch"
            )
        except NothingTrains:
            with self.task.nothing_changes():
                super().gradients(*raw)  # says so as well, unless it is the graph alone
            self._give_up(Untraceable("its loss depends on parameters, and that of the graph on none"))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._given_up, self._function = True, None
        if self.task.asked or isinstance(self.task.objective, (Objective, type(None))):
            cause = str(error) if isinstance(error, Untraceable) else f"{first_line(error)} at {users_line(error)}"
            warnings.warn(
                f"compile={self.name!r}: training goes through Pyro step by step, because this step cannot be traced: "
                f"{cause}",
                stacklevel=2,
            )

    def _memory(self) -> list[Any]:
        """What a graph knows its parameters by: moving a model and back gives it other memory."""
        trained = [(name, p) for name, p in self.task.model.named_parameters() if p.requires_grad]
        return [(name, p.data_ptr(), p.shape, p.stride(), p.dtype, p.device) for name, p in trained]

    def _trace(self, *raw: Tensor) -> None:
        objective, model = self.task.objective, self.task.model
        if objective is not None and not hasattr(objective, "differentiable_loss"):
            raise Untraceable(f"{type(objective).__name__} has no differentiable_loss")
        if isinstance(objective, Objective) and not issubclass(
            _definer(objective, "scheduled"), _definer(objective, "anneal")
        ):
            raise Untraceable(f"{type(objective).__name__}.anneal sets values that `scheduled` does not name")
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._trained = self.task.parameters
        self._detached = [p.detach() for p in self._trained]  # the same memory
        self._traced_memory = self._memory()
        self._buffers = dict(model.named_buffers())
        self._replaced: set[str] = set()
        self._values = tuple(getattr(objective, "scheduled", ()))
        with _nothing_left_behind(model):
            module = trace(self._pure, *self._state(), *raw)
        self.task.optimizer.zero_grad(set_to_none=True)  # no gradients of what is no longer trained
        self._function = self._lower(module, *self._state(), *raw)

    def _lower(self, module: GraphModule, *inputs: Tensor) -> Callable[..., Any]:
        """The graph as it will run."""
        return module

    def _state(self) -> list[Tensor]:
        """What every call reads besides the batch: parameters, buffers, scheduled values."""
        if self._replaced:  # runs outside the graph, of validation say, replace them too
            self._buffers = dict(self.task.model.named_buffers())
        return [*self._detached, *self._buffers.values(), *self._scheduled()]

    def _scheduled(self) -> list[Tensor]:
        values = (getattr(self.task.objective, name) for name in self._values)
        return [torch.tensor(value, dtype=torch.float64) for value in values]

    def _pure(self, *inputs: Tensor) -> list[Tensor | None]:
        """The loss and its gradients as a function of everything that changes; buffers are updated in place."""
        n, b, v = len(self._names), len(self._buffers), len(self._values)
        parameters = [p.detach().requires_grad_() for p in inputs[:n]]
        buffers = dict(zip(self._buffers, inputs[n : n + b], strict=True))
        values = dict(zip(self._values, inputs[n + b : n + b + v], strict=True))
        tensors = {**dict(zip(self._names, parameters, strict=True)), **buffers}
        with (
            torch.enable_grad(),
            _in_place_of_its_own(self.task.model, tensors),
            _attributes(self.task.objective, values),
        ):
            batch = self.task.prepare(*inputs[n + b + v :])
            loss = self.task.loss(*batch)
            if not loss.requires_grad:
                raise NothingTrains
            gradients = torch.autograd.grad(loss / len(batch[0]), parameters, allow_unused=True)
        own = _of_their_own(gradients, parameters, inputs)
        for name, buffer in buffers.items():
            if tensors[name] is not buffer:  # replaced rather than changed
                self._replaced.add(name)
                buffer.copy_(tensors[name])
        return [loss.detach(), *own]

    # -- checking ----------------------------------------------------------------------------------------

    def _agrees(self, *raw: Tensor) -> bool:
        """Whether the graph's loss and gradients are Pyro's, at the same draws."""
        with self.task.nothing_changes():
            expected = super().gradients(*raw).double()
            theirs = [p.grad for p in self._trained]
        self.task.optimizer.zero_grad(set_to_none=True)
        with self.task.nothing_changes():
            loss, ours = self._run(*raw)
        close, near = _TOLERANCE[self.task.autocast]
        if not torch.isclose(loss.double(), expected, rtol=close, atol=1e-6, equal_nan=True):
            return False
        if [g is None for g in ours] != [g is None for g in theirs]:
            return False
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
        if not pairs or not torch.isfinite(expected):
            return True
        off = torch.stack([(a - b).double().square().sum() for a, b in pairs]).sum().sqrt()
        norm = torch.stack([b.double().square().sum() for _, b in pairs]).sum().sqrt()
        return bool(off <= near * norm + 1e-6)


def _of_their_own(
    gradients: tuple[Tensor | None, ...], parameters: list[Tensor], inputs: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """Gradients laid out as their parameters are, in memory that nothing else has: what ``backward()`` leaves behind,
    and what optimisers rely on.
    """
    taken = {t.untyped_storage()._cdata for t in inputs}
    out: list[Tensor | None] = []
    for gradient, p in zip(gradients, parameters, strict=True):
        if gradient is not None:
            storage = gradient.untyped_storage()
            whole = storage.nbytes() == gradient.nbytes and gradient.stride() == p.stride()
            if not whole or storage._cdata in taken:
                gradient = torch.empty_like(p).copy_(gradient)
            taken.add(gradient.untyped_storage()._cdata)
        out.append(gradient)
    return out


@contextmanager
def _attributes(owner: Any, values: dict[str, Tensor]) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def _in_place_of_its_own(model: torch.nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The model with these parameters and buffers, wherever it has them; afterwards ``tensors`` holds those that it has
    by then. (torch's own way, for ``functional_call``, does not put back a module that has two names.)
    """
    own = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers()) if name in tensors}
    places: list[tuple[dict[str, Any], str, Any]] = [
        (place, key, t)
        for module in model.modules()
        for place in (module._parameters, module._buffers)
        for key, t in place.items()
        if id(t) in own
    ]
    try:
        for place, key, t in places:
            place[key] = tensors[own[id(t)]]
        yield
    finally:
        for place, key, t in places:
            tensors[own[id(t)]] = place[key]
            place[key] = t


@contextmanager
def _nothing_left_behind(model: torch.nn.Module) -> Iterator[None]:
    """Refuse a model that keeps tensors of the traced run: they are placeholders, and would never change again."""
    before = {m: {k: (v, _shallow(v)) for k, v in vars(m).items() if k not in _TORCHS} for m in model.modules()}
    kept = []
    try:
        yield
    finally:
        for m, attributes in before.items():
            for name, value in list(vars(m).items()):
                if name in _TORCHS or name.startswith("_pyro") or not _holds_placeholders(value):
                    continue
                if isinstance(m, torch.nn.RNNBase) and name == "_flat_weights":
                    m._init_flat_weights()  # a cache of torch's own, by which it finds its parameters
                    continue
                kept.append(f"{type(m).__name__}.{name}")
                vars(m).pop(name)
                if name in attributes:
                    vars(m)[name], content = attributes[name]
                    if isinstance(content, (dict, set)):
                        vars(m)[name].clear()
                        vars(m)[name].update(content)
                    elif isinstance(content, list):
                        vars(m)[name][:] = content
    if kept:
        raise Untraceable(f"the model sets {', '.join(kept)} as it runs")


def _shallow(value: Any) -> Any:
    return copy.copy(value) if type(value) in (dict, list, set) else None


def _holds_placeholders(value: Any, depth: int = _DEPTH) -> bool:
    """Whether a value is, or holds in containers or attributes, a tensor of a traced run."""
    if isinstance(value, Tensor):
        return isinstance(value, FakeTensor)
    if depth == 0 or isinstance(value, (str, bytes, int, float, type, FunctionType, MethodType, torch.nn.Module)):
        return False
    inside = list(value.values()) if isinstance(value, dict) else []
    inside += list(value) if isinstance(value, (list, tuple, set)) else []
    inside += list(vars(value).values()) if hasattr(value, "__dict__") else []
    return any(_holds_placeholders(v, depth - 1) for v in inside)


def _definer(objective: Objective, name: str) -> type:
    return next(c for c in type(objective).__mro__ if name in vars(c))
