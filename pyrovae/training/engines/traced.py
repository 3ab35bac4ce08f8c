"""The step as a graph: Pyro's handlers run once, when it is traced."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.nn.utils.stateless import _reparametrize_module

from pyrovae._graph import first_line, trace, users_line
from pyrovae._random import get_state, set_state
from pyrovae.objectives import Objective
from pyrovae.training.engines.eager import Eager, Task

_TOLERANCE = {False: 1e-5, True: 2e-2}  # of the loss against Pyro's, without and with bfloat16


class Untraceable(Exception):
    """Why a step cannot be a graph."""


class Traced(Eager):
    """The loss and its gradients as an ATen graph, run operation by operation: the same bits as :class:`Eager`.

    Batches of another shape than the first one's (the ragged last) go through Pyro. So does everything once the model
    turns out not to be traceable.
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
        shape = [(t.shape, t.dtype) for t in raw]
        self._shape = self._shape or shape
        if self._given_up or shape != self._shape:
            loss = super().gradients(*raw)
            self._buffers = dict(self.task.model.named_buffers())  # the model may have replaced some
            return loss
        if self._unchecked:
            self._check(*raw)
            if self._given_up:
                return super().gradients(*raw)
        return self._run(*raw)

    def _run(self, *raw: Tensor) -> Tensor:
        assert self._function is not None
        with torch.no_grad():
            loss, *gradients = self._function(*self._state(), *raw)
        for p, gradient in zip(self._trained, gradients, strict=True):
            p.grad = gradient
        return loss

    # -- tracing -----------------------------------------------------------------------------------------

    def _check(self, *raw: Tensor) -> None:
        """Trace what is not traced yet, or no longer what Pyro computes; give up where that does not help."""
        self._unchecked = False
        try:
            fresh = self._function is None or self._trained_names() != self._names
            if fresh:
                self._trace(*raw)
            expected = self._pyros_loss(*raw)
            if not self._agrees(expected, *raw) and not fresh:
                self._trace(*raw)  # something was changed between epochs, by a callback say
                fresh = True
            if fresh and not self._agrees(expected, *raw):
                raise Untraceable(
                    "its loss differs from Pyro's at the same draws: something in the model, the objective or "
                    "batch_transform changes from call to call other than through torch"
                )
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._given_up, self._function = True, None
        if self.task.asked or isinstance(self.task.objective, Objective):
            cause = str(error) if isinstance(error, Untraceable) else f"{first_line(error)} at {users_line(error)}"
            warnings.warn(
                f"compile={self.name!r}: training goes through Pyro step by step, because this step cannot be traced: "
                f"{cause}",
                stacklevel=2,
            )

    def _trained_names(self) -> list[str]:
        return [name for name, p in self.task.model.named_parameters() if p.requires_grad]

    def _trace(self, *raw: Tensor) -> None:
        objective = self.task.objective
        if not hasattr(objective, "differentiable_loss"):
            raise Untraceable(f"{type(objective).__name__} has no differentiable_loss")
        if isinstance(objective, Objective) and not issubclass(
            _definer(objective, "scheduled"), _definer(objective, "anneal")
        ):
            raise Untraceable(f"{type(objective).__name__}.anneal sets values that `scheduled` does not name")
        self._names = self._trained_names()
        self._trained = self.task.parameters
        self._detached = [p.detach() for p in self._trained]  # the same memory
        self._buffers = dict(self.task.model.named_buffers())
        self._values = tuple(getattr(objective, "scheduled", ()))
        with _nothing_left_behind(self.task.model):
            module = trace(self._pure, *self._state(), *raw)
        self.task.optimizer.zero_grad(set_to_none=True)  # no gradients of what is no longer trained
        self._function = self._lower(module, *self._state(), *raw)

    def _lower(self, module: GraphModule, *inputs: Tensor) -> Callable[..., Any]:
        """The graph as it will run."""
        return module

    def _state(self) -> list[Tensor]:
        """What every call reads besides the batch: parameters, buffers, scheduled values."""
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
            _reparametrize_module(self.task.model, tensors, tie_weights=True),
            _attributes(self.task.objective, values),
        ):
            batch = self.task.prepare(*inputs[n + b + v :])
            loss = self.task.loss(*batch)
            gradients = torch.autograd.grad(loss / len(batch[0]), parameters, allow_unused=True)
        for name, buffer in buffers.items():
            if tensors[name] is not buffer:  # replaced rather than changed
                buffer.copy_(tensors[name])
        return [loss.detach(), *gradients]

    # -- checking ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _pyros_loss(self, *raw: Tensor) -> Tensor:
        with self._nothing_changes():
            return self.task.loss(*self.task.prepare(*raw)).double()

    @torch.no_grad()
    def _agrees(self, expected: Tensor, *raw: Tensor) -> bool:
        assert self._function is not None
        with self._nothing_changes():
            loss = self._function(*self._state(), *raw)[0].double()
        near = torch.isclose(loss, expected, rtol=_TOLERANCE[self.task.autocast], atol=1e-6, equal_nan=True)
        return bool(near)

    @contextmanager
    def _nothing_changes(self) -> Iterator[None]:
        """Random state and buffers are put back."""
        generators = get_state()
        buffers = [
            (module, name, buffer, buffer.clone())
            for module in self.task.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        try:
            yield
        finally:
            set_state(generators)
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))


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
def _nothing_left_behind(model: torch.nn.Module) -> Iterator[None]:
    """Refuse a model that keeps tensors of the traced run: they are placeholders, and would never change again."""
    before = {m: dict(vars(m)) for m in model.modules()}
    try:
        yield
    finally:
        kept = []
        for m, attributes in before.items():
            for name, value in list(vars(m).items()):
                if isinstance(value, FakeTensor) and attributes.get(name) is not value:
                    kept.append(f"{type(m).__name__}.{name}")
                    vars(m).pop(name)
                    if name in attributes:
                        vars(m)[name] = attributes[name]
    if kept:
        raise Untraceable(f"the model sets {', '.join(kept)} as it runs")


def _definer(objective: Objective, name: str) -> type:
    return next(c for c in type(objective).__mro__ if name in vars(c))
