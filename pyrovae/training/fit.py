"""``fit``: the training loop."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovae._checks import at_least, resolve_device
from pyrovae._random import seeded
from pyrovae.model import VAEModel
from pyrovae.model.modes import local_parameters
from pyrovae.objectives import ELBO
from pyrovae.training.batches import Splits, Transform, as_batches, split
from pyrovae.training.loop import Run, Trainer


def fit(
    model: VAEModel,
    data: Any,
    *,
    validation: Any = None,
    objective: PyroELBO | None = None,
    epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    optimizer: Callable[[Any], Optimizer] | None = None,
    lr_schedule: Callable[[Optimizer], LRScheduler] | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    device: str | torch.device = "auto",
    seed: int | None = None,
    batch_transform: Transform | None = None,
    callbacks: Sequence[Callable[[Run], bool | None]] = (),
    progress: bool = True,
) -> Run:
    """Train ``model`` in place by stochastic variational inference.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        data: ``datasets.load(...)``, a tensor, array or DataFrame ``(N, *event_shape)``, a tuple of them (x, then
            covariates), a ``Dataset`` or a ``DataLoader``. Fields beyond those the model takes are dropped.
        validation: data of any of these kinds, or a fraction of ``data`` to hold out; by default ``data.val``
            where there is one. With validation, the weights of the best epoch are restored at the end.
        objective: :class:`~pyrovae.ELBO` (default), :class:`~pyrovae.IWAE`, or one of Pyro's, e.g.
            ``Trace_ELBO()``. Schedules see the time in epochs.
        epochs: passes over the data.
        batch_size: data per step, where ``data`` is not a ``DataLoader``.
        learning_rate: of Adam, where ``optimizer`` is not given.
        optimizer: a function from parameters to a ``torch.optim.Optimizer``.
        lr_schedule: a function from the optimiser to a scheduler, stepped after every epoch.
        clip_norm: largest norm of the gradient of the loss per datum.
        patience: stop after so many epochs without a lower validation loss; epochs in which the KL weight is still
            being annealed do not count.
        device: ``"auto"`` takes CUDA when present. The model stays there.
        seed: seed of shuffling, binarisation and draws; torch's generators are put back afterwards. (Weights are
            drawn when the model is built: call ``torch.manual_seed`` before that.)
        batch_transform: applied to ``x`` of every training batch, on the device; by default ``data.batch_transform``
            where there is one, e.g. dynamic binarisation. Validation data that ``fit`` holds out are transformed once.
        callbacks: called with the :class:`Run` after every epoch; a true result stops the training.
        progress: show a progress bar, in nats per datum.

    Returns:
        The :class:`Run`, with ``history``.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`, or data of an unknown kind.
        ValueError: bad data (see :func:`~pyrovae.log_marginal`) or arguments.
        NonFiniteLoss: the loss became NaN or infinite; the message names the epoch, the step and the site.
    """
    if not isinstance(model, VAEModel):
        raise TypeError(f"fit needs a pyrovae.VAEModel; got {type(model).__name__}.")
    at_least(0, epochs=epochs)
    objective = ELBO() if objective is None else objective
    if not isinstance(objective, PyroELBO):
        raise TypeError(f"objective must be a pyro.infer.ELBO such as pyrovae.ELBO(); got {type(objective).__name__}.")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive; got {clip_norm}.")
    target = resolve_device(device)

    with ExitStack() as stack:
        stack.enter_context(seeded(seed))
        stack.enter_context(local_parameters())
        if isinstance(data, Splits):
            validation = data.val if validation is None else validation
            batch_transform = data.batch_transform if batch_transform is None else batch_transform
            data = data.train
        if isinstance(validation, float):
            data, (x, *rest) = split(data, validation)
            x = x.to(model.to(target).like())
            validation = (batch_transform(x) if batch_transform else x, *rest)
        if patience is not None:
            at_least(1, patience=patience)
            if validation is None:
                raise ValueError("patience needs validation data: pass validation=0.1 to hold out a tenth.")
        model.to(target)
        train = as_batches(model, data, batch_size=batch_size, transform=batch_transform, name="data")
        held_out = None
        if validation is not None:
            held_out = as_batches(model, validation, batch_size=batch_size, transform=None, name="validation")
        for batches in (train, held_out):
            if batches is not None:
                batches.check(model, min(objective.num_particles, 2))
        trainer = Trainer(
            model,
            objective,
            train,
            held_out,
            optimizer=optimizer or _adam(learning_rate, target),
            lr_schedule=lr_schedule,
            clip_norm=clip_norm,
        )
        # The checks above have validated the model; inside the loop they would only cost time.
        stack.enter_context(pyro.distributions.validation_enabled(False))
        return trainer.run(epochs, patience=patience, callbacks=callbacks, progress=progress)


def _adam(learning_rate: float, device: torch.device) -> Callable[[Any], Optimizer]:
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive; got {learning_rate}.")
    return lambda parameters: torch.optim.Adam(parameters, lr=learning_rate, fused=device.type in ("cpu", "cuda"))
