"""Coverage of the intervals of compare, whose true differences are known, and the variance they are made of."""

import math
import zlib

import numpy as np
import pandas as pd
import pytest

import pyrovae as pv
from benchmarks.coverage import coverage
from pyrovae.evaluation import Provenance
from pyrovae.evaluation.marginal._paired import Difference, Seeds, simultaneous
from tests.models import from_elsewhere


def difference(ours: np.ndarray, theirs: np.ndarray, *, together: bool = False, pool_seeds: bool = True) -> Difference:
    return Difference.of(ours, theirs, together=together, pool_seeds=pool_seeds)


def result(log_px: np.ndarray, name: object, *, mc_se: float = 0.0, num_samples: int = 100) -> pv.MarginalResult:
    """A result with these log p(x), of a trained model called ``name``."""
    n = len(log_px)
    same = {"log_px": log_px, "elbo": log_px, "jackknife": log_px, "L_1": log_px, "L_10": log_px, "L_100": log_px}
    noise = {"mc_se": mc_se, "L_1_se": mc_se, "L_10_se": mc_se, "L_100_se": mc_se, "halves": 0.0}
    rest = {
        "draws": num_samples,
        "rise": 0.0,
        "ess": 100.0,
        "khat": 0.0,
        "non_finite": 0,
        "reliable": True,
        "reason": "",
    }
    return pv.MarginalResult(
        pointwise=pd.DataFrame(same | noise | rest, index=range(n)),
        num_samples=num_samples,
        bounds=(1, 10, 100),
        num_observed=6.0,
        discrete=False,
        provenance=Provenance("data", "VAE", str(name), (float(zlib.crc32(str(name).encode())),), 0),
    )


@pytest.mark.parametrize(
    ("seeds", "ratio"), [((1, 1), 0.0), ((3, 1), 2.0), ((1, 5), 2.0), ((5, 5), 0.5), ((5, 5), 5.0)]
)
def test_interval_covers_in_95_of_100(seeds: tuple[int, int], ratio: float) -> None:
    """Over 1000 replicates of synthetic results; 92 to 98 is 3 standard errors of 400 replicates, 4.4 of these."""
    found = coverage(seeds, ratio=ratio, replicates=1000)["single"]
    print(f"coverage of {seeds[0]} seeds against {seeds[1]}: {found:.3f}")
    assert 0.92 <= found <= 0.98


@pytest.mark.parametrize("uneven", [False, True])
def test_interval_covers_where_seeds_and_data_interact(uneven: bool) -> None:
    """The interaction is the whole of the data's part: counted twice, the interval would cover in 99 of 100."""
    found = coverage((5, 5), ratio=0.0, interaction=0.3, own=0.0, uneven=uneven, replicates=1000)["single"]
    assert 0.92 <= found <= 0.98


@pytest.mark.parametrize(("seeds", "ratio"), [((1, 1), 0.0), ((5, 5), 2.0)])
def test_simultaneous_intervals_of_seven_cover_together(seeds: tuple[int, int], ratio: float) -> None:
    found = coverage(seeds, models=7, ratio=ratio, replicates=100)
    print(f"simultaneous coverage of seven models, {seeds}: {found['simultaneous']:.3f}")
    assert found["simultaneous"] >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 100)


def test_the_best_of_many_needs_the_simultaneous_interval() -> None:
    """Six models no better than the reference: the best one's own interval excludes the truth far too often."""
    rng, single, together = np.random.default_rng(0), [], []
    for _ in range(100):
        base = rng.normal(size=(1, 50))
        ds = [difference(base + 0.3 * rng.normal(size=(1, 50)), base) for _ in range(6)]
        best = max(ds, key=lambda d: d.values.mean())
        single.append(best.values.mean() > best.half_width(0.95))
        together.append(best.values.mean() > best.half_width(simultaneous(ds, 0.95)))
    assert np.mean(single) > 0.08  # 1 - .975⁶ = .14
    assert np.mean(together) < 0.025 + 3 * math.sqrt(0.025 * 0.975 / 100)


def test_variance_has_every_part_once() -> None:
    """The mean of the estimated variance over 2000 replicates is the variance of the mean difference."""
    rng, s_a, s_b, n = np.random.default_rng(1), 5, 4, 30

    def one() -> tuple[float, float]:
        common, a, b = rng.normal(size=(3, n))
        ours = common + 0.3 * a + 0.1 * rng.normal(size=(s_a, 1)) + 0.6 * rng.normal(size=(s_a, n))
        theirs = common + 0.2 * b + 0.2 * rng.normal(size=(s_b, 1)) + 0.4 * rng.normal(size=(s_b, n))
        d = difference(ours, theirs)
        return d.values.mean(), d.data + sum(s.share * (s.between - s.interaction) for s in d.seeds)

    means, variances = np.array([one() for _ in range(2000)]).T
    truth = 0.01 / s_a + 0.04 / s_b + (0.09 + 0.04 + 0.36 / s_a + 0.16 / s_b) / n
    assert variances.mean() == pytest.approx(truth, abs=4 * variances.std() / math.sqrt(2000))
    assert means.var() == pytest.approx(truth, rel=4 * math.sqrt(2 / 2000))


def test_what_the_interval_speaks_of() -> None:
    rng = np.random.default_rng(0)
    one, two, three = (rng.normal(size=(s, 40)) for s in (1, 2, 3))
    assert difference(one, one + 1).claim == "these models"
    assert difference(two, three).claim == "training"
    assert difference(one, three).claim == difference(three, one).claim == "training, if both vary alike"
    for unknown in (difference(two, one), difference(one, three, pool_seeds=False)):
        assert unknown.claim.startswith("training: unknown, 1 seed against")
        assert math.isnan(unknown.se)
        assert math.isnan(unknown.half_width(0.95))
    # One variance stands for both models.
    pooled = difference(one, three).seeds[0]
    assert (pooled.between, pooled.share) == (Seeds.of(three).between, pytest.approx(4 / 3))


def test_seeds_of_one_generative_model_are_paired() -> None:
    """Where posteriors were refitted to the same five models, the models' own differences cancel."""
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(5, 60)) + 3 * rng.normal(size=(5, 1))
    gain = 0.1 + 0.01 * rng.normal(size=(5, 60))
    base = [result(v, i) for i, v in enumerate(ours)]
    refitted = [from_elsewhere(result(v, i), model_hash=f"other {i}") for i, v in enumerate(ours + gain)]
    row = pv.compare({"q": base, "q'": refitted}).loc["q'"]
    assert row["diff"] == pytest.approx(0.1, abs=4 * row["diff_se"])
    assert row["diff_se"] < 0.001  # unpaired it would be about 2
    assert row["claim"] == "training"


def test_simultaneous_confidence() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 500))
    independent = [difference(base + rng.normal(size=(1, 500)), base) for _ in range(6)]
    assert simultaneous(independent[:1], 0.95) == 0.95
    sidak = 0.95 ** (1 / 6)
    assert simultaneous(independent, 0.95) == pytest.approx(sidak, abs=0.003)
    alike = [difference(base + d + 1e-3 * rng.normal(size=(1, 500)), base) for d in [rng.normal(size=(1, 500))] * 6]
    assert simultaneous(alike, 0.95) == pytest.approx(0.95, abs=0.003)  # six times the same
    assert simultaneous(independent, 1 - 1e-6) == (1 - 1e-6) ** (1 / 6)
    broken = difference(np.full((1, 500), np.nan), base)
    assert simultaneous([*independent, broken], 0.95) == simultaneous(independent, 0.95)


def test_how_many_would_resolve_a_difference() -> None:
    """With as many data as ``data_needed`` says, the interval excludes zero in four of five replicates."""
    rng, size, noise = np.random.default_rng(0), 0.1, 0.5

    def row(n: int, **options: float) -> pd.Series:
        base = rng.normal(size=n)
        better = base + size + rng.normal(size=n) + noise * rng.normal(size=n)
        return pv.compare({"a": result(base, "a"), "b": result(better, "b", mc_se=noise)}, **options).loc["b"]

    exact = ((1.96 + 0.8416) / size) ** 2 * (1 + noise**2)
    needed = row(2000, resolve=size)
    assert needed["data_needed"] == 2000  # already enough
    few = row(300, resolve=size)
    assert few["data_needed"] == pytest.approx(exact, rel=4 * math.sqrt(2 / 300))
    assert few["draws_needed"] == math.inf  # without noise still (1.96 + 0.84) / √300 > 0.1
    assert math.isnan(few["seeds_needed"])  # these models are what they are
    found = []
    for _ in range(1000):
        d = difference(
            (size + rng.normal(size=(1, round(exact))) * math.sqrt(1 + noise**2)), np.zeros((1, round(exact)))
        )
        found.append(d.values.mean() > d.half_width(0.95))
    assert np.mean(found) == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 1000))


def test_how_many_draws_and_seeds() -> None:
    """The seeds that are needed for normal effects of known size, against the error with so many."""
    rng, size = np.random.default_rng(0), 0.5
    ours, theirs = (rng.normal(size=300) + 0.3 * rng.normal(size=(40, 1)) + np.zeros((40, 300)) for _ in range(2))
    d = difference(ours - ours.mean(0), theirs - theirs.mean(0))  # between data nothing, between seeds 0.3
    draws, data, seeds = d.needed(0.05, 0.95, 100, 0.0)
    assert (draws, data) == (math.inf, math.inf)  # seeds are all there is
    sd = math.sqrt(sum(s.between for s in d.seeds))
    assert seeds == pytest.approx(((1.96 + 0.8416) * sd / 0.05) ** 2, rel=0.02)
    noisy = difference(rng.normal(size=(1, 400)), np.zeros((1, 400)))
    draws, data, _ = noisy.needed(size * 0.2, 0.95, 100, noisy.data)  # all of the variance is noise
    assert draws / 100 == pytest.approx(data / 400, rel=0.02)
