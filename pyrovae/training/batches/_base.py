"""What all batches have in common: how a step gets its data from one, and looks at whether the model takes them."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
from pyro.infer import ELBO as PyroELBO
from torch import Tensor
from torch.distributions import Distribution

from pyrovae._checks import as_covariates, as_data, as_normal_tensor, placed, require_instance
from pyrovae._compat.pyro import reason
from pyrovae._random import restored_state
from pyrovae._turns import turn
from pyrovae.model import LossModel, VAEModel
from pyrovae.model._inputs import num_covariates, program
from pyrovae.model._modes import inference
from pyrovae.model._pairing import NotAPair, narrower_sites
from pyrovae.model._rows import Numbers, as_fields, on_rows
from pyrovae.model._support import check_densities, check_observed, check_values, checked_terms, fixed_support
from pyrovae.objectives import Objective

Tensors = tuple[Tensor, ...]
Transform = Callable[[Tensor], Tensor]
Model = VAEModel | LossModel


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it is drawn, before anything is computed of it.

    Attributes:
        raw: what :meth:`Batches.prepare` makes data of: tensors whose first has one row for each datum of this process.
        total: data in the batch, over all processes.
        weight: what this process's data count: less than 1 where others have the same.
        rows: which data of the set they are, where that is known.
    """

    raw: Tensors
    total: int
    weight: float = 1.0
    rows: Tensor | None = None

    @property
    def size(self) -> int:
        """Data of this process."""
        return len(self.raw[0])


class Batches(ABC):
    """An iterable over one epoch, again and again: ``x`` in the model's precision, everything on its device.

    Attributes:
        num_steps: batches in an epoch, where that is known.
        size: data in a whole batch of this process, where that is known.
        least: those in its smallest one, where that is known.
    """

    def __init__(self, model: Model, transform: Transform | None, name: str) -> None:
        self.model, self.like, self.transform, self.name = model, model.placement, transform, name
        self.num_steps: int | None = None
        self.size: int | None = None
        self.least: int | None = None
        self._observed: tuple[str, Distribution] | None = None  # once known, data are checked without the model
        self._paired = True
        self._batch_name = f"a batch of {name}" + (" after batch_transform" if transform else "")

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    def prepare(self, *raw: Tensor) -> Tensors:
        """``(x, *covariates)`` of a batch's raw tensors: no reading of values, so that it can be part of a graph."""
        x, *rest = raw
        if self.transform is None:
            return raw
        made = self.transform(x)
        require_instance(Tensor, **{"what batch_transform gives": made})
        if made.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"batch_transform gives shape {tuple(made.shape)} for {len(x)} data: one for each is needed."
            )
        return (made.to(self.like.dtype) if made.is_floating_point() else made, *rest)

    def _on_device(self, tensors: Tensors) -> Tensors:
        x, *covariates = tensors
        return as_normal_tensor(placed(x, self.like)), *as_covariates(tuple(covariates), len(x), self.like)

    def check(self, objective: PyroELBO | None) -> None:
        """Run the model on the first batch with validation on, and let the objective look at its terms. The model
        learns its ``event_shape`` if it has none.

        Args:
            objective: what is minimised. Under our own objectives the terms of model and guide must sum to
                log p(x, z) - log q(z | x).

        Raises:
            ValueError: an empty set, or what :meth:`VAEModel.check` finds.
        """
        model = self.model
        ours = objective is None or isinstance(objective, Objective)
        particles = 1 if objective is None else min(objective.num_particles, 2)
        try:
            batch = next(iter(self), None)
            with turn():
                first = self.prepare(*batch.raw) if batch else None
        except RuntimeError as error:
            raise ValueError(f"{self.name} cannot be read, or batch_transform does not take it: {error}") from error
        if batch is None or first is None:
            raise ValueError(f"{self.name} is empty. Pass at least one datum.")
        numbers = self.numbers(batch)
        x = as_data(first[0], self._batch_name, model.event_shape, integers=True)
        if len(first) - 1 < (needed := num_covariates(model)[0]):
            raise ValueError(
                f"{type(model).__name__}.{program(model).__name__} takes {needed} covariate(s) and {self.name} has "
                f"{len(first) - 1}: pass a tuple (x, covariate, ...) or a Dataset of such."
            )
        if model.event_shape is None:
            model.event_shape = tuple(x.shape[1:])
        terms = None
        try:
            terms = model.check(x, *first[1:], num_particles=particles, name=self.name, numbers=numbers)
        except NotAPair:
            if ours:
                raise
            self._paired = False
        self.look(first, numbers)
        if self.name == "data" and isinstance(model, VAEModel):
            _warn_if_not_evaluable(model, x, *first[1:], name=self.name)
        if terms is not None and isinstance(objective, Objective):
            objective.check(terms)
        elif terms is not None and not ours and (wider := narrower_sites(terms.prior, terms.posterior)):
            raise ValueError(
                f"the guide draws site {wider[0]!r} outside the prior's support, where log p(z) and the ELBO are -inf, "
                f"which {type(objective).__name__} does not notice: give it a guide on the prior's support."
            )

    def in_first_epoch(self, batch: Batch) -> None:
        """Look at a batch, drawn as it will be, before it is trained on: :meth:`check` saw the first alone."""
        with restored_state():
            self.look(self.prepare(*batch.raw), self.numbers(batch))

    def hash(self) -> str:
        """What identifies the data: their content, as far as that can be had."""
        return f"{type(self).__name__} of {self.num_steps} batches"

    def check_repeats(self) -> None:
        """Look at whether data are the same whatever was read before, as they must be in a run that goes on.

        Raises:
            ValueError: they are not.
        """
        return None

    def order(self) -> Any:
        """What decides on the order of the data besides torch's generators, as text and numbers.

        Raises:
            ValueError: it is nothing that a checkpoint could keep.
        """
        return None

    def check_not_exhausted(self, epoch: int, count: float) -> None:
        """Raise a ``ValueError`` if an epoch brought no data."""
        if not count:
            raise ValueError(
                f"{self.name} gave no batch in epoch {epoch}: it can be iterated only once. Pass a Dataset, a "
                f"DataLoader of one, or tensors."
            )

    def numbers(self, batch: Batch) -> Numbers:
        """The numbers of a batch's data in what the user passed, where they are known."""
        return None

    def look(self, tensors: Tensors, numbers: Numbers) -> None:
        """Raise a ``ValueError`` if ``(x, *covariates)`` hold values that the model does not take.

        Args:
            tensors: of some data.
            numbers: of the data, for errors.
        """
        model, x, has_density = self.model, tensors[0], isinstance(self.model, VAEModel)
        name = self.name if numbers is not None else f"a batch of {self.name}"
        as_data(x, self._batch_name, model.event_shape, integers=True)
        if not has_density:
            model.check_values(x, self.name)
        elif self._observed is not None:
            check_values(*self._observed, x, name, numbers)
        if len(tensors) == 1 and (self._observed is not None or not has_density):
            return  # covariates may be looked up in something too small

        def run(n: int, *part: Any) -> None:
            if not has_density:
                model.loss(*part)
            elif self._paired:
                terms = checked_terms(model, *part, name=name, numbers=numbers)
                self._observed = fixed_support(terms, part[0])
            else:
                check_observed(model, *part, name=name, numbers=numbers)

        with inference(model, 0), pyro.distributions.validation_enabled(False):
            on_rows(run, as_fields(x, tensors[1:], name), slice(0, len(x)), self.like, numbers)


def _warn_if_not_evaluable(model: VAEModel, *tensors: Any, name: str) -> None:
    try:
        check_densities(model.check(*tensors, num_particles=2, name=name))
    except Exception as error:  # whatever a program does that is not made for particles
        warnings.warn(
            f"{type(model).__name__} can be trained like this, but no estimator of log p(x) will take it: "
            f"{reason(error)}",
            stacklevel=6,  # the call of fit
        )
