"""Seeds that do not leak: a stochastic function reseeds torch inside a block and restores it after."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def reseed(*numbers: int) -> None:
    """Seed torch's generators from several numbers that are not negative, for one block of a run among many."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def get_state() -> list[torch.Tensor]:
    """The states of torch's CPU and CUDA generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def set_state(states: list[torch.Tensor]) -> None:
    """Put back what :func:`get_state` gave."""
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])
