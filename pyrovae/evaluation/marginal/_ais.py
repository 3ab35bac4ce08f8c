"""Annealed importance sampling: log p(x) where importance sampling from the guide fails, and bounds from both sides."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._checks import as_covariates, at_least, lookup, one_of
from pyrovae._compat.torch import is_out_of_memory
from pyrovae._distributed import common_seed, connect, joined, my_blocks, rank
from pyrovae._graph import COMPILE, Compile
from pyrovae._random import reseed, seeded
from pyrovae.evaluation._chunks import BLOCK, probe
from pyrovae.evaluation._strict import TestSet, as_test_set, check_ranks, fingerprint, model_name, strict, with_density
from pyrovae.evaluation.marginal._annealing import SCHEDULES, SETTLING, Annealing
from pyrovae.evaluation.marginal._stream import WeightStream
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
from pyrovae.model._support import narrower_sites

Schedule = str | Callable[[Tensor], Tensor]
_PILOT = 100


@dataclass(frozen=True)
class AISResult:
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
        data_hash: content hash of the data.
        model_name: class of the model, with its posterior where it has one.
        seed: seed of the run.
        fingerprint: as in :class:`~pyrovae.MarginalResult`.
    """

    pointwise: pd.DataFrame
    num_temperatures: int
    num_chains: int
    num_leapfrog: int
    start: str
    schedule: str
    num_gradients: int
    data_hash: str
    model_name: str
    seed: int | None
    fingerprint: tuple[float, ...]

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
        return pd.Series(row, name=self.model_name)


@dataclass(frozen=True)
class BDMCResult:
    """Bounds on log p(x) from both sides on data simulated from the model, in nats.

    Attributes:
        pointwise: one row per simulated datum: ``lower`` and ``upper``, whose expectations enclose log p(x), their
            standard errors over chains ``lower_se`` and ``upper_se``, ``gap`` = upper - lower, and the acceptances
            ``lower_acceptance`` and ``upper_acceptance``.
        x: the data.
        model_name: class of the model, with its posterior where it has one.
        start: ``"posterior"`` or ``"prior"``.
        seed: seed of the simulation and the runs.
    """

    pointwise: pd.DataFrame
    x: Tensor
    model_name: str
    start: str
    seed: int | None

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
        return pd.Series(row, name=self.model_name)


def ais(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    start: Literal["posterior", "prior"] = "posterior",
    schedule: Schedule = "sigmoid",
    target_acceptance: float = 0.65,
    seed: int | None = 0,
    device: str | torch.device | None = None,
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
        compile: as in :func:`~pyrovae.log_marginal`: whether densities and gradients become machine code.
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`; a latent site is discrete, masked or not
            reparameterised.
        ValueError: bad data (see :func:`~pyrovae.log_marginal`), an unknown schedule or one that does not increase
            from 0 to 1.
    """
    at_least(2, num_chains=num_chains)
    connect()
    data = as_test_set("ais", model, x, covariates)
    columns: dict[str, np.ndarray] = {}
    with strict(model, device), seeded(common_seed(seed)):
        terms = data.check(model).terms
        narrow = narrower_sites(terms.posterior, terms.prior)
        if narrow and start == "posterior":
            raise ValueError(
                f"the guide draws site {narrow[0]!r} on a part of the reals only, where its chains would have to stay: "
                f"pass start='prior'."
            )
        runs = _Runs(
            model,
            data,
            num_temperatures,
            num_chains,
            num_leapfrog,
            start,
            schedule,
            target_acceptance,
            compile,
            progress,
        )

        def estimate(rows: slice, space: BaseSpace, annealing: Annealing) -> dict[str, Tensor]:
            log_weight, acceptance = annealing.forward()
            return {**estimate_chains(log_weight), "acceptance": acceptance}

        for rows, part in runs.each(estimate):
            for name, values in part.items():
                columns.setdefault(name, np.empty(len(data), dtype=np.float64))[rows] = values.cpu().numpy()
        columns = joined(columns, runs.share)
        marks = fingerprint(model, data)
    pointwise = pd.DataFrame(columns).astype({"non_finite": int})
    return AISResult(
        pointwise=data.labelled(pointwise.join(judge_chains(pointwise, num_chains))),
        num_temperatures=num_temperatures,
        num_chains=num_chains,
        num_leapfrog=num_leapfrog,
        start=start,
        schedule=schedule if isinstance(schedule, str) else getattr(schedule, "__name__", repr(schedule)),
        num_gradients=runs.num_gradients,
        data_hash=data.hash,
        model_name=model_name(model),
        seed=seed,
        fingerprint=marks,
    )


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
        compile: as in :func:`ais`.
        progress: show a progress bar.

    Raises:
        TypeError: as in :func:`ais`.
        ValueError: as in :func:`ais`; what the model cannot :meth:`~pyrovae.VAEModel.simulate`.
        NotImplementedError: ``start="posterior"`` and a flow without an inverse (``can_score`` is False).
    """
    at_least(2, num_chains=num_chains)
    at_least(1, num_data=num_data)
    with_density("bdmc", model)
    connect()
    columns: dict[str, np.ndarray] = {}
    with strict(model, device), seeded(common_seed(seed)):
        covariates = as_covariates(covariates, num_data, model.like(), model.columns)
        x, latents = model.simulate(num_data, *covariates)
        data = as_test_set("bdmc", model, x, covariates)
        terms = data.check(model).terms
        narrow = narrower_sites(terms.posterior, terms.prior)
        if start == "auto":
            start = "posterior"
            if narrow or not BaseSpace(model, data.part(slice(2), model.like()), 2, start).invertible:
                start = "prior"
        runs = _Runs(
            model,
            data,
            num_temperatures,
            num_chains,
            num_leapfrog,
            start,
            schedule,
            target_acceptance,
            compile,
            progress,
            2,
        )

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
                "lower_acceptance": lower_acceptance,
                "upper_acceptance": upper_acceptance,
            }

        for rows, part in runs.each(enclose):
            for name, values in part.items():
                columns.setdefault(name, np.empty(num_data))[rows] = values.cpu().numpy()
        columns = joined(columns, runs.share)
    return BDMCResult(pd.DataFrame(columns), x.cpu(), model_name(model), start, seed)


class _Runs:
    """Annealed chains for this process's share of the data, block by block: checked arguments, a seed for every block,
    a progress bar.

    Attributes:
        share: this process's rows.
        num_gradients: gradients that all processes take.
    """

    def __init__(
        self,
        model: VAEModel,
        data: TestSet,
        num_temperatures: int,
        num_chains: int,
        num_leapfrog: int,
        start: Any,
        schedule: Schedule,
        target_acceptance: float,
        compile: Compile,
        progress: bool,
        runs: int = 1,
    ) -> None:
        one_of(COMPILE, compile=compile)
        at_least(2, num_temperatures=num_temperatures)
        at_least(1, num_leapfrog=num_leapfrog)
        if start not in ("posterior", "prior"):
            raise ValueError(f"start must be 'posterior' or 'prior'; got {start!r}.")
        if not 0 < target_acceptance < 1:
            raise ValueError(f"target_acceptance must be between 0 and 1; got {target_acceptance}.")
        self._model, self._data, self._num_chains, self._start = model, data, num_chains, start
        self._betas = _betas(schedule, num_temperatures).to(model.like().device)
        pilot = min(_PILOT, num_temperatures)
        self._num_leapfrog, self._target_acceptance, self._pilot = num_leapfrog, target_acceptance, pilot
        self._compile = compile
        moves = SETTLING + pilot + runs * (num_temperatures - 1)
        self.num_gradients = moves * num_leapfrog * num_chains * len(data)
        check_ranks(model, data)
        self._seed = int(torch.randint(2**62, ()))
        cost = probe(lambda n, k: self._probe(slice(n), k))
        self._block = max(1, BLOCK[model.like().device.type] // (cost.per_datum + num_chains * cost.per_draw))
        self.share = my_blocks(len(data), self._block)
        total, silent = moves * (self.share.stop - self.share.start), not progress or rank() > 0
        self._bar = tqdm(total=total, unit="move", unit_scale=True, desc="annealing", disable=silent)

    def _space(self, rows: slice, num_chains: int) -> BaseSpace:
        return BaseSpace(self._model, self._data.part(rows, self._model.like()), num_chains, self._start)

    def _probe(self, rows: slice, num_chains: int) -> None:
        space = self._space(rows, num_chains)
        space.with_gradients(space.draw())

    def each(
        self, compute: Callable[[slice, BaseSpace, Annealing], dict[str, Tensor]]
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """``compute`` on block after block of data; in smaller blocks once memory has run out."""
        first, last = self.share.start, self.share.stop
        with self._bar as bar:
            while first < last:
                rows = slice(first, min(first + self._block, last))
                done = bar.n
                try:
                    result = self._run(compute, rows)
                except RuntimeError as error:
                    if not is_out_of_memory(error) or self._block == 1:
                        raise
                    result = None
                if result is None:  # outside the handler, which holds on to what was computed
                    self._block = -(-self._block // 2)
                    bar.update(done - bar.n)
                    if self._model.like().is_cuda:
                        torch.cuda.empty_cache()
                else:
                    yield rows, result
                    first = rows.stop

    def _run(
        self, compute: Callable[[slice, BaseSpace, Annealing], dict[str, Tensor]], rows: slice
    ) -> dict[str, Tensor]:
        reseed(self._seed, rows.start)
        space = self._space(rows, self._num_chains)
        annealing = Annealing(
            space,
            self._betas,
            num_leapfrog=self._num_leapfrog,
            target_acceptance=self._target_acceptance,
            pilot=self._pilot,
            moved=partial(self._bar.update, rows.stop - rows.start),
            compile=self._compile,
            calls=self.num_gradients // (self._num_chains * self._block),
        )
        return compute(rows, space, annealing)


def _betas(schedule: Schedule, num_temperatures: int) -> Float[Tensor, "temperatures"]:
    path = lookup(SCHEDULES, schedule, "schedule") if isinstance(schedule, str) else schedule
    betas = torch.as_tensor(path(torch.linspace(0.0, 1.0, num_temperatures + 1, dtype=torch.float64)))
    if betas.shape != (num_temperatures + 1,) or betas[0] != 0 or betas[-1] != 1 or bool((betas.diff() <= 0).any()):
        raise ValueError(
            f"schedule must give {num_temperatures + 1} values that increase from 0 to 1; got {tuple(betas.shape)} "
            f"from {betas.flatten()[0]:.4g} to {betas.flatten()[-1]:.4g}."
        )
    return betas


def estimate_chains(log_weight: Float[Tensor, "chains batch"]) -> dict[str, Tensor]:
    """log-mean-exp over chains with what the jackknife says of its bias and standard error, and the effective number of
    chains.

    Where a few chains dominate, the delta method's error falls short of the true one, to half at Var(log w) = 6 and 16
    chains; the jackknife's does not.
    """
    c, n = log_weight.shape
    stream = WeightStream(n, c, (), log_weight.device)
    stream.update(log_weight)
    share = (log_weight - log_weight.logsumexp(0)).exp()
    others = torch.log1p(-share.clamp(max=1.0 - 1e-15))  # log of the sum without each chain, less that of all
    se = (others.var(0, unbiased=False) * (c - 1)).sqrt()
    return {
        "log_px": stream.log_mean,
        "mc_se": se,
        "bias": stream.log_mean - stream.jackknife,
        "ess": stream.ess,
        "log_weight_variance": log_weight.var(0),
        "non_finite": stream.non_finite,
    }
