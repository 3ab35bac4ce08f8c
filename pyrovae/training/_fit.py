"""``fit``: the training loop."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovae._checks import at_least, one_of, placed, resolve_device
from pyrovae._distributed import check_same_everywhere, connect, from_main, num_processes, rank
from pyrovae._random import reseed, seeded
from pyrovae.model import LossModel, VAEModel
from pyrovae.model._inputs import keep_columns
from pyrovae.model._modes import local_parameters
from pyrovae.model._support import narrower_sites
from pyrovae.objectives import ELBO, Objective
from pyrovae.training._batches import Splits, Transform, as_batches, as_fields, split
from pyrovae.training._checkpoint import Checkpoints, Resume
from pyrovae.training._loop import Run, Trainer
from pyrovae.training._trainable import check_optimizer, trainable
from pyrovae.training.engines import ENGINES, Name, Task


def fit(
    model: VAEModel | LossModel,
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
    compile: Name = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    checkpoint_keep: int = 3,
    resume: Resume = "auto",
    progress: bool = True,
) -> Run:
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
            ``Trace_ELBO()``. Schedules see the time in epochs. A model that defines ``loss(x, *covariates)``, one value
            for each datum, is trained by that where no objective is given.
        epochs: passes over the data.
        batch_size: data per step, where ``data`` is not a ``DataLoader``.
        learning_rate: of Adam, where ``optimizer`` is not given.
        optimizer: a function from the model's parameters to a ``torch.optim.Optimizer`` of all or some of them.
        lr_schedule: a function from the optimiser to a scheduler, stepped after every epoch.
        clip_norm: largest norm of the gradient of the loss per datum.
        patience: stop after so many epochs without a lower validation loss; epochs in which the KL weight is still
            being annealed do not count.
        device: ``"auto"`` takes CUDA when present. The model stays there.
        seed: seed of shuffling, binarisation and draws; torch's generators are put back afterwards. (Weights are
            drawn when the model is built: call ``torch.manual_seed`` before that.)
        batch_transform: applied to ``x`` of every training batch, on the device; by default ``data.batch_transform``
            where there is one, e.g. dynamic binarisation. Validation data that ``fit`` holds out are transformed once.
        callbacks: called with the :class:`Run` after every epoch; a true result stops the training. The state of one
            that has ``state_dict()`` and ``load_state_dict(state)`` is kept in checkpoints.
        compile: what makes the steps, and computes validation losses. All engines draw the same random numbers and
            follow the same trajectory up to rounding. ``"off"``: Pyro, step by step. ``"graph"``: the loss and its
            gradients are traced through Pyro once and run as a graph, with the same bits on a CPU. ``"inductor"``: that
            graph as machine code, which takes 5 to 30 seconds to make, less from the second process on.
            ``"cudagraph"``: the whole step, as machine code, in one launch, on CUDA. ``"auto"``: ``"cudagraph"`` on
            CUDA, elsewhere ``"graph"``, or ``"inductor"`` where minutes of training lie ahead. What a step cannot have
            (a capture, machine code, the graph itself, because it reads values or changes otherwise than through torch)
            it does without, and a warning says what was lost and why. What model and ``batch_transform`` do besides
            computing (printing, counting) happens only when they are traced.
        precision: ``"bfloat16"`` computes the loss under autocast, on CUDA alone; evaluation and validation never do.
        checkpoint_dir: folder for the complete state of this run (weights, optimiser, schedules, random numbers, order
            of the data, history, best weights). Killed at any moment, the same call goes on from there, to the same
            weights on a CPU. SIGINT and SIGTERM save before they take effect.
        checkpoint_every: epochs from one checkpoint to the next.
        checkpoint_keep: how many are kept. A damaged one is reported, and the one before it taken.
        resume: ``"auto"`` goes on where the folder has a checkpoint, ``"must"`` needs one, ``"never"`` refuses one.
        progress: show a progress bar, in nats per datum.

    Returns:
        The :class:`Run`, with ``history``.

    Raises:
        TypeError: ``model`` is neither a :class:`~pyrovae.VAEModel` nor a :class:`~pyrovae.LossModel`, an objective for
            the latter, or data of an unknown kind, such as a list.
        ValueError: bad data (see :func:`~pyrovae.log_marginal`) or arguments; parameters that are all frozen, or were
            made under ``torch.inference_mode``; an optimiser of other parameters, or a loss that depends on none of
            those that it has. (Gradients are enabled, whatever the caller disabled.)
        NonFiniteLoss: the loss became NaN or infinite; the message names the epoch, the step and the site.
        CheckpointError: a checkpoint cannot be written, or is of another model, other data or settings.
        FileNotFoundError: ``resume="must"`` and there is no checkpoint.
    """
    if not isinstance(model, (VAEModel, LossModel)):
        raise TypeError(f"fit needs a pyrovae.VAEModel or a pyrovae.LossModel; got {type(model).__name__}.")
    at_least(0, epochs=epochs)
    if isinstance(model, LossModel) and objective is not None:
        raise TypeError(f"{type(model).__name__} is trained by its own loss: leave objective out.")
    if objective is None and not callable(getattr(type(model), "loss", None)):  # a part of that name is no loss
        objective = ELBO()
    if objective is not None and not isinstance(objective, PyroELBO):
        raise TypeError(f"objective must be a pyro.infer.ELBO such as pyrovae.ELBO(); got {type(objective).__name__}.")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive; got {clip_norm}.")
    one_of(tuple(ENGINES), compile=compile)
    one_of(("float32", "bfloat16"), precision=precision)
    at_least(1, checkpoint_every=checkpoint_every)
    connect()
    target = resolve_device(device)
    if precision == "bfloat16" and target.type != "cuda":
        raise ValueError(f"precision='bfloat16' is for CUDA devices; the device is {target}. Use precision='float32'.")
    if num_processes() > 1 and objective is not None and not hasattr(objective, "differentiable_loss"):
        raise ValueError(
            f"{type(objective).__name__} has no differentiable_loss, whose gradients {num_processes()} processes could "
            f"average: use pyrovae.ELBO, pyrovae.IWAE or Trace_ELBO."
        )
    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = Checkpoints(checkpoint_dir, keep=checkpoint_keep, resume=resume)

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(seeded(seed))
        stack.enter_context(local_parameters())
        if isinstance(data, Splits):
            validation = data.val if validation is None else validation
            batch_transform = data.batch_transform if batch_transform is None else batch_transform
            data = data.train
        if patience is not None:
            at_least(1, patience=patience)
            if validation is None:
                raise ValueError("patience needs validation data: pass validation=0.1 to hold out a tenth.")
        with keep_columns(model, as_fields(data)):
            if isinstance(validation, float):
                data, (x, *rest) = split(model, data, validation)
                x = placed(x, model.to(target).like())
                validation = (from_main(batch_transform(x) if batch_transform else x), *rest)
            model.to(target)
            train = as_batches(model, data, batch_size=batch_size, transform=batch_transform, name="data")
            held_out = None
            if validation is not None:
                held_out = as_batches(
                    model, validation, batch_size=batch_size, transform=None, name="validation", large=True
                )
            for batches in (train, held_out):
                if batches is not None:
                    particles = 1 if objective is None else min(objective.num_particles, 2)
                    ours = objective is None or isinstance(objective, Objective)
                    terms = batches.check(model, particles, paired=ours)
                    if isinstance(objective, Objective) and terms is not None:
                        objective.check(terms)
                    elif not ours and terms is not None and (wider := narrower_sites(terms.prior, terms.posterior)):
                        raise ValueError(
                            f"the guide draws site {wider[0]!r} outside the prior's support, where log p(z) and the "
                            f"ELBO are -inf, which {type(objective).__name__} does not notice: give it a guide on the "
                            f"prior's support."
                        )
        if held_out is not None:
            model.validated_on = tuple(dict.fromkeys((*model.validated_on, held_out.hash())))
        parameters = trainable(model)
        stepper = (optimizer or _adam(learning_rate, target))(parameters)
        check_optimizer(stepper, parameters, type(model).__name__)
        if isinstance(stepper, torch.optim.LBFGS):
            raise ValueError("LBFGS evaluates the loss several times a step, which a stochastic loss does not allow.")
        scheduler = lr_schedule(stepper) if lr_schedule else None
        task = Task(
            model,
            objective,
            train.prepare,
            stepper,
            clip_norm=clip_norm,
            autocast=precision == "bfloat16",
            batch_size=train.size,
        )
        if num_processes() > 1:
            hashes = {"data": train.hash()} | ({} if held_out is None else {"validation": held_out.hash()})
            check_same_everywhere("Give all of it to each: fit divides it.", **hashes)
            task.share = lambda: (train.total / num_processes(), train.weight)
            for tensor in (*model.parameters(), *model.buffers()):
                from_main(tensor.detach())
            # The order of the data is rank 0's; what else is drawn differs.
            reseed(int(from_main(torch.randint(2**62, (), device=target))), rank())
        identity = {}
        if checkpoints is not None:
            if train.own_generator:
                raise ValueError(
                    "the DataLoader draws from a generator of its own, whose state checkpoints do not keep: leave out "
                    "generator=, and seed by fit(seed=...)."
                )
            shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
            parts = {name: str(m) for name, m in model.named_modules() if not list(m.children())}
            made = {key: model.construction[key] for key in ("class", "arguments")}
            identity = {
                "model": {**made, "weights": shapes, "parts": parts},
                "data": train.hash(),
                "validation": None if held_out is None else held_out.hash(),
                "batch_transform": _fingerprint(batch_transform),
                "num_steps": train.num_steps,
                "objective": None if objective is None else _describe(objective, vars(objective)),
                "optimizer": _describe(stepper, stepper.defaults),
                "lr_schedule": None if scheduler is None else _describe(scheduler, scheduler.state_dict()),
                "batch_size": batch_size,
                "clip_norm": clip_norm,
                "seed": seed,
                "precision": precision,
                "processes": num_processes(),
            }
        trainer = Trainer(
            task,
            train,
            held_out,
            engine=compile,
            epochs=epochs,
            patience=patience,
            scheduler=scheduler,
            callbacks=callbacks,
            checkpoints=checkpoints,
            every=checkpoint_every,
            identity=identity,
        )
        # The checks above have validated the model; inside the loop they would only cost time.
        stack.enter_context(pyro.distributions.validation_enabled(False))
        return trainer.run(progress=progress and rank() == 0)


def _adam(learning_rate: float, device: torch.device) -> Callable[[Any], Optimizer]:
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive; got {learning_rate}.")
    return lambda parameters: torch.optim.Adam(parameters, lr=learning_rate, fused=device.type in ("cpu", "cuda"))


def _fingerprint(function: Any) -> str | None:
    """Name and bytecode of a function, as far as it has such: not what it closes over."""
    if function is None:
        return None
    name, code = getattr(function, "__qualname__", type(function).__qualname__), getattr(function, "__code__", None)
    if code is None:
        return name
    return f"{name} {hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()[:8]}"


_TIMES = (0.0, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, math.inf)  # at which schedules are compared


def _describe(thing: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The class and the settings of an objective, optimiser or scheduler, as far as they are numbers or schedules."""
    out: dict[str, Any] = {"class": type(thing).__qualname__}
    for name, value in attributes.items():
        if name.startswith("_"):
            continue
        if value is None or isinstance(value, (bool, int, float, str)):
            out[name] = value
        elif isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value):
            out[name] = list(value)
        elif isinstance(thing, PyroELBO) and callable(value):
            out[name] = [float(value(t)) for t in _TIMES]
    return out
