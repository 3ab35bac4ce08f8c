"""Disentanglement scores: their maxima on the true factors, chance on noise, and what lies between."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evaluation import dci, factor_vae_score, mig, mutual_information, sap
from pyrovae.evaluation.representation import _factors as scores_of
from tests.models import Conditional, TwoSites, binary

COUNTS = (3, 4, 8, 6, 6)  # values of five factors
GRID = np.array(list(product(*map(range, COUNTS))))  # 3456 data
N = len(GRID)


def true_codes(seed: int = 0) -> np.ndarray:
    """The factors as codes: permuted, each shifted and rescaled, some turned round, with two dimensions of noise."""
    generator = np.random.default_rng(seed)
    scaled = GRID[:, generator.permutation(5)] * np.array([1e-3, -2.0, 1.0, -50.0, 0.1]) + generator.normal(size=5)
    return np.concatenate([scaled, generator.normal(size=(N, 2))], 1)


def noise(seed: int, dims: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, dims))


@pytest.mark.parametrize("codes", [GRID, true_codes()], ids=["true", "permuted and rescaled"])
def test_maxima_on_the_true_factors(codes: np.ndarray) -> None:
    importances = dci(codes, GRID)
    assert importances.disentanglement == pytest.approx(1.0, abs=1e-12)
    assert importances.completeness == pytest.approx(1.0, abs=1e-12)
    assert importances.informativeness == 1.0
    assert factor_vae_score(codes, GRID) == 1.0
    noisy = codes.shape[1] > 5
    # The second best dimension is a true factor, which on a complete grid knows nothing of the others, or noise.
    np.testing.assert_allclose(mig(codes, GRID), 1.0, atol=_noise_mig(2).max() if noisy else 1e-12)
    np.testing.assert_allclose(sap(codes, GRID), 1.0, atol=16 / N if noisy else 1e-12)  # R² N is χ² of one degree
    # Of a categorical factor of three values: the second best dimension guesses one in three.
    assert sap(GRID, GRID, categorical=[0])[0] == pytest.approx(1 - 1 / 3, abs=1e-12)


def _noise_mig(dims: int) -> np.ndarray:
    """The bound on chance that ``mig`` states, by factor, which the noise of up to ``dims`` dimensions stays under."""
    m = (20 - 1) * (np.array(COUNTS) - 1)
    return (m + 5 * np.sqrt(2 * m)) / (2 * N * np.log(COUNTS))


def _chance_mig(dims: int) -> float:
    """What the score of noise stays under with probability 0.9999: 2N times the information is χ²."""
    chi = np.random.default_rng(0).chisquare((20 - 1) * (np.array(COUNTS) - 1), size=(20_000, dims, len(COUNTS)))
    second, first = np.sort(chi, axis=1)[:, -2:].swapaxes(0, 1)
    scores = ((first - second) / (2 * N * np.log(COUNTS))).mean(1)
    return scores.mean() + 4 * scores.std()


@pytest.mark.parametrize("seed", range(3))
def test_chance_on_noise(seed: int) -> None:
    codes = noise(seed)
    assert (mig(codes, GRID) < _noise_mig(6)).all()
    assert mig(codes, GRID).mean() < _chance_mig(6) < 0.01
    # N R² is χ² of one degree of freedom, of which 30 draws stay under 16 with probability 0.998.
    assert (sap(codes, GRID) < 16 / N).all()
    importances = dci(codes, GRID, seed=seed)
    spread = (importances.importance.std(0) / importances.importance.mean(0)).max()
    assert spread < 0.2  # what follows the leading term is of this relative order
    assert importances.disentanglement < spread**2 / math.log(5)  # twice the leading term
    assert importances.completeness < spread**2 / math.log(6)
    # Guesses are independent of the factor: binomial over half the data, with mean 1 / values.
    p = 1 / np.array(COUNTS)
    assert (abs(importances.accuracy - p) < 4 * np.sqrt(p * (1 - p) / (N / 2))).all()
    assert abs(factor_vae_score(codes, GRID, seed=seed) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 800)


def test_plug_in_bias_of_the_mutual_information() -> None:
    """Of independent code and factor it is χ²/(2N): mean (bins in use - 1)(values - 1)/(2N)."""
    codes = np.random.default_rng(0).uniform(size=(N, 40))
    shared = mutual_information(codes, GRID)
    m = 19 * (np.array(COUNTS) - 1)
    se = np.sqrt(2 * m / 40) / (2 * N)
    assert (abs(shared.mean(0) - m / (2 * N)) < 4 * se).all()


def test_rotation_lowers_what_looks_at_single_dimensions() -> None:
    """Two factors mixed by 45°, a third alone: scores lie between chance and the maximum, and grow as it turns back."""
    some = GRID[:, 2:5]
    # Spread within their values: else a turned lattice, read in bins, still tells more than it would in general.
    spread = some + np.random.default_rng(0).uniform(size=some.shape)
    seen = []
    for degrees in (45, 20, 5, 0):
        lattice, codes = (((c - c.mean(0)) / c.std(0)).copy() for c in (some, spread))
        for c in (lattice, codes):
            c[:, 1:] = c[:, 1:] @ _turn(degrees)
        forest = dci(codes, some)
        # R² along a turn by a is cos² a and sin² a: a gap of cos 2a, for two of the three factors.
        gap = (1 + 2 * math.cos(math.radians(2 * degrees))) / 3
        assert sap(lattice, some).mean() == pytest.approx(gap, abs=1e-12)
        seen.append([mig(codes, some).mean(), sap(codes, some).mean(), forest.disentanglement, forest.completeness])
    scores = np.array(seen)
    assert (np.diff(scores, axis=0) > 0).all()
    noise_level = _noise_mig(3)[2:]
    exact = [_binned_information(v) / math.log(v) for v in COUNTS[2:]]  # unturned; the second best dimension is noise
    assert (abs(mig(codes, some) - exact) < _noise_mig(3)[2:]).all()
    turned = mig(np.concatenate([codes[:, :1], codes[:, 1:] @ _turn(45)], 1), some)
    assert (turned[1:] < 4 * noise_level[1:]).all()
    # Two of three dimensions mix two factors: log 2 of log 3 nats. A hundredth of importance on the third, which trees
    # find in noise, takes the entropy of 0.056 nats more.
    mixed = 1 - 2 / 3 * math.log(2) / math.log(3)
    assert ((scores[0, 2:] > mixed - 2 / 3 * 0.056 / math.log(3)) & (scores[0, 2:] < mixed + 0.01)).all()


def _binned_information(values: int) -> float:
    """What 20 equal bins tell of a value v when codes are uniform between v and v + 1, in nats."""
    edges, v = np.linspace(0, values, 21), np.arange(values)[:, None]
    joint = (np.minimum(edges[1:], v + 1) - np.maximum(edges[:-1], v)).clip(0) / values
    ratio = joint / (joint.sum(0) * joint.sum(1, keepdims=True))
    return float((joint * np.log(np.where(joint > 0, ratio, 1.0))).sum())


def _turn(degrees: float) -> np.ndarray:
    a = math.radians(degrees)
    return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])


def test_factor_vae_tells_no_factors_from_a_full_rotation() -> None:
    """Five standardised factors under a random rotation: above chance, below the maximum.

    Two of them are as strong, to 0.003 of their variance, in one dimension as in another, both in the same two: half
    of their votes are lost.
    """
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    codes = ((GRID - GRID.mean(0)) / GRID.std(0)) @ q
    low, high = (p + 4 * math.sqrt(p * (1 - p) / 800) for p in (0.2, 0.8))
    assert low < factor_vae_score(codes, GRID) < high < 0.95


def test_duplicated_dimensions_cost_completeness_and_gaps_but_not_disentanglement() -> None:
    codes = np.concatenate([GRID, GRID + 1.0], 1)
    assert mig(codes, GRID).max() == pytest.approx(0.0, abs=1e-12)
    assert sap(codes, GRID).max() == pytest.approx(0.0, abs=1e-12)
    forest = dci(codes, GRID)
    assert forest.disentanglement == pytest.approx(1.0, abs=1e-12)
    # Each factor in two of ten dimensions alike; shares that differ by δ raise it by δ²/(2 log 10) only.
    assert forest.completeness == pytest.approx(1 - math.log(2) / math.log(10), abs=0.01)


def test_constant_dimensions_change_nothing() -> None:
    codes = noise(0)
    with_constants = np.concatenate([np.zeros((N, 1)), codes, np.full((N, 1), 3.0)], 1)
    np.testing.assert_allclose(mig(with_constants, GRID), mig(codes, GRID))
    np.testing.assert_allclose(sap(with_constants, GRID), sap(codes, GRID))
    assert factor_vae_score(with_constants, GRID) == factor_vae_score(codes, GRID)
    dead = np.zeros((N, 4))
    assert mig(dead, GRID).tolist() == sap(dead, GRID).tolist() == [0.0] * 5
    assert dci(dead, GRID).disentanglement == dci(dead, GRID).completeness == 0.0
    assert factor_vae_score(dead, GRID) == 0.2


def test_refusals() -> None:
    for codes, factors, match in [
        (GRID[:5], GRID, "5 rows and factors 3456"),
        (GRID[:, 0], GRID, r"codes must have shape \(N, D\); got \(3456,\)"),
        (GRID, GRID[:, 0], r"factors must have shape \(N, F\)"),
        (np.full((N, 2), np.nan), GRID, "codes hold NaN"),
        (GRID, GRID + 0.5, "factors must be integers"),
        (GRID, GRID * 0, "factor 0 has one value, 0,"),
        (GRID[:2], GRID[:2], "at least 4"),
    ]:
        with pytest.raises(ValueError, match=match):
            mig(codes, factors)
    with pytest.raises(ValueError, match="categorical must name columns 0 to 4"):
        sap(GRID, GRID, categorical=[5])


# -- of a model ------------------------------------------------------------------------------------------


class Identity(pv.LossModel):
    """An autoencoder whose codes are the data."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))

    def encode(self, x: Tensor) -> Tensor:
        return self.scale * x

    def loss(self, x: Tensor) -> Tensor:
        return (x - self.encode(x)).square().sum(-1)


def test_of_a_model() -> None:
    names = ("shape", "scale", "rotation", "x", "y")
    result = pv.disentanglement(Identity(), torch.tensor(GRID).float(), GRID, factor_names=names, categorical=["shape"])
    scores = result.scores
    np.testing.assert_allclose(scores["score"], scores["maximum"], atol=1e-12)
    assert scores.loc["sap", "maximum"] == pytest.approx(1 - 1 / 3 / 5)
    assert scores.loc["mig", "chance"] < _chance_mig(5) < 0.01
    assert scores.loc["factor_vae", "chance"] == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 800))
    np.testing.assert_allclose(result.importance, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(np.diag(result.mutual_information), np.log(COUNTS))
    assert result.by_factor.index.tolist() == list(names)
    assert result.summary()["mig"] == scores.loc["mig", "score"]
    assert result.summary()["active"] == 5


def test_dimensions_below_the_threshold_are_constant() -> None:
    model = Identity()
    with torch.no_grad():
        model.scale[1] = 0.05  # variance 0.05² 15/12 = 0.003
    x = torch.tensor(GRID).float()
    result = pv.disentanglement(model, x, GRID)
    assert result.active == 4
    assert result.by_factor.loc["1", "mig"] == 0.0
    assert pv.disentanglement(model, x, GRID, threshold=0.0).active == 5


def test_same_seed_same_result_and_no_trace_in_the_generators() -> None:
    model, x = pv.VAE((6,), 3, hidden=(8,)), binary(200)
    factors = torch.randint(3, (200, 2))
    before = torch.get_rng_state()
    a, b = (pv.disentanglement(model, x, factors, threshold=0.0, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert a.scores.equals(b.scores)
    assert a.provenance.data_hash == b.provenance.data_hash
    assert a.provenance.model_name == "VAE(MeanFieldNormal)"


def test_several_sites_covariates_and_refusals() -> None:
    x, factors = binary(50), torch.randint(3, (50, 2))
    assert len(pv.disentanglement(TwoSites(), x, factors, threshold=0.0).importance) == 5
    y = torch.randn(50, 2)
    assert len(pv.disentanglement(Conditional(), x, factors, y, threshold=0.0).importance) == 2
    vae = pv.VAE((6,), 3, hidden=(8,))
    with pytest.raises(ValueError, match="50 rows and factors 49"):
        pv.disentanglement(vae, x, factors[:49])
    with pytest.raises(ValueError, match="factor_names must name 2 factors; got 1"):
        pv.disentanglement(vae, x, factors, factor_names=["a"])
    with pytest.raises(ValueError, match="categorical names 'shape'"):
        pv.disentanglement(vae, x, factors, categorical=["shape"])
    with pytest.raises(ValueError, match=r"needs \(N, 6\)"):
        pv.disentanglement(vae, x[:, :5], factors)
    with pytest.raises(ValueError, match="NaN"):
        pv.disentanglement(vae, x * math.nan, factors)
    with pytest.raises(TypeError, match="encode"):
        pv.disentanglement(nn.Linear(6, 2), x, factors)


def test_too_few_bins_lower_the_maximum() -> None:
    """Eight values in four bins: log 4 nats of log 8."""
    v = torch.arange(8).repeat(50)
    factors = torch.stack([v, v[torch.randperm(400, generator=torch.Generator().manual_seed(0))]], 1)
    assert scores_of.largest_mig(factors.double(), factors, num_bins=4) == pytest.approx(2 / 3)
    assert scores_of.largest_mig(factors.double(), factors, num_bins=20) == 1.0
    assert scores_of.mig(factors.double(), factors, num_bins=4).max() <= 2 / 3


def test_an_autoencoder_of_the_zoo_is_scored() -> None:
    x = torch.rand(60, 6)
    factors = torch.stack([torch.arange(60) % 2, torch.arange(60) % 3], 1)
    found = pv.disentanglement(pv.zoo.Autoencoder((6,), 3), x, factors)
    assert found.scores["score"].between(0, 1).all()
    with pytest.raises(ValueError, match="no latents"):
        pv.disentanglement(pv.zoo.PixelCNN((1, 2, 3)), x.reshape(60, 1, 2, 3).round(), factors)
