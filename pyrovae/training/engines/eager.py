"""One update after another through Pyro's handlers: the slow and obvious twin of every other engine."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae._distributed import gathered
from pyrovae._random import get_every_state, set_every_state
from pyrovae.model import LossModel, VAEModel
from pyrovae.model.modes import UnscaledData
from pyrovae.objectives import Objective
from pyrovae.training.trainable import NothingTrains, check_gradients


class NotFinite(Exception):
    """The loss of a step is not finite; nothing was updated."""


@dataclass
class Task:
    """What a step does, whoever does it.

    Attributes:
        model: the model.
        objective: whose loss is taken, summed over the batch; ``None`` for the model's own ``loss``.
        prepare: from what :meth:`~pyrovae.training.batches.Batches.raw` gives to ``(x, *covariates)``.
        optimizer: of the model's parameters.
        clip_norm: largest norm of the gradient of the loss per datum.
        autocast: whether the loss is computed in bfloat16 where that is safe.
        share: of the current batch, its size over all processes divided by their number, by which a sum over this
            process's part is to be divided, and the weight of that part; ``None`` for a single process.
        batch_size: rows of a whole batch of this process, where that is known.
        asked: whether the user asked for the engine by name.
    """

    model: VAEModel | LossModel
    objective: PyroELBO | None
    prepare: Callable[..., tuple[Any, ...]]
    optimizer: Optimizer
    clip_norm: float | None = None
    autocast: bool = False
    share: Callable[[], tuple[float, float]] | None = None
    batch_size: int | None = None
    asked: bool = False
    _parallel: torch.nn.Module | None = field(default=None, init=False, repr=False)

    @cached_property
    def device(self) -> torch.device:
        return self.model.like().device

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def loss(self, *batch: Any) -> Tensor:
        """The loss, summed over the batch. Objectives that cannot be differentiated fill in the gradients here."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self.autocast else nullcontext():
            loss = self._loss(*batch)
            penalty = self.model.penalty() if isinstance(self.model, VAEModel) else None
            return loss if penalty is None else loss + len(batch[0]) * penalty

    def _loss(self, *batch: Any) -> Tensor:
        if self.objective is None:
            return self.model.loss(*batch).sum()
        args = (self.model.model, self.model.guide, *batch)
        with self._scales():
            if hasattr(self.objective, "differentiable_loss"):
                return self.objective.differentiable_loss(*args)
            return torch.as_tensor(self.objective.loss_and_grads(*args), device=self.device)

    def _scales(self) -> AbstractContextManager[Any]:
        """Pyro's own objectives count a subsampled plate's data N/B times; ours do not look at scales."""
        return nullcontext() if isinstance(self.objective, Objective) else UnscaledData()

    @torch.no_grad()
    def validation_loss(self, *batch: Any) -> float:
        """The loss without penalty, summed over the batch."""
        if self.objective is None:
            return float(self.model.loss(*batch).sum())
        with self._scales():
            return float(self.objective.loss(self.model.model, self.model.guide, *batch))

    def averaged_loss(self, *batch: Any) -> Tensor:
        """The loss of this process's part, whose gradients ``backward()`` averages over processes.

        Raises:
            RuntimeError: parameters that entered the loss of the first step no longer do.
        """
        if self._parallel is None:
            self._parallel = torch.nn.parallel.DistributedDataParallel(
                _Loss(self),
                device_ids=[self.device] if self.device.type == "cuda" else None,
                find_unused_parameters=any(gathered(self._leaves_some_out(*batch))),
            )
        try:
            return self._parallel(*batch)
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            raise RuntimeError(
                "a trainable parameter that entered the first loss did not enter the last one, which "
                "DistributedDataParallel does not allow: let it enter every loss, as 0 * parameter.sum() say, or "
                "freeze it before fit by requires_grad_(False)."
            ) from error

    def _leaves_some_out(self, *batch: Any) -> bool:
        """Whether the loss depends on some of the parameters only."""
        with self.nothing_changes():
            loss = self.loss(*batch)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True) if loss.requires_grad else ()
        if all(gradient is None for gradient in gradients):
            raise NothingTrains
        return any(gradient is None for gradient in gradients)

    @contextmanager
    def nothing_changes(self) -> Iterator[None]:
        """Random state and buffers are put back."""
        generators = get_every_state()
        buffers = [
            (module, name, buffer, buffer.clone())
            for module in self.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        try:
            yield
        finally:
            set_every_state(generators)
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    setattr(module, name, buffer.copy_(before))

    def zero_grad(self) -> None:
        """Forget all gradients, those of parameters that the optimiser does not have too: they would add up."""
        self.optimizer.zero_grad(set_to_none=True)
        for p in self.parameters:
            p.grad = None

    def update(self) -> None:
        """Clip the gradients and step the optimiser."""
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()


class _Loss(torch.nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self._loss = task.model, task.loss

    def forward(self, *batch: Any) -> Tensor:
        return self._loss(*batch)


class Eager:
    """Updates through Pyro's handlers.

    Args:
        task: what a step does.
        num_steps: how many steps will come in all.

    Attributes:
        total: the losses of all steps since it was last set to zero, on the device, in float64.
    """

    def __init__(self, task: Task, num_steps: int = 0) -> None:
        self.task, self.num_steps = task, num_steps
        self.total = torch.zeros((), dtype=torch.float64, device=task.device)
        self._unproven = True  # whether the loss depends on anything that is trained

    @property
    def in_use(self) -> str:
        """The engine that makes the steps, where this one has given way to another."""
        return "off"

    def begin_epoch(self) -> None:
        """Take note of whatever may have changed since the last step."""

    def __call__(self, *raw: Tensor) -> None:
        """One update. Nothing is read back from a device that would have to be waited for.

        Raises:
            NotFinite: on the CPU, before the update.
        """
        loss = self.gradients(*raw)
        if loss.device.type == "cpu" and not math.isfinite(loss):
            raise NotFinite
        self.task.update()
        self.total += loss

    def gradients(self, *raw: Tensor) -> Tensor:
        """Fill in the gradients of the loss per datum; returns the loss of the batch, detached."""
        self.task.zero_grad()
        batch = self.task.prepare(*raw)
        if self.task.share is not None:
            size, weight = self.task.share()
            loss = weight * self.task.averaged_loss(*batch)
            (loss / size).backward()
            return loss.detach()
        n = len(batch[0])
        loss = self.task.loss(*batch)
        if loss.requires_grad:
            (loss / n).backward()
        else:
            for p in self.task.parameters:
                if p.grad is not None:
                    p.grad /= n
        if self._unproven:
            check_gradients(self.task.optimizer)
            self._unproven = False
        return loss.detach()
