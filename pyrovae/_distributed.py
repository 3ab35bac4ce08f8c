"""Several processes started by ``torchrun``, one for each device: who am I, and what do the others have.

In an ordinary run there is one process, and every function here does nothing.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def connect() -> None:
    """Join the other processes, if ``torchrun`` started this one and nobody has joined them yet."""
    if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def num_processes() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: rank 0, or the only one.

    Under ``torchrun`` it may be asked before anything else, and then joins the processes.
    """
    connect()
    return rank() == 0


def from_main(tensor: Tensor) -> Tensor:
    """Rank 0's tensor, everywhere."""
    if num_processes() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def my_share(rows: Tensor) -> Tensor:
    """This process's part of some rows, equal up to one; all of them where there are fewer rows than processes."""
    size = num_processes()
    return rows if len(rows) < size else rows.tensor_split(size)[rank()]


def summed(tensor: Tensor) -> Tensor:
    """The sum over processes, everywhere."""
    if num_processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def gathered(value: T) -> list[T]:
    """Every process's value, in the order of ranks."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def mine(parts: Sequence[T]) -> Sequence[T]:
    """Every so many-th of some parts, so that all processes together have all of them."""
    return parts[rank() :: num_processes()]


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
