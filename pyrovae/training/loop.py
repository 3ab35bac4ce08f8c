"""The loop behind ``fit``: epochs, steps, validation, and what happens when a loss is not finite."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pandas as pd
import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from pyrovae._random import get_state, seeded, set_state
from pyrovae.model import VAEModel
from pyrovae.model.modes import evaluation_mode
from pyrovae.objectives import ELBO, Objective
from pyrovae.training.batches import Batch, Batches
from pyrovae.training.diagnose import broken_parameters, explain

_VALIDATION_SEED = 0  # the same draws every epoch, so that epochs compare


@dataclass(repr=False)
class Run:
    """A training run, as :func:`fit` returns it and callbacks see it.

    Attributes:
        model: the model, trained in place.
        records: one dict per epoch; :attr:`history` is the same as a DataFrame.
        best_epoch: the epoch with the lowest validation loss, if there was validation.
        stopped_early: whether patience ran out or a callback stopped the run.
    """

    model: VAEModel
    records: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False

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
    """One training run: :func:`fit` after its arguments are checked."""

    def __init__(
        self,
        model: VAEModel,
        objective: PyroELBO,
        train: Batches,
        held_out: Batches | None,
        *,
        optimizer: Callable[[Any], Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler] | None,
        clip_norm: float | None,
    ) -> None:
        self.result = Run(model)
        self.model, self.objective, self.train, self.held_out = model, objective, train, held_out
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError(f"{type(model).__name__} has no parameters to train.")
        self.optimizer = optimizer(self.parameters)
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise ValueError("LBFGS evaluates the loss several times a step, which a stochastic loss does not allow.")
        self.scheduler = lr_schedule(self.optimizer) if lr_schedule else None
        self.clip_norm = clip_norm

    def run(
        self,
        epochs: int,
        *,
        patience: int | None,
        callbacks: Sequence[Callable[[Run], bool | None]],
        progress: bool,
    ) -> Run:
        """Train for at most ``epochs``; see :func:`fit`."""
        run, best, best_loss, waited = self.result, None, math.inf, 0
        steps = self.train.num_steps
        with tqdm(total=steps and steps * epochs, unit="step", disable=not progress) as bar:
            for epoch in range(epochs):
                started = time.perf_counter()
                start = self._weights()
                record = {"epoch": epoch, "loss": self._epoch(epoch, bar, start)}
                if isinstance(self.objective, ELBO):
                    record["beta"] = self.objective.weight
                settled = not isinstance(self.objective, Objective) or self.objective.settled
                record["learning_rate"] = self.optimizer.param_groups[0]["lr"]
                if self.held_out is not None:
                    record["val_loss"] = loss = self._validate(self.held_out, epoch, start)
                    waited = waited + 1 if settled else 0
                    if loss < best_loss:
                        best, best_loss, run.best_epoch, waited = self._weights(), loss, epoch, 0
                self._step_scheduler(record)
                record["seconds"] = time.perf_counter() - started
                run.records.append(record)
                stops = [callback(run) for callback in callbacks]
                if any(stops) or (patience is not None and waited >= patience):
                    run.stopped_early = True
                    break
        if best is not None:
            self.model.load_state_dict(best)
        self.model.eval()
        return run

    def _epoch(self, epoch: int, bar: Any, start: dict[str, Tensor]) -> float:
        """One pass over the training data: the mean loss per datum."""
        self.model.train()
        total, count = 0.0, 0
        for step, batch in enumerate(self.train):
            if epoch == 0:
                self.train.in_first_epoch(self.model, batch)
            self._anneal(epoch + step / (self.train.num_steps or math.inf))
            generators = get_state()
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(batch)
            value = loss.item()
            if not math.isfinite(value):
                self._fail(epoch, step, batch, generators, start)
            self._update(loss, len(batch[0]))
            total, count = total + value, count + len(batch[0])
            bar.set_postfix_str(self._postfix(epoch, total / count), refresh=False)
            bar.update()
        self.train.refuse_if_exhausted(epoch, count)
        if broken_parameters(self.model):
            self._fail(epoch, step, batch, generators, start, kind="update")
        return total / count

    def _loss(self, batch: Batch) -> Tensor:
        """The loss, summed over the batch. Objectives that cannot be differentiated fill in the gradients here."""
        args = (self.model.model, self.model.guide, *batch)
        if hasattr(self.objective, "differentiable_loss"):
            return self.objective.differentiable_loss(*args)
        return torch.as_tensor(self.objective.loss_and_grads(*args), device=batch[0].device)

    def _update(self, loss: Tensor, n: int) -> None:
        if loss.requires_grad:
            (loss / n).backward()
        else:
            for p in self.parameters:
                if p.grad is not None:
                    p.grad /= n
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()

    def _validate(self, held_out: Batches, epoch: int, start: dict[str, Tensor]) -> float:
        """The mean loss per datum of held-out data, at the schedules' final values, with the same draws each time."""
        self._anneal(math.inf)
        total, count = 0.0, 0
        with evaluation_mode(self.model), torch.no_grad(), seeded(_VALIDATION_SEED):
            for step, batch in enumerate(held_out):
                if epoch == 0:
                    held_out.in_first_epoch(self.model, batch)
                generators = get_state()
                value = float(self.objective.loss(self.model.model, self.model.guide, *batch))
                if not math.isfinite(value):
                    self._fail(epoch, step, batch, generators, start, kind="validation loss")
                total, count = total + value, count + len(batch[0])
        held_out.refuse_if_exhausted(epoch, count)
        return total / count

    def _anneal(self, t: float) -> None:
        if isinstance(self.objective, Objective):
            self.objective.anneal(t)

    def _step_scheduler(self, record: dict[str, float]) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(record.get("val_loss", record["loss"]))
        elif self.scheduler is not None:
            self.scheduler.step()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def _postfix(self, epoch: int, loss: float) -> str:
        text = f"epoch {epoch + 1}, loss {loss:.2f} nats"
        if self.result.records and "val_loss" in self.result.records[-1]:
            text += f", validation {self.result.records[-1]['val_loss']:.2f}"
        return text

    def _fail(
        self,
        epoch: int,
        step: int,
        batch: Batch,
        generators: list[Tensor],
        start: dict[str, Tensor],
        kind: str = "loss",
    ) -> NoReturn:
        set_state(generators)
        cause = explain(self.model, batch)
        if broken_parameters(self.model):
            self.model.load_state_dict(start)
        raise NonFiniteLoss(epoch, step, cause, self.result, kind)
