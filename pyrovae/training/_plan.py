"""What the loop of ``fit`` needs, and how each part of it is made of what ``fit`` is given, checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrovae._checks import placed, require_positive
from pyrovae._distributed import check_same_everywhere, from_main, num_processes, rank
from pyrovae._random import reseed
from pyrovae.model import LossModel, VAEModel
from pyrovae.model._inputs import keep_columns
from pyrovae.objectives import ELBO
from pyrovae.training._checkpoint import CheckpointFolder
from pyrovae.training._result import Callback
from pyrovae.training._trainable import check_optimizer, trainable
from pyrovae.training.batches import Batches, Model, Transform, as_batches, as_fields, hold_out
from pyrovae.training.engines import Name, Task

Scheduler = LRScheduler | ReduceLROnPlateau


@dataclass(frozen=True)
class Plan:
    """A training run before it begins.

    Attributes:
        task: what a step computes.
        train: batches to train on.
        held_out: batches to validate on.
        engine: name of what makes the steps.
        epochs: at most so many.
        patience: epochs without a lower validation loss after which to stop.
        scheduler: of the learning rate.
        callbacks: called after every epoch.
        checkpoints: where states go.
        identity: what the run is, for checkpoints.
    """

    task: Task
    train: Batches
    held_out: Batches | None
    engine: Name
    epochs: int
    patience: int | None
    scheduler: Scheduler | None
    callbacks: Sequence[Callback]
    checkpoints: CheckpointFolder | None
    identity: Mapping[str, Any]


def checked_objective(model: Model, objective: PyroELBO | None) -> PyroELBO | None:
    """What is minimised; ``None`` for the model's own loss."""
    if not isinstance(model, (VAEModel, LossModel)):
        raise TypeError(f"fit needs a pyrovae.VAEModel or a pyrovae.LossModel; got {type(model).__name__}.")
    if isinstance(model, LossModel) and objective is not None:
        raise TypeError(f"{type(model).__name__} is trained by its own loss: leave objective out.")
    if objective is None:
        # A part of that name is no loss.
        return None if callable(getattr(type(model), "loss", None)) else ELBO()
    if not isinstance(objective, PyroELBO):
        raise TypeError(f"objective must be a pyro.infer.ELBO such as pyrovae.ELBO(); got {type(objective).__name__}.")
    if num_processes() > 1 and not hasattr(objective, "differentiable_loss"):
        raise ValueError(
            f"{type(objective).__name__} has no differentiable_loss, whose gradients {num_processes()} processes could "
            f"average: use pyrovae.ELBO, pyrovae.IWAE or Trace_ELBO."
        )
    return objective


def make_batches(
    model: Model, data: Any, validation: Any, transform: Transform | None, batch_size: int, objective: PyroELBO | None
) -> tuple[Batches, Batches | None]:
    """Batches to train on and to validate on, once the model has run on both."""
    with keep_columns(model, as_fields(data)):
        if isinstance(validation, float):
            data, (x, *rest) = hold_out(model, data, validation)
            x = placed(x, model.placement)
            validation = (from_main(transform(x) if transform else x), *rest)
        train = as_batches(model, data, batch_size=batch_size, transform=transform)
        train.check(objective)
        held_out = None
        if validation is not None:
            held_out = as_batches(model, validation, batch_size=batch_size, held_out=True)
            held_out.check(objective)
            model.validated_on = tuple(dict.fromkeys((*model.validated_on, held_out.hash())))
    return train, held_out


def make_optimizer(model: Model, make: Callable[[Any], Optimizer] | None, learning_rate: float) -> Optimizer:
    """The optimiser of the parameters that are not frozen: Adam, if none is given."""
    parameters = trainable(model)
    if make is None:
        require_positive(learning_rate=learning_rate)
        fused = model.placement.device.type in ("cpu", "cuda")
        optimizer: Optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=fused)
    else:
        optimizer = make(parameters)
    check_optimizer(optimizer, parameters, type(model).__name__)
    return optimizer


def join_processes(model: Model, train: Batches, held_out: Batches | None) -> None:
    """Let all processes have the same data and weights, the same order of the data, and other draws."""
    if num_processes() == 1:
        return
    hashes = {"data": train.hash()} | ({} if held_out is None else {"validation": held_out.hash()})
    check_same_everywhere("Give all of it to each: fit divides it.", **hashes)
    for tensor in (*model.parameters(), *model.buffers()):
        from_main(tensor.detach())
    # The order of the data is rank 0's; what else is drawn differs.
    reseed(int(from_main(torch.randint(2**62, (), device=model.placement.device))), rank())
