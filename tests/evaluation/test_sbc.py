"""Calibration: no false alarm where the guide is the posterior, an alarm where it is not, and bands that hold."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation import Result
from pyrovae.evaluation.inference._calibration import Calibration, _simultaneous
from tests.models import TwoSites

QUIET: dict[str, Any] = {"progress": False, "compile": "off"}


class Exact(pv.VAEModel):
    """z ~ N(0, I), x | z ~ N(z, I) in two dimensions: the posterior is N(x/2, I/2), which the guide is at 0 and 1."""

    event_shape = (2,)

    def __init__(self, shift: float = 0.0, stretch: float = 1.0, prior: bool = False) -> None:
        super().__init__()
        self.shift, self.stretch, self.prior = shift, stretch, prior

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        loc, scale = (torch.zeros_like(x), 1.0) if self.prior else (x / 2 + self.shift, self.stretch * math.sqrt(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


@pytest.mark.slow
def test_false_alarms_and_alarms() -> None:
    alarms = [pv.calibration(Exact(), 200, num_draws=39, seed=s, **QUIET).p_value < 0.05 for s in range(400)]
    assert np.mean(alarms) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    found = [pv.calibration(Exact(stretch=0.8), 500, seed=s, **QUIET).p_value < 0.05 for s in range(40)]
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"stretch": 0.7}, "z[0] too narrow"),
        ({"stretch": 1.5}, "z[0] too wide"),
        ({"shift": 0.3}, "z[0] too high"),
        ({"shift": -0.3}, "z[0] too low"),
        ({"prior": True}, "log p(x | z) too low"),
    ],
)
def test_what_is_wrong_is_said(options: dict, what: str) -> None:
    report = pv.calibration(Exact(**options), 500, seed=0, **QUIET)
    assert report.p_value < 0.001
    assert what in report.verdict
    if "prior" in options:
        assert not report.tests().loc[["z[0]", "z[1]"], "what"].any()


def test_ranks_coverage_and_what_is_kept(tmp_path: Path) -> None:
    report = pv.calibration(Exact(), 300, num_draws=19, seed=1, **QUIET)
    assert list(report.ranks) == ["z[0]", "z[1]", "log p(x | z)"]
    assert report.ranks.shape == (300, 3)
    assert report.ranks.min().min() == 0
    assert report.ranks.max().max() == 19
    assert report.verdict.startswith("Nothing found in 300")
    coverage = report.coverage((0.5, 0.9))
    assert ((coverage.drop(columns="se").sub([0.5, 0.9], axis=0)).abs().lt(4 * coverage["se"], axis=0)).all().all()
    assert report.coverage((0.0, 1.0)).drop(columns="se").loc[1.0].eq(1.0).all()
    narrow = pv.calibration(Exact(stretch=0.5), 300, seed=1, **QUIET).coverage((0.9,))
    assert (narrow["z[0]"] < 0.75).all()
    again = pv.calibration(Exact(), 300, num_draws=19, seed=1, memory_budget=100_000, **QUIET)
    assert again.ranks.shape == report.ranks.shape
    report.save(tmp_path / "r.npz")
    assert Result.load(tmp_path / "r.npz").ranks.equals(report.ranks)
    stored = report.to_arviz()
    ranks = stored["ranks"]["rank"] if not hasattr(stored, "ranks") else stored.ranks["rank"]
    assert np.array_equal(ranks.to_numpy(), report.ranks.to_numpy())
    assert report.summary()["N"] == 300


def test_several_sites_and_discrete_ones() -> None:
    report = pv.calibration(TwoSites(), 20, num_draws=9, **QUIET)
    assert all("[" in name for name in list(report.ranks)[:-1])
    assert len({name.split("[")[0] for name in list(report.ranks)[:-1]}) == 2


class Coins(pv.VAEModel):
    """Two Bernoulli latents with noise on top, and the posterior as the guide."""

    event_shape = (2,)

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), self.chance)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        logits = x - 0.5 + math.log(self.chance / (1.0 - self.chance))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


@pytest.mark.parametrize("chance", [0.1, 0.3, 0.5])
def test_ties_are_put_in_random_order(chance: float) -> None:
    """Also those of log p(x | z), which two ways to compute it round differently."""
    reports = [pv.calibration(Coins(chance), 1000, num_draws=19, seed=seed, **QUIET) for seed in range(20)]
    assert sum(report.p_value < 0.05 for report in reports) <= 4  # of twenty, where one is to be expected
    assert all(report.ranks["z[0]"].nunique() == 20 for report in reports)


@pytest.mark.parametrize(
    ("n", "points", "outside"), [(50, 50, 0.00642), (100, 100, 0.00411), (100, 20, 0.00855), (250, 100, 0.00327)]
)
def test_bands_are_those_of_the_recursion(n: int, points: int, outside: float) -> None:
    """The chance at one point, to three digits, from the paper's algorithm, and by simulation the chance of all."""
    from scipy import stats

    at = np.arange(1, points) / points
    low, high = _simultaneous(n, at, 0.95)
    outside *= 0.999  # it is where the chance of all jumps, and rounded
    assert np.array_equal(low, stats.binom.ppf(outside / 2, n, at))
    assert np.array_equal(high, stats.binom.ppf(1 - outside / 2, n, at))
    u = np.random.default_rng(0).random((4000, n))
    below = (u[:, :, None] < at).sum(1)
    inside = ((below >= low) & (below <= high)).all(1).mean()
    assert inside > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 4000)


def test_bands_of_a_report() -> None:
    report: Calibration = pv.calibration(Exact(), 100, num_draws=19, **QUIET)
    bands = report.bands()
    assert len(bands) == 19
    off = report.deviations()
    assert off.index.equals(bands.index)
    assert off.ge(bands["lower"] - 1e-12, axis=0).all().all()
    assert off.le(bands["upper"] + 1e-12, axis=0).all().all()
    assert (off.iloc[0] > -1 / 20).all()
    assert (bands["lower"] <= 0).all()
    assert (bands["upper"] >= 0).all()


@pytest.mark.parametrize("bad", [{"num_data": 1}, {"num_draws": 0}, {"seed": -1}])
def test_bad_arguments_are_named(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        pv.calibration(Exact(), **bad)
