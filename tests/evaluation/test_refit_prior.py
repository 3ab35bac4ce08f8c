"""A prior fitted afterwards is the aggregate posterior's, of draws and not of means."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import pyrovae as pv

QUIET = {"progress": False, "device": "cpu", "seed": 0}


def exact() -> pv.VAE:
    """z ~ N(0, I), x | z ~ N(z, s² I) with s = 0.8, and its exact posterior N(x/(1+s²), s²/(1+s²))."""
    s = 0.8
    model = pv.VAE((2,), 2, hidden=(), likelihood="gaussian", likelihood_options={"scale": s})
    with torch.no_grad():
        for layer in (layer for layer in model.modules() if isinstance(layer, nn.Linear)):
            layer.bias.zero_()
            layer.weight.zero_()
            layer.weight[:2, :2] = torch.eye(2)
        head = next(layer for layer in model.posterior.modules() if isinstance(layer, nn.Linear))
        head.weight[:2] /= 1 + s**2
        scale = torch.tensor(s / math.sqrt(1 + s**2))
        head.bias[2:] = (scale - 1e-5).expm1().log() - math.log(math.e - 1.0)
    return model


def test_of_an_exact_guide_it_is_the_prior_again() -> None:
    """The means alone would have the variance 1 - σ² = 0.61."""
    model = exact()
    x = model.simulate(20_000, seed=1)[0]
    torch.testing.assert_close(model.q(x[:5]).base_dist.loc, x[:5] / 1.64)
    options = {"prior_options": {"num_components": 1}, "epochs": 20, "batch_size": 500, "learning_rate": 0.02}
    new, run = pv.refit_prior(model, x, "mixture", **options, **QUIET)
    p = new.prior().component_distribution.base_dist
    assert p.loc.abs().max() < 0.03
    assert (p.scale - 1.0).abs().max() < 0.03
    assert isinstance(model.prior, pv.priors.StandardNormal)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0] + 0.01


@pytest.mark.parametrize(
    ("prior", "options"),
    [
        ("mixture", {"num_components": 8}),
        ("flow", {"flow_options": {"hidden": (32,), "bins": 5}}),
    ],
)
def test_on_digits_the_bound_rises_and_the_rest_stays(prior: str, options: dict, tmp_path: Path) -> None:
    data = pv.datasets.load("digits", binarize="threshold")
    torch.manual_seed(0)
    model = pv.VAE((64,), 4, hidden=(64,))
    pv.fit(model, data.train, epochs=30, **QUIET)
    new, _ = pv.refit_prior(model, data.train, prior, prior_options=options, epochs=30, learning_rate=5e-3, **QUIET)
    for part in ("encoder", "decoder", "posterior"):
        for a, b in zip(getattr(model, part).parameters(), getattr(new, part).parameters(), strict=True):
            assert torch.equal(a, b)
            assert b.requires_grad
    before, after = (pv.log_marginal(m, data.test, num_samples=500, **QUIET) for m in (model, new))
    paired = pv.compare({"old": before, "new": after})
    assert paired.loc["new", "diff"] > 3 * paired.loc["new", "diff_se"]
    assert new.sample(5, seed=0).shape == (5, 64)
    new.save(tmp_path / "m.safetensors")
    again = pv.load(tmp_path / "m.safetensors")
    for name, value in new.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_what_cannot_be_refitted_is_refused() -> None:
    x = (torch.rand(20, 6) < 0.5).float()
    model = pv.VAE((6,), 2, hidden=(8,))
    with pytest.raises(ValueError, match="has nothing to train"):
        pv.refit_prior(model, x, "standard_normal", **QUIET)
    with pytest.raises(ValueError, match="unknown prior"):
        pv.refit_prior(model, x, "mixtures", **QUIET)
    with pytest.raises(TypeError, match="model must be of type VAE"):
        pv.refit_prior(pv.zoo.LadderVAE((6,), (2, 2)), x, "mixture", **QUIET)
    with pytest.raises(TypeError, match="no option of fit"):
        pv.refit_prior(model, x, "mixture", epoch=3)

    class Own(pv.VAE):
        def model(self, x: torch.Tensor) -> None:
            super().model(x)

    with pytest.raises(TypeError, match="whose model or guide is its own"):
        pv.refit_prior(Own((6,), 2), x, "mixture", **QUIET)
