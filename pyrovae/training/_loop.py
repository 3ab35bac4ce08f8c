"""The loop behind ``fit``."""

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from pyrovae._checks import shown
from pyrovae._distributed import from_main, gathered, num_processes, rank, summed
from pyrovae._interrupt import Deferred
from pyrovae._random import get_every_state, get_state, set_every_state, stream
from pyrovae._turns import turn
from pyrovae.model._modes import strict
from pyrovae.objectives import ELBO
from pyrovae.training._diagnose import Diagnosis, broken_parameters
from pyrovae.training._progress import Plan, Progress, begin_or_resume
from pyrovae.training._result import FitResult
from pyrovae.training.engines import Engine, NotFinite, build, for_validation

_VALIDATION_SEED = 0  # the same draws every epoch, so that epochs compare
_SECONDS_BETWEEN_READINGS = 0.2  # of the loss, from a device that would have to be waited for


def train(plan: Plan, *, visible: bool) -> FitResult:
    """Do what is planned, or the rest of it where there is a checkpoint; see :func:`~pyrovae.fit`.

    Args:
        plan: of the run.
        visible: whether a progress bar is shown.
    """
    task, model, steps, progress = plan.task, plan.task.model, plan.train.num_steps, begin_or_resume(plan)
    engines = [build(plan.engine, task, plan.train, plan.epochs, watched=bool(plan.callbacks))]
    if plan.train.least == 1:
        state = get_every_state()
        batch = next(iter(plan.train))
        set_every_state(state)
        task.set_time(0.0)
        task.check_single(plan.train, batch)
    with (
        Deferred(plan.checkpoints is not None) as signals,
        tqdm(total=steps and steps * plan.epochs, unit="step", disable=not visible, initial=progress.steps_done) as bar,
    ):
        while not progress.is_over(plan):
            started, diagnosis = time.perf_counter() - progress.seconds, Diagnosis(plan, progress)
            loss = _epoch(plan, progress, engines[0], diagnosis, signals, bar, started)
            record = {"epoch": progress.epoch, "loss": loss}
            if isinstance(task.objective, ELBO):
                record["beta"] = float(task.weights["beta"])
            record["learning_rate"] = float(task.optimizer.param_groups[0]["lr"])
            if plan.held_out is not None:
                progress.waited = progress.waited + 1 if task.settled else 0
                if len(engines) == 1:
                    engines.append(for_validation(engines[0], plan.held_out, plan.epochs))
                record["val_loss"] = _validate(engines[1], progress.epoch, diagnosis)
                progress.keep_best(record["val_loss"], model)
            _step_scheduler(plan.scheduler, record)
            record["seconds"] = time.perf_counter() - started
            progress.records.append(record)
            so_far = _result(plan, progress, engines)
            stops = [_stops(i, callback(so_far)) for i, callback in enumerate(plan.callbacks)]
            progress.called_off = any(gathered(any(stops)))
            progress.end_epoch()
            leaving = any(gathered(signals.received is not None))
            if leaving or progress.is_checkpoint_due(plan):
                progress.save(plan)
            if leaving:
                signals.pass_on()
    if progress.best is not None:
        model.load_state_dict(progress.best)
    model.eval()
    return _result(plan, progress, engines)


def _stops(i: int, result: Any) -> bool:
    """Whether a callback's result stops the training; a ``TypeError`` where it does not say."""
    if isinstance(result, Tensor) and result.dtype == torch.bool and result.numel() == 1:
        return bool(result)
    if not (result is None or isinstance(result, (bool, np.bool_))):
        raise TypeError(f"callbacks[{i}] must give True to stop, or False or None to go on; it gave {shown(result)}.")
    return bool(result)


def _epoch(
    plan: Plan, progress: Progress, engine: Engine, diagnosis: Diagnosis, signals: Deferred, bar: Any, started: float
) -> float:
    """One pass over the training data, or what is left of it: the mean loss per datum, in nats."""
    task, batches = plan.task, plan.train
    last_reading = time.perf_counter()
    with turn():
        task.model.train()
    engine.begin_epoch()
    engine.work.total.fill_(progress.loss)
    for batch in progress.remaining(batches):
        if progress.epoch == 0:
            batches.in_first_epoch(batch)
            if batch.size == 1:
                task.check_single(batches, batch)
        task.set_time(progress.time(plan))
        with turn():
            generators = get_state() if task.reads_every_loss else []
            try:
                engine(batch)
            except NotFinite:
                diagnosis.of_batch(batch, generators, progress.step)
        progress.count_batch(batch)
        bar.update()
        leaving, now = signals.received is not None, time.perf_counter()
        if leaving or now - last_reading > _SECONDS_BETWEEN_READINGS:
            last_reading, progress.loss = now, _read_loss(engine, diagnosis)
            bar.set_postfix_str(_caption(progress), refresh=False)
        # Several processes are hardly ever at the same step: they wait for the end of the epoch.
        if leaving and num_processes() == 1 and progress.step != batches.num_steps:
            progress.seconds = now - started
            progress.save(plan)
            signals.pass_on()
    batches.check_not_exhausted(progress.epoch, progress.count)
    progress.loss = _read_loss(engine, diagnosis, ended=True)
    bar.set_postfix_str(_caption(progress), refresh=False)
    for buffer in task.model.buffers():
        from_main(buffer)  # running means and such, which every process has updated by its own data
    if broken_parameters(task.model):
        diagnosis.of_batch(batch, get_state(), progress.step - 1, "update")
    return float(summed(engine.work.total.clone())) / progress.count


def _read_loss(engine: Engine, diagnosis: Diagnosis, *, ended: bool = False) -> float:
    """The sum of this process's losses in this epoch, read from the device."""
    value = engine.work.total.item()
    finite = math.isfinite(value)
    if num_processes() > 1:  # which can go back together at the end of the epoch alone
        finite = not ended or all(gathered(finite))
    if not finite:
        diagnosis.of_epoch()
    return value


def _caption(progress: Progress) -> str:
    """What the bar says: the losses, as far as this process knows them."""
    text = f"epoch {progress.epoch + 1}, loss {progress.loss * num_processes() / progress.count:.2f} nats"
    if progress.records and "val_loss" in progress.records[-1]:
        text += f", validation {progress.records[-1]['val_loss']:.2f}"
    return text


def _validate(engine: Engine, epoch: int, diagnosis: Diagnosis) -> float:
    """The mean loss per datum of held-out data, in nats, at the schedules' final values."""
    task, held_out, total, count = engine.task, engine.work.batches, engine.work.total, 0.0
    task.set_time(math.inf)
    with strict(task.model), stream(_VALIDATION_SEED + rank()):
        engine.begin_epoch()
        total.zero_()
        for batch in held_out:
            if epoch == 0:
                held_out.in_first_epoch(batch)
            with turn():
                engine(batch)
            count += batch.weight * batch.size
    held_out.check_not_exhausted(epoch, count)
    loss, count = summed(torch.stack([total, torch.full_like(total, count)])).tolist()
    if not math.isfinite(loss):
        with strict(task.model), stream(_VALIDATION_SEED + rank()):
            diagnosis.of_validation(held_out)
    return loss / count


def _step_scheduler(scheduler: Any, record: dict[str, float]) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(record.get("val_loss", record["loss"]))
    elif scheduler is not None:
        scheduler.step()


def _result(plan: Plan, progress: Progress, engines: list[Engine]) -> FitResult:
    """What there is of the run so far."""
    seconds = sum(engine.seconds for engine in engines)
    stopped = progress.is_stopped(plan)
    return FitResult(plan.task.model, progress.records, progress.best_epoch, stopped, engines[0].in_use, seconds)
