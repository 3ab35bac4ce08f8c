"""What a step computes, whoever computes it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae._compat.torch import tensor_places
from pyrovae._random import get_every_state, set_every_state
from pyrovae.model import LossModel, VAEModel
from pyrovae.model._modes import UnscaledData
from pyrovae.objectives import Objective


@dataclass
class Task:
    """A model, its loss, and how its parameters are updated.

    Attributes:
        model: the model.
        objective: whose loss is taken, summed over the batch; ``None`` for the model's own ``loss``.
        prepare: from what :meth:`~pyrovae.training._batches.Batches.raw` gives to ``(x, *covariates)``.
        optimizer: of the model's parameters.
        clip_norm: largest norm of the gradient of the loss per datum.
        autocast: whether the loss is computed in bfloat16 where that is safe.
        share: of the current batch, its size over all processes divided by their number, by which a sum over this
            process's part is to be divided, and the weight of that part; ``None`` for a single process.
        batch_size: rows of a whole batch of this process, where that is known.
        weights: of the objective, those in force.
        settled: whether they are final.
    """

    model: VAEModel | LossModel
    objective: PyroELBO | None
    prepare: Callable[..., tuple[Any, ...]]
    optimizer: Optimizer
    clip_norm: float | None = None
    autocast: bool = False
    share: Callable[[], tuple[float, float]] | None = None
    batch_size: int | None = None
    weights: dict[str, float | Tensor] = field(default_factory=dict)
    settled: bool = True

    def set_time(self, t: float) -> None:
        """Put the objective's weights at time ``t`` in force."""
        if isinstance(self.objective, Objective):
            self.weights, self.settled = dict(self.objective.weights(t)), self.objective.settled(t)

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
        if isinstance(self.objective, Objective):
            return self.objective.surrogate_loss(self.weights, *args)
        with UnscaledData():  # Pyro's own count a subsampled plate's data N/B times; ours do not look at scales
            if hasattr(self.objective, "differentiable_loss"):
                return self.objective.differentiable_loss(*args)
            return torch.as_tensor(self.objective.loss_and_grads(*args), device=self.device)

    @torch.no_grad()
    def validation_loss(self, *batch: Any) -> Tensor:
        """The loss without penalty, summed over the batch."""
        if self.objective is None:
            return self.model.loss(*batch).sum()
        args = (self.model.model, self.model.guide, *batch)
        if isinstance(self.objective, Objective):
            return self.objective.bound_loss(self.weights, *args)
        with UnscaledData():
            return torch.as_tensor(self.objective.loss(*args), device=self.device)

    @contextmanager
    def nothing_changes(self) -> Iterator[None]:
        """Random state and buffers are put back."""
        generators = get_every_state()
        places = [(place, dict(place)) for place in tensor_places(self.model, parameters=False)]
        values = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        try:
            yield
        finally:
            set_every_state(generators)
            with torch.no_grad():
                for place, before in places:
                    place.clear()
                    place.update(before)
                for buffer, value in values:
                    buffer.copy_(value)

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
