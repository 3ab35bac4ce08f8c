"""What every estimator starts from: checked data, and a model under which nothing is approximate."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import ARRAYS, as_covariates, as_tensor, resolve_device
from pyrovae._distributed import num_processes, refuse_differences
from pyrovae._hash import content_hash
from pyrovae._random import seeded
from pyrovae.model import LogTerms, LossModel, VAEModel
from pyrovae.model.modes import evaluation_mode, full_precision
from pyrovae.model.support import check_terms

_LOOK = 2**14  # numbers of x that the support check takes at once


@dataclass(frozen=True)
class TestSet:
    """Data to evaluate on, checked: ``x`` of shape ``(N, *event_shape)``, and the covariates that go with it."""

    __test__ = False  # no test class, whatever pytest thinks of its name

    x: Float[Tensor, "data *event"]
    covariates: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def hash(self) -> str:
        """Content hash of the data, tensor covariates included."""
        return content_hash(self.x, *(c for c in self.covariates if isinstance(c, Tensor)))

    def rows(self, index: Tensor) -> "TestSet":
        """The data with these indices."""
        rows = (c[index.to(c.device)] if isinstance(c, Tensor) and c.dim() else c for c in self.covariates)
        return TestSet(self.x[index.to(self.x.device)], tuple(rows))

    def part(self, rows: slice, like: Tensor) -> tuple[Any, ...]:
        """``(x, *covariates)`` of some rows, on the model's device and in its precision."""
        covariates = tuple(c[rows] if isinstance(c, Tensor) and c.dim() else c for c in self.covariates)
        # A copy, because how memory is laid out decides how sums are rounded.
        own = like if self.x.is_floating_point() else like.new_empty(0, dtype=self.x.dtype)
        x = self.x[rows].to(own, copy=True, memory_format=torch.contiguous_format)
        return x, *as_covariates(covariates, None, like)

    def check(self, model: VAEModel) -> LogTerms:
        """Run the model on two data with validation on, and compare all data with the likelihood's support.

        Returns:
            The terms of those two data.

        Raises:
            ValueError: see :meth:`VAEModel.check`; values outside the support.
        """
        like = model.like()
        terms = model.check(*self.part(slice(2), like))
        step = max(1, _LOOK // max(self.x[0].numel(), 1))
        for start in range(0, len(self), step):
            check_terms(model.log_terms(*self.part(slice(start, start + step), like)))
        return terms


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
        ValueError: wrong shape, integer, NaN or empty data, covariates of another length.
    """
    model = with_density(function, model)
    x = model.as_data(x, "x", covariates)
    as_covariates(covariates, len(x), x)  # only to check their lengths
    return TestSet(x, tuple(as_tensor(c, "a covariate") if isinstance(c, ARRAYS) else c for c in covariates))


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


def refuse_to_mix(model: VAEModel, data: TestSet) -> None:
    """Raise a ``ValueError`` where the processes that are to share the work have different models or data."""
    if num_processes() > 1:
        weights = [v for v in model.state_dict().values() if isinstance(v, Tensor)]
        refuse_differences("Give every process all the data: they share them out themselves.", x=data.hash)
        refuse_differences("Train them together, load them, or seed them equally.", model=content_hash(*weights))


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
