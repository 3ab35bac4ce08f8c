"""Several processes started by ``torchrun``, one for each device: who am I, and what do the others have.

In an ordinary run there is one process, and every function here does nothing.
"""

import os
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def connect() -> None:
    """Join the other processes, if ``torchrun`` started this one and nobody has joined them yet."""
    if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    if torch.cuda.is_available():
        # Some launchers let every process see its own device alone.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


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


def from_main(value: T) -> T:
    """Rank 0's value, everywhere: a tensor, filled in place, or anything that can be pickled."""
    if num_processes() == 1:
        return value
    if isinstance(value, Tensor):
        whole = value.contiguous()
        dist.broadcast(whole, 0)
        value.copy_(whole)
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def common_seed(seed: int | None) -> int | None:
    """A seed for all processes: rank 0's, which it draws where it has none. A single process keeps its own."""
    if num_processes() == 1:
        return seed
    return from_main(int(torch.randint(2**62, ())) if seed is None else seed)


def my_share(rows: Tensor) -> Tensor:
    """This process's part of some rows, equal up to one; all of them where there are fewer rows than processes."""
    size = num_processes()
    return rows if len(rows) < size else rows.tensor_split(size)[rank()]


def my_blocks(num_rows: int, block: int) -> slice:
    """This process's part of so many rows: a run of whole blocks, in the order of ranks; it may be empty."""
    blocks = -(-num_rows // block)
    first, last = (-(-blocks * r // num_processes()) for r in (rank(), rank() + 1))
    return slice(min(first * block, num_rows), min(last * block, num_rows))


def joined(columns: dict[Any, np.ndarray], rows: slice) -> dict[Any, np.ndarray]:
    """Whole columns, of which every process has filled in its rows, runs in the order of ranks."""
    if num_processes() == 1:
        return columns
    parts = [part for part in gathered({name: column[rows] for name, column in columns.items()}) if part]
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def summed(tensor: Tensor) -> Tensor:
    """The sum over processes, everywhere."""
    if num_processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def averaged(tensors: list[Tensor]) -> list[Tensor]:
    """Means over processes, everywhere, in one exchange for every dtype."""
    out = list(tensors)
    for dtype in dict.fromkeys(t.dtype for t in tensors):  # in the same order everywhere
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        whole = summed(torch.cat([tensors[i].flatten() for i in places])) / num_processes()
        for i, part in zip(places, whole.split([tensors[i].numel() for i in places]), strict=True):
            out[i] = part.view_as(tensors[i])
    return out


def gathered(value: T) -> list[T]:
    """Every process's value, in the order of ranks."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def check_same_everywhere(fix: str, **hashes: str) -> None:
    """Raise a ``ValueError`` where processes were given different things to work on together."""
    for name, value in hashes.items():
        if len(set(values := gathered(value))) > 1:
            raise ValueError(
                f"{name} must be the same in all {len(values)} processes; its content hashes are {', '.join(values)}. "
                f"{fix}"
            )


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
