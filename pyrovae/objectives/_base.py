"""``Objective``, the base class."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae._checks import require_at_least
from pyrovae.model import LogTerms, VAEModel, log_terms
from pyrovae.model._pathwise import Draws
from pyrovae.objectives._schedules import Weight, has_ended, value_at

Program = Callable[..., Any]  # a model, or a guide
Weights = Mapping[str, float | Tensor]  # in force, by name


class Objective(PyroELBO):
    """A bound on log p(x) in nats, as a function of :class:`~pyrovae.model.LogTerms` and of the weights in force.

    A subclass writes :meth:`per_datum`, and names in :attr:`schedules` those of its numbers that may change with time.
    Nothing here depends on the time by itself: who trains asks for the :meth:`weights` at a time, and hands them over.

    It is a loss, summed over the data, for ``pyro.infer.SVI`` too, which knows of no time: set :attr:`time` there.

    Args:
        num_particles: K, draws of z per datum, always vectorised.
        max_plate_nesting: plates that the model nests; by default what a :class:`~pyrovae.VAEModel` says of itself,
            and 1 for other models.

    Attributes:
        time: the time inside ``pyro.infer.SVI``, in the schedules' unit; ``fit`` does not look at it.
    """

    _draws: Draws = "attached"  # how gradients pass from the model to the guide

    def __init__(self, *, num_particles: int = 1, max_plate_nesting: int | None = None) -> None:
        require_at_least(1, num_particles=num_particles)
        if max_plate_nesting is not None:
            require_at_least(1, max_plate_nesting=max_plate_nesting)
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self._nesting = max_plate_nesting  # Pyro's own attribute counts the particles' plate too
        self.time: float | None = None

    @property
    def schedules(self) -> dict[str, Weight]:
        """The weights, as numbers or functions of time, by the name that :meth:`per_datum` takes them under."""
        return {}

    def weights(self, t: float) -> dict[str, float]:
        """The weights at time ``t`` (``fit``: epochs), for :meth:`per_datum`; ``inf`` for final values.

        Raises:
            ValueError: a schedule's value is negative, NaN or infinite.
        """
        return {name: value_at(value, t, name) for name, value in self.schedules.items()}

    def settled(self, t: float) -> bool:
        """Whether the schedules have reached their final values."""
        return all(has_ended(value, t) for value in self.schedules.values())

    def check(self, terms: LogTerms) -> None:
        """Raise a ``ValueError`` for a model that the objective cannot train, by its terms."""

    @abstractmethod
    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        """The bound on log p(x), one value for each datum, in nats; to be maximised.

        Args:
            terms: the model's.
            weights: by name; those that are not given are what they are at any time.

        Raises:
            ValueError: a weight that is a schedule and was not given.
        """

    def surrogate(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        """The function to differentiate: equals :meth:`per_datum` in value, or only in expected gradient."""
        return self.per_datum(terms, **weights)

    def weight(self, name: str, given: Weights) -> float | Tensor:
        """A weight as it is given, or else its constant value.

        Raises:
            ValueError: it is a schedule and was not given.
        """
        if name in given:
            return given[name]
        value = self.schedules[name]
        if callable(value):
            raise ValueError(
                f"{name} is a schedule: pass {name}=..., one of objective.weights(t), or set objective.time before "
                f"each step of SVI."
            )
        return float(value)

    # -- the loss of a batch -----------------------------------------------------------------------------

    def surrogate_loss(self, weights: Weights, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss to differentiate, with these weights."""
        return -self.surrogate(self._terms(model, guide, *args, **kwargs), **weights).sum()

    @torch.no_grad()
    def bound_loss(self, weights: Weights, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound, with these weights."""
        return -self.per_datum(self._terms(model, guide, *args, **kwargs), **weights).sum()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        return self.surrogate_loss(self._current_weights(), model, guide, *args, **kwargs)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        return self.bound_loss(self._current_weights(), model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        terms, weights = self._terms(model, guide, *args, **kwargs), self._current_weights()
        (-self.surrogate(terms, **weights).sum()).backward()
        return -self.per_datum(terms, **weights).sum().item()

    def _current_weights(self) -> dict[str, float]:
        """The weights at :attr:`time`, for ``pyro.infer.SVI``."""
        return {} if self.time is None else self.weights(self.time)

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        """Abstract in Pyro's class, where subclasses call it: here, nobody does."""
        raise NotImplementedError

    def _terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> LogTerms:
        """The terms of the model that these are the methods of."""
        return log_terms(
            model,
            guide,
            *args,
            num_particles=self.num_particles,
            max_plate_nesting=_nesting(model) if self._nesting is None else self._nesting,
            draws=self._draws if torch.is_grad_enabled() else "attached",
            **kwargs,
        )


def _nesting(model: Program) -> int:
    """The plates that the owner of a method says it nests; 1 for other programs."""
    owner = getattr(model, "__self__", None)
    return owner.max_plate_nesting if isinstance(owner, VAEModel) else 1
