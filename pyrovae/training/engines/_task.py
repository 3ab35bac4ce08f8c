"""What a step computes, whoever computes it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovae._checks import require_instance, rows_of
from pyrovae._compat.pyro import reason
from pyrovae._compat.torch import tensor_places
from pyrovae._random import get_every_state, set_every_state
from pyrovae._turns import turn
from pyrovae.model import VAEModel
from pyrovae.model._modes import UnscaledData
from pyrovae.objectives import Objective
from pyrovae.training.batches import Batch, Batches, Model


@dataclass
class Task:
    """A model, its loss, and how its parameters are updated.

    Attributes:
        model: the model.
        objective: whose loss is taken, summed over the batch; ``None`` for the model's own ``loss``.
        optimizer: of the model's parameters.
        clip_norm: largest norm of the gradient of the loss per datum.
        autocast: whether the loss is computed in bfloat16 where that is safe.
        weights: of the objective, those in force.
        settled: whether they are final.
    """

    model: Model
    objective: PyroELBO | None
    optimizer: Optimizer
    clip_norm: float | None = None
    autocast: bool = False
    weights: dict[str, float | Tensor] = field(default_factory=dict)
    settled: bool = True

    def set_time(self, t: float) -> None:
        """Put the objective's weights at time ``t`` in force."""
        if isinstance(self.objective, Objective):
            self.weights, self.settled = dict(self.objective.weights(t)), self.objective.settled(t)

    @cached_property
    def device(self) -> torch.device:
        return self.model.placement.device

    @property
    def reads_every_loss(self) -> bool:
        """Whether every loss is looked at before anything is updated: other devices would have to be waited for."""
        return self.device.type == "cpu"

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def stepped(self) -> list[Tensor]:
        """Those of them that the optimiser has."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [p for p in self.parameters if id(p) in held]

    def loss(self, *batch: Any) -> Tensor:
        """The loss, summed over the batch. Objectives that cannot be differentiated fill in the gradients here."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self.autocast else nullcontext():
            loss = self._loss(*batch, gradients=True)
            penalty = self.model.penalty() if isinstance(self.model, VAEModel) else None
            if penalty is None:
                return loss
            require_instance(Tensor, **{f"what {type(self.model).__name__}.penalty gives": penalty})
            return loss + len(batch[0]) * penalty

    @torch.no_grad()
    def validation_loss(self, *batch: Any) -> Tensor:
        """The loss without penalty, summed over the batch."""
        return self._loss(*batch, gradients=False)

    def check_single(self, batches: Batches, batch: Batch) -> None:
        """Raise a ``ValueError`` if a batch's first datum alone has no loss, as under batch normalisation.

        Args:
            batches: which are trained on.
            batch: one of them.
        """
        mode = self.model.training
        with turn(), self.nothing_changes():
            try:
                self.model.train()
                self.loss(*rows_of(batches.prepare(*batch.raw), slice(1)))
            except ValueError as error:
                raise ValueError(
                    f"{batches.name} has a batch of a single datum, on which {type(self.model).__name__} cannot be "
                    f"trained: {reason(error).rstrip('.')}. Take another batch_size, DataLoader(drop_last=True), or "
                    f"another normalisation."
                ) from error
            finally:
                self.model.train(mode)

    def _loss(self, *batch: Any, gradients: bool) -> Tensor:
        objective = self.objective
        if objective is None:
            return self.model.loss(*batch).sum()
        args = (self.model.model, self.model.guide, *batch)
        if isinstance(objective, Objective):
            compute = objective.surrogate_loss if gradients else objective.bound_loss
            return compute(self.weights, *args)
        with UnscaledData():  # Pyro's own count a subsampled plate's data N/B times; ours do not look at scales
            if gradients and hasattr(objective, "differentiable_loss"):
                return objective.differentiable_loss(*args)
            compute = objective.loss_and_grads if gradients else objective.loss
            return torch.as_tensor(compute(*args), device=self.device)

    @contextmanager
    def nothing_changes(self) -> Iterator[None]:
        """Random state, buffers and gradients are put back: those of a captured step stay where it writes them."""
        generators, gradients = get_every_state(), [(p, p.grad) for p in self.model.parameters()]
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
            for p, gradient in gradients:
                p.grad = gradient
