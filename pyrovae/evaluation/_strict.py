"""What every estimator starts from: checked data, and a model under which nothing is approximate."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd
import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import as_covariates, resolve_device, rows_of
from pyrovae._distributed import check_same_everywhere, num_processes
from pyrovae._frames import check_same_index
from pyrovae._hash import content_hash
from pyrovae._random import seeded
from pyrovae.model import LogTerms, LossModel, VAEModel
from pyrovae.model._inputs import as_inputs, check_num_covariates
from pyrovae.model._modes import evaluation_mode, full_precision
from pyrovae.model._support import check_densities, checked_terms

_LOOK = {"cpu": 2**14, "cuda": 2**22}  # numbers of x that the support check takes at once


@dataclass(frozen=True)
class TestSet:
    """Data to evaluate on, checked: ``x`` of shape ``(N, *event_shape)``, the covariates that go with it, and the index
    that ``x`` had if it was a frame.
    """

    __test__ = False  # no test class, whatever pytest thinks of its name

    x: Float[Tensor, "data *event"]
    covariates: tuple[Any, ...]
    index: pd.Index | None = None

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def hash(self) -> str:
        """Content hash of the data, tensor covariates included."""
        return content_hash(self.x, *(c for c in self.covariates if isinstance(c, Tensor)))

    def labelled(self, pointwise: pd.DataFrame) -> pd.DataFrame:
        """A finished table with one row per datum, under the data's own index."""
        return pointwise if self.index is None else pointwise.set_axis(self.index)

    def check_index(self, values: Any, name: str) -> None:
        """Raise a ``ValueError`` where ``values``, one per datum, are a series whose index is not that of the data."""
        if self.index is not None:
            check_same_index({"x": pd.Series(0, self.index), name: values})

    def rows(self, index: Tensor) -> "TestSet":
        """The data with these indices."""
        x, *rest = rows_of((self.x, *self.covariates), index)
        return TestSet(x, tuple(rest))

    def part(self, rows: slice, like: Tensor) -> tuple[Any, ...]:
        """``(x, *covariates)`` of some rows, on the model's device and in its precision."""
        covariates = rows_of(self.covariates, rows)
        # A copy, because how memory is laid out decides how sums are rounded.
        own = like if self.x.is_floating_point() else like.new_empty(0, dtype=self.x.dtype)
        x = self.x[rows].to(own, copy=True, memory_format=torch.contiguous_format)
        return x, *as_covariates(covariates, None, like)

    def check(self, model: VAEModel) -> "Checked":
        """Run the model on two data with validation on, and compare all data with the likelihood's support.

        Raises:
            ValueError: see :meth:`VAEModel.check`; values outside the support; a guide that is a point on a continuum.
        """
        like = model.like()
        step = max(2, _LOOK[like.device.type] // max(self.x[0].numel(), 1))
        terms = model.check(*self.part(slice(step), like))
        check_densities(terms)
        counts = []
        for start in range(0, len(self), step):
            counts.append(checked_terms(model, *self.part(slice(start, start + step), like)).num_observed)
        known = [float(count.sum(dtype=torch.float64)) for count in counts if count is not None]
        return Checked(terms, sum(known) / len(self) if len(known) == len(counts) else None)


class Checked(NamedTuple):
    """What :meth:`TestSet.check` found.

    Attributes:
        terms: those of the first two data.
        num_observed: how many dimensions of a datum are observed, on average; ``None`` where they cannot be counted.
    """

    terms: LogTerms
    num_observed: float | None


def with_density(function: str, model: Any) -> VAEModel:
    """The model, or a ``TypeError`` if it is none that ``function`` could score data under."""
    if isinstance(model, LossModel):
        raise TypeError(
            f"{function} needs log p(x). {type(model).__name__} is trained by its own loss and puts no density on the "
            f"data: use a pyrovae.VAEModel."
        )
    if not isinstance(model, VAEModel):
        raise TypeError(
            f"{function} needs a pyrovae.VAEModel, whose model and guide have densities; got {type(model).__name__}."
        )
    return model


def as_test_set(function: str, model: Any, x: Any, covariates: tuple[Any, ...]) -> TestSet:
    """Check what a user passed to ``function``.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`.
        TypeError: data or covariates are a list or tuple.
        ValueError: wrong shape, integer, NaN, masked or empty data, covariates of another length, index or number, a
            DataFrame with other columns than the model was trained on.
    """
    model = with_density(function, model)
    check_num_covariates(model, covariates)
    index = x.index if isinstance(x, (pd.DataFrame, pd.Series)) else None
    return TestSet(*as_inputs(model, x, covariates), index)


def model_name(model: VAEModel | LossModel) -> str:
    """The class of a model, with that of its posterior where it has one."""
    posterior = getattr(model, "posterior", None)
    name = type(model).__name__
    return f"{name}({type(posterior).__name__})" if isinstance(posterior, torch.nn.Module) else name


def fingerprint(model: VAEModel, data: TestSet) -> tuple[float, ...]:
    """log p(x, z) of two data at two fixed draws from the prior: equal for equal generative models only."""
    with seeded(0):
        _, log_prior, log_likelihood = model.draw_prior(*data.part(slice(2), model.like()), num_particles=2)
    return tuple((log_prior + log_likelihood).double().flatten().tolist())


def weights_hash(model: VAEModel) -> str:
    """Content hash of a model's parameters and buffers."""
    return content_hash(*(v for v in model.state_dict().values() if isinstance(v, Tensor)))


def check_ranks(model: VAEModel, data: TestSet) -> None:
    """Raise a ``ValueError`` where the processes that are to share the work have different models or data."""
    if num_processes() > 1:
        check_same_everywhere("Give every process all the data: they share them out themselves.", x=data.hash)
        check_same_everywhere("Train them together, load them, or seed them equally.", model=weights_hash(model))


@contextmanager
def strict(model: VAEModel, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Evaluation mode, no gradients, no autocast, no TF32, no validation in the loop; the model on ``device``.

    Everything is put back afterwards.

    Args:
        model: the model.
        device: where to compute; by default where the model is.

    Raises:
        ValueError: a device that is not there.
    """
    home = model.like().device
    target = home if device is None else resolve_device(device)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.inference_mode(False))  # whose tensors could not be differentiated by, as ais does
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(target.type, enabled=False))
        stack.enter_context(pyro.distributions.validation_enabled(False))  # checks would stall the device
        stack.enter_context(full_precision())
        stack.callback(model.to, home)
        model.to(target)
        if target.type == "cpu":
            # A block of this size, once freed, makes glibc keep smaller ones for reuse instead of returning their
            # pages to the system, which costs more than computing on them. Elsewhere it does nothing.
            torch.empty(2**25 - 2**13, dtype=torch.uint8)
        yield target
