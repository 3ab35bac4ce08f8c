import math

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae.testing import LinearGaussian
from tests.models import binary


def results() -> tuple[LinearGaussian, dict[str, pv.MarginalResult]]:
    """Three guides of one model: log p(x) is the same, so every difference is noise."""
    generator = torch.Generator().manual_seed(3)
    w, b = 0.5 * torch.randn(12, 4, generator=generator), torch.zeros(12)
    models = {g: LinearGaussian(w, b, 0.8, guide=g) for g in ("mean_field", "detuned", "exact")}
    x = models["exact"].sample(100, seed=2)
    return models["exact"], {
        name: pv.log_marginal(m, x, num_samples=2000, seed=i, progress=False)
        for i, (name, m) in enumerate(models.items())
    }


def test_paired_differences_and_their_errors() -> None:
    _, r = results()
    table = pv.compare(r)
    assert table.loc["mean_field", ["diff", "diff_se", "diff_mc_se"]].tolist() == [0.0, 0.0, 0.0]
    d = r["detuned"].pointwise["log_px"] - r["mean_field"].pointwise["log_px"]
    assert table.loc["detuned", "diff"] == pytest.approx(d.mean())
    assert table.loc["detuned", "diff_se"] == pytest.approx(d.std() / math.sqrt(100))
    # Same model: the differences are Monte Carlo noise only, and far smaller than the spread over data.
    for name in ("detuned", "exact"):
        row = table.loc[name]
        assert abs(row["diff"]) < 4 * row["diff_mc_se"] + 2e-3
        assert row["diff_se"] == pytest.approx(row["diff_mc_se"], rel=0.5)
        assert row["diff_se"] < 0.1 * row["se_data"]
    assert (np.diff(table["log_px"]) <= 0).all()


def test_reference_and_refusals() -> None:
    _, r = results()
    assert pv.compare(r, reference="exact").loc["exact", "diff"] == 0.0
    with pytest.raises(ValueError, match="reference 'x' is not among the results: mean_field"):
        pv.compare(r, reference="x")
    with pytest.raises(ValueError, match="results is empty"):
        pv.compare({})
    vae = pv.VAE((6,), 3, hidden=(16,))
    a = pv.log_marginal(vae, binary(5), num_samples=10, progress=False)
    b = pv.log_marginal(vae, binary(5), num_samples=10, progress=False)
    with pytest.raises(ValueError, match="'b' was evaluated on other data than 'a'"):
        pv.compare({"a": a, "b": b})
    gaussian = pv.VAE((6,), 3, hidden=(16,), likelihood="gaussian")
    x = binary(5)
    mixed = {m.likelihood: pv.log_marginal(m, x, num_samples=10, progress=False) for m in (vae, gaussian)}
    with pytest.raises(ValueError, match="probability mass function and a density"):
        pv.compare(dict(zip("ab", mixed.values(), strict=True)))
