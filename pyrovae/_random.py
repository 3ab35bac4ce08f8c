"""Seeds that do not leak: a stochastic function reseeds torch inside a block and restores it after."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run the block from fixed seeds of torch, NumPy and Python, and put their generators back afterwards."""
    others = others_state()
    with seeded(0):
        try:
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)
            yield
        finally:
            set_others_state(*others)


def derived(*numbers: int) -> int:
    """A seed that follows from several numbers that are not negative, for one block of a run among many."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def reseed(*numbers: int) -> None:
    """Seed torch's generators by :func:`derived`."""
    torch.manual_seed(derived(*numbers))


def get_state() -> list[torch.Tensor]:
    """The states of torch's CPU and CUDA generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def set_state(states: list[torch.Tensor]) -> None:
    """Put back what :func:`get_state` gave."""
    torch.set_rng_state(states[0])
    for i, state in enumerate(states[1:][: torch.cuda.device_count()]):  # a machine with fewer devices takes fewer
        torch.cuda.set_rng_state(state, i)


def others_state() -> tuple[Any, Any]:
    """The states of NumPy's and Python's global generators."""
    return np.random.get_state(legacy=True), random.getstate()  # noqa: NPY002


def set_others_state(numpy_state: Any, python_state: Any) -> None:
    """Put back what :func:`others_state` gave."""
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)


def get_every_state() -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's generators, as tensors and numbers."""
    (_, key, pos, has_gauss, gauss), python = others_state()
    numpy = [torch.from_numpy(key.astype(np.int64)), int(pos), int(has_gauss), float(gauss)]
    return {"torch": get_state(), "numpy": numpy, "python": list(python)}


def set_every_state(states: dict[str, Any]) -> None:
    """Put back what :func:`get_every_state` gave."""
    set_state(states["torch"])
    key, pos, has_gauss, gauss = states["numpy"]
    version, internal, gauss_next = states["python"]
    set_others_state(
        ("MT19937", key.numpy().astype(np.uint32), pos, has_gauss, gauss), (version, tuple(internal), gauss_next)
    )
