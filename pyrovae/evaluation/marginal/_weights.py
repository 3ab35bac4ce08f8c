"""Importance weights, block by block: what is drawn depends on the seed alone, what is scored at once on memory."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import at_least
from pyrovae._compat.torch import is_out_of_memory
from pyrovae._distributed import my_blocks
from pyrovae._graph import Compile, Graph
from pyrovae._random import reseed, seeded
from pyrovae.evaluation._chunks import BLOCK, SLICE, chunk_sizes, default_budget, halved, probe
from pyrovae.evaluation._strict import TestSet, as_test_set, strict
from pyrovae.model import Latents, VAEModel

PROPOSALS = ("posterior", "prior")


class LogWeights:
    """log p(x, z) - log q(z | x) for K draws of every datum, under :func:`~pyrovae.evaluation._strict.strict`.

    Draws come in blocks whose sizes and seeds follow from the model, the data and K alone. Each block is scored in
    slices that fit the memory budget, halved where memory runs out all the same, so that the budget changes rounding at
    most. Where memory does not even suffice to draw a block, it is halved, too; only then are the draws others.

    Args:
        model: the model, on its device.
        data: the data.
        num_samples: K.
        proposal: ``"posterior"`` draws from the guide, ``"prior"`` from the model, with log p(x | z) as weight.
        memory_budget: bytes that one slice may take.
        compile: whether drawing and scoring become machine code.

    Raises:
        ValueError: an unknown proposal or way to compile, a budget that is not positive.
    """

    def __init__(
        self,
        model: VAEModel,
        data: TestSet,
        num_samples: int,
        proposal: Literal["posterior", "prior"] = "posterior",
        memory_budget: int | None = None,
        compile: Compile = "off",
    ) -> None:
        if proposal not in PROPOSALS:
            raise ValueError(f"proposal must be 'posterior' or 'prior'; got {proposal!r}.")
        self._model, self._data, self._k = model, data, num_samples
        self._like = like = model.like()
        self._seed = int(torch.randint(2**62, ()))
        budget = default_budget(like.device) if memory_budget is None else memory_budget
        at_least(1, memory_budget=budget)
        block = BLOCK[like.device.type]

        def draw(k: int, *part: Any) -> tuple[Latents, Tensor, Tensor | None]:
            if proposal == "prior":  # one run of the model draws and scores
                return model.draw_prior(*part, num_particles=k)
            return *model.draw_posterior(*part, num_particles=k), None

        def score(latents: Latents, *part: Any) -> Tensor:
            return model.log_joint(*part, latents=latents)

        cost = probe(lambda n, k: draw(k, *data.part(slice(n), like)))
        self._block = chunk_sizes(len(data), num_samples, block, cost)
        if proposal == "posterior":
            few = draw(10, *data.part(slice(2), like))[0]
            cost = probe(lambda n, k: score(_cut(few, slice(k), slice(n)), *data.part(slice(n), like)))
        self._slice = chunk_sizes(*self._block, min(SLICE[like.device.type], budget), cost)
        self._too_many: float = math.inf  # draws at once, for which memory did not suffice
        self._draw = Graph(draw, compile=compile, calls=self._count(self._block))
        self._score = Graph(score, compile=compile, calls=self._count(self._slice))

    def share(self) -> slice:
        """This process's part of all rows."""
        return my_blocks(len(self._data), self._block[0])

    def parts(self, among: slice | None = None) -> Iterator[slice]:
        """The rows to take together, in order: all of them, or those of a :meth:`share`."""
        among = slice(0, len(self._data)) if among is None else among
        for start in range(among.start, among.stop, self._block[0]):
            yield slice(start, min(start + self._block[0], among.stop))

    def __call__(self, rows: slice) -> Iterator[Float[Tensor, "draws rows"]]:
        """The K log-weights of each of the rows, in blocks of draws."""
        for start in range(0, self._k, self._block[1]):
            yield self._block_of(rows, slice(start, min(start + self._block[1], self._k)))

    def _block_of(self, rows: slice, draws: slice) -> Float[Tensor, "draws rows"]:
        """The log-weights of a block: where memory runs out, of its halves, whose draws are others."""
        k, n = draws.stop - draws.start, rows.stop - rows.start
        if n * k < self._too_many:
            try:
                reseed(self._seed, rows.start, draws.start)
                latents, log_q, log_likelihood = self._draw(k, *self._data.part(rows, self._like))
                return self._log_joint(latents, k, rows) - log_q if log_likelihood is None else log_likelihood
            except RuntimeError as error:
                if not is_out_of_memory(error) or (n, k) == (1, 1):
                    raise
            self._too_many = n * k
            self._free()
        if n > 1:
            return torch.cat([self._block_of(half, draws) for half in _halves(rows)], dim=1)
        return torch.cat([self._block_of(rows, half) for half in _halves(draws)])

    def _count(self, sizes: tuple[int, int]) -> int:
        return -(-len(self._data) // sizes[0]) * -(-self._k // sizes[1])

    def _log_joint(self, latents: Latents, k: int, rows: slice) -> Tensor:
        """log p(x, z), slice by slice, in smaller ones once memory has run out."""
        while True:
            try:
                return self._sliced(latents, k, rows)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._slice == (1, 1):
                    raise
            self._slice = halved(self._slice)
            self._free()

    def _free(self) -> None:
        if self._like.is_cuda:
            torch.cuda.empty_cache()

    def _sliced(self, latents: Latents, k: int, rows: slice) -> Tensor:
        n, out = rows.stop - rows.start, []
        for i in range(0, n, self._slice[0]):
            some = slice(i, min(i + self._slice[0], n))
            part = self._data.part(slice(rows.start + some.start, rows.start + some.stop), self._like)
            if not latents:  # then every draw has the same weight
                out.append(self._score(latents, *part).expand(k, -1))
                continue
            draws = [slice(j, j + self._slice[1]) for j in range(0, k, self._slice[1])]
            out.append(torch.cat([self._score(_cut(latents, d, some), *part) for d in draws]))
        return torch.cat(out, dim=1)


def _halves(part: slice) -> tuple[slice, slice]:
    middle = (part.start + part.stop + 1) // 2
    return slice(part.start, middle), slice(middle, part.stop)


def _cut(latents: Latents, draws: slice, rows: slice) -> Latents:
    """Some draws of some rows, laid out anew."""
    some = latents.draws(draws).rows(rows)
    return Latents({site: z.contiguous() for site, z in some.items()}, some.num_plates)


def log_weights(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_samples: int = 5000,
    proposal: Literal["posterior", "prior"] = "posterior",
    seed: int | None = 0,
    device: str | torch.device | None = None,
) -> Float[Tensor, "draws data"]:
    """All K log-weights log p(x, z) - log q(z | x) of a few data, in nats: those that :func:`~pyrovae.log_marginal`
    reduces, given the same arguments.

    All of them are kept, 8 K N bytes.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide; tensors with N rows are split along with ``x``.
        num_samples: K, draws per datum.
        proposal: as in :func:`~pyrovae.log_marginal`; for ``"prior"`` the weight is log p(x | z).
        seed: seed of the draws. It fixes them for these data together: a datum on its own has other draws.
        device: where to compute; by default where the model is. The model is put back.

    Returns:
        ``(K, N)`` in float64, on the CPU.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`.
        ValueError: as :func:`~pyrovae.log_marginal`.
    """
    at_least(1, num_samples=num_samples)
    data = as_test_set("log_weights", model, x, covariates)
    with strict(model, device), seeded(seed):
        data.check(model)
        weights = LogWeights(model, data, num_samples, proposal)
        parts = [torch.cat([block.double().cpu() for block in weights(rows)]) for rows in weights.parts()]
    return torch.cat(parts, dim=1)
