"""The two kinds of batches: of tensors in memory, and of a ``DataLoader``."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from pyrovae._checks import as_tensor
from pyrovae._distributed import from_main, gathered, my_share, num_processes
from pyrovae._hash import content_hash
from pyrovae._random import restored_state, undisturbed
from pyrovae._turns import turn
from pyrovae.model._inputs import num_covariates
from pyrovae.model._rows import Numbers
from pyrovae.training._describe import fingerprint, has_generator
from pyrovae.training.batches._base import Batch, Batches, Model, Tensors, Transform

MAX_NUMBERS_AT_ONCE = 2**20  # of x, in what is looked at, or validated on, together
_ITEMS_LOOKED_AT = 1000  # of a Dataset, to know it by


class TensorBatches(Batches):
    """Shuffled batches of tensors, kept on the device when they take less than half of its free memory.

    Then a step takes their rows, and gathers them itself. Several processes share every batch.
    """

    def __init__(
        self,
        tensors: Tensors,
        batch_size: int,
        model: Model,
        transform: Transform | None,
        name: str,
        numbers: Tensor | None = None,
    ) -> None:
        super().__init__(model, transform, name)
        self._numbers = torch.arange(len(tensors[0]), device="cpu") if numbers is None else numbers
        size = sum(t.numel() * t.element_size() for t in tensors)
        room = self.like.device.type != "cuda" or size < torch.cuda.mem_get_info(self.like.device)[0] // 2
        self._resident = all(gathered(room))  # the order of the data is drawn where they are
        if self._resident:
            tensors = tuple(t.to(self.like.device) for t in tensors)
        self._tensors, self._batch_size = tensors, batch_size
        sizes = [len(rows) for rows in self._split(torch.arange(len(tensors[0]), device="cpu"))]
        self.num_steps, self.least = len(sizes), min(sizes) // num_processes()
        self.size = sizes[0] if num_processes() == 1 else None

    def __iter__(self) -> Iterator[Batch]:
        with turn():
            order = torch.randperm(len(self._tensors[0]), device="cpu")
        order = from_main(order)  # the same wherever the data are
        for rows in self._split(order.to(self._tensors[0].device)):
            mine, weight = my_share(rows), 1.0 if len(rows) >= num_processes() else 1 / num_processes()
            yield Batch((mine,) if self._resident else self._on_device(self._rows(mine)), len(rows), weight, mine)

    def _split(self, order: Tensor) -> Sequence[Tensor]:
        """The rows of batches. One that is left over joins the last batch: alone it has no statistics to normalise by,
        nor much of a gradient.
        """
        parts = order.split(self._batch_size)
        if len(parts) > 1 and len(parts[-1]) == 1 < self._batch_size:
            return *parts[:-2], order[-self._batch_size - 1 :]
        return parts

    def numbers(self, batch: Batch) -> Numbers:
        return None if batch.rows is None else self._numbers[batch.rows.cpu()]

    def prepare(self, *raw: Tensor) -> Tensors:
        return super().prepare(*(self._on_device(self._rows(raw[0])) if self._resident else raw))

    def _rows(self, rows: Tensor) -> Tensors:
        return tuple(t[rows] for t in self._tensors)

    def check(self, objective: PyroELBO | None) -> None:
        super().check(objective)
        x = self._tensors[0]
        at_once = max(self._batch_size, MAX_NUMBERS_AT_ONCE // x[0].numel())
        with restored_state():
            for rows in torch.arange(len(x), device="cpu").split(at_once):
                self.look(super().prepare(*self._on_device(self._rows(rows.to(x.device)))), self._numbers[rows])

    def in_first_epoch(self, batch: Batch) -> None:
        """Nothing: :meth:`check` has seen everything, as the transform may draw it."""

    def hash(self) -> str:
        return content_hash(*self._tensors)


class LoaderBatches(Batches):
    """Batches of a ``DataLoader``; fields that the model does not take are dropped."""

    def __init__(self, loader: DataLoader, model: Model, transform: Transform | None, name: str) -> None:
        super().__init__(model, transform, name)
        self._loader, self._num_fields, self.size = loader, 1 + num_covariates(model)[1], _whole(loader)
        self.least = _least(loader)
        self._dtype: torch.dtype | None = None  # of x, which the first batch decides
        self._hash: str | None = None
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
        with suppress(TypeError):  # an iterable dataset need not know its length
            self.num_steps = len(loader)

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self._loader.sampler, DistributedSampler):
            with turn():
                epoch = torch.randint(2**31, (), device=self.like.device)
            self._loader.sampler.set_epoch(int(from_main(epoch)))
        for loaded in self._load():
            parts = tuple(loaded) if isinstance(loaded, (tuple, list)) else (loaded,)
            columns = [*(self.model.columns or []), *[None] * len(parts)]
            pairs = zip(parts[: self._num_fields], columns, strict=False)
            fields = tuple(as_tensor(part, self.name, names).detach() for part, names in pairs)
            if self._dtype is None:
                self._dtype = self._dtype_of(*fields)
            raw = self._on_device((fields[0].to(self._dtype), *fields[1:]))
            yield Batch(raw, len(raw[0]) * num_processes())

    def _load(self) -> Iterator[Any]:
        """What the loader gives. The seed of its order is drawn in a turn; loading is not part of one."""
        loader: Any = copy.copy(self._loader)
        sampler: Any = copy.copy(loader.sampler)
        plain = type(sampler) is RandomSampler and type(loader.batch_sampler) is BatchSampler
        if plain and sampler.generator is None and not loader.num_workers:  # with workers the order begins at once
            batch_sampler = copy.copy(loader.batch_sampler)
            batch_sampler.sampler = sampler
            vars(loader).update(sampler=sampler, batch_sampler=batch_sampler)
            with turn():
                loading = iter(loader)
                seed = int(torch.empty((), dtype=torch.int64).random_())  # as the sampler would draw it, later
            sampler.generator = torch.Generator().manual_seed(seed)
        else:
            with turn():
                loading = iter(self._loader)
        yield from loading

    def _dtype_of(self, x: Tensor, *covariates: Tensor) -> torch.dtype:
        """Of what the model or, where there is one, the transform is given."""
        if x.is_floating_point() or self.transform is not None:
            return self.like.dtype
        x = self.model.as_data(x, self.name, covariates)
        return self.like.dtype if x.is_floating_point() else x.dtype

    def hash(self) -> str:
        """Of tensors their content; else that of the items, of many the first thousand or, where they have numbers, a
        thousand evenly among them.
        """
        dataset = self._loader.dataset
        if type(dataset) is TensorDataset:
            return content_hash(*dataset.tensors[: self._num_fields])
        if self._hash is None:
            with undisturbed():  # the same items, should they be drawn
                known = fingerprint([super().hash(), self._some_items()])
            self._hash = f"{type(dataset).__qualname__} {known.split()[-1]}"
        return self._hash

    def _some_items(self) -> list[Any]:
        """How many there are, and some: made where the loader makes them, as a file that workers open must not be open
        before there are workers.
        """
        loader, options = self._loader, ("num_workers", "worker_init_fn", "multiprocessing_context")
        dataset, count = loader.dataset, None
        if not isinstance(dataset, IterableDataset):
            count = len(dataset)  # type: ignore[arg-type]
            some = torch.linspace(0, max(count - 1, 0), min(count, _ITEMS_LOOKED_AT), dtype=torch.float64)
            dataset = Subset(dataset, some.round().long().tolist())
        same = {name: getattr(loader, name) for name in options}
        items = DataLoader(dataset, batch_size=None, collate_fn=_as_it_is, **same)
        try:
            return [count, *islice(items, _ITEMS_LOOKED_AT)]
        except (LookupError, TypeError):  # it goes by names
            return [count]

    def order(self) -> Any:
        loader, fix = self._loader, "leave it to torch's own generators, which fit(seed=...) seeds."
        samplers = [loader.sampler, loader.batch_sampler]
        if loader.generator is not None or has_generator(samplers):
            raise ValueError(
                f"the DataLoader draws from a generator of its own, whose state checkpoints do not keep: {fix}"
            )
        if has_generator(loader.dataset):
            raise ValueError(f"the Dataset holds a generator of its own, whose state checkpoints do not keep: {fix}")
        if loader.persistent_workers:
            raise ValueError(
                "the DataLoader has persistent_workers, whose state checkpoints do not keep: leave them out."
            )
        known = {id(loader.dataset): "data"}
        own = [] if isinstance(loader.sampler, DistributedSampler) else [fingerprint(s, known) for s in samplers]
        return [type(loader.sampler).__qualname__, loader.num_workers, fingerprint(loader.collate_fn, known), *own]


def _as_it_is(item: Any) -> Any:
    return item


def _whole(loader: DataLoader) -> int | None:
    """Rows of a whole batch, where that follows from the loader's settings."""
    size = loader.batch_size
    if size is None or loader.collate_fn is not default_collate or isinstance(loader.dataset, IterableDataset):
        return None
    return size if len(loader.sampler) >= size else None  # type: ignore[arg-type]


def _least(loader: DataLoader) -> int | None:
    """Rows of the smallest batch, where that follows from the loader's settings."""
    if (size := _whole(loader)) is None:
        return None
    return size if loader.drop_last else (len(loader.sampler) % size or size)  # type: ignore[arg-type]
