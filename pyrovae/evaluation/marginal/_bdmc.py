"""Bidirectional Monte Carlo: log p(x) enclosed from both sides, on data that the model simulates."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from pyrovae._checks import require_at_least, require_one_of
from pyrovae._graph import Compile
from pyrovae.evaluation._result import Result
from pyrovae.evaluation._run import EvaluationRun, simulating
from pyrovae.evaluation.marginal._annealing import Annealing
from pyrovae.evaluation.marginal._chains import Chains, Schedule, estimate_chains
from pyrovae.evaluation.marginal._verdict import combined_se, se_over_data
from pyrovae.model import VAEModel
from pyrovae.model._base_space import BaseSpace
from pyrovae.model._pairing import narrower_sites


@dataclass(frozen=True, kw_only=True)
class BDMCResult(Result):
    """Bounds on log p(x) from both sides on data simulated from the model, in nats.

    Attributes:
        pointwise: one row per simulated datum: ``lower`` and ``upper``, whose expectations enclose log p(x), their
            standard errors over chains ``lower_se`` and ``upper_se``, ``gap`` = upper - lower, and the acceptances
            ``lower_acceptance`` and ``upper_acceptance``.
        x: the data.
        start: ``"posterior"`` or ``"prior"``.
        provenance: the simulated data, the model and the seed.
    """

    pointwise: pd.DataFrame
    x: Tensor
    start: str

    def summary(self) -> pd.Series:
        """Means over data; ``gap_se`` is the standard error of the mean gap over data."""
        p = self.pointwise
        row = {
            "N": len(p),
            "lower": p["lower"].mean(skipna=False),
            "lower_se": combined_se(p["lower_se"]),
            "upper": p["upper"].mean(skipna=False),
            "upper_se": combined_se(p["upper_se"]),
            "gap": p["gap"].mean(skipna=False),
            "gap_se": se_over_data(p["gap"]),
            "worst_gap": p["gap"].max(skipna=False),
        }
        return pd.Series(row, name=self.provenance.model_name)


def bdmc(
    model: VAEModel,
    num_data: int = 100,
    *covariates: Any,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    start: Literal["auto", "posterior", "prior"] = "auto",
    schedule: Schedule = "sigmoid",
    target_acceptance: float = 0.65,
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> BDMCResult:
    """Enclose log p(x) by bidirectional Monte Carlo on simulated data (Grosse et al. 2015, arXiv:1511.02543).

    For x, z drawn from the model, z is an exact draw from p(z | x); where the model observes labels y too, from
    p(z | x, y), and log p(x, y) is enclosed. Chains from the start give a stochastic lower
    bound; chains run backwards from z give an upper one. Their gap bounds the error of :func:`ais` with the same
    settings, on data such as the model generates: real data may be harder.

    All backward chains of a datum start at the same z, and ``upper_se`` is their spread given z; the error of ``gap``
    is best seen over data. Under ``torchrun`` the processes share the blocks of data, as in :func:`ais`.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        num_data: data to simulate.
        covariates: of ``num_data`` data, as in the model.
        num_temperatures: T.
        num_chains: C.
        num_leapfrog: L.
        start: as in :func:`ais`; ``"auto"`` is the posterior where the guide can be inverted, else the prior.
        schedule: as in :func:`ais`.
        target_acceptance: as in :func:`ais`.
        seed: seed of the simulation and the runs.
        device: where to compute; by default where the model is.
        memory_budget: as in :func:`ais`.
        compile: as in :func:`ais`.
        progress: show a progress bar.

    Raises:
        TypeError: as in :func:`ais`.
        ValueError: as in :func:`ais`; what the model cannot :meth:`~pyrovae.VAEModel.simulate`.
        NotImplementedError: ``start="posterior"`` and a flow without an inverse (``can_score`` is False).
    """
    require_at_least(1, num_data=num_data)
    require_one_of(("auto", "posterior", "prior"), start=start)
    given: Any = (schedule, target_acceptance)
    chains = Chains(num_temperatures, num_chains, num_leapfrog, "posterior" if start == "auto" else start, *given)
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget, "compile": compile}
    with simulating("bdmc", model, num_data, covariates, **options, progress=progress) as (run, x, latents):
        if start == "auto" and not _invertible(run):
            chains = replace(chains, start="prior")

        def enclose(rows: slice, space: BaseSpace, annealing: Annealing) -> dict[str, Tensor]:
            u = space.locate(latents.rows(rows))
            forward, lower_acceptance = annealing.forward()
            backward, upper_acceptance = annealing.reverse(u)
            lower, upper = estimate_chains(forward), estimate_chains(-backward)
            return {
                "lower": lower["log_px"],
                "lower_se": lower["mc_se"],
                "upper": -upper["log_px"],
                "upper_se": upper["mc_se"],
                "gap": -upper["log_px"] - lower["log_px"],
                "lower_acceptance": lower_acceptance.double(),
                "upper_acceptance": upper_acceptance.double(),
            }

        columns = chains.collect(run, enclose, paths=2)
        provenance = run.provenance()
    return BDMCResult(pointwise=pd.DataFrame(columns), x=x.cpu(), start=chains.start, provenance=provenance)


def _invertible(run: EvaluationRun) -> bool:
    """Whether every latent that the model draws has coordinates in the guide's base space."""
    if narrower_sites(run.terms.posterior, run.terms.prior):
        return False
    return BaseSpace(run.model, run.part(slice(2)), 2, "posterior").invertible
