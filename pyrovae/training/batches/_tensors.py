"""Batches of tensors in memory."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyrovae._distributed import from_main, gathered, my_share, num_processes
from pyrovae._hash import content_hash
from pyrovae._random import get_state, set_state
from pyrovae.model import LogTerms
from pyrovae.training.batches._base import Batch, Batches, Model, Tensors, Transform

MAX_NUMBERS_AT_ONCE = 2**20  # of x, in what is looked at, or validated on, together


class TensorBatches(Batches):
    """Shuffled batches of tensors, kept on the device when they take less than half of its free memory.

    Then a step takes their rows, and gathers them itself. Several processes share every batch.
    """

    def __init__(self, tensors: Tensors, batch_size: int, like: Tensor, transform: Transform | None, name: str) -> None:
        super().__init__(like, transform, name)
        size = sum(t.numel() * t.element_size() for t in tensors)
        room = like.device.type != "cuda" or size < torch.cuda.mem_get_info(like.device)[0] // 2
        self._resident = all(gathered(room))  # the order of the data is drawn where they are
        if self._resident:
            tensors = tuple(t.to(like.device) for t in tensors)
        self._tensors, self._batch_size = tensors, batch_size
        self.num_steps = math.ceil(len(tensors[0]) / batch_size)
        self.size = min(batch_size, len(tensors[0])) if num_processes() == 1 else None

    def __iter__(self) -> Iterator[Batch]:
        order = from_main(torch.randperm(len(self._tensors[0])))  # the same wherever the data are
        for rows in order.to(self._tensors[0].device).split(self._batch_size):
            mine, weight = my_share(rows), 1.0 if len(rows) >= num_processes() else 1 / num_processes()
            yield Batch((mine,) if self._resident else self._on_device(self._rows(mine)), len(rows), weight)

    def prepare(self, *raw: Tensor) -> Tensors:
        return super().prepare(*(self._on_device(self._rows(raw[0])) if self._resident else raw))

    def _rows(self, rows: Tensor) -> Tensors:
        return tuple(t[rows] for t in self._tensors)

    def check(self, model: Model, num_particles: int = 1, *, paired: bool = True) -> LogTerms | None:
        terms = super().check(model, num_particles, paired=paired)
        generators = get_state()
        x = self._tensors[0]
        for rows in torch.arange(len(x)).split(max(self._batch_size, MAX_NUMBERS_AT_ONCE // x[0].numel())):
            self.look(model, super().prepare(*self._on_device(self._rows(rows.to(x.device)))))
        set_state(generators)
        return terms

    def in_first_epoch(self, model: Model, batch: Batch) -> None:
        """Nothing: :meth:`check` has seen everything, as the transform may draw it."""

    def hash(self) -> str:
        return content_hash(*self._tensors)
