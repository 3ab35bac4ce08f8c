"""Coordinates for moving latents about: the base space of a guide (or of a prior), one chart per latent site.

A chart is a map z = T(u) of a latent's distribution. Where the distribution is an affine or a flow transform of a
standard normal, u is that normal; elsewhere u is z in unconstrained coordinates. Flows whose inverse is not known
can be moved about in u, because there only T itself and its Jacobian are needed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    Distribution,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    biject_to,
)

from pyrovae.distributions import Flow, _zuko
from pyrovae.distributions.independent import innermost
from pyrovae.distributions.sylvester import apply_matrix
from pyrovae.model.base import VAEModel
from pyrovae.model.log_terms import PARTICLES
from pyrovae.model.modes import local_parameters

Start = Literal["posterior", "prior"]


class BaseSpace:
    """All latents of C chains for each of B data as one tensor ``u`` of shape ``(C, B, D)``.

    Args:
        model: a model in evaluation mode.
        part: ``(x, *covariates)`` of B data, on the model's device.
        num_chains: C, at least 2.
        start: ``"posterior"`` for the guide's base space, ``"prior"`` for the prior's.

    Raises:
        TypeError: a latent site that is discrete, masked, or, in the guide, not reparameterised.
    """

    def __init__(self, model: VAEModel, part: tuple[Any, ...], num_chains: int, start: Start) -> None:
        self._model, self._part, self._num_chains, self._start = model, part, num_chains, start
        self._program = model.guide if start == "posterior" else model.model
        run = self._run(lambda name, chart: chart.draw())
        if not run.coordinates:
            raise ValueError(f"{type(model).__name__} has no latents to move: log_marginal gives its exact log p(x).")
        self._shapes = {name: u.shape for name, u in run.coordinates.items()}
        # A single latent's distribution does not depend on where it is: neither encoder nor guide need run again.
        self._static = next(iter(run.charts.items())) if len(run.charts) == 1 else None

    def draw(self) -> Float[Tensor, "chains batch dim"]:
        """Independent draws from the start, one for each chain."""
        return self._flat(self._run(lambda name, chart: chart.draw()).coordinates)

    def locate(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "chains batch dim"]:
        """The coordinates of given latents, ``(B, *event)`` by site, the same for every chain.

        Raises:
            NotImplementedError: a flow without an inverse.
        """
        return self._flat(self._run(lambda name, chart: chart.inverse(latents[name])).coordinates)

    def log_densities(
        self, u: Float[Tensor, "chains batch dim"]
    ) -> tuple[Float[Tensor, "chains batch"], Float[Tensor, "chains batch"]]:
        """Log-densities at ``u`` of the start, and of p(x, z) as a function of u, in nats."""
        placed = self._split(u)
        if self._static is not None:
            name, chart = self._static
            z, log_det = chart(placed[name])
            latents, log_start, log_dets = {name: z}, _over_plates(chart.log_base(placed[name])), _over_plates(log_det)
        else:
            run = self._run(lambda name, chart: placed[name])
            latents, log_start, log_dets = run.latents, run.log_base, run.log_det
        return log_start, self._model.log_joint(*self._part, latents=latents) + log_dets

    def with_gradients(self, u: Float[Tensor, "chains batch dim"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both of :meth:`log_densities`, and the gradient of each with respect to ``u``."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            log_start, log_target = self.log_densities(u)
            (start,) = torch.autograd.grad(log_start.sum(), u, retain_graph=True)
            (target,) = torch.autograd.grad(log_target.sum(), u)
        return log_start.detach(), log_target.detach(), start, target

    def _run(self, place: Callable[[str, "Chart"], Tensor]) -> "_Placed":
        handler = _Placed(place, self._start)
        with (
            local_parameters(),
            handler,
            pyro.plate(PARTICLES, self._num_chains, dim=-self._model.max_plate_nesting - 1),
        ):
            self._program(*self._part)
        return handler

    def _flat(self, sites: Mapping[str, Tensor]) -> Tensor:
        nesting = self._model.max_plate_nesting
        return torch.cat(
            [u.movedim(nesting, 1).flatten(2) if u.dim() > 2 else u.unsqueeze(2) for u in sites.values()], 2
        )

    def _split(self, u: Tensor) -> dict[str, Tensor]:
        nesting, out = self._model.max_plate_nesting, {}
        sizes = [math.prod(shape) // (shape[0] * shape[nesting]) for shape in self._shapes.values()]
        for (name, shape), part in zip(self._shapes.items(), u.split(sizes, 2), strict=True):
            rest = [n for i, n in enumerate(shape) if i not in (0, nesting)]
            out[name] = part.reshape(shape[0], shape[nesting], *rest).movedim(1, nesting)
        return out


class _Placed(Messenger):
    """Runs a program with every latent put where ``place(name, chart)`` says."""

    def __init__(self, place: Callable[[str, "Chart"], Tensor], start: Start) -> None:
        super().__init__()
        self._place, self._start = place, start
        self.charts: dict[str, Chart] = {}
        self.coordinates: dict[str, Tensor] = {}
        self.latents: dict[str, Tensor] = {}
        self.log_base: Any = 0.0
        self.log_det: Any = 0.0

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if message["is_observed"] or message["infer"].get("_deterministic") or site_is_subsample(message):
            return
        name, fn = message["name"], message["fn"]
        if message["mask"] is not None:
            raise TypeError(f"site {name!r} is masked: annealing needs the density of every latent.")
        if self._start == "posterior" and not fn.has_rsample and not _is_discrete(fn):
            raise TypeError(
                f"site {name!r} of the guide ({_describe(fn)}) is not reparameterised: no gradient passes through its "
                f"draws, so it has no base space to move in. Give it an rsample, or pass start='prior'."
            )
        if _is_discrete(fn) or isinstance(innermost(fn), Delta):
            raise TypeError(
                f"site {name!r} ({_describe(fn)}) is discrete, or a point mass: Hamiltonian dynamics need a density "
                f"on a continuum. Use log_marginal, or sum the site out of the model."
            )
        self.charts[name] = chart = as_chart(fn)
        u = self.coordinates[name] = self._place(name, chart)
        z, log_det = chart(u)
        self.latents[name] = message["value"] = z
        message["done"] = True
        self.log_base = self.log_base + _over_plates(chart.log_base(u))
        self.log_det = self.log_det + _over_plates(log_det)


class Chart(ABC):
    """z = T(u) for a distribution of ``z``; ``u`` has the same batch shape."""

    @abstractmethod
    def draw(self) -> Tensor:
        """``u`` such that z has its distribution."""

    @abstractmethod
    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z, and log |det ∂z/∂u|."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """``u`` of a given z, which may lack leading batch dimensions."""

    @abstractmethod
    def log_base(self, u: Tensor) -> Tensor:
        """Log-density of ``u``."""


class _Affine(Chart):
    """z = μ + σ u."""

    def __init__(self, loc: Tensor, scale: Tensor, event_dim: int) -> None:
        self._loc, self._scale, self._event_dim = loc, scale, event_dim
        self._log_det = _sum_last(scale.log(), event_dim)

    def draw(self) -> Tensor:
        return torch.randn(self._loc.shape, dtype=self._loc.dtype, device=self._loc.device)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._loc + self._scale * u, self._log_det

    def inverse(self, z: Tensor) -> Tensor:
        return (z - self._loc) / self._scale

    def log_base(self, u: Tensor) -> Tensor:
        return _sum_last(-0.5 * u.square() - 0.5 * math.log(2.0 * math.pi), self._event_dim)


class _Triangular(_Affine):
    """z = μ + L u."""

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__(loc, scale_tril.diagonal(dim1=-2, dim2=-1), 1)
        # One matrix for all chains, where that is so: products with an expanded one would copy it.
        self._tril = scale_tril[0] if scale_tril.stride(0) == 0 else scale_tril

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._loc + apply_matrix(self._tril, u), self._log_det

    def inverse(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self._tril, (z - self._loc).unsqueeze(-1), upper=False).squeeze(-1)


class _Transformed(Chart):
    """T after the base distribution's chart."""

    def __init__(self, base: Chart, transform: Any, invertible: bool) -> None:
        self._base, self._transform, self._invertible = base, transform, invertible

    def draw(self) -> Tensor:
        return self._base.draw()

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = self._base(u)
        z, further = self._transform.call_and_ladj(y)
        return z, log_det + _sum_last(further, further.dim() - log_det.dim())

    def inverse(self, z: Tensor) -> Tensor:
        try:
            if self._invertible:
                return self._base.inverse(self._transform.inv(z))
        except (KeyError, NotImplementedError):  # Pyro's transforms say it in these ways
            pass
        raise NotImplementedError("this flow has no inverse in closed form, so no chain can start at a given z.")

    def log_base(self, u: Tensor) -> Tensor:
        return self._base.log_base(u)


class _Unconstrained(Chart):
    """z in the unconstrained coordinates of its support."""

    def __init__(self, fn: Distribution) -> None:
        self._fn, self._transform = fn, biject_to(_support(fn))

    def draw(self) -> Tensor:
        return self._transform.inv(self._fn.sample())

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        z = self._transform(u)
        further = self._transform.log_abs_det_jacobian(u, z)
        return z, _sum_last(further, further.dim() - len(self._fn.batch_shape))

    def inverse(self, z: Tensor) -> Tensor:
        return self._transform.inv(z.expand(self._fn.batch_shape + self._fn.event_shape))

    def log_base(self, u: Tensor) -> Tensor:
        z, log_det = self(u)
        return self._fn.log_prob(z) + log_det


def as_chart(fn: Distribution) -> Chart:
    """The chart of a distribution of continuous values."""
    base = innermost(fn)
    if isinstance(base, Normal):
        shape = fn.batch_shape + fn.event_shape
        return _Affine(base.loc.expand(shape), base.scale.expand(shape), len(fn.event_shape))
    if isinstance(fn, MultivariateNormal):
        return _Triangular(fn.loc, fn.scale_tril)
    if isinstance(fn, Flow):
        return _Transformed(as_chart(fn.base), fn.transform, fn.can_score)
    if isinstance(fn, TransformedDistribution) and all(t.bijective for t in fn.transforms):
        return _Transformed(as_chart(fn.base_dist), _zuko.transforms.ComposedTransform(*fn.transforms), True)
    return _Unconstrained(fn)


def _over_plates(term: Tensor) -> Tensor:
    """Summed over the plates between chains and data."""
    return term.flatten(1, -2).sum(1) if term.dim() > 2 else term


def _sum_last(value: Tensor, dims: int) -> Tensor:
    return value.flatten(-dims).sum(-1) if dims else value


def _support(fn: Any) -> Any:
    component = getattr(fn, "component_distribution", None)  # a mixture's own support has no bijection registered
    return fn.support if component is None else component.support


def _is_discrete(fn: Any) -> bool:
    return bool(_support(fn).is_discrete)


def _describe(fn: Distribution) -> str:
    return type(innermost(fn)).__name__
