"""Where a loss that is not finite comes from: the epoch, the step, the site."""

import math
from copy import deepcopy
from typing import NoReturn

import torch
from torch import Tensor

from pyrovae._random import get_every_state, get_state, set_every_state, set_state
from pyrovae._turns import turn
from pyrovae.model import VAEModel
from pyrovae.model._pairing import NotAPair
from pyrovae.model._rows import Numbers, named
from pyrovae.training._progress import Plan, Progress, copied_weights
from pyrovae.training._result import FitResult, NonFiniteLoss
from pyrovae.training.batches import Batch, Batches, Model, Tensors
from pyrovae.training.engines import Update


class Diagnosis:
    """The way back to what a run was when its epoch began, or went on, should a loss in it not be finite.

    Every method raises :class:`NonFiniteLoss` and leaves the model with its last good weights.

    Args:
        plan: of the run.
        progress: how far it is.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._plan, self._progress = plan, progress
        self._weights, self._step, self._random = copied_weights(plan.task.model), progress.step, get_every_state()
        self._optimizer = {} if plan.task.reads_every_loss else deepcopy(plan.task.optimizer.state_dict())

    def of_epoch(self) -> NoReturn:
        """Go through the epoch once more, looking at every loss: nobody did where that would have held up a device."""
        plan, progress, task, reached = self._plan, self._progress, self._plan.task, self._progress.step
        task.model.load_state_dict(self._weights)
        task.optimizer.load_state_dict(self._optimizer)
        progress.step = self._step
        set_every_state(self._random)
        update = Update(task, plan.train)
        for batch in progress.remaining(plan.train):
            task.set_time(progress.time(plan))
            with turn():
                generators = get_state()
                results = update.eager(*batch.raw)
                if not math.isfinite(results[0]):  # type: ignore[arg-type]
                    self.of_batch(batch, generators, progress.step)
                update.finish(results, batch)
            progress.step += 1
        task.model.load_state_dict(self._weights)
        self._report("it did not happen again when the epoch was gone through step by step.", reached - 1)

    def of_validation(self, held_out: Batches) -> NoReturn:
        """Go through the held-out data once more, looking at every loss."""
        for step, batch in enumerate(held_out):
            with turn():
                generators, loss = get_state(), self._plan.task.validation_loss(*held_out.prepare(*batch.raw))
                if not math.isfinite(loss):
                    self.of_batch(batch, generators, step, "validation loss", held_out)
        self._report("it is finite in this process, or did not happen again batch by batch.", 0, "validation loss")

    def of_batch(
        self, batch: Batch, generators: list[Tensor], step: int, kind: str = "loss", of: Batches | None = None
    ) -> NoReturn:
        """Name what is not finite.

        Args:
            batch: a batch.
            generators: state of the random numbers before its loss.
            step: its number in the epoch.
            kind: what was not finite.
            of: the batches that it is one of; by default those that are trained on.
        """
        model, own_loss = self._plan.task.model, self._plan.task.objective is None
        batches = of or self._plan.train
        with turn():
            set_state(generators)
            cause = explain(model, batches.prepare(*batch.raw), batches.numbers(batch), own_loss=own_loss)
        # Running means and the like are broken if they are NaN: infinities may be meant.
        if broken_parameters(model) or any(bool(b.isnan().any()) for b in model.buffers()):
            model.load_state_dict(self._weights)
        self._report(cause, step, kind)

    def _report(self, cause: str, step: int, kind: str = "loss") -> NoReturn:
        progress = self._progress
        so_far = FitResult(self._plan.task.model, progress.records, progress.best_epoch)
        raise NonFiniteLoss(progress.epoch, step, cause, so_far, kind)


def broken_parameters(model: Model) -> list[str]:
    """Names of the trained parameters that hold NaN or infinite values."""
    return [name for name, p in model.named_parameters() if p.requires_grad and not bool(p.isfinite().all())]


@torch.no_grad()
def explain(model: Model, batch: Tensors, numbers: Numbers, *, own_loss: bool = False) -> str:
    """One sentence: the parameters that are broken, or else the sites whose terms are, in order of computation.

    Args:
        model: the model.
        batch: ``(x, *covariates)``.
        numbers: of its data, where they are known.
        own_loss: whether the model's ``loss`` is what was minimised.
    """
    if broken := broken_parameters(model):
        return f"an update made parameters non-finite ({', '.join(broken[:3])}{', …' if len(broken) > 3 else ''})."
    if own_loss:
        loss: Tensor = model.loss(*batch)
        if not bool(loss.isfinite().all()):
            return f"{type(model).__name__}.loss is {_where(loss.unsqueeze(0), numbers)}."
    if not isinstance(model, VAEModel):
        return "it is finite at the same draws."
    try:
        terms = model.log_terms(*batch)
    except NotAPair as error:  # under one of Pyro's objectives
        return f"it has no terms by site ({error})"
    groups = {"log q(z|x)": terms.log_posterior, "log p(z)": terms.log_prior, "log p(x|z)": terms.log_likelihood}
    found = [
        f"{label} at site {site!r} is {_where(term, numbers)}"
        for label, group in groups.items()
        for site, term in group.items()
        if not bool(term.isfinite().all())
    ]
    return "; ".join(found) + "." if found else "every site is finite at the same draws, so the objective is at fault."


def _where(term: Tensor, numbers: Numbers) -> str:
    """What values ``(K, B)`` are that are not finite, and for which data."""
    bad = (~term.isfinite()).any(0).nonzero().flatten().tolist()
    which = f"{named(bad, numbers)}{' of the batch' if numbers is None else ''}"
    return f"{'NaN' if bool(term.isnan().any()) else 'infinite'} for {len(bad)} of {term.shape[1]} data ({which})"
