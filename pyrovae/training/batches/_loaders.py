"""Batches of a ``DataLoader``."""

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, default_collate

from pyrovae._checks import as_tensor
from pyrovae._distributed import from_main, num_processes
from pyrovae._hash import content_hash
from pyrovae.model._inputs import num_covariates
from pyrovae.training.batches._base import Batch, Batches, Model, Transform


class LoaderBatches(Batches):
    """Batches of a ``DataLoader``; fields that the model does not take are dropped."""

    def __init__(self, loader: DataLoader, model: Model, transform: Transform | None, name: str) -> None:
        super().__init__(model.like(), transform, name)
        self._loader, self._num_fields, self.size = loader, 1 + num_covariates(model)[1], _whole(loader)
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
        with suppress(TypeError):  # an iterable dataset need not know its length
            self.num_steps = len(loader)

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self._loader.sampler, DistributedSampler):
            self._loader.sampler.set_epoch(int(from_main(torch.randint(2**31, (), device=self.like.device))))
        for loaded in self._loader:
            parts = tuple(loaded) if isinstance(loaded, (tuple, list)) else (loaded,)
            columns = [*(self._model.columns or []), *[None] * len(parts)]
            pairs = zip(parts[: self._num_fields], columns, strict=False)
            fields = tuple(as_tensor(part, self.name, names).detach() for part, names in pairs)
            if self._dtype is None:
                self._dtype = self._dtype_of(*fields)
            raw = self._on_device((fields[0].to(self._dtype), *fields[1:]))
            yield Batch(raw, len(raw[0]) * num_processes())

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
    size = loader.batch_size
    if size is None or loader.collate_fn is not default_collate or isinstance(loader.dataset, IterableDataset):
        return None
    return size if len(loader.sampler) >= size else None  # type: ignore[arg-type]
