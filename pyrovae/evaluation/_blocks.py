"""A model run over all data and draws, block by block."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from pyrovae.evaluation._chunks import BLOCK, chunk_sizes, probe
from pyrovae.evaluation._strict import TestSet
from pyrovae.model import VAEModel

T = TypeVar("T")


def blocks(run: Callable[..., T], model: VAEModel, data: TestSet, num_samples: int) -> Iterator[tuple[slice, T]]:
    """``run(x, *covariates, num_particles=k)`` over all data, and for each datum over ``num_samples`` draws.

    The blocks' sizes follow from the model, the data and the number of draws alone, so a seed fixes the draws.

    Args:
        run: ``model.log_terms`` or ``model.draw_posterior``.
        model: the model, on its device.
        data: the data.
        num_samples: K.

    Yields:
        The rows of the data and what ``run`` returned for some of their draws; blocks of the same rows are adjacent.
    """
    like = model.like()
    cost = probe(lambda n, k: run(*data.part(slice(n), like), num_particles=k))
    size, draws = chunk_sizes(len(data), num_samples, BLOCK[like.device.type], cost)
    count = -(-num_samples // draws)
    for start in range(0, len(data), size):
        rows = slice(start, min(start + size, len(data)))
        part = data.part(rows, like)
        for i in range(count):
            yield rows, run(*part, num_particles=num_samples * (i + 1) // count - num_samples * i // count)
