"""Charts: a latent as a map z = T(u) of coordinates in which it can be moved about.

Where the distribution is an affine or a flow transform of a standard normal, u is that normal; elsewhere u is z in
unconstrained coordinates. :func:`register_chart` brings one for a distribution of one's own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    biject_to,
    identity_transform,
)

from pyrovae._checks import shown
from pyrovae._compat import zuko
from pyrovae.distributions._capabilities import Inverse, capabilities
from pyrovae.distributions._density import log_density, sum_last
from pyrovae.distributions._flow import Flow
from pyrovae.distributions._sylvester import apply_matrix


class Chart(ABC):
    """z = T(u) for a distribution of ``z``; ``u`` has the same batch shape.

    Attributes:
        inverse: how :meth:`locate` finds u: ``"exact"``, ``"numerical"``, or ``None`` where it cannot.
    """

    inverse: Inverse | None = "exact"

    @abstractmethod
    def draw(self) -> Tensor:
        """``u`` such that z has its distribution."""

    @abstractmethod
    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z, and log |det ∂z/∂u|."""

    @abstractmethod
    def locate(self, z: Tensor) -> Tensor:
        """``u`` of a given z, which may lack leading batch dimensions."""

    @abstractmethod
    def log_base(self, u: Tensor) -> Tensor:
        """Log-density of ``u``."""


class _Affine(Chart):
    """z = μ + σ u."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self._loc, self._scale = loc, scale
        self._log_det = scale.log()

    def draw(self) -> Tensor:
        return torch.randn(self._loc.shape, dtype=self._loc.dtype, device=self._loc.device)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._loc + self._scale * u, self._log_det

    def locate(self, z: Tensor) -> Tensor:
        return (z - self._loc) / self._scale

    def log_base(self, u: Tensor) -> Tensor:
        return -0.5 * u.square() - 0.5 * math.log(2.0 * math.pi)


class _Triangular(_Affine):
    """z = μ + L u."""

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__(loc, scale_tril.diagonal(dim1=-2, dim2=-1))
        self._log_det = self._log_det.sum(-1)
        # One matrix for all chains, where that is so: products with an expanded one would copy it.
        self._tril = scale_tril[0] if scale_tril.stride(0) == 0 else scale_tril

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._loc + apply_matrix(self._tril, u), self._log_det

    def locate(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self._tril, (z - self._loc).unsqueeze(-1), upper=False).squeeze(-1)

    def log_base(self, u: Tensor) -> Tensor:
        return super().log_base(u).sum(-1)


class _Transformed(Chart):
    """T after the chart of a base distribution, whose batch may have dimensions that are the event's."""

    def __init__(self, fn: Distribution, base: Chart, transform: Any, inverse: Inverse | None) -> None:
        self._fn, self._base, self._transform, self.inverse = fn, base, transform, inverse

    def draw(self) -> Tensor:
        return self._base.draw()

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = self._base(u)
        z, further = self._transform.call_and_ladj(y)
        return z, _over_event(log_det, self._fn) + _over_event(further, self._fn)

    def locate(self, z: Tensor) -> Tensor:
        if self.inverse is None:
            raise NotImplementedError("this flow has no inverse in closed form, so no chain can start at a given z.")
        return self._base.locate(self._transform.inv(z))

    def log_base(self, u: Tensor) -> Tensor:
        return _over_event(self._base.log_base(u), self._fn)


class _Unconstrained(Chart):
    """z in the unconstrained coordinates of its support."""

    def __init__(self, fn: Distribution) -> None:
        self._fn, self._transform = fn, biject_to(capabilities(fn).support)

    def draw(self) -> Tensor:
        return self._transform.inv(self._fn.sample())

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        z = self._transform(u)
        return z, _over_event(self._transform.log_abs_det_jacobian(u, z), self._fn)

    def locate(self, z: Tensor) -> Tensor:
        return self._transform.inv(z.expand(self._fn.batch_shape + self._fn.event_shape))

    def log_base(self, u: Tensor) -> Tensor:
        z, log_det = self(u)
        return log_density(self._fn, z) + log_det


@singledispatch
def as_chart(fn: Any) -> Chart:
    """The chart of a distribution of continuous values, by its class."""
    return _Unconstrained(fn)


def register_chart(distribution: type[Distribution]) -> Callable[[Callable[[Any], Chart]], Callable[[Any], Chart]]:
    """Say how a distribution's latents are moved about: a decorator of a function from one to its :class:`Chart`.

    Args:
        distribution: the class; its subclasses go by it too.
    """
    if not (isinstance(distribution, type) and issubclass(distribution, Distribution)):
        raise TypeError(f"distribution must be a class of distributions; got {shown(distribution)}.")
    return as_chart.register(distribution)


def _over_event(term: Tensor, p: Distribution) -> Tensor:
    """A term of a draw from ``p``, summed over whatever dimensions are not its batch's."""
    return sum_last(term, term.dim() - len(p.batch_shape))


@register_chart(Independent)
def _of_independent(fn: Independent) -> Chart:
    base = as_chart(fn.base_dist)
    return _Transformed(fn, base, identity_transform, base.inverse)


@register_chart(Normal)
def _of_normal(fn: Normal) -> Chart:
    return _Affine(fn.loc, fn.scale)


@register_chart(MultivariateNormal)
def _of_multivariate_normal(fn: MultivariateNormal) -> Chart:
    return _Triangular(fn.loc, fn.scale_tril)


@register_chart(Flow)
def _of_flow(fn: Flow) -> Chart:
    return _Transformed(fn, as_chart(fn.base), fn.transform, capabilities(fn).inverse)


@register_chart(TransformedDistribution)
def _of_transformed(fn: TransformedDistribution) -> Chart:
    if not all(t.bijective for t in fn.transforms):
        return _Unconstrained(fn)
    transform = zuko.transforms.ComposedTransform(*fn.transforms)
    return _Transformed(fn, as_chart(fn.base_dist), transform, capabilities(fn).inverse)
