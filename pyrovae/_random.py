"""Seeds that do not leak: a stochastic function reseeds torch inside a block and restores it after."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from pyrovae._turns import kept, turn


class _Stream:
    """Random numbers of torch's from a seed; outside, the generators are as they were."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._state: list[torch.Tensor] | None = None  # when they were left

    def __enter__(self) -> None:
        self._before = get_state()
        if self._state is not None:
            set_state(self._state)
        else:
            _manual_seed(self._seed)

    def __exit__(self, *error: object) -> None:
        self._state = get_state()
        self.put_back()

    def put_back(self) -> None:
        """Leave it, never to come back."""
        set_state(self._before)
        if torch.cuda.is_initialized() and len(self._before) == 1:  # since: it would have begun with this seed
            torch.cuda.manual_seed_all(torch.initial_seed())


def stream(seed: int | None) -> AbstractContextManager[None]:
    """Give this thread's turns in the block random numbers from ``seed``, and put every generator back afterwards;
    ``None`` changes nothing.

    Args:
        seed: seed of torch's CPU and CUDA generators.
    """
    if seed is None:
        return nullcontext()
    own = _Stream(seed)
    return kept(lambda: own)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """The same, for a block that is one turn."""
    with turn():
        if seed is None:
            yield
            return
        own = _Stream(seed)
        own.__enter__()
        try:
            yield
        finally:
            own.put_back()


@contextmanager
def restored_on_error() -> Iterator[None]:
    """Put torch's generators back if the block fails, so that what could not be built has drawn nothing."""
    with turn():
        states = get_state()
    try:
        yield
    except BaseException:
        with turn():
            set_state(states)
        raise


@contextmanager
def restored_state() -> Iterator[None]:
    """Let the block, one turn, draw, and put torch's generators back afterwards."""
    with turn():
        states = get_state()
        try:
            yield
        finally:
            set_state(states)


@contextmanager
def undisturbed(seed: int = 0) -> Iterator[None]:
    """Run the block from fixed seeds of torch, NumPy and Python, and put their generators back afterwards. Data may be
    loaded in it, so that it is not one turn.
    """
    with stream(seed):
        others = others_state()
        try:
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            set_others_state(others)


def derived(*numbers: int) -> int:
    """A seed that follows from several numbers that are not negative, for one block of a run among many."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def reseed(*numbers: int) -> None:
    """Seed torch's generators by :func:`derived`."""
    _manual_seed(derived(*numbers))


def _manual_seed(seed: int) -> None:
    """Seed torch's CPU and CUDA generators. (``torch.manual_seed`` takes longer over devices that are not there than a
    small model takes to encode.)
    """
    torch.default_generator.manual_seed(int(seed))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(seed))


def get_state() -> list[torch.Tensor]:
    """The states of torch's CPU and CUDA generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def set_state(states: list[torch.Tensor]) -> None:
    """Put back what :func:`get_state` gave."""
    torch.set_rng_state(states[0])
    for i, state in enumerate(states[1:][: torch.cuda.device_count()]):  # a machine with fewer devices takes fewer
        torch.cuda.set_rng_state(state, i)


def others_state() -> dict[str, Any]:
    """The states of NumPy's and Python's global generators, as numbers."""
    numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    return {"numpy": [numpy[1].tolist(), *numpy[2:]], "python": list(random.getstate())}


def set_others_state(states: dict[str, Any]) -> None:
    """Put back what :func:`others_state` gave.

    Raises:
        ValueError: it is something else, which NumPy would take, and read memory that is not its own.
    """
    key, place, has_gauss, gauss = states["numpy"]
    version, internal, normal = states["python"]
    words = len(key) == 624 and all(type(word) is int and 0 <= word < 2**32 for word in key)
    if not (words and type(place) is int and 0 <= place <= 624 and has_gauss in (0, 1)):
        raise ValueError("the state of NumPy's generator is not one that it could have.")
    if not isinstance(gauss, float) or not isinstance(normal, (float, type(None))):
        raise ValueError("the state of a generator holds a normal number that is none.")
    np.random.set_state(("MT19937", key, place, has_gauss, gauss))  # noqa: NPY002
    random.setstate((version, tuple(internal), normal))


def get_every_state() -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's generators, as tensors and numbers."""
    with turn():
        return {"torch": get_state(), **others_state()}


def set_every_state(states: dict[str, Any]) -> None:
    """Put back what :func:`get_every_state` gave."""
    with turn():
        set_state(states["torch"])
        set_others_state(states)
