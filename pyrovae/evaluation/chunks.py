"""How much to compute at once: a short probe of what one draw costs in memory, and the memory allowed."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU_BUDGET = 64 * 2**20  # beyond the caches a larger chunk only costs page faults
CUDA_FRACTION = 0.25  # of the free device memory


class _Allocations(TorchDispatchMode):
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


def bytes_per_draw(run: Callable[[int], Any]) -> int:
    """Memory that one more particle needs, from two short runs of ``run(num_particles)``."""
    sizes = []
    for k in (2, 10):
        with _Allocations() as counted:
            run(k)
        sizes.append(counted.bytes)
    return max((sizes[1] - sizes[0]) // 8, 1)


def default_budget(device: torch.device) -> int:
    """Bytes that a chunk may take where the user does not say."""
    if device.type == "cuda":
        return int(CUDA_FRACTION * torch.cuda.mem_get_info(device)[0])
    return CPU_BUDGET


def chunk_sizes(num_data: int, num_samples: int, budget: int, per_draw: int) -> tuple[int, int]:
    """Data and draws to take at once: all draws of as many data as fit, or part of the draws of one."""
    rows = max(budget // per_draw, 1)
    draws = min(num_samples, rows)
    draws = -(-num_samples // -(-num_samples // draws))  # chunks of equal size
    return max(1, min(num_data, rows // draws)), draws
