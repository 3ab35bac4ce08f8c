"""The two things that are done to a batch: an update of the parameters, and validation."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from pyrovae._compat.torch import storage_id
from pyrovae._distributed import averaged, gathered, num_processes
from pyrovae.training._optimizers import NothingTrains, check_gradients
from pyrovae.training.batches import Batch, Batches
from pyrovae.training.engines._task import Task

Results = list[Tensor | None]


class NotFinite(Exception):
    """The loss of a step is not finite; nothing was updated."""


class Work(ABC):
    """What an engine does to a batch: first what computes results, then what makes use of them.

    Args:
        task: what a step computes.
        batches: which it is done to.

    Attributes:
        name: what it is called in warnings.
        total: the losses of all batches since it was last set to zero, on the device, in float64.
        finish_is_recordable: whether a CUDA graph may hold :meth:`finish` too.
    """

    name: str

    def __init__(self, task: Task, batches: Batches) -> None:
        self.task, self.batches = task, batches
        self.total = torch.zeros((), dtype=torch.float64, device=task.device)
        self.finish_is_recordable = num_processes() == 1

    @property
    def numbers(self) -> Any:
        """What :meth:`finish` depends on that is no tensor, so that a CUDA graph would not see it change."""
        return None

    def begin_epoch(self) -> None:  # noqa: B027
        """Take note of whatever may have changed since the last batch."""

    @abstractmethod
    def eager(self, *raw: Tensor) -> Results:
        """A batch's loss, and what else there is, through Pyro's handlers: slow and obvious twin of :meth:`pure`."""

    @abstractmethod
    def pure(self, *raw: Tensor) -> Results:
        """The same as a function of the model's tensors and the batch, which leaves nothing behind."""

    @abstractmethod
    def finish(self, results: Results, batch: Batch) -> None:
        """Make use of a batch's results."""


class Update(Work):
    """An update of the parameters: the loss of a batch, the gradients of the loss per datum, a step of the optimiser.

    Several processes average their gradients, once a step.

    Args:
        task: what a step computes.
        batches: which are trained on.
        recorded: whether steps are to be held by a CUDA graph.
    """

    name = "training"

    def __init__(self, task: Task, batches: Batches, *, recorded: bool = False) -> None:
        super().__init__(task, batches)
        alone = self.finish_is_recordable
        self.finish_is_recordable = alone and recorded and _make_capturable(task.optimizer, task.device)
        self._unproven = True  # whether the loss depends on anything that is trained
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Let other parameters be trained, or enter the loss, than before."""
        self._parameters = self.task.parameters
        for p in self.task.model.parameters():
            if not p.requires_grad:
                p.grad = None  # of what is no longer trained
        self._entered: list[bool] | None = None  # which of them the loss depends on, in any process

    @property
    def numbers(self) -> Any:
        """The optimiser's settings."""
        groups = self.task.optimizer.param_groups if self.finish_is_recordable else []
        return [{k: v for k, v in group.items() if k != "params" and not isinstance(v, Tensor)} for group in groups]

    def eager(self, *raw: Tensor) -> Results:
        task = self.task
        task.optimizer.zero_grad(set_to_none=True)
        for p in task.parameters:
            p.grad = None  # of those that the optimiser does not have too: they would add up
        tensors = self.batches.prepare(*raw)
        n = len(tensors[0])
        loss = task.loss(*tensors)
        if loss.requires_grad:
            (loss / n).backward()
        else:
            for p in task.parameters:
                if p.grad is not None:
                    p.grad /= n
        if self._unproven:
            check_gradients(task.optimizer)
            self._unproven = False
        return [loss.detach(), *(p.grad for p in task.parameters)]

    def pure(self, *raw: Tensor) -> Results:
        tensors, parameters = self.batches.prepare(*raw), self.task.parameters
        loss = self.task.loss(*tensors)
        if not loss.requires_grad:
            raise NothingTrains
        gradients = torch.autograd.grad(loss / len(tensors[0]), parameters, allow_unused=True)
        return [loss.detach(), *_of_their_own(gradients, parameters, [*self.task.model.buffers(), *raw])]

    def finish(self, results: Results, batch: Batch) -> None:
        """Update the parameters.

        Raises:
            NotFinite: before the update, where every loss is read.
        """
        loss, *gradients = results
        assert loss is not None
        if num_processes() > 1:
            share = batch.total / num_processes()  # by which the sum over this process's part is to be divided
            loss, gradients = batch.weight * loss, self._averaged(gradients, batch.weight * batch.size / share)
        for p, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None and gradient.layout == torch.strided and gradient.stride() != p.stride():
                gradient = torch.empty_like(p).copy_(gradient)  # fused optimisers read memory as it lies
            p.grad = gradient
        if self.task.reads_every_loss and not math.isfinite(loss):
            raise NotFinite
        if self.task.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.task.stepped, self.task.clip_norm)
        self.task.optimizer.step()
        self.total += loss

    def _averaged(self, gradients: Results, factor: float) -> Results:
        """Gradients of the whole batch, from those of the processes' parts: zero where only others have one."""
        if self._entered is None:
            self._entered = [any(some) for some in zip(*gathered([g is not None for g in gradients]), strict=True)]
        mine = []
        for p, gradient, entered in zip(self._parameters, gradients, self._entered, strict=True):
            if gradient is not None and not entered:
                raise RuntimeError(
                    "a parameter enters the loss in the midst of an epoch that did not enter its first one, of which "
                    "other processes do not know: let it enter every loss, as 0 * parameter.sum() say."
                )
            if entered:
                mine.append(torch.zeros_like(p) if gradient is None else factor * gradient)
        whole = iter(averaged(mine))
        return [next(whole) if entered else None for entered in self._entered]


class Validation(Work):
    """The loss of held-out batches, in evaluation mode, without gradients."""

    name = "validation"

    def eager(self, *raw: Tensor) -> Results:
        return [self.task.validation_loss(*self.batches.prepare(*raw))]

    pure = eager

    def finish(self, results: Results, batch: Batch) -> None:
        """Add to the total."""
        self.total += batch.weight * results[0]  # type: ignore[operator]


def _of_their_own(
    gradients: tuple[Tensor | None, ...], parameters: list[Tensor], others: list[Tensor]
) -> list[Tensor | None]:
    """Gradients laid out as their parameters are, in memory that nothing else has: what ``backward()`` leaves behind,
    and what optimisers rely on.
    """
    taken = {storage_id(t) for t in (*parameters, *others)}
    out: list[Tensor | None] = []
    for gradient, p in zip(gradients, parameters, strict=True):
        if gradient is not None:
            whole = gradient.untyped_storage().nbytes() == gradient.nbytes and gradient.stride() == p.stride()
            if not whole or storage_id(gradient) in taken:
                gradient = torch.empty_like(p).copy_(gradient)
            taken.add(storage_id(gradient))
        out.append(gradient)
    return out


def _make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Keep step counts and learning rates on the device, where schedulers fill them in place.

    Returns:
        Whether the optimiser can be part of a CUDA graph: of torch's own those that say so, and plain SGD. Others may
        keep numbers in Python, which a graph would never see change.
    """
    torchs = type(optimizer).__module__.startswith("torch.optim")
    capturable = torchs and all("capturable" in group for group in optimizer.param_groups)
    if not capturable:
        return type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device)
    return True
