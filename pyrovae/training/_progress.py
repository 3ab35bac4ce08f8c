"""A training run: its plan, how far it has come, and how that is kept and taken up again."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, get_type_hints

from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovae._distributed import from_main, gathered, rank
from pyrovae._random import get_every_state, set_every_state
from pyrovae._untrusted import MALFORMED, fits
from pyrovae.training._checkpoint import CheckpointError, CheckpointFolder, check_lasts
from pyrovae.training._result import Callback
from pyrovae.training.batches import Batch, Batches
from pyrovae.training.engines import Name, Task


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
    scheduler: LRScheduler | None
    callbacks: Sequence[Callback]
    checkpoints: CheckpointFolder | None
    identity: Mapping[str, Any]


@dataclass
class Progress:
    """Where a run is, and what it has seen.

    With the weights and the states of optimiser, scheduler, callbacks and random numbers it is all that the rest of the
    run follows from, and so what a checkpoint holds.

    Attributes:
        epoch: the current one, from 0.
        step: batches done in it.
        count: data in those, over all processes.
        steps_done: batches done in all epochs.
        loss: sum over those of this process in this epoch, in nats, when it was last read.
        seconds: spent on this epoch until the run was interrupted in its midst.
        epoch_start: state of the random numbers from which the order of this epoch's data follows.
        records: one dict per finished epoch.
        best: the weights with the lowest validation loss; ``best_epoch`` and ``best_loss`` (nats per datum) are theirs.
        waited: epochs since then, as far as patience counts them.
        called_off: whether a callback stopped the run.
    """

    epoch: int = 0
    step: int = 0
    count: int = 0
    steps_done: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    epoch_start: dict[str, Any] = field(default_factory=get_every_state)
    records: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_epoch: int | None = None
    best_loss: float = math.inf
    waited: int = 0
    called_off: bool = False

    def is_stopped(self, plan: Plan) -> bool:
        """Whether patience ran out or a callback stopped the run."""
        return self.called_off or (plan.patience is not None and self.waited >= plan.patience)

    def is_over(self, plan: Plan) -> bool:
        """Whether no epoch is left to do."""
        return self.epoch >= plan.epochs or self.is_stopped(plan)

    def is_checkpoint_due(self, plan: Plan) -> bool:
        """Whether a state is to be kept between epochs, where there is a folder for them."""
        return plan.checkpoints is not None and (self.is_over(plan) or self.epoch % plan.checkpoints.every == 0)

    def time(self, plan: Plan) -> float:
        """Epochs since the beginning, as schedules count them."""
        return self.epoch + self.step / (plan.train.num_steps or math.inf)

    def remaining(self, batches: Batches) -> Iterator[Batch]:
        """The rest of this epoch's batches: all of them, unless the run was interrupted in its midst."""
        if not self.step:
            self.epoch_start = get_every_state()
            return iter(batches)
        now = get_every_state()
        set_every_state(self.epoch_start)
        rest = iter(batches)
        for _ in islice(rest, self.step):
            pass
        set_every_state(now)
        return rest

    def count_batch(self, batch: Batch) -> None:
        """Note that a step is done."""
        self.step, self.count, self.steps_done = self.step + 1, self.count + batch.total, self.steps_done + 1

    def keep_best(self, loss: float, model: nn.Module) -> None:
        """Keep the model's weights if their validation loss is the lowest."""
        if loss < self.best_loss:
            self.best, self.best_epoch, self.best_loss, self.waited = copied_weights(model), self.epoch, loss, 0

    def end_epoch(self) -> None:
        """Go on to the next one."""
        self.epoch, self.step, self.count, self.loss, self.seconds = self.epoch + 1, 0, 0, 0.0, 0.0

    def save(self, plan: Plan) -> None:
        """Write a checkpoint, where the plan has a folder for them."""
        if plan.checkpoints is not None:
            check_lasts(plan.identity, plan.task, plan.train)
            state = self.state_dict(plan)
            if rank() == 0:
                plan.checkpoints.save(self.steps_done, plan.identity, state)

    def state_dict(self, plan: Plan) -> dict[str, Any]:
        """All that the rest of the run follows from: tensors, numbers, strings and containers of them."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["records"] = [{name: _plain(value) for name, value in record.items()} for record in self.records]
        own["epoch_start"] = gathered(self.epoch_start)
        return {
            "progress": own,
            "model": plan.task.model.state_dict(),
            "optimizer": plan.task.optimizer.state_dict(),
            "scheduler": plan.scheduler.state_dict() if plan.scheduler else None,
            "callbacks": [c.state_dict() if hasattr(c, "state_dict") else None for c in plan.callbacks],
            "random": gathered(get_every_state()),
        }


def begin_or_resume(plan: Plan) -> Progress:
    """The beginning of a run, or where its newest checkpoint left it: then everything is put back as it was there."""
    state = None
    if plan.checkpoints is not None:
        state = from_main(plan.checkpoints.load(plan.identity) if rank() == 0 else None)
    if state is None or plan.checkpoints is None:
        return Progress()
    try:
        return _restored(plan, state)
    except MALFORMED as error:
        raise CheckpointError(
            f"the newest checkpoint in {plan.checkpoints.folder} does not hold the state of such a run: {error}"
        ) from error


def _restored(plan: Plan, state: dict[str, Any]) -> Progress:
    """Put everything back as it was, once it has been looked at."""
    model, optimizer, scheduler, own = plan.task.model, plan.task.optimizer, plan.scheduler, state["progress"]
    _check_progress(plan, own)
    _check_alike("model", state["model"], model.state_dict())
    _check_optimizer(optimizer, state["optimizer"]["state"])
    if scheduler is not None:
        _check_alike("scheduler", state["scheduler"], scheduler.state_dict())
    set_every_state(own["epoch_start"][rank()])
    set_every_state(state["random"][rank()])
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if scheduler is not None:
        scheduler.load_state_dict(state["scheduler"])
    for callback, kept in zip(plan.callbacks, state["callbacks"], strict=True):
        if kept is not None:
            callback.load_state_dict(kept)  # type: ignore[attr-defined]
    return Progress(**{**own, "epoch_start": own["epoch_start"][rank()]})


def _check_progress(plan: Plan, own: dict[str, Any]) -> None:
    """Raise a ``ValueError`` for what is no :meth:`Progress.state_dict`."""
    hints = {**get_type_hints(Progress), "epoch_start": list[dict[str, Any]]}
    if own.keys() != hints.keys():
        raise ValueError(f"its progress has the fields {', '.join(own)}.")
    for name, value in own.items():
        if not fits(value, hints[name]) or (isinstance(value, int) and value < 0):
            raise ValueError(f"{name} is {value!r:.100}.")
    if own["step"] > (plan.train.num_steps or math.inf) or len(own["records"]) < own["epoch"]:
        raise ValueError(f"it is at step {own['step']} of epoch {own['epoch']}.")
    if own["best"] is not None:
        _check_alike("best", own["best"], plan.task.model.state_dict())


def _check_optimizer(optimizer: Optimizer, states: Mapping[Any, Any]) -> None:
    """Raise a ``ValueError`` for moments that are missing, and tensors of a shape that a fused step, which does not
    look, could not take.
    """
    held = [(p, group.get("fused")) for group in optimizer.param_groups for p in group["params"]]
    needed = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, Adam) else set[str]()
    for i, kept in states.items():
        p, fused = held[i]
        if missing := needed - kept.keys():
            raise ValueError(f"parameter {i} in the optimiser has no {', '.join(sorted(missing))}.")
        for name, value in kept.items():
            if isinstance(value, Tensor) and fused and value.shape not in (p.shape, ()):
                raise ValueError(f"{name} of parameter {i} in the optimiser has shape {tuple(value.shape)}.")


def _check_alike(name: str, theirs: Any, ours: Any) -> None:
    """Raise a ``ValueError`` unless two states have the same keys, and tensors of the same shapes under them."""
    if isinstance(ours, Mapping):
        if not isinstance(theirs, Mapping) or theirs.keys() != ours.keys():
            raise ValueError(f"{name} has other parts.")
        for key, value in ours.items():
            _check_alike(f"{name}.{key}", theirs[key], value)
    elif isinstance(ours, Tensor):
        if not isinstance(theirs, Tensor) or (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
            raise ValueError(f"{name} is another tensor than {tuple(ours.shape)} of {ours.dtype}.")
    elif isinstance(ours, (list, tuple)):
        if not isinstance(theirs, (list, tuple)) or len(theirs) != len(ours):
            raise ValueError(f"{name} is {theirs!r:.100}.")
    elif isinstance(ours, (int, float)) and not isinstance(theirs, (int, float)):
        raise ValueError(f"{name} is {theirs!r:.100}.")


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def _plain(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's."""
    return value.item() if hasattr(value, "item") else value
