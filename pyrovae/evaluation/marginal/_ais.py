"""Annealed importance sampling: log p(x) where importance sampling from the guide fails."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._graph import Compile
from pyrovae.evaluation._result import Result
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.marginal._annealing import Annealing
from pyrovae.evaluation.marginal._chains import Chains, Schedule, Start, estimate_chains
from pyrovae.evaluation.marginal._verdict import (
    combined_se,
    is_reliable,
    judge_chains,
    mean_error_of_chains,
    se_over_data,
    verdict,
)
from pyrovae.model import VAEModel
from pyrovae.model._base_space import BaseSpace
from pyrovae.model._pairing import narrower_sites


@dataclass(frozen=True, kw_only=True)
class AISResult(Result):
    """Estimates of log p(x) by annealed importance sampling, in nats.

    Attributes:
        pointwise: one row per datum: ``log_px``, ``mc_se`` (its standard error, by the jackknife over chains),
            ``bias`` (the jackknife's estimate of E[log_px] - log p(x): ``log_px - bias`` is without its part of order
            1/C, and noisier), ``ess`` (effective number of chains), ``log_weight_variance`` (of log w over chains: of
            too few temperatures), ``acceptance`` (mean over the run), ``non_finite`` (chains whose weight is NaN or
            +inf), ``reliable`` and ``reason`` (see :func:`~pyrovae.evaluation.judge_chains`).
        num_temperatures: T.
        num_chains: chains per datum.
        num_leapfrog: leapfrog steps a move.
        start: ``"posterior"`` or ``"prior"``.
        schedule: name of the path's schedule.
        num_gradients: gradients of log p(x, z) taken, over all chains and data, the pilot's included.
        provenance: the data, the model and the seed.
    """

    pointwise: pd.DataFrame
    num_temperatures: int
    num_chains: int
    num_leapfrog: int
    start: str
    schedule: str
    num_gradients: int

    @property
    def mean_error(self) -> float:
        """How far the mean of ``log_px`` may be from that of log p(x), in nats, as far as the chains can tell (see
        :func:`~pyrovae.evaluation.mean_error_of_chains`): infinite where they cannot, NaN where they are few.
        """
        return mean_error_of_chains(self.pointwise, self.num_chains)

    @property
    def reliable(self) -> bool:
        """Whether the mean has a :attr:`mean_error`, and at most half of the data are flagged."""
        return is_reliable(self.pointwise, self.mean_error)

    @property
    def verdict(self) -> str:
        """How far the mean can be off, and what speaks against single data."""
        return verdict(self.pointwise, self.mean_error, "The mean", "use more temperatures or chains")

    def summary(self) -> pd.Series:
        """Means over data: ``se_data`` is their standard error from having N data, ``mc_se`` from having C chains."""
        p = self.pointwise
        row = {
            "N": len(p),
            "T": self.num_temperatures,
            "chains": self.num_chains,
            "log_px": p["log_px"].mean(skipna=False),
            "se_data": se_over_data(p["log_px"]),
            "mc_se": combined_se(p["mc_se"]),
            "bias": p["bias"].mean(skipna=False),
            "worst": p["log_px"].min(skipna=False),
            "median_ess": p["ess"].median(),
            "acceptance": p["acceptance"].mean(),
            "unreliable": float((~p["reliable"]).mean()),
            "non_finite": int(((p["non_finite"] > 0) | ~np.isfinite(p["log_px"])).sum()),
        }
        return pd.Series(row, name=self.provenance.model_name)


def ais(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    start: Start = "posterior",
    schedule: Schedule = "sigmoid",
    target_acceptance: float = 0.65,
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> AISResult:
    """Estimate log p(x) by annealed importance sampling (Neal 2001; for decoders Wu et al. 2017, arXiv:1611.04273).

    Chains start at draws from q(z | x), or from p(z), and follow π_β ∝ start^(1-β) p(x, z)^β from β = 0 to 1, moved by
    Hamiltonian Monte Carlo. E[p̂(x)] = p(x) whatever the number of temperatures, so log p̂(x) is a stochastic lower
    bound, and a much tighter one than L_K where q is far from the posterior.

    The chains move in the guide's base space (for a flow, the normal that it transforms), so flows whose inverse is
    unknown are no obstacle. Step sizes are tuned for each datum by a pilot run and then frozen.

    Cost: about (T + 120) × C × L gradients of the decoder per datum. Under ``torchrun`` the processes share the blocks
    of data, as in :func:`~pyrovae.log_marginal`.

    Args:
        model: a :class:`~pyrovae.VAEModel`; gradients must pass through its densities.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide.
        num_temperatures: T, steps of β.
        num_chains: C, chains per datum, at least 2.
        num_leapfrog: L, leapfrog steps a move.
        start: ``"posterior"`` or ``"prior"``.
        schedule: of β: ``"linear"``, ``"sigmoid"``, ``"log"``, or a function from t in [0, 1], ``(T + 1,)``, to β,
            increasing from 0 to 1. The farther the start, the more temperatures must lie near it: from the prior of a
            sharp decoder ``"log"`` is the better one.
        target_acceptance: what the pilot tunes the step sizes to.
        seed: seed of the run.
        device: where to compute; by default where the model is. The model is put back.
        memory_budget: bytes that a block of data may take; by default 64 MiB on a CPU, 1 GiB on CUDA. Other blocks are
            other draws.
        compile: as in :func:`~pyrovae.log_marginal`: whether densities and gradients become machine code.
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`; a latent site is discrete, masked or not
            reparameterised.
        ValueError: bad data (see :func:`~pyrovae.log_marginal`), an unknown schedule or one that does not increase
            from 0 to 1.
    """
    chains = Chains(num_temperatures, num_chains, num_leapfrog, start, schedule, target_acceptance)
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget}
    with EvaluationRun("ais", model, x, covariates, **options, compile=compile, progress=progress) as run:
        narrow = narrower_sites(run.terms.posterior, run.terms.prior)
        if narrow and start == "posterior":
            raise ValueError(
                f"the guide draws site {narrow[0]!r} on a part of the reals only, where its chains would have to stay: "
                f"pass start='prior'."
            )

        def estimate(rows: slice, space: BaseSpace, annealing: Annealing) -> dict[str, Tensor]:
            log_weight, acceptance = annealing.forward()
            return {**estimate_chains(log_weight), "acceptance": acceptance.double()}

        pointwise = pd.DataFrame(chains.collect(run, estimate))
        provenance = run.provenance()
    return AISResult(
        pointwise=run.data.table(pointwise.join(judge_chains(pointwise, num_chains))),
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        num_leapfrog=num_leapfrog,
        start=start,
        schedule=chains.schedule_name,
        num_gradients=chains.num_moves() * num_leapfrog * num_chains * len(pointwise),
        provenance=provenance,
    )
