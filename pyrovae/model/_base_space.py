"""The base space of a guide (or of a prior): coordinates for moving latents, one chart per latent site.

Flows whose inverse is not known can be moved about there, because only the map itself and its Jacobian are needed.
"""

from collections.abc import Callable
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from pyrovae._compat.pyro import Messenger, is_sample_site
from pyrovae.distributions._capabilities import capabilities, family
from pyrovae.distributions._charts import Chart, as_chart
from pyrovae.distributions._density import mask_of
from pyrovae.model._base import VAEModel
from pyrovae.model._latents import Latents, PerDatum, VectorPerDatum, over_plates
from pyrovae.model._log_terms import PARTICLES
from pyrovae.model._modes import local_parameters

Start = Literal["posterior", "prior"]


class BaseSpace:
    """Coordinates of all latents of C chains for each of B data, as one tensor ``u`` of shape ``(C, B, D)``.

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
        self._arrangement = run.coordinates
        # A single latent's distribution does not depend on where it is: neither encoder nor guide need run again.
        self._static = next(iter(run.charts.items())) if len(run.charts) == 1 else None
        #: Whether every point has coordinates that can be found.
        self.invertible = all(chart.inverse is not None for chart in run.charts.values())

    def draw(self) -> VectorPerDatum:
        """Draw coordinates from the start, independently for each chain."""
        return self._run(lambda name, chart: chart.draw()).coordinates.flat()

    def locate(self, latents: Latents) -> VectorPerDatum:
        """Find the coordinates of given latents, ``(1, *plates, B, *event)`` by site, the same for every chain.

        Raises:
            NotImplementedError: a flow without an inverse.
            ValueError: latents that cannot be drawn there, or whose coordinates float precision does not find.
        """
        everywhere = {name: z.expand(self._num_chains, *z.shape[1:]) for name, z in latents.items()}
        run = self._run(lambda name, chart: chart.locate(everywhere[name]))
        for name, z in run.latents.items():
            if not torch.allclose(z, everywhere[name], rtol=1e-3, atol=1e-3):
                raise ValueError(
                    f"latents of site {name!r} have no coordinates in the {self._start}: it does not draw them, or not "
                    f"within float precision. Pass another start."
                )
        return run.coordinates.flat()

    def log_densities(self, u: VectorPerDatum) -> tuple[PerDatum, PerDatum]:
        """The log-densities at ``u`` of the start, and of p(x, z) as a function of u, in nats."""
        at = self._arrangement.unflattened(u)
        if self._static is not None:
            name, chart = self._static
            z, log_det = chart(at[name])
            latents, log_start, log_dets = {name: z}, over_plates(chart.log_base(at[name])), over_plates(log_det)
        else:
            run = self._run(lambda name, chart: at[name])
            latents, log_start, log_dets = run.latents, run.log_base, run.log_det
        return log_start, self._model.log_joint(*self._part, latents=latents) + log_dets

    def with_gradients(self, u: VectorPerDatum) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The two :meth:`log_densities`, and the gradient of each with respect to ``u``."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            log_start, log_target = self.log_densities(u)
            (start,) = torch.autograd.grad(log_start.sum(), u, retain_graph=True)
            (target,) = torch.autograd.grad(log_target.sum(), u)
        return log_start.detach(), log_target.detach(), start, target

    def _run(self, choose: Callable[[str, Chart], Tensor]) -> "_LatentsAt":
        """Run the program with every latent at the coordinates that ``choose(name, chart)`` gives."""
        handler, nesting = _LatentsAt(choose, self._start), self._model.max_plate_nesting
        with local_parameters(), handler, pyro.plate(PARTICLES, self._num_chains, dim=-nesting - 1):
            self._program(*self._part)
        handler.coordinates = Latents(handler.coordinates, nesting - 1)
        return handler


class _LatentsAt(Messenger):
    """A handler that puts every latent at the coordinates that ``choose(name, chart)`` gives."""

    def __init__(self, choose: Callable[[str, Chart], Tensor], start: Start) -> None:
        super().__init__()
        self._choose, self._start = choose, start
        self.charts: dict[str, Chart] = {}
        self.coordinates: Any = {}
        self.latents: dict[str, Tensor] = {}
        self.log_base: Any = 0.0
        self.log_det: Any = 0.0

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if message["is_observed"] or not is_sample_site(message):
            return
        name, fn = message["name"], message["fn"]
        if mask_of(fn, message["mask"]) is not True:
            raise TypeError(f"site {name!r} is masked: annealing needs the density of every latent.")
        can = capabilities(fn)
        if self._start == "posterior" and not can.rsample and not can.discrete:
            raise TypeError(
                f"site {name!r} of the guide ({family(fn)}) is not reparameterised: no gradient passes through its "
                f"draws, so it has no base space to move in. Give it an rsample, or pass start='prior'."
            )
        if can.discrete or can.point_mass:
            raise TypeError(
                f"site {name!r} ({family(fn)}) is discrete, or a point mass: Hamiltonian dynamics need a density "
                f"on a continuum. Use log_marginal, or sum the site out of the model."
            )
        self.charts[name] = chart = as_chart(fn)
        u = self.coordinates[name] = self._choose(name, chart)
        z, log_det = chart(u)
        self.latents[name] = message["value"] = z
        message["done"] = True
        self.log_base = self.log_base + over_plates(chart.log_base(u))
        self.log_det = self.log_det + over_plates(log_det)
