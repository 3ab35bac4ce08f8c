"""Seeds that do not leak: a stochastic function reseeds torch inside a block and restores it after."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run the block from ``seed`` and put every generator back afterwards; ``None`` changes nothing.

    Args:
        seed: seed of torch's CPU and CUDA generators inside the block.
    """
    if seed is None:
        yield
        return
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield
