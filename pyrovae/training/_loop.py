"""The loop behind ``fit``: epochs, steps, validation, checkpoints, and what happens when a loss is not finite."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NoReturn

import pandas as pd
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from pyrovae._distributed import from_main, gathered, num_processes, rank, summed
from pyrovae._random import get_every_state, get_state, seeded, set_every_state, set_state
from pyrovae.model import LossModel, VAEModel
from pyrovae.model._modes import evaluation_mode
from pyrovae.objectives import ELBO
from pyrovae.training._batches import Batch, Batches
from pyrovae.training._checkpoint import Checkpoints
from pyrovae.training._diagnose import broken_buffers, broken_parameters, explain
from pyrovae.training._interrupt import Deferred
from pyrovae.training.engines import Engine, NotFinite, Task, Update, Validation, build, for_validation

_VALIDATION_SEED = 0  # the same draws every epoch, so that epochs compare
_LOOK = 0.2  # seconds between readings of the loss from a device that would have to be waited for

Callback = Callable[["Run"], bool | None]


@dataclass(repr=False)
class Run:
    """A training run, as :func:`fit` returns it and callbacks see it.

    Attributes:
        model: the model, trained in place.
        records: one dict per epoch; :attr:`history` is the same as a DataFrame.
        best_epoch: the epoch with the lowest validation loss, if there was validation.
        stopped_early: whether patience ran out or a callback stopped the run.
        engine: what made the steps in the end: ``"off"`` (Pyro), ``"graph"``, ``"inductor"``, ``"cudagraph"``, or
            ``"cudagraph(graph)"`` for one without machine code.
        compile_seconds: what tracing, compiling, capturing and checking took, which the epochs' ``seconds`` include.
    """

    model: VAEModel | LossModel
    records: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False
    engine: str = "off"
    compile_seconds: float = 0.0

    def __repr__(self) -> str:
        end = ", stopped early" if self.stopped_early else ""
        best = "" if self.best_epoch is None else f", best epoch {self.best_epoch}"
        return f"Run({type(self.model).__name__}, {len(self.records)} epochs{best}{end})"

    @property
    def history(self) -> pd.DataFrame:
        """A table with one row for every epoch.

        Its columns are ``loss`` and ``val_loss`` (negative bounds, in nats per datum; the latter at the schedules'
        final values), ``beta``, ``learning_rate`` and ``seconds``.
        """
        return pd.DataFrame(self.records).set_index("epoch") if self.records else pd.DataFrame()


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite. The model keeps its last good weights.

    Attributes:
        epoch: epoch of the bad step, from 0.
        step: step within that epoch, from 0.
        run: what was done until then.
    """

    def __init__(self, epoch: int, step: int, cause: str, run: Run, kind: str = "loss") -> None:
        super().__init__(
            f"the {kind} is not finite at epoch {epoch}, step {step}: {cause} The model keeps its last good "
            f"weights. Lower learning_rate, set clip_norm, or check the data."
        )
        self.epoch, self.step, self.run = epoch, step, run


class Trainer:
    """One training run: :func:`fit` after its arguments are checked.

    Args:
        task: what a step does.
        train: batches to train on.
        held_out: batches to validate on.
        engine: name of what makes the steps.
        epochs: at most so many.
        patience: see :func:`fit`.
        scheduler: of the learning rate.
        callbacks: called after every epoch. Those with ``state_dict`` and ``load_state_dict`` are kept in checkpoints.
        checkpoints: where states go.
        every: epochs from one checkpoint to the next.
        identity: what the run is, for checkpoints.
    """

    def __init__(
        self,
        task: Task,
        train: Batches,
        held_out: Batches | None,
        *,
        engine: str,
        epochs: int,
        patience: int | None,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        callbacks: Sequence[Callback],
        checkpoints: Checkpoints | None,
        every: int,
        identity: Mapping[str, Any],
    ) -> None:
        self.task, self.model, self.train, self.held_out = task, task.model, train, held_out
        self.epochs, self.patience, self.scheduler, self.callbacks = epochs, patience, scheduler, callbacks
        self.checkpoints, self.every, self.identity = checkpoints, every, identity
        self.result = Run(task.model)
        self.epoch = self.step = self.count = self.steps_done = 0
        self.loss, self.seconds, self.best_loss, self.waited = 0.0, 0.0, math.inf, 0
        self.called_off = False
        self.looked = -math.inf  # when the loss was last read; epochs may be shorter than the time between
        self.best: dict[str, Tensor] | None = None
        self.epoch_start = get_every_state()
        if checkpoints is not None:
            state = from_main(checkpoints.load(identity) if rank() == 0 else None)
            if state is not None:
                self.load_state_dict(state)
        self.engine = build(engine, task, epochs * (train.num_steps or 0))
        self.validation: Engine | None = None

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self, *, progress: bool) -> Run:
        """Train for at most :attr:`epochs`; see :func:`fit`."""
        run, steps = self.result, self.train.num_steps
        with (
            Deferred(self.checkpoints is not None) as signals,
            tqdm(
                total=steps and steps * self.epochs, unit="step", disable=not progress, initial=self.steps_done
            ) as bar,
        ):
            while self.epoch < self.epochs and not run.stopped_early:
                started = time.perf_counter() - self.seconds
                record = {"epoch": self.epoch, "loss": self._epoch(bar, signals, started)}
                if isinstance(self.task.objective, ELBO):
                    record["beta"] = float(self.task.weights["beta"])
                record["learning_rate"] = float(self.task.optimizer.param_groups[0]["lr"])
                if self.held_out is not None:
                    self.waited = self.waited + 1 if self.task.settled else 0
                    record["val_loss"] = loss = self._validate(self.held_out)
                    if loss < self.best_loss:
                        self.best, self.best_loss, run.best_epoch, self.waited = self._weights(), loss, self.epoch, 0
                self._step_scheduler(record)
                record["seconds"] = time.perf_counter() - started
                run.records.append(record)
                stops = [callback(run) for callback in self.callbacks]
                self.called_off = any(gathered(any(stops)))
                run.stopped_early = self._is_over()
                self.epoch, self.step, self.count, self.loss, self.seconds = self.epoch + 1, 0, 0, 0.0, 0.0
                ended = run.stopped_early or self.epoch == self.epochs
                leaving = any(gathered(signals.received is not None))
                if ended or leaving or self.epoch % self.every == 0:
                    self._save()
                if leaving:
                    signals.pass_on()
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.model.eval()
        run.engine = self.engine.in_use
        run.compile_seconds = self.engine.seconds + (0.0 if self.validation is None else self.validation.seconds)
        return run

    def _epoch(self, bar: Any, signals: Deferred, started: float) -> float:
        """One pass over the training data, or what is left of it: the mean loss per datum."""
        self.model.train()
        batches = self._batches()
        self.before = self._trained_state()
        self.engine.begin_epoch()
        self.engine.work.total.fill_(self.loss)
        for raw in batches:
            if self.epoch == 0:
                self.train.in_first_epoch(self.model, raw)
            self.task.set_time(self.epoch + self.step / (self.train.num_steps or math.inf))
            generators = get_state() if self.task.device.type == "cpu" else None
            try:
                self.engine(*raw)
            except NotFinite:
                assert generators is not None
                self._fail(raw, generators)
            self.step, self.count, self.steps_done = self.step + 1, self.count + self.train.total, self.steps_done + 1
            now = time.perf_counter()
            if signals.received or now - self.looked > _LOOK:
                self.looked, self.loss = now, self._total()
                bar.set_postfix_str(self._postfix(self.loss * num_processes() / self.count), refresh=False)
            bar.update()
            # Several processes are hardly ever at the same step: they wait for the end of the epoch.
            if signals.received and num_processes() == 1 and self.step != self.train.num_steps:
                self.seconds = now - started
                self._save()
                signals.pass_on()
        self.train.check_not_exhausted(self.epoch, self.count)
        self.loss = self._total(ended=True)
        for buffer in self.model.buffers():
            from_main(buffer)  # running means and such, which every process has updated by its own data
        if broken_parameters(self.model):
            self._fail(raw, get_state(), step=self.step - 1, kind="update")
        return float(summed(self.engine.work.total.clone())) / self.count

    def _is_over(self) -> bool:
        return self.called_off or (self.patience is not None and self.waited >= self.patience)

    def _batches(self) -> Iterator[Batch]:
        """The rest of this epoch's batches: all of them, unless the run was interrupted in its midst."""
        if not self.step:
            self.epoch_start = get_every_state()
            return self.train.raw()
        now = get_every_state()
        set_every_state(self.epoch_start)  # the order of the data follows from it
        batches = self.train.raw()
        for _ in islice(batches, self.step):
            pass
        set_every_state(now)
        return batches

    def _total(self, *, ended: bool = False) -> float:
        """The sum of this process's losses in this epoch, read from the device."""
        value = self.engine.work.total.item()
        finite = math.isfinite(value)
        if num_processes() > 1:  # which can go back together at the end of the epoch alone
            finite = not ended or all(gathered(finite))
        if not finite:
            self._locate()
        return value

    def _validate(self, held_out: Batches) -> float:
        """The mean loss per datum of held-out data, at the schedules' final values, with the same draws each time."""
        self.task.set_time(math.inf)
        if self.validation is None:
            work = Validation(self.task, held_out.prepare, lambda: held_out.weight)
            self.validation = for_validation(self.engine, work, self.epochs * (held_out.num_steps or 0), held_out.size)
        count = 0.0
        with evaluation_mode(self.model), torch.no_grad(), seeded(_VALIDATION_SEED + rank()):
            self.validation.begin_epoch()
            self.validation.work.total.zero_()
            for raw in held_out.raw():
                if self.epoch == 0:
                    held_out.in_first_epoch(self.model, raw)
                self.validation(*raw)
                count += held_out.weight * len(raw[0])
        held_out.check_not_exhausted(self.epoch, count)
        both = summed(torch.stack([self.validation.work.total, torch.full_like(self.validation.work.total, count)]))
        total, count = both.tolist()
        if not math.isfinite(total):
            self._locate_in(held_out)
        return total / count

    def _locate_in(self, held_out: Batches) -> NoReturn:
        """Go through the held-out data once more, looking at every loss."""
        with evaluation_mode(self.model), torch.no_grad(), seeded(_VALIDATION_SEED + rank()):
            for step, raw in enumerate(held_out.raw()):
                generators = get_state()
                if not math.isfinite(self.task.validation_loss(*held_out.prepare(*raw))):
                    self._fail(raw, generators, step=step, kind="validation loss", batches=held_out)
        cause = "it is finite in this process, or did not happen again batch by batch."
        raise NonFiniteLoss(self.epoch, 0, cause, self.result, "validation loss")

    def _step_scheduler(self, record: dict[str, float]) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(record.get("val_loss", record["loss"]))
        elif self.scheduler is not None:
            self.scheduler.step()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def _postfix(self, loss: float) -> str:
        text = f"epoch {self.epoch + 1}, loss {loss:.2f} nats"
        if self.result.records and "val_loss" in self.result.records[-1]:
            text += f", validation {self.result.records[-1]['val_loss']:.2f}"
        return text

    # -- checkpoints -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run follows from: tensors, numbers, strings and containers of them."""
        names = ("epoch", "step", "count", "steps_done", "loss", "seconds", "best_loss", "waited", "called_off")
        return {
            "model": self.model.state_dict(),
            "optimizer": self.task.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "best": self.best,
            "records": [{name: _plain(value) for name, value in record.items()} for record in self.result.records],
            "best_epoch": self.result.best_epoch,
            "progress": {name: getattr(self, name) for name in names},
            "random": gathered(get_every_state()),
            "epoch_start": gathered(self.epoch_start),
            "callbacks": [c.state_dict() if hasattr(c, "state_dict") else None for c in self.callbacks],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run where :meth:`state_dict` left it."""
        self.model.load_state_dict(state["model"])
        self.task.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.best = state["best"]
        run = self.result
        run.records, run.best_epoch = state["records"], state["best_epoch"]
        for name, value in state["progress"].items():
            setattr(self, name, value)
        run.stopped_early = self._is_over()
        for callback, kept in zip(self.callbacks, state["callbacks"], strict=True):
            if kept is not None:
                callback.load_state_dict(kept)  # type: ignore[attr-defined]
        self.epoch_start = state["epoch_start"][rank()]
        set_every_state(state["random"][rank()])

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        self.loss = self.engine.work.total.item() if self.step else 0.0
        state = self.state_dict()
        if rank() == 0:
            self.checkpoints.save(self.steps_done, self.identity, state)

    # -- a loss that is not finite -------------------------------------------------------------------------

    def _trained_state(self) -> dict[str, Any]:
        """What :meth:`_locate` goes back to."""
        state: dict[str, Any] = {"model": self._weights(), "step": self.step, "random": get_every_state()}
        if self.task.device.type != "cpu":
            state["optimizer"] = deepcopy(self.task.optimizer.state_dict())
        return state

    def _locate(self) -> NoReturn:
        """Go through the epoch once more, looking at every loss: nobody did where that would have held up a device."""
        reached = self.step
        self.model.load_state_dict(self.before["model"])
        self.task.optimizer.load_state_dict(self.before["optimizer"])
        self.step = self.before["step"]
        set_every_state(self.before["random"] if self.step else self.epoch_start)
        batches, update = self._batches(), Update(self.task)
        for raw in batches:
            self.task.set_time(self.epoch + self.step / (self.train.num_steps or math.inf))
            generators = get_state()
            results = update.eager(*raw)
            if not math.isfinite(results[0]):  # type: ignore[arg-type]
                self._fail(raw, generators)
            update.finish(results, *raw)
            self.step += 1
        self.model.load_state_dict(self.before["model"])
        cause = "it did not happen again when the epoch was gone through step by step."
        raise NonFiniteLoss(self.epoch, reached - 1, cause, self.result)

    def _fail(
        self,
        raw: Batch,
        generators: list[Tensor],
        *,
        step: int | None = None,
        kind: str = "loss",
        batches: Batches | None = None,
    ) -> NoReturn:
        set_state(generators)
        cause = explain(self.model, (batches or self.train).prepare(*raw), own_loss=self.task.objective is None)
        if broken_parameters(self.model) or broken_buffers(self.model):
            self.model.load_state_dict(self.before["model"])
        raise NonFiniteLoss(self.epoch, self.step if step is None else step, cause, self.result, kind)


def _plain(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's."""
    return value.item() if hasattr(value, "item") else value
