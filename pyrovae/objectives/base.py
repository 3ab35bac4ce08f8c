"""What every objective is."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.infer import ELBO as PyroELBO
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from pyrovae._checks import at_least
from pyrovae.model import LogTerms, VAEModel, log_terms


class Objective(PyroELBO):
    """A loss in nats, summed over the data given, as every ``pyro.infer.ELBO`` does.

    Args:
        num_particles: K, draws of z per datum, always vectorised.
        max_plate_nesting: plates that the model nests; by default what a :class:`~pyrovae.VAEModel` says of itself,
            and 1 for other models.

    Attributes:
        scheduled: names of the numbers that :meth:`anneal` sets. A subclass that overrides it names its own, so that a
            traced step takes them as inputs.
    """

    scheduled: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, num_particles: int = 1, max_plate_nesting: int | None = None) -> None:
        at_least(1, num_particles=num_particles)
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self._nesting = max_plate_nesting  # Pyro's own attribute counts the particles' plate too

    def anneal(self, t: float) -> None:
        """Tell the objective the time, in its schedules' unit (``fit``: epochs); ``inf`` for final values."""

    @property
    def settled(self) -> bool:
        """Whether the schedules have reached their final values."""
        return True

    def check(self, terms: LogTerms) -> None:
        """Raise a ``ValueError`` for a model, of which these are terms, that the objective cannot train."""

    @abstractmethod
    def per_datum(self, terms: LogTerms) -> Float[Tensor, "batch"]:
        """The bound on log p(x), one value for each datum, in nats; to be maximised."""

    def surrogate(self, terms: LogTerms) -> Float[Tensor, "batch"]:
        """What to differentiate: equals :meth:`per_datum` in value or only in expected gradient."""
        return self.per_datum(terms)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        return -self.surrogate(self._terms(model, guide, *args, **kwargs)).sum()

    @torch.no_grad()
    def bound_loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """:meth:`loss` as a tensor, which need not be waited for."""
        return -self.per_datum(self._terms(model, guide, *args, **kwargs)).sum()

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        return self.bound_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        terms = self._terms(model, guide, *args, **kwargs)
        (-self.surrogate(terms).sum()).backward()
        return -self.per_datum(terms).sum().item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Abstract in Pyro's class; Pyro's own tools (e.g. ``guess_max_plate_nesting``) may call it."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def _terms(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> LogTerms:
        return log_terms(
            model,
            guide,
            *args,
            num_particles=self.num_particles,
            max_plate_nesting=_nesting(model) if self._nesting is None else self._nesting,
            **kwargs,
        )


def _nesting(model: Callable[..., Any]) -> int:
    owner = getattr(model, "__self__", None)
    return owner.max_plate_nesting if isinstance(owner, VAEModel) else 1
