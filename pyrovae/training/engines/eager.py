"""One update after another through Pyro's handlers: the slow and obvious twin of every other engine."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae.model import VAEModel


class NotFinite(Exception):
    """The loss of a step is not finite; nothing was updated."""


@dataclass
class Task:
    """What a step does, whoever does it.

    Attributes:
        model: the model.
        objective: whose loss is taken, summed over the batch.
        prepare: from what :meth:`~pyrovae.training.batches.Batches.raw` gives to ``(x, *covariates)``.
        optimizer: of the model's parameters.
        clip_norm: largest norm of the gradient of the loss per datum.
        autocast: whether the loss is computed in bfloat16 where that is safe.
        share: data in the current batch over all processes, divided by their number: what a sum over this process's
            part of the batch is to be divided by; ``None`` for a single process.
        asked: whether the user asked for the engine by name.
    """

    model: VAEModel
    objective: PyroELBO
    prepare: Callable[..., tuple[Any, ...]]
    optimizer: Optimizer
    clip_norm: float | None = None
    autocast: bool = False
    share: Callable[[], float] | None = None
    asked: bool = False

    @cached_property
    def device(self) -> torch.device:
        return self.model.like().device

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @cached_property
    def parallel(self) -> torch.nn.Module:
        """The loss as a module whose gradients are averaged over processes."""
        devices = [self.device] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(_Loss(self), device_ids=devices)

    def loss(self, *batch: Any) -> Tensor:
        """The loss, summed over the batch. Objectives that cannot be differentiated fill in the gradients here."""
        args = (self.model.model, self.model.guide, *batch)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            if hasattr(self.objective, "differentiable_loss"):
                return self.objective.differentiable_loss(*args)
            return torch.as_tensor(self.objective.loss_and_grads(*args), device=self.device)

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
        self.task.optimizer.zero_grad(set_to_none=True)
        batch = self.task.prepare(*raw)
        if self.task.share is not None:
            loss = self.task.parallel(*batch)
            (loss / self.task.share()).backward()
            return loss.detach()
        n = len(batch[0])
        loss = self.task.loss(*batch)
        if loss.requires_grad:
            (loss / n).backward()
        else:
            for p in self.task.parameters:
                if p.grad is not None:
                    p.grad /= n
        return loss.detach()
