import math
import warnings

import arviz as az
import numpy as np
import pytest
import torch
from scipy.stats import genpareto

from pyrovae.evaluation import khat_threshold, pareto_khat
from pyrovae.evaluation.marginal._tail import pareto_tail, tail_length


def arviz_khat(log_weights: np.ndarray) -> np.ndarray:
    """k̂ by ArviZ: 0.x takes log-weights, 1.x has the function elsewhere and negates what it is given."""
    if int(az.__version__.split(".")[0]) == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(az.psislw(log_weights)[1])
    from arviz_stats.base import array_stats

    return np.asarray(array_stats.psislw(-log_weights)[1])


@pytest.mark.parametrize("k", [50, 400, 10_000])  # where min(K/5, 3√K) is whole, which ArviZ 1.x rounds down
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_equals_arviz(k: int, spread: float) -> None:
    w = spread * torch.randn(8, k, dtype=torch.float64)
    ours = pareto_khat(w.topk(tail_length(k) + 1).values)
    np.testing.assert_allclose(ours, arviz_khat(w.numpy()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_recovers_the_shape_of_a_pareto_tail(shape: float) -> None:
    u = torch.rand(200, 20_000, dtype=torch.float64)
    khat = pareto_khat((-shape * torch.log(u)).topk(tail_length(20_000) + 1).values)
    # The weak prior pulls by (0.5 - k)·10/(n + 10).
    pull = (0.5 - shape) * 10 / (tail_length(20_000) + 10)
    assert (khat.mean() - shape - pull).abs() < 4 * khat.std() / math.sqrt(200) + 0.01


@pytest.mark.parametrize("shape", [-0.5, 0.4, 0.8])
def test_the_fitted_scale_is_that_of_the_excess(shape: float) -> None:
    """Weights with an exact generalised Pareto tail: σ of the excess over u is σ₀ + k (u - u₀)."""
    w = torch.as_tensor(1.0 + genpareto(shape, scale=2.0).rvs((400, 5000), random_state=np.random.default_rng(0)))
    largest = w.log().topk(tail_length(5000) + 1).values
    khat, sigma = pareto_tail(largest)
    ratio = sigma * largest[:, 0].exp() / (2.0 + shape * (largest[:, -1].exp() - 1.0))
    assert (ratio.mean() - 1.0).abs() < 4 * ratio.std() / 20 + 0.01
    torch.testing.assert_close(khat, pareto_khat(largest))


def test_edge_cases() -> None:
    assert pareto_khat(torch.zeros(1, 40)).item() == -math.inf
    assert math.isnan(pareto_khat(torch.randn(1, 5)).item())
    tied = torch.zeros(1, 40)
    tied[0, 0] = 1.0
    assert pareto_khat(tied).item() == math.inf
    poisoned = torch.randn(1, 40).sort(descending=True).values
    poisoned[0, 3] = math.nan
    assert math.isnan(pareto_khat(poisoned).item())
    far = torch.tensor([[1000.0, *range(0, -39, -1)]])
    assert pareto_khat(far).item() > 0.7 or pareto_khat(far).item() == math.inf
    for no_fit in (torch.zeros(1, 40), torch.randn(1, 5), tied, poisoned):
        assert math.isnan(pareto_tail(no_fit)[1].item())


def test_threshold() -> None:
    assert khat_threshold(5000) == pytest.approx(0.7)
    assert khat_threshold(100) == pytest.approx(0.5)
    assert khat_threshold(10) == -math.inf
