"""Simulation-based calibration of a guide: does it say of the model's own data what the model knows of them?"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._checks import require_at_least, require_instance, require_within
from pyrovae._graph import Compile
from pyrovae.evaluation._arviz import container
from pyrovae.evaluation._result import Result
from pyrovae.evaluation._run import simulating
from pyrovae.model import VAEModel

LIKELIHOOD = "log p(x | z)"
_ALARM = 0.05  # chance of one where there is nothing to find
_MOST_POINTS = 100  # that distribution functions are compared at
_ROUNDING_ULPS = 64.0  # units in the last place by which log p(x | z) may differ, computed in two ways
_LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Calibration(Result):
    """Ranks of the latents that data came from among a guide's draws for them.

    Attributes:
        ranks: one row per simulated datum, one column per statistic: every latent dimension (``z[0]``, ``z[1]``, ...)
            and ``log p(x | z)``, without which a guide that returned the prior would pass. From 0 to ``num_draws``,
            each as likely where the guide is the posterior; ties in random order.
        num_draws: L, draws of the guide for each datum.
        provenance: the data, the model and the seed.
    """

    ranks: pd.DataFrame
    num_draws: int

    @property
    def _uniform(self) -> pd.DataFrame:
        """The ranks as numbers that are uniform on (0, 1) where the guide is the posterior."""
        noise = np.random.default_rng(0).random(self.ranks.shape)
        return (self.ranks + noise) / (self.num_draws + 1)

    @property
    def _points(self) -> np.ndarray:
        count = min(self.num_draws + 1, _MOST_POINTS)
        return np.arange(1, count) / count

    def tests(self) -> pd.DataFrame:
        """For every statistic the chances (p-values) of ranks as far from uniform as these: by their mean, low where
        the guide's draws are too high; by their spread around the middle, large where the guide is too narrow; by their
        whole distribution (Kolmogorov-Smirnov). ``p`` is of all three together, and ``what`` says in words what is
        wrong where that is improbable for as many statistics as there are.
        """
        from scipy import stats  # which takes a second

        u, n = self._uniform, len(self.ranks)
        mean, spread = (u - 0.5).mean(), (u - 0.5).pow(2).mean()
        shift, stretch = mean * math.sqrt(12.0 * n), (spread - 1.0 / 12.0) * math.sqrt(180.0 * n)
        table = pd.DataFrame(
            {
                "mean_rank": mean + 0.5,
                "spread": spread * 12.0,
                "p_mean": 2.0 * stats.norm.sf(shift.abs()),
                "p_spread": 2.0 * stats.norm.sf(stretch.abs()),
                "p_distribution": [stats.kstest(u[name], "uniform").pvalue for name in u],
            }
        )
        found = table[["p_mean", "p_spread", "p_distribution"]]
        table["p"] = (3.0 * found.min(axis=1)).clip(upper=1.0)
        words = []
        for name in table.index:
            which = found.loc[name].idxmin()
            kinds = {
                "p_mean": "too low" if shift[name] > 0 else "too high",
                "p_spread": "too narrow" if stretch[name] > 0 else "too wide",
                "p_distribution": "of another shape",
            }
            words.append(kinds[which] if table.loc[name, "p"] * len(table) < _ALARM else "")
        return table.assign(what=words)

    def coverage(self, levels: tuple[float, ...] = _LEVELS) -> pd.DataFrame:
        """How often the guide's central intervals hold the truth, by statistic, a column for each level, and how often
        they should within chance (``se``: one standard error of a share of N data).
        """
        require_instance(tuple | list, levels=levels)
        for level in levels:
            require_within("[0, 1]", levels=level)
        u, n = self._uniform, len(self.ranks)
        inside = {level: ((u - 0.5).abs() <= level / 2).mean() for level in levels}
        table = pd.DataFrame(inside).T.rename_axis("level")
        return table.assign(se=[math.sqrt(level * (1 - level) / n) for level in levels])

    def deviations(self) -> pd.DataFrame:
        """The empirical distribution function of the ranks less the uniform one, by statistic, at the points of
        :meth:`bands`.
        """
        u, at = self._uniform, self._points
        values = {name: (u[name].to_numpy()[:, None] <= at).mean(0) - at for name in u}
        return pd.DataFrame(values, index=pd.Index(at, name="point"))

    def bands(self, level: float = 0.95) -> pd.DataFrame:
        """What the empirical distribution function of the ranks, less the uniform one, stays in at all points at once
        with probability ``level`` (Säilynoja et al. 2022, arXiv:2103.10522): ``lower`` and ``upper`` by point in
        (0, 1).
        """
        require_within("[0, 1)", level=level)
        at = self._points
        low, high = _simultaneous(len(self.ranks), at, level)
        frame = {"lower": low / len(self.ranks) - at, "upper": high / len(self.ranks) - at}
        return pd.DataFrame(frame, index=pd.Index(at, name="point"))

    @property
    def p_value(self) -> float:
        """The chance of ranks as improbable as these, of all statistics together (Bonferroni), where the guide is the
        posterior: under 0.05 in at most so many of such runs.
        """
        return float(min(1.0, self.tests()["p"].min() * self.ranks.shape[1]))

    @property
    def verdict(self) -> str:
        """What it comes to, in one sentence."""
        tests, n = self.tests(), len(self.ranks)
        if not (tests["what"] != "").any():
            return f"Nothing found in {n} simulated data: the guide's draws rank as the posterior's would."
        found = [f"{name} {what}" for name, what in tests["what"].items() if what]
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        return f"Not calibrated (p = {self.p_value:.2g}): draws of the guide are {', '.join(found[:3])}{more}."

    def summary(self) -> pd.Series:
        """The figures of the whole, as one row."""
        row: dict[str, Any] = {"N": len(self.ranks), "L": self.num_draws, "p": self.p_value}
        inside = self.coverage((0.9,)).drop(columns="se").loc[0.9]
        row |= {"least_coverage_90": inside.min(), "most_coverage_90": inside.max()}
        row |= {"found": int((self.tests()["what"] != "").sum())}
        return pd.Series(row, name=self.provenance.model_name)

    def to_arviz(self) -> Any:
        """The ranks, as group ``ranks`` of ArviZ's container, with dimensions ``simulation`` and ``statistic``."""
        import xarray

        coords = {"simulation": np.arange(len(self.ranks)), "statistic": [str(name) for name in self.ranks]}
        data = xarray.Dataset({"rank": (("simulation", "statistic"), self.ranks.to_numpy())}, coords)
        return container({"ranks": data.assign_attrs(num_draws=self.num_draws)})


def calibration(
    model: VAEModel,
    num_data: int = 500,
    *covariates: Any,
    num_draws: int = 99,
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> Calibration:
    """Check a guide against its model by simulation-based calibration (Talts et al. 2018, arXiv:1804.06788).

    For x, z drawn from the model, z is a draw from p(z | x). Where the guide is that posterior, z's rank among L draws
    of q(z | x) is uniform. An amortised guide need not be trained anew for any x. It is judged on data such as the
    model generates: real data may be others.

    Ranks of every latent dimension do not see everything: correlations, for one, and a guide that returned the prior
    would pass, which is why log p(x | z) is ranked as well (Modrák et al. 2023, arXiv:2211.02383).

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        num_data: N, data to simulate. A scale that is wrong by a fifth shows with 500.
        covariates: of ``num_data`` data, as in the model.
        num_draws: L, draws of the guide for each.
        seed: seed of the simulation and the draws.
        device: where to compute; by default where the model is.
        memory_budget: bytes that a block of draws may take; by default what suits the device.
        compile: as in :func:`~pyrovae.log_marginal`.
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`.
        ValueError: arguments out of range; what the model cannot :meth:`~pyrovae.VAEModel.simulate`.
    """
    require_at_least(2, num_data=num_data)
    require_at_least(1, num_draws=num_draws)
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget, "compile": compile}
    with simulating("calibration", model, num_data, covariates, **options, progress=progress) as (run, _, latents):

        def draw(k: int, *part: Any) -> Tensor:
            terms = model.log_terms(*part, num_particles=k)
            of_site = [terms.latents.by_datum(site) for site in latents]
            return torch.cat([*of_site, terms.reconstruction.unsqueeze(-1)], -1)

        sizes = run.plan(draw, num_draws)
        drawn = run.graph(draw, sizes, num_draws)

        def compute(rows: slice, at_once: int) -> dict[str, Tensor]:
            part, truth = run.part(rows), latents.rows(rows)
            joint, prior = model.log_joint(*part, latents=truth), sum(model.log_prior(*part, latents=truth).values())
            values = torch.cat([truth.flat(), (joint - prior).unsqueeze(-1)], -1)[0]
            size = torch.cat([truth.flat(), joint.unsqueeze(-1)], -1)[0].abs()
            rounding = _ROUNDING_ULPS * torch.finfo(values.dtype).eps * (1.0 + size)  # equal values may differ by it
            less = equal = torch.zeros_like(values, dtype=torch.int64)
            for k in run.draws(rows, num_draws, at_once):
                others = drawn(k, *part)
                same = (others - values).abs() <= rounding
                less, equal = less + ((others < values) & ~same).sum(0), equal + same.sum(0)
                run.advance(k * len(values))
            among = (torch.rand(values.shape, device=values.device) * (equal + 1)).long().minimum(equal)
            return {"ranks": less + among}

        ranks = run.collect(compute, sizes, total=num_draws, description="ranks")["ranks"]
        names = [f"{site}[{d}]" for site in latents for d in range(latents.by_datum(site).shape[-1])]
        provenance = run.provenance()
    return Calibration(
        ranks=pd.DataFrame(ranks, columns=[*names, LIKELIHOOD]), num_draws=num_draws, provenance=provenance
    )


def _simultaneous(n: int, at: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest number of n uniform values below every one of some points, in intervals that each hold
    with one probability, chosen so that all hold at once with probability ``level``.
    """
    from scipy import stats

    def limits(outside: float) -> tuple[np.ndarray, np.ndarray]:
        return stats.binom.ppf(outside / 2, n, at), stats.binom.ppf(1 - outside / 2, n, at)

    low, high = 0.0, 1.0 - level  # the chance to be outside at one point
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _chance_inside(n, at, *limits(middle)) >= level else (low, middle)
    return limits(low)


def _chance_inside(n: int, at: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The probability that n uniform values have between ``low`` and ``high`` of them below every point: the counts are
    a Markov chain.
    """
    from scipy import stats

    chance, counts, before = np.ones(1), np.zeros(1), 0.0
    for point, least, most in zip(at, low, high, strict=True):
        new = np.arange(least, most + 1)
        step = new[:, None] - counts
        chance = stats.binom.pmf(step, n - counts, (point - before) / (1 - before)) @ chance
        counts, before = new, point
    return float(chance.sum())
