"""Probabilistic PCA in closed form, and the linear VAE trained to it."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch.distributions import MultivariateNormal

import pyrovae as pv
from pyrovae.testing import LinearGaussian


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return pv.datasets.load("digits").train


def eigenvalues(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0)


@pytest.mark.parametrize("noise", [None, 0.35])
def test_the_closed_form_is_a_maximum(digits: torch.Tensor, noise: float | None) -> None:
    """The likelihood's gradient is zero there, and no step leads up."""
    x = digits.double()
    best = LinearGaussian.maximum_likelihood(x, 12, noise=noise)
    sigma = torch.tensor(best.noise, dtype=torch.float64)
    w, b = best.w.detach().clone(), best.b.detach().clone()

    def mean_log_px(w: torch.Tensor, b: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        covariance = w @ w.T + sigma.square() * torch.eye(64, dtype=w.dtype)
        return MultivariateNormal(b, covariance).log_prob(x).mean()

    points = [p.requires_grad_() for p in (w, b, sigma)]
    top = mean_log_px(*points)
    assert top.item() == pytest.approx(best.exact_log_px(x).mean().item(), abs=1e-9)
    gradients = torch.autograd.grad(top, points)
    assert max(g.abs().max() for g in gradients[: 3 if noise is None else 2]) < 1e-8
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        steps = [1e-3 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in points]
        if noise is not None:
            steps[2].zero_()
        assert mean_log_px(*(p + s for p, s in zip(points, steps, strict=True))) < top
    used = int((best.w.square().sum(0) > 1e-12).sum())
    assert used == (eigenvalues(x)[:12] > best.noise**2).sum()
    assert used == (12 if noise is None else 10)
    assert best.approximation_gap() == pytest.approx(0.0, abs=1e-9)  # so the mean-field guide is exact


def test_the_closed_form_is_scikit_learns(digits: torch.Tensor) -> None:
    """Which takes N-1 for N, and so falls short of the maximum by a little: less than D/4N² in all, by expansion."""
    x = digits.double()
    theirs = PCA(8).fit(x.numpy())
    best = LinearGaussian.maximum_likelihood(x, 8)
    assert best.noise**2 == pytest.approx(theirs.noise_variance_ * (len(x) - 1) / len(x))
    assert 0 <= best.exact_log_px(x).mean().item() - theirs.score(x.numpy()) < 64 / (4 * (len(x) - 1) ** 2) * 1.01


def test_no_maximum_says_so(digits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="latent_dim must be under 64, the dimension of x"):
        LinearGaussian.maximum_likelihood(digits, 64)
    with pytest.raises(ValueError, match="x has data in 62 dimensions or fewer"):
        LinearGaussian.maximum_likelihood(digits, 62)
    with pytest.raises(ValueError, match="latent_dim must be at least 1"):
        LinearGaussian.maximum_likelihood(digits, 0)
    assert LinearGaussian.maximum_likelihood(digits, 64, noise=0.1).noise == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("latent_dim", "scale", "epochs", "learning_rate"),
    [(8, "shared", 400, 0.01), pytest.param(16, 0.35, 300, 0.02, id="16-fixed")],
)
def test_it_reaches_probabilistic_pca(
    digits: torch.Tensor, latent_dim: int, scale: float | str, epochs: int, learning_rate: float
) -> None:
    """Lucas et al. (2019): with σ given, as many latents as eigenvalues over σ² stay; with σ learnt, all do."""
    torch.manual_seed(0)
    vae = pv.zoo.linear_vae((64,), latent_dim, scale=scale)
    pv.fit(
        vae,
        digits,
        objective=pv.ELBO(num_particles=4),
        epochs=epochs,
        learning_rate=learning_rate,
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        seed=0,
        device="cpu",
        progress=False,
    )
    best = LinearGaussian.maximum_likelihood(digits.double(), latent_dim, noise=None if scale == "shared" else scale)
    decoder, sigma = vae.decoder[0], vae.p(torch.zeros(1, latent_dim)).base_dist.scale.flatten()[0].item()
    exact = LinearGaussian(decoder.weight.detach(), decoder.bias.detach(), sigma).exact_log_px(digits)
    terms = pv.elbo_terms(vae, digits, num_samples=200, log_px=exact, progress=False)
    gap, error = terms.pointwise["kl_to_posterior"].mean(), terms.summary()["elbo_mc_se"]
    short = (best.exact_log_px(digits.double()).mean() - exact.mean()).item()
    active = int(pv.collapse(vae, digits, progress=False).summary()["active"])
    print(
        f"Z = {latent_dim}: log p(x) {short:.4f} nats under the maximum, ELBO {gap:.4f} ± {error:.4f} under log p(x) "
        f"(worst datum {terms.pointwise['kl_to_posterior'].max():.3f}), σ {sigma:.5f} ({best.noise:.5f}), "
        f"{active} active"
    )
    assert 0 <= short < 0.01
    assert -4 * error < gap < 0.01
    assert sigma == pytest.approx(best.noise, rel=1e-3)
    assert active == (eigenvalues(digits)[:latent_dim] > best.noise**2).sum()
    assert active == (latent_dim if scale == "shared" else 10)


def test_saved_and_refused(tmp_path) -> None:
    vae = pv.zoo.linear_vae((1, 4, 4), 3, scale=0.5)
    vae.save(tmp_path / "linear.safetensors")
    again, x = pv.load(tmp_path / "linear.safetensors"), torch.randn(5, 1, 4, 4)
    assert torch.equal(again.encode(x), vae.encode(x))
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))
    scales = vae.q(x).base_dist.scale
    assert torch.equal(scales, scales[:1].expand_as(scales))
    with pytest.raises(ValueError, match="latent_dim must be under 16, the size of a datum"):
        pv.zoo.linear_vae((1, 4, 4), 16)
    pv.zoo.linear_vae((1, 4, 4), 16, scale=0.5)
    with pytest.raises(ValueError, match="scale must be one of 'amortized', 'constant'; got 'fixed'"):
        pv.posteriors.MeanFieldNormal(3, 5, scale="fixed")
