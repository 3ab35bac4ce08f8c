"""How much to compute at once: a short probe of what one draw costs in memory, and the memory allowed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pyrovae._compat.torch import DispatchMode, is_out_of_memory, tree_leaves
from pyrovae._turns import turn

T = TypeVar("T")
Sizes = tuple[int, int]  # data, and draws of each, at once

BLOCK = {"cpu": 64 * 2**20, "cuda": 2**30}  # bytes of a block of draws: enough that Python does not count
SLICE = {"cpu": 20 * 2**20, "cuda": 2**30}  # bytes to score at once: what stays in a CPU's caches, what fills a GPU
CUDA_FRACTION = 0.25  # of the free device memory


class Allocations(DispatchMode):
    """Sums the bytes of every new tensor: an upper bound on what the block holds at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _storage(tensor) not in known:
                self.bytes += tensor.untyped_storage().nbytes()
        return out


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Cost:
    """Bytes that a run needs for every datum, and on top of that for every draw of every datum."""

    per_datum: int
    per_draw: int

    def of(self, num_samples: int) -> int:
        """Bytes of a datum with all its draws."""
        return self.per_datum + num_samples * self.per_draw


def probe(run: Callable[[int, int], Any]) -> Cost:
    """The cost of ``run(num_data, num_samples)``, from three short runs."""

    def allocated(num_data: int, num_samples: int) -> int:
        with turn(), Allocations() as counted:
            run(num_data, num_samples)
        return counted.bytes

    one = allocated(1, 2)
    per_draw = max((allocated(1, 10) - one) // 8, 1)
    return Cost(max(allocated(2, 2) - one - 2 * per_draw, 0), per_draw)


def plan(num_data: int, num_samples: int, budget: int, cost: Cost, *, whole: bool = False) -> Sizes:
    """Data and draws to take at once: all draws of as many data as fit, or part of the draws of one; ``whole`` data
    have all their draws together, fit or not.
    """
    draws = num_samples if whole else min(num_samples, max((budget - cost.per_datum) // cost.per_draw, 1))
    draws = -(-num_samples // -(-num_samples // draws))  # chunks of equal size
    return max(1, min(num_data, budget // cost.of(draws))), draws


def within_memory(attempt: Callable[[Sizes], T], sizes: Sizes, device: torch.device) -> tuple[T, Sizes]:
    """``attempt(sizes)``; where memory runs out, with half as many data, or half as many draws of a single one.

    Returns:
        What it gave, and the sizes that sufficed.
    """
    while True:
        try:
            return attempt(sizes), sizes
        except RuntimeError as error:
            if not is_out_of_memory(error) or sizes == (1, 1):
                raise
        # Outside the handler, which holds on to what was computed.
        data, draws = sizes
        sizes = (-(-data // 2), draws) if data > 1 else (1, -(-draws // 2))
        if device.type == "cuda":
            torch.cuda.empty_cache()


def reuse_memory(device: torch.device) -> None:
    """Let a CPU's blocks reuse memory. A block of this size, once freed, makes glibc keep smaller ones instead of
    returning their pages to the system, which costs more than computing on them. Elsewhere it does nothing.
    """
    if device.type == "cpu":
        torch.empty(2**25 - 2**13, dtype=torch.uint8, device=device)


def default_budget(device: torch.device) -> int:
    """Bytes that a chunk may take where the user does not say."""
    if device.type == "cuda":
        return int(CUDA_FRACTION * torch.cuda.mem_get_info(device)[0])
    return SLICE["cpu"]
