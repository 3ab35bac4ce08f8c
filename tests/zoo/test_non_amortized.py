"""Variational parameters per datum, against closed forms and against an encoder with the same decoder."""

import math

import pytest
import torch

import pyrovae as pv
from pyrovae.testing import LinearGaussian
from tests.models import TwoSites, binary


def train(model: pv.zoo.NonAmortizedVAE, x: torch.Tensor, epochs: int, learning_rate: float = 0.05) -> pv.FitResult:
    return pv.fit(
        model,
        (x, torch.arange(len(x))),
        objective=pv.ELBO(num_particles=16),
        epochs=epochs,
        batch_size=len(x),
        learning_rate=learning_rate,
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        seed=0,
        device="cpu",
        progress=False,
    )


@pytest.mark.slow
def test_the_approximation_gap_alone_is_left() -> None:
    w = 0.3 * torch.randn(32, 8, generator=torch.Generator().manual_seed(3))
    exact = LinearGaussian(w, torch.zeros(32), 0.8)
    vae = pv.zoo.linear_vae((32,), 8, scale=0.8)
    with torch.no_grad():
        vae.decoder[0].weight.copy_(w)
        vae.decoder[0].bias.zero_()
    x, index = exact.sample(30, seed=1), torch.arange(30)
    model = pv.zoo.NonAmortizedVAE(vae, 30)
    train(model, x, 1000)
    terms = pv.elbo_terms(model, x, index, num_samples=2000, log_px=exact.exact_log_px(x), progress=False)
    gap, error = terms.pointwise["kl_to_posterior"], terms.pointwise["elbo_se"]
    truth = exact.approximation_gap()
    print(f"gap {gap.mean():.4f} ± {terms.summary()['elbo_mc_se']:.4f}, closed form {truth:.4f}")
    assert abs(gap.mean() - truth) < 4 * terms.summary()["elbo_mc_se"] + 0.01
    assert (abs(gap - truth) < 4.5 * error + 0.05).all()
    assert torch.equal(model.generative.decoder[0].weight, w)


@pytest.mark.slow
def test_digits_against_an_encoder_at_an_equal_decoder() -> None:
    """Per datum the bound is not lower than the encoder's, and it is the optimum that ``inference_gaps`` finds."""
    data = pv.datasets.load("digits", binarize="dynamic")
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, 4, hidden=(128,))
    pv.fit(vae, data, epochs=30, seed=0, progress=False, device="cpu")
    x, index = data.test[:40], torch.arange(40)
    torch.manual_seed(0)
    model = pv.zoo.NonAmortizedVAE(vae, 40)
    train(model, x, 1000)
    amortised = pv.elbo_terms(vae, x, num_samples=1000, progress=False).pointwise
    own = pv.elbo_terms(model, x, index, num_samples=1000, progress=False).pointwise
    optimum = pv.inference_gaps(
        vae, x, log_px=torch.zeros(40), families=("mean_field",), steps=500, num_samples=1000, progress=False
    ).pointwise
    gain, error = own["elbo"] - amortised["elbo"], (own["elbo_se"] ** 2 + amortised["elbo_se"] ** 2) ** 0.5
    mean_error = math.sqrt((error**2).sum()) / 40
    between = own["elbo"] - optimum["mean_field"]
    between_error = math.sqrt((own["elbo_se"] ** 2 + optimum["mean_field_se"] ** 2).sum()) / 40
    print(
        f"amortised {amortised['elbo'].mean():.3f}, per datum {own['elbo'].mean():.3f}: gain {gain.mean():.3f} ± "
        f"{mean_error:.3f}; against inference_gaps {between.mean():.4f} ± {between_error:.4f}"
    )
    assert gain.mean() > 10 * mean_error
    assert (gain > -4.5 * error).all()
    assert abs(between.mean()) < 4 * between_error + 0.01


@pytest.mark.slow
def test_the_decoder_may_learn_too(tmp_path) -> None:
    torch.manual_seed(0)
    x, vae = binary(40), pv.VAE((6,), 2, hidden=(16,))
    before = vae.decoder[0].weight.clone()
    model = pv.zoo.NonAmortizedVAE(vae, 40, posterior="iaf", context_dim=8, train_decoder=True)
    run = train(model, x, 100, learning_rate=0.02)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0] - 0.1
    assert not torch.equal(model.generative.decoder[0].weight, before)
    assert torch.equal(vae.decoder[0].weight, before)  # a copy
    assert model.sample(3).shape == (3, 6)
    assert model.encode(x, torch.arange(40)).shape == (40, 2)
    assert model.decode(torch.zeros(5, 2)).shape == (5, 6)
    assert pv.log_marginal(model, x, torch.arange(40), num_samples=10, progress=False).pointwise["log_px"].max() < 0
    model.save(tmp_path / "own.safetensors")
    again = pv.load(tmp_path / "own.safetensors")
    index = torch.arange(40)
    assert torch.equal(again.encode(x, index, seed=1), model.encode(x, index, seed=1))


def test_bad_arguments_are_named() -> None:
    vae = pv.VAE((6,), 2, hidden=(16,))
    with pytest.raises(TypeError, match=r"generative must be a pyrovae\.VAE, .* got TwoSites"):
        pv.zoo.NonAmortizedVAE(TwoSites(), 10)
    with pytest.raises(ValueError, match="VampPrior, is made of the encoder's posteriors"):
        pv.zoo.NonAmortizedVAE(pv.VAE((6,), 2, hidden=(16,), prior="vamp"), 10)
    with pytest.raises(ValueError, match="num_data must be at least 1"):
        pv.zoo.NonAmortizedVAE(vae, 0)
    with pytest.raises(ValueError, match="context_dim must be at least 1"):
        pv.zoo.NonAmortizedVAE(vae, 3, context_dim=0)
    with pytest.raises(ValueError, match="unknown posterior 'iafs'"):
        pv.zoo.NonAmortizedVAE(vae, 3, posterior="iafs")
    model, x = pv.zoo.NonAmortizedVAE(vae, 10), binary(10)
    with pytest.raises(ValueError, match=r"row number as a covariate, integers of shape \(2,\); got nothing"):
        pv.fit(model, x, epochs=1, progress=False, device="cpu")
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(2,\)"):
        pv.elbo_terms(model, x, torch.zeros(10), progress=False)


def test_around_a_subclass_it_is_loaded_from_the_file_alone(tmp_path) -> None:
    pixels = pv.zoo.PixelVAE((1, 4, 4), 2, hidden=(8,))
    model = pv.zoo.NonAmortizedVAE(pixels, num_data=5)
    x, rows = torch.rand(5, 1, 4, 4).round(), torch.arange(5)
    again = pv.load(model.save(tmp_path / "own.safetensors"))
    assert type(again.generative) is pv.zoo.PixelVAE
    a, b = (pv.elbo_terms(m, x, rows, progress=False).pointwise["elbo"] for m in (model, again))
    assert a.tolist() == b.tolist()
