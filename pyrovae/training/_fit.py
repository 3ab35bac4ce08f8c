"""``fit``: a plan, and the loop that follows it."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from pyro import infer
from pyro.infer import ELBO as PyroELBO
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovae._checks import (
    placed,
    require_at_least,
    require_callable,
    require_flag,
    require_one_of,
    require_positive,
    require_seed,
    resolve_device,
    shown,
)
from pyrovae._compat.torch import own_settings
from pyrovae._distributed import check_same_everywhere, connect, from_main, num_processes, rank
from pyrovae._random import reseed, restored_on_error, stream
from pyrovae._turns import turn
from pyrovae.model import LossModel, VAEModel
from pyrovae.model._inputs import keep_columns
from pyrovae.model._modes import check_numbers, keep_local_parameters, without_validation
from pyrovae.objectives import ELBO
from pyrovae.training._checkpoint import Checkpoint, CheckpointFolder, identity
from pyrovae.training._loop import train
from pyrovae.training._optimizers import make_optimizer, make_scheduler
from pyrovae.training._progress import Plan
from pyrovae.training._result import Callback, FitResult
from pyrovae.training.batches import Batches, Model, Transform, as_batches, as_fields, hold_out, with_splits
from pyrovae.training.engines import ENGINES, Name, Task

_OF_NO_USE = {  # objectives of Pyro's, and why
    (infer.JitTrace_ELBO, infer.JitTraceEnum_ELBO, infer.JitTraceGraph_ELBO, infer.JitTraceMeanField_ELBO): (
        "compiles what fit compiles itself: use the objective without Jit, or pyrovae.ELBO."
    ),
    infer.ReweightedWakeSleep: (
        "has two losses, whose weights are the whole batch's: use pyrovae.IWAE(k, gradient='vimco') or 'dreg'."
    ),
    infer.TraceTailAdaptive_ELBO: "does not say what its loss is (it gives inf): use pyrovae.IWAE.",
    infer.Trace_MMD: "has a kernel with parameters of its own, which fit does not train: use it in pyro.infer.SVI.",
}


def fit(
    model: Model,
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
    callbacks: Sequence[Callback] = (),
    compile: Name = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train ``model`` in place by stochastic variational inference, or by a loss of its own.

    Under ``torchrun`` the processes share every batch, each makes its part of the step by its own engine, and they
    average the gradients once a step. Their draws differ. All call the callbacks; rank 0 shows the progress and writes
    checkpoints.

    Args:
        model: a :class:`~pyrovae.VAEModel`, or a :class:`~pyrovae.LossModel` such as an autoencoder.
        data: ``datasets.load(...)``, a tensor, array or DataFrame ``(N, *event_shape)``, a tuple of them (x, then
            covariates), a ``Dataset`` or a ``DataLoader``. Of the last two, fields beyond those the model takes
            (labels) are dropped; in a tuple they are an error. The names of a DataFrame's columns are kept as
            ``model.columns``, and the columns of later frames put in that order.
        validation: data of any of these kinds, or a fraction of ``data`` to hold out; by default ``data.val``
            where there is one. With validation, the weights of the best epoch are restored at the end.
        objective: :class:`~pyrovae.ELBO` (default), :class:`~pyrovae.IWAE`, or one of Pyro's, e.g.
            ``Trace_ELBO()``; those without ``differentiable_loss`` go step by step. Schedules see the time in epochs. A
            model that defines ``loss(x, *covariates)``, one value for each datum, is trained by that where no objective
            is given.
        epochs: passes over the data.
        batch_size: data per step, where ``data`` is not a ``DataLoader``.
        learning_rate: of Adam, where ``optimizer`` is not given.
        optimizer: a function from the model's parameters to a ``torch.optim.Optimizer`` of all or some of them; a
            warning names those that it leaves out, and the gradient's norm is then that of the others.
        lr_schedule: a function from the optimiser to a scheduler, stepped after every epoch.
        clip_norm: largest norm of the gradient of the loss per datum.
        patience: stop after so many epochs without a lower validation loss; epochs in which the KL weight is still
            being annealed do not count.
        device: ``"auto"`` takes CUDA when present. The model stays there.
        seed: seed of shuffling, binarisation and draws; torch's generators are put back afterwards. (Weights are
            drawn when the model is built: call ``torch.manual_seed`` before that.)
        batch_transform: applied to ``x`` of every training batch, on the device; by default ``data.batch_transform``
            where there is one, e.g. dynamic binarisation. Validation data that ``fit`` holds out are transformed once.
        callbacks: called after every epoch with the :class:`FitResult` so far; ``True`` from one stops the training,
            ``False`` or ``None`` does not. The state of one that has ``state_dict()`` (tensors, numbers, strings, and
            containers of them) and ``load_state_dict(state)`` is kept in checkpoints.
        compile: what makes the steps, and computes validation losses. All engines draw the same random numbers and
            follow the same trajectory up to rounding. ``"off"``: Pyro, step by step. ``"graph"``: the loss and its
            gradients are traced through Pyro once and run as a graph, with the same bits on a CPU. ``"inductor"``: that
            graph as machine code, which takes 5 to 30 seconds to make, less from the second process on.
            ``"cudagraph"``: the whole step, as machine code, in one launch, on CUDA. ``"auto"``: ``"cudagraph"`` on
            CUDA, elsewhere ``"graph"``, ``"off"`` for fewer than 200 steps, or ``"inductor"`` where minutes of training
            lie ahead. What a step cannot have (a capture, machine code, the graph itself, because it reads values or
            changes otherwise than through torch) it does without, and a warning says what was lost and why. What model
            and ``batch_transform`` do besides computing (printing, counting) happens only when they are traced.
        precision: ``"bfloat16"`` computes the loss under autocast, on CUDA alone; evaluation and validation never do,
            nor does an ``autocast`` around the call change anything. How exact float32 products are in training is
            torch's setting, e.g. ``torch.set_float32_matmul_precision("high")`` for TF32.
        checkpoint: where the complete state of this run is kept, and taken up again: a :class:`Checkpoint`, or the path
            of a folder, which means ``Checkpoint(path)``.
        progress: show a progress bar, in nats per datum.

    Returns:
        The :class:`FitResult`, with ``history``.

    Raises:
        TypeError: ``model`` is neither a :class:`~pyrovae.VAEModel` nor a :class:`~pyrovae.LossModel`, an objective for
            the latter, or data of an unknown kind, such as a list.
        ValueError: bad data (see :func:`~pyrovae.log_marginal`) or arguments; parameters that are all frozen, or were
            made under ``torch.inference_mode``; an optimiser of other parameters, a scheduler of another
            optimiser, or a loss that depends on none of
            those that it has. (Gradients are enabled, whatever the caller disabled.)
        NonFiniteLoss: the loss became NaN or infinite; the message names the epoch, the step and the site.
        CheckpointError: a checkpoint cannot be written, or is of another model, other data, callbacks or settings, or
            cannot be kept to, for the order of the data follows from more than torch's generators; another run is
            writing to its folder.
        FileNotFoundError: ``Checkpoint(resume="must")`` and there is no checkpoint.
    """
    _check_settings(epochs, batch_size, learning_rate, clip_norm, patience, device, seed, compile, precision, progress)
    _check_functions(optimizer, lr_schedule, batch_transform, callbacks)
    connect()
    batch_size, target = int(batch_size), resolve_device(device)
    with own_settings(target), torch.enable_grad(), stream(seed), keep_local_parameters():
        with restored_on_error():
            objective = _objective(model, objective)
            check_numbers(model)
            folder = None if checkpoint is None else CheckpointFolder(checkpoint)
            data, validation, transform = with_splits(data, validation, batch_transform)
            if patience is not None and validation is None:
                raise ValueError("patience needs validation data: pass validation=0.1 to hold out a tenth.")
            model.to(target)
            batches, held_out = _batches(model, data, validation, transform, batch_size, objective)
            stepper = make_optimizer(model, optimizer, learning_rate)
            scheduler = None if lr_schedule is None else make_scheduler(stepper, lr_schedule)
            task = Task(model, objective, stepper, clip_norm, autocast=precision == "bfloat16")
            _join(model, batches, held_out)
            same = (task, batches, held_out, scheduler, callbacks)
            known = identity(*same, batch_size=batch_size, seed=seed) if folder else {}
            plan = Plan(task, batches, held_out, compile, epochs, patience, scheduler, callbacks, folder, known)
        with folder.locked() if folder else nullcontext(), without_validation():  # it is done: it would only cost time
            return train(plan, visible=progress and rank() == 0)


def _check_settings(
    epochs: Any,
    batch_size: Any,
    learning_rate: Any,
    clip_norm: Any,
    patience: Any,
    device: Any,
    seed: Any,
    compile: Any,
    precision: Any,
    progress: Any,
) -> None:
    """Raise a ``ValueError`` or ``TypeError`` where a number, name or flag is out of its range."""
    require_at_least(0, epochs=epochs)
    require_at_least(1, batch_size=batch_size, **({} if patience is None else {"patience": patience}))
    require_positive(learning_rate=learning_rate, **({} if clip_norm is None else {"clip_norm": clip_norm}))
    require_seed(seed=seed)
    require_one_of(tuple(ENGINES), compile=compile)
    require_one_of(("float32", "bfloat16"), precision=precision)
    require_flag(progress=progress)
    target = resolve_device(device)
    if precision == "bfloat16" and target.type != "cuda":
        raise ValueError(f"precision='bfloat16' is for CUDA devices; the device is {target}. Use precision='float32'.")


def _check_functions(optimizer: Any, lr_schedule: Any, batch_transform: Any, callbacks: Any) -> None:
    """Raise a ``TypeError`` where something else came than a function, or several."""
    made = {"optimizer": optimizer, "lr_schedule": lr_schedule, "batch_transform": batch_transform}
    for name, value in made.items():
        if isinstance(value, (Optimizer, LRScheduler)):
            kind = type(value).__name__
            raise TypeError(f"{name} must be a function, as lambda given: {kind}(given, ...); got a {kind}.")
        if str(getattr(value, "__module__", "")).startswith("pyro.optim"):
            like = "torch.optim.Adam" if name == "optimizer" else "torch.optim.lr_scheduler.ExponentialLR"
            raise TypeError(f"{name} is one of Pyro's, which are not torch's: pass lambda given: {like}(given, ...).")
    require_callable(**{name: value for name, value in made.items() if value is not None})
    if not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"callbacks must be a list of functions; got {shown(callbacks)}. Pass callbacks=[...].")
    require_callable(**{f"callbacks[{i}]": callback for i, callback in enumerate(callbacks)})


def _objective(model: Model, objective: PyroELBO | None) -> PyroELBO | None:
    """What is minimised; ``None`` for the model's own loss."""
    if not isinstance(model, (VAEModel, LossModel)):
        raise TypeError(f"model: fit needs a pyrovae.VAEModel or a pyrovae.LossModel; got {type(model).__name__}.")
    if isinstance(model, LossModel) and objective is not None:
        raise TypeError(f"{type(model).__name__} is trained by its own loss: leave objective out.")
    if objective is None:
        # A part of that name is no loss.
        return None if callable(getattr(type(model), "loss", None)) else ELBO()
    if not isinstance(objective, PyroELBO):
        raise TypeError(f"objective must be a pyro.infer.ELBO such as pyrovae.ELBO(); got {type(objective).__name__}.")
    name = type(objective).__name__
    for kinds, why in _OF_NO_USE.items():
        if isinstance(objective, kinds):
            raise ValueError(f"{name} {why}")
    if num_processes() > 1 and not hasattr(objective, "differentiable_loss"):
        raise ValueError(
            f"{name} has no differentiable_loss, whose gradients {num_processes()} processes could average: use "
            f"pyrovae.ELBO, pyrovae.IWAE or Trace_ELBO."
        )
    return objective


def _batches(
    model: Model, data: Any, validation: Any, transform: Transform | None, batch_size: int, objective: PyroELBO | None
) -> tuple[Batches, Batches | None]:
    """Batches to train on and to validate on, once the model has run on both."""
    kept = numbers = None
    with keep_columns(model, as_fields(data)):
        if isinstance(validation, (float, np.floating)):
            (data, kept), ((x, *rest), numbers) = hold_out(model, data, float(validation))
            x = placed(x, model.placement)
            with turn():
                x = transform(x) if transform else x
            validation = (from_main(x), *rest)
        train = as_batches(model, data, batch_size=batch_size, transform=transform, numbers=kept)
        train.check(objective)
        held_out = None
        if validation is not None:
            held_out = as_batches(model, validation, batch_size=batch_size, held_out=True, numbers=numbers)
            held_out.check(objective)
            model.validated_on = tuple(dict.fromkeys((*model.validated_on, held_out.hash())))
    return train, held_out


def _join(model: Model, train: Batches, held_out: Batches | None) -> None:
    """Let all processes have the same data and weights, the same order of the data, and other draws."""
    if num_processes() == 1:
        return
    hashes = {"data": train.hash()} | ({} if held_out is None else {"validation": held_out.hash()})
    check_same_everywhere("Give all of it to each: fit divides it.", **hashes)
    for tensor in (*model.parameters(), *model.buffers()):
        from_main(tensor.detach())
    # The order of the data is rank 0's; what else is drawn differs.
    with turn():
        reseed(int(from_main(torch.randint(2**62, (), device=model.placement.device))), rank())
