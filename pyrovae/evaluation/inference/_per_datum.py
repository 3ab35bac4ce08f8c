"""Approximate posteriors with parameters of their own for every datum, and how they are fitted."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._capture import replayed
from pyrovae._graph import Compile, Graph
from pyrovae.distributions._capabilities import capabilities
from pyrovae.model import Latents, LogTerms, VAEModel

Draws = tuple[Latents, Float[Tensor, "particles batch"]]


class PerDatum(ABC):
    """One q(z) for each of B data, with parameters ``(B, ...)`` of its own.

    Attributes:
        parameters: what to fit, each with a factor for the learning rate.
        can_score: whether :meth:`log_prob` is known.
    """

    parameters: list[tuple[Tensor, float]]
    can_score: bool = True

    @abstractmethod
    def at(self, parameters: Sequence[Tensor]) -> Self:
        """The same with these in place of its own parameters."""

    @abstractmethod
    def draw(self, num_particles: int) -> Draws:
        """Draws by site, ``(K, *plates, B, *event)``, and log q of them in nats."""

    @abstractmethod
    def log_prob(self, latents: Latents) -> Float[Tensor, "particles batch"]:
        """log q in nats of what another one drew; -inf where q has no mass."""


class Amortised(PerDatum):
    """The guide as it is."""

    def __init__(self, model: VAEModel, part: tuple[Any, ...]) -> None:
        self._model, self._part = model, part
        self.parameters = []
        self.can_score = can_score_anywhere(model.log_terms(*part))

    def at(self, parameters: Sequence[Tensor]) -> Self:
        return self

    def draw(self, num_particles: int) -> Draws:
        return self._model.draw_posterior(*self._part, num_particles=num_particles)

    def log_prob(self, latents: Latents) -> Float[Tensor, "particles batch"]:
        return self._model.log_posterior(*self._part, latents=latents)


class Ascent:
    """Adam on every datum's ELBO over its own parameters.

    Args:
        q: the posteriors; changed in place.
        model: the model, which stays as it is.
        part: ``(x, *covariates)``.
        num_particles: draws per datum and step.
        compile: whether the gradients become machine code.
        steps: how many there will be in all.
    """

    def __init__(
        self,
        q: PerDatum,
        model: VAEModel,
        part: tuple[Any, ...],
        *,
        num_particles: int,
        compile: Compile = "off",
        steps: int = 0,
    ) -> None:
        def slope(*parameters: Tensor) -> tuple[Tensor, ...]:
            return gradients(q.at(parameters), model, part, num_particles)

        self._parameters = q.parameters
        self._gradients = replayed(Graph(slope, compile=compile, calls=steps), q.parameters[0][0].device)

    def cycle(self, steps: int, learning_rate: float) -> Iterator[None]:
        """So many steps, at a learning rate that falls to zero (cosine); the iterator yields after each.

        A gradient that is not finite counts as zero, so that one bad draw does not end a datum's fit.
        """
        parameters = [p for p, _ in self._parameters]
        groups = [{"params": [p], "lr": learning_rate * factor} for p, factor in self._parameters]
        optimizer = torch.optim.Adam(groups, fused=parameters[0].device.type in ("cpu", "cuda"))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            for p, gradient in zip(parameters, self._gradients(*(p.detach() for p in parameters)), strict=True):
                p.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            schedule.step()
            yield


def gradients(q: PerDatum, model: VAEModel, part: tuple[Any, ...], num_particles: int) -> tuple[Tensor, ...]:
    """Of every datum's negative ELBO with respect to its own parameters."""
    with torch.enable_grad():
        parameters = [p.detach().requires_grad_() for p, _ in q.parameters]
        loss = -log_weight(q.at(parameters), model, part, num_particles).mean(0).sum()
        return torch.autograd.grad(loss, parameters)


def log_weight(
    q: PerDatum, model: VAEModel, part: tuple[Any, ...], num_particles: int
) -> Float[Tensor, "particles batch"]:
    """log p(x, z) - log q(z) at draws from ``q``, in nats."""
    latents, log_q = q.draw(num_particles)
    return model.log_joint(*part, latents=latents) - log_q


def can_score_anywhere(terms: LogTerms) -> bool:
    """Whether a guide can score latents that it did not draw."""
    known = (capabilities(q) for q in terms.posterior.values())
    same = terms.posterior.keys() == terms.prior.keys()
    return same and all(can.inverse is not None and not can.point_mass for can in known)
