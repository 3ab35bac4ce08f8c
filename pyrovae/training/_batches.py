"""Training data in whatever form it comes, as batches on the device."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, default_collate

from pyrovae._checks import (
    ARRAYS,
    as_covariates,
    as_data,
    as_normal_tensor,
    as_tensor,
    at_least,
    check_container,
    error_message,
    placed,
)
from pyrovae._distributed import from_main, gathered, my_share, num_processes
from pyrovae._hash import content_hash
from pyrovae._random import get_state, seeded, set_state
from pyrovae.model import LogTerms, LossModel, VAEModel
from pyrovae.model._inputs import as_inputs, num_covariates, program
from pyrovae.model._modes import evaluation_mode
from pyrovae.model._pairing import NotAPair
from pyrovae.model._support import check_densities, check_observed, check_values, checked_terms, fixed_support

_LOOK = 2**20  # numbers of x to look at together
_LARGER = 10  # times the size of a batch, where no gradients are taken
Batch = tuple[Tensor, ...]
Transform = Callable[[Tensor], Tensor]
Model = VAEModel | LossModel


@runtime_checkable
class Splits(Protocol):
    """Data with fixed splits, such as :func:`pyrovae.datasets.load` returns."""

    train: Tensor
    val: Tensor
    batch_transform: Transform | None


class Batches(ABC):
    """An iterable over one epoch, again and again: ``x`` in the model's precision, everything on its device.

    Attributes:
        num_steps: batches in an epoch, where that is known.
        size: data in a whole batch of this process, where that is known.
        own_generator: whether they draw from a generator whose state nobody else knows.
        total: data in the current batch, over all processes.
        weight: what this process's data in the current batch count: less than 1 where others have the same.
    """

    def __init__(self, like: Tensor, transform: Transform | None, name: str) -> None:
        self.like, self.transform, self.name = like, transform, name
        self.num_steps: int | None = None
        self.size: int | None = None
        self.own_generator = False
        self.total, self.weight = 0, 1.0
        self._observed: tuple[str, Distribution] | None = None  # once known, data are checked without the model
        self._paired = True

    @abstractmethod
    def raw(self) -> Iterator[Batch]:
        """What a step takes, for one epoch: tensors whose first has one row for each datum of this process."""

    def prepare(self, *raw: Tensor) -> Batch:
        """``(x, *covariates)`` of what :meth:`raw` gave: no reading of values, so that it can be part of a graph."""
        x, *rest = raw
        return (self.transform(x) if self.transform else x, *rest)

    def __iter__(self) -> Iterator[Batch]:
        for raw in self.raw():
            yield self.prepare(*raw)

    def _on_device(self, batch: Batch) -> Batch:
        x, *covariates = batch
        return as_normal_tensor(placed(x, self.like)), *as_covariates(tuple(covariates), len(x), self.like)

    def check(self, model: Model, num_particles: int = 1, *, paired: bool = True) -> LogTerms | None:
        """Run the model on the first batch with validation on; it learns its ``event_shape`` if it has none.

        Args:
            model: the model.
            num_particles: K of the run.
            paired: whether the terms of model and guide must sum to log p(x, z) - log q(z | x), as they must under
                our objectives.

        Returns:
            The terms of two data, of a model that has them.

        Raises:
            ValueError: an empty set, or what :meth:`VAEModel.check` finds.
        """
        try:
            first = next(iter(self), None)
        except RuntimeError as error:
            raise ValueError(f"{self.name} cannot be read, or batch_transform does not take it: {error}") from error
        if first is None:
            raise ValueError(f"{self.name} is empty. Pass at least one datum.")
        x = as_data(first[0], self.name, model.event_shape, integers=True)
        needed = num_covariates(model)[0]
        if len(first) - 1 < needed:
            raise ValueError(
                f"{type(model).__name__}.{program(model).__name__} takes {needed} covariate(s) and {self.name} has "
                f"{len(first) - 1}: pass a tuple (x, covariate, ...) or a Dataset of such."
            )
        if model.event_shape is None:
            model.event_shape = tuple(x.shape[1:])
        terms = None
        try:
            terms = model.check(x, *first[1:], num_particles=num_particles, name=self.name)
        except NotAPair:
            if paired:
                raise
            self._paired = False
        self.look(model, first)
        if self.name == "data" and isinstance(model, VAEModel):
            _warn_if_not_evaluable(model, x, *first[1:], name=self.name)
        return terms

    def in_first_epoch(self, model: Model, raw: Batch) -> None:
        """Look at a batch, drawn as it will be, before it is trained on: :meth:`check` saw the first alone."""
        generators = get_state()
        self.look(model, self.prepare(*raw))
        set_state(generators)

    def hash(self) -> str:
        """What identifies the data: their content, as far as that can be had."""
        return f"{type(self).__name__} of {self.num_steps} batches"

    def check_not_exhausted(self, epoch: int, count: float) -> None:
        """Raise a ``ValueError`` if an epoch brought no data."""
        if not count:
            raise ValueError(
                f"{self.name} gave no batch in epoch {epoch}: it can be iterated only once. Pass a Dataset, a "
                f"DataLoader of one, or tensors."
            )

    def look(self, model: Model, batch: Batch) -> None:
        """Raise a ``ValueError`` if a batch holds values that the model does not take."""
        as_data(batch[0], self.name, model.event_shape, integers=True)
        if not isinstance(model, VAEModel):
            model.check_values(batch[0], self.name)
            return
        if self._observed is not None:
            check_values(*self._observed, batch[0], self.name)
            return
        validation = pyro.distributions.validation_enabled(False)
        with evaluation_mode(model), torch.no_grad(), seeded(0), validation:
            if self._paired:
                terms = checked_terms(model, *batch, name=self.name)
                self._observed = fixed_support(terms, batch[0])
            else:
                check_observed(model, *batch, name=self.name)


class TensorBatches(Batches):
    """Shuffled batches of tensors, kept on the device when they take less than half of its free memory.

    Then a step takes their rows, and gathers them itself. Several processes share every batch.
    """

    def __init__(self, tensors: Batch, batch_size: int, like: Tensor, transform: Transform | None, name: str) -> None:
        super().__init__(like, transform, name)
        size = sum(t.numel() * t.element_size() for t in tensors)
        room = like.device.type != "cuda" or size < torch.cuda.mem_get_info(like.device)[0] // 2
        self._resident = all(gathered(room))  # the order of the data is drawn where they are
        if self._resident:
            tensors = tuple(t.to(like.device) for t in tensors)
        self._tensors, self._batch_size = tensors, batch_size
        self.num_steps = math.ceil(len(tensors[0]) / batch_size)
        self.size = min(batch_size, len(tensors[0])) if num_processes() == 1 else None

    def raw(self) -> Iterator[Batch]:
        order = from_main(torch.randperm(len(self._tensors[0])))  # the same wherever the data are
        for rows in order.to(self._tensors[0].device).split(self._batch_size):
            mine = my_share(rows)
            self.total, self.weight = len(rows), 1.0 if len(rows) >= num_processes() else 1 / num_processes()
            yield (mine,) if self._resident else self._on_device(self._rows(mine))

    def prepare(self, *raw: Tensor) -> Batch:
        return super().prepare(*(self._on_device(self._rows(raw[0])) if self._resident else raw))

    def _rows(self, rows: Tensor) -> Batch:
        return tuple(t[rows] for t in self._tensors)

    def check(self, model: Model, num_particles: int = 1, *, paired: bool = True) -> LogTerms | None:
        terms = super().check(model, num_particles, paired=paired)
        generators = get_state()
        for rows in torch.arange(len(self._tensors[0])).split(
            max(self._batch_size, _LOOK // self._tensors[0][0].numel())
        ):
            self.look(model, super().prepare(*self._on_device(self._rows(rows.to(self._tensors[0].device)))))
        set_state(generators)
        return terms

    def in_first_epoch(self, model: Model, raw: Batch) -> None:
        """Nothing: :meth:`check` has seen everything, as the transform may draw it."""

    def hash(self) -> str:
        return content_hash(*self._tensors)


class LoaderBatches(Batches):
    """Batches of a ``DataLoader``; fields that the model does not take are dropped."""

    def __init__(
        self,
        loader: DataLoader,
        model: Model,
        transform: Transform | None,
        name: str,
    ) -> None:
        super().__init__(model.like(), transform, name)
        self._loader, self._num_fields, self.size = loader, 1 + num_covariates(model)[1], _whole(loader)
        self._columns = [*(model.columns or [])]
        self._model = model
        self._dtype: torch.dtype | None = None  # of x, which the first batch decides
        self.own_generator = loader.generator is not None or getattr(loader.sampler, "generator", None) is not None
        if num_processes() > 1 and not isinstance(loader.sampler, DistributedSampler) and name == "data":
            every = f"{num_processes()} processes would all train on the same batches of this"
            if isinstance(loader.dataset, IterableDataset):
                raise ValueError(f"{every} IterableDataset: pass tensors or a Dataset with __len__ and __getitem__.")
            raise ValueError(
                f"{every} DataLoader: give it sampler=torch.utils.data.DistributedSampler(dataset), or pass the "
                f"Dataset or tensors."
            )
        if isinstance(loader.dataset, IterableDataset) and iter(loader.dataset) is iter(loader.dataset):
            raise ValueError(f"{name} can be iterated only once: its __iter__ must start anew each time.")
        try:
            self.num_steps = len(loader)
        except TypeError:  # an iterable dataset need not know its length
            self.num_steps = None

    def raw(self) -> Iterator[Batch]:
        if isinstance(self._loader.sampler, DistributedSampler):
            self._loader.sampler.set_epoch(int(from_main(torch.randint(2**31, (), device=self.like.device))))
        for batch in self._loader:
            parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
            columns = [*self._columns, *[None] * len(parts)]
            pairs = zip(parts[: self._num_fields], columns, strict=False)
            fields = tuple(as_tensor(part, self.name, names).detach() for part, names in pairs)
            self.total = len(fields[0]) * num_processes()
            if self._dtype is None:
                self._dtype = self._dtype_of(*fields)
            yield self._on_device((fields[0].to(self._dtype), *fields[1:]))

    def _dtype_of(self, x: Tensor, *covariates: Tensor) -> torch.dtype:
        """Of what the model or, where there is one, the transform is given."""
        if x.is_floating_point() or self.transform is not None:
            return self.like.dtype
        x = self._model.as_data(x, self.name, covariates)
        return self.like.dtype if x.is_floating_point() else x.dtype

    def hash(self) -> str:
        tensors = getattr(self._loader.dataset, "tensors", None)
        return content_hash(*tensors[: self._num_fields]) if tensors else super().hash()


def _whole(loader: DataLoader) -> int | None:
    """Rows of a whole batch, where that follows from the loader's settings."""
    stated = loader.batch_size is not None and loader.collate_fn is default_collate
    if not stated or isinstance(loader.dataset, IterableDataset) or len(loader.sampler) < loader.batch_size:  # type: ignore
        return None
    return loader.batch_size


def as_batches(
    model: Model,
    data: Any,
    *,
    batch_size: int,
    transform: Transform | None,
    name: str,
    large: bool = False,
) -> Batches:
    """Batches of ``data``: a tensor, array or DataFrame, a tuple of them (x, then covariates), a ``Dataset`` or a
    ``DataLoader`` (which keeps its own batch size). ``large`` ones, of data in memory, are for a loss alone.

    Raises:
        TypeError: data of another kind, a list among them.
        ValueError: wrong shape, integer, NaN or empty data, covariates of another length or index, a tuple with more
            fields than the model takes.
    """
    at_least(1, batch_size=batch_size)
    if isinstance(data, DataLoader):
        return LoaderBatches(data, model, transform, name)
    if isinstance(data, (*ARRAYS, tuple)):
        tensors = in_memory(model, data, name)
        if large:
            batch_size = max(batch_size, min(_LARGER * batch_size, _LOOK // max(tensors[0][0].numel(), 1)))
        return TensorBatches(tensors, batch_size, model.like(), transform, name)
    if isinstance(data, Dataset):
        if not isinstance(data, IterableDataset) and len(data) == 0:  # type: ignore[arg-type]
            raise ValueError(f"{name} is empty. Pass at least one datum.")
        if name == "data" and num_processes() > 1 and not isinstance(data, IterableDataset):
            mine = max(1, batch_size // num_processes())
            loader = DataLoader(data, mine, sampler=DistributedSampler(data))
        else:
            loader = DataLoader(data, batch_size, shuffle=not isinstance(data, IterableDataset))
        return LoaderBatches(loader, model, transform, name)
    check_container(data, name)
    raise TypeError(
        f"{name} must be a tensor, array, DataFrame, tuple of them, Dataset, DataLoader or datasets.load(...); "
        f"got {type(data).__name__}."
    )


def _warn_if_not_evaluable(model: VAEModel, *batch: Any, name: str) -> None:
    try:
        check_densities(model.check(*batch, num_particles=2, name=name))
    except Exception as error:  # whatever a program does that is not made for particles
        warnings.warn(
            f"{type(model).__name__} can be trained like this, but no estimator of log p(x) will take it: "
            f"{error_message(error)}",
            stacklevel=5,
        )


def as_fields(data: Any) -> tuple[Any, ...]:
    """x and the covariates of data in memory; nothing of what is iterated."""
    return data if isinstance(data, tuple) else (data,) if isinstance(data, ARRAYS) else ()


def in_memory(model: Model, data: Any, name: str) -> Batch:
    """x and the covariates of data in memory as tensors, checked; see :func:`as_batches`."""
    fields, most = as_fields(data), 1 + num_covariates(model)[1]
    if len(fields) > most:
        fix = f"{name}[:{most}]" if most > 1 else f"{name}[0]"
        raise ValueError(
            f"{name} is a tuple of {len(fields)} fields, and {type(model).__name__}.{program(model).__name__} takes x "
            f"and {most - 1} covariate(s): pass {fix}, or torch.cat({name}) if these are batches of x."
        )
    if not fields:
        raise ValueError(f"{name} is empty. Pass at least one datum.")
    x, covariates = as_inputs(model, fields[0], fields[1:], name)
    for i, c in enumerate(covariates):
        if not (isinstance(c, Tensor) and c.dim()):
            raise ValueError(
                f"covariate {i} of {name} is of type {type(fields[i + 1]).__name__} and has no rows: batches need one "
                f"for each datum."
            )
    return x, *covariates


def split(model: Model, data: Any, fraction: float) -> tuple[Batch, Batch]:
    """Hold out a random ``fraction`` of tensors, arrays or DataFrames: (training, validation)."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation as a fraction must be between 0 and 1; got {fraction}.")
    check_container(None if isinstance(data, tuple) else data, "data")
    if not isinstance(data, (*ARRAYS, tuple)):
        raise ValueError("validation as a fraction needs tensors, arrays or DataFrames; pass the validation set.")
    tensors = in_memory(model, data, "data")
    order = from_main(torch.randperm(len(tensors[0])))
    held_out = math.ceil(fraction * len(order))
    if held_out == len(order):
        raise ValueError(f"validation={fraction} leaves none of the {len(order)} data to train on.")
    return tuple(t[order[held_out:]] for t in tensors), tuple(t[order[:held_out]] for t in tensors)
