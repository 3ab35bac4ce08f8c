"""One estimator at work: everything but its mathematics."""

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from itertools import takewhile
from pathlib import Path
from traceback import walk_stack
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._checks import (
    as_covariates,
    require_at_least,
    require_flag,
    require_instance,
    require_one_of,
    require_seed,
    resolve_device,
)
from pyrovae._distributed import check_same_everywhere, common_seed, connect, joined, my_blocks, num_processes, rank
from pyrovae._graph import COMPILE, Compile, Graph
from pyrovae._memory import BLOCK, Sizes, plan, probe, reuse_memory, within_memory
from pyrovae._random import derived, reseed, stream
from pyrovae._turns import give_way, turn
from pyrovae.evaluation._data import as_evaluation_data, require_density
from pyrovae.evaluation._result import Provenance, weights_hash
from pyrovae.model import LogTerms, LossModel, VAEModel
from pyrovae.model._inputs import check_num_covariates
from pyrovae.model._latents import Latents
from pyrovae.model._modes import strict, without_validation
from pyrovae.model._rows import FAILURES, name_row, named

Compute = Callable[[slice, int], Mapping[Any, Tensor]]


def check_options(seed: Any, device: Any, memory_budget: Any, compile: Any, progress: Any) -> None:
    """Raise a ``ValueError`` or ``TypeError`` where an option of all estimators is out of its range."""
    require_seed(seed=seed)
    require_one_of(COMPILE, compile=compile)
    require_flag(progress=progress)
    if device is not None:
        resolve_device(device)
    if memory_budget is not None:
        require_at_least(1, memory_budget=memory_budget)


class EvaluationRun:
    """A model and checked data, for the length of a ``with`` block in which nothing is approximate (see
    :func:`evaluating`) and random numbers follow from a seed.

    An estimator is a function ``compute(rows, draws)`` from some of the data to columns of numbers for them, given to
    :meth:`collect`, which calls it on block after block: those of this process alone where there are several, in
    smaller ones once memory has run out. Blocks follow from the model, the data and the number of draws, and draws from
    the seed and the block, so that neither progress nor the number of processes changes them.

    Args:
        function: what the user called, for errors.
        model: the model.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: what goes with them.
        seed: of all draws.
        device: where to compute; by default where the model is. The model is put back.
        memory_budget: bytes that a block may take; by default what suits the device.
        compile: whether what is called often becomes machine code.
        progress: whether to show a progress bar.
        density: whether the model must have a density; without, it is not checked either.

    Attributes:
        model, data: what to evaluate, checked.
        terms: inside the block, the :class:`~pyrovae.LogTerms` of a few data.
        num_observed: how many dimensions of a datum are observed, on average, where that can be counted.
        base_seed: inside the block, the seed that all others follow from.
        num_children: runs :meth:`within` this one so far.

    Raises:
        TypeError: a model without density; data or covariates that are lists or tuples.
        ValueError: wrong shape, integer, NaN, masked or empty data, covariates of another length, index or number,
            columns of other names, a device that is not there, an unknown ``compile``, a budget under 1. On entering:
            data outside the likelihood's support, a model whose terms are not p(x, z) / q(z | x), processes that were
            given different data or models.
    """

    terms: LogTerms
    num_observed: float | None = None

    def __init__(
        self,
        function: str,
        model: VAEModel | LossModel,
        x: Any,
        covariates: tuple[Any, ...] = (),
        *,
        seed: int | None = 0,
        device: str | torch.device | None = None,
        memory_budget: int | None = None,
        compile: Compile = "auto",
        progress: bool = True,
        density: bool = True,
    ) -> None:
        check_options(seed, device, memory_budget, compile, progress)
        require_flag(density=density)
        require_instance(str, function=function)
        require_instance(tuple, covariates=covariates)
        self.model: Any = require_density(function, model) if density else model
        self.data = as_evaluation_data(model, x, covariates, counted=density)
        self.memory_budget, self.compile, self._seed = memory_budget, compile, seed
        self._device, self._progress, self._density = device, progress, density
        self._stack: ExitStack | None = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError("this run is or was entered already: make another EvaluationRun.")
        connect()
        with ExitStack() as stack:
            self.device = stack.enter_context(evaluating(self.model, self._device))
            stack.enter_context(stream(common_seed(self._seed)))
            with turn():  # before anything is checked, which may draw
                self.base_seed, self.num_children = int(torch.randint(2**62, (), device="cpu")), 0
            if self._density:
                self.terms, self.num_observed = self.data.check(self.model)
            if num_processes() > 1:
                check_same_everywhere(
                    "Give every process all the data: they share them out themselves.", x=self.data.hash
                )
                check_same_everywhere(
                    "Train them together, load them, or seed them equally.", model=weights_hash(self.model)
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._stack is not None
        self._stack.close()

    def provenance(self) -> Provenance:
        """That of a result of this run, asked for inside the block."""
        return Provenance.of(self.model, self.data, self._seed)

    def within(self, rows: Tensor | None = None) -> "EvaluationRun":
        """A run of some of the data, or all, inside this one, whose draws are others."""
        child = copy(self)
        self.num_children += 1
        child.base_seed, child.num_children = derived(self.base_seed, self.num_children), 0
        child.data = self.data if rows is None else self.data.rows(rows)
        return child

    def reseed(self, *numbers: int) -> None:
        """Start the draws that these numbers stand for. Zeros at their end do not count, and :meth:`draws` has taken
        those of rows and draws: what is drawn besides them is drawn :meth:`within`.
        """
        reseed(self.base_seed, *numbers)

    def part(self, rows: slice) -> tuple[Any, ...]:
        """``(x, *covariates)`` of some rows, where the model is."""
        return self.data.part(rows, self.model.placement)

    def plan(self, run: Callable[..., Any], num_samples: int = 1, *, times: float = 1, whole: bool = False) -> Sizes:
        """How many data, and how many draws of each, to take at once.

        Args:
            run: ``run(num_samples, x, *covariates)``, of which a few short runs show what it allocates.
            num_samples: K, draws of every datum.
            times: so much of an ordinary block's bytes may be taken.
            whole: whether all draws of a datum must be taken together.
        """
        cost = probe(lambda n, k: run(k, *self.part(slice(n))))
        return plan(len(self.data), num_samples, self.block_bytes(times), cost, whole=whole)

    def block_bytes(self, times: float = 1) -> int:
        """Bytes that a block may take: the user's budget, or so many times what suits the device."""
        return int(times * BLOCK[self.device.type]) if self.memory_budget is None else self.memory_budget

    def graph(self, function: Callable[..., Any], sizes: Sizes, num_samples: int = 1) -> Graph:
        """``function``, called for every block of ``sizes``, traced or compiled where so many calls make that pay."""
        calls = -(-len(self.data) // sizes[0]) * -(-num_samples // sizes[1])
        return Graph(function, compile=self.compile, calls=calls)

    def draws(self, rows: slice, num_samples: int, at_once: int) -> Iterator[int]:
        """Numbers of draws that sum to K, each to be made right away: seeded by the rows and the first of the draws."""
        for start in range(0, num_samples, at_once):
            self.reseed(rows.start, start)
            yield min(at_once, num_samples - start)

    def advance(self, count: int) -> None:
        """Move the progress bar of :meth:`collect`, and let other threads have a turn."""
        self._bar.update(count)
        give_way()

    def average(
        self, draw: Callable[..., Mapping[Any, Tensor]], num_samples: int, *, description: str
    ) -> dict[Any, np.ndarray]:
        """The means over all draws of every datum, ``(N, ...)``.

        Args:
            draw: ``draw(k, x, *covariates)`` makes k draws of each of some data, and gives their sums, ``(B, ...)``.
            num_samples: K.
            description: of the progress bar.
        """
        sizes = self.plan(draw, num_samples)
        sums_of = self.graph(draw, sizes, num_samples)

        def compute(rows: slice, at_once: int) -> dict[Any, Tensor]:
            part, total = self.part(rows), dict[Any, Any]()
            for k in self.draws(rows, num_samples, at_once):
                for name, values in sums_of(k, *part).items():
                    total[name] = total.get(name, 0.0) + values
                self.advance(k * len(part[0]))
            return {name: values / num_samples for name, values in total.items()}

        return self.collect(compute, sizes, total=num_samples, description=description, required=None)

    def collect(
        self,
        compute: Compute,
        sizes: Sizes,
        *,
        total: int,
        description: str,
        unit: str = "draw",
        required: Collection[Any] | None = (),
    ) -> dict[Any, np.ndarray]:
        """The columns of all data, ``(N, ...)``, of which ``compute(rows, draws)`` gives those of some rows.

        Args:
            compute: it takes so many draws of a datum at once; where memory runs out it is called again for fewer.
            sizes: data and draws to take at once, from :meth:`plan`.
            total: by how much ``compute`` will :meth:`advance` for every datum.
            description: of the progress bar.
            unit: of ``total``.
            required: names of columns in which no value is NaN, if they are there, unless the model makes one: a
                warning says in which rows. ``None`` for all.

        Raises:
            ValueError: rows for which ``compute`` fails, while others are well.
        """
        share, columns = my_blocks(len(self.data), sizes[0]), dict[Any, Tensor]()
        silent, first = not self._progress or rank() > 0, share.start
        length = total * (share.stop - share.start)
        with tqdm(total=length, unit=unit, unit_scale=True, desc=description, disable=silent or not total) as self._bar:
            while first < share.stop:
                done = self._bar.n

                def attempt(sizes: Sizes) -> tuple[slice, Mapping[Any, Tensor]]:
                    self._bar.update(done - self._bar.n)  # noqa: B023  # called at once
                    rows = slice(first, min(first + sizes[0], share.stop))  # noqa: B023
                    with turn():
                        return rows, compute(rows, sizes[1])

                try:
                    (rows, found), sizes = within_memory(attempt, sizes, self.device)
                except FAILURES as error:
                    self._name_row(slice(first, min(first + sizes[0], share.stop)), error)
                if columns and columns.keys() != found.keys():
                    raise ValueError(f"compute gave {list(found)} for {rows}, and {list(columns)} before.")
                for name, values in found.items():
                    # Whole columns from the start: small pieces kept between blocks would fragment the heap. They are
                    # read at the end alone, so that a device need not wait.
                    column = columns.setdefault(name, values.new_empty(len(self.data), *values.shape[1:]))
                    if values.shape[:1] != (rows.stop - rows.start,) or values.dtype != column.dtype:
                        raise ValueError(
                            f"compute gave {name!r} as {tuple(values.shape)}, {values.dtype}, for {rows}: one value "
                            f"for each row is needed, of one dtype for all ({column.dtype})."
                        )
                    column[rows] = values
                first = rows.stop
        out = joined({name: column.cpu().numpy() for name, column in columns.items()}, share)
        self._warn_of_nan([v for name, v in out.items() if required is None or name in required], description)
        return out

    def _warn_of_nan(self, columns: Iterable[np.ndarray], description: str) -> None:
        bad = np.zeros(len(self.data), dtype=bool)
        for values in columns:
            bad |= np.isnan(values).reshape(len(bad), -1).any(1)
        if bad.any() and rank() == 0:
            where = named(bad.nonzero()[0].tolist(), self.data.numbers)
            message = f"{description} is NaN for {where} of x, of {len(bad)} data: the model makes NaN of them."
            warnings.warn(message, stacklevel=_users_level())

    def _name_row(self, rows: slice, error: Exception) -> NoReturn:
        """Raise an error that names a row for which the model fails, or the error itself."""

        def run(n: int, *part: Any) -> None:
            if self._density:
                self.model.log_terms(*part)
            else:
                self.model.encode(*part)

        name_row(run, self.data.fields, rows, self.model.placement, error, self.data.numbers)


@contextmanager
def evaluating(model: VAEModel | LossModel, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Enter :func:`~pyrovae.model._modes.strict`, without validation in the loop and with the model on ``device``.
    Everything is put back afterwards.

    Args:
        model: the model.
        device: where to compute; by default where the model is.

    Raises:
        ValueError: a device that is not there, a model or default dtype of half a precision.
    """
    home = model.placement.device
    target = home if device is None else resolve_device(device)
    with ExitStack() as stack:
        stack.enter_context(strict(model, target))
        stack.enter_context(without_validation())  # which would stall the device
        stack.callback(model.to, home)
        model.to(target)
        reuse_memory(target)
        yield target


@contextmanager
def simulating(
    function: str,
    model: VAEModel | LossModel,
    num_data: int,
    covariates: tuple[Any, ...],
    *,
    seed: int | None,
    device: str | torch.device | None,
    memory_budget: int | None,
    compile: Compile,
    progress: bool,
) -> Iterator[tuple[EvaluationRun, Tensor, Latents]]:
    """Inside the block a run on data that the model draws, the data, and the latents that they came from.

    Args:
        function: what the user called, for errors.
        model: the model.
        num_data: how many data.
        covariates: of so many data.
        seed: of the data and all draws.
        device, memory_budget, compile, progress: as in :class:`EvaluationRun`.
    """
    check_options(seed, device, memory_budget, compile, progress)
    model = require_density(function, model)
    check_num_covariates(model, covariates)
    connect()
    options: Any = {"device": device, "memory_budget": memory_budget, "compile": compile, "progress": progress}
    with evaluating(model, device), stream(common_seed(seed)):
        covariates = as_covariates(covariates, num_data, model.placement, model.columns)
        with turn():
            x, latents = model.simulate(num_data, *covariates)
            options["seed"] = int(torch.randint(2**62, ()))  # the same in all processes, as all they drew was
        with EvaluationRun(function, model, x, covariates, **options) as run:
            run._seed = seed  # that results tell
            yield run, x, latents


def _users_level() -> int:
    """The ``stacklevel`` of the nearest caller outside the package."""
    package = str(Path(__file__).parents[1])
    frames = (frame.f_code.co_filename for frame, _ in walk_stack(inspect.currentframe()))
    return sum(1 for _ in takewhile(lambda name: name.startswith(package), frames))
