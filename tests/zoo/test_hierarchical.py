"""Hierarchies against a two-layer linear-Gaussian model, whose log p(x) is known, and on digits."""

import math
from typing import Any

import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import pyrovae as pv
from pyrovae.posteriors._base import MIN_SCALE
from pyrovae.zoo import NVAE, HierarchicalVAE, LadderVAE

NOISE, SCALES = 0.6, torch.tensor([0.5, 0.8])  # of x given z1, and of z1 given z2


def raw(scale: Tensor) -> Tensor:
    """What a head must give for a scale, as ``positive`` reads it."""
    return (scale - MIN_SCALE).expm1().log() - math.log(math.e - 1.0)


def put(head: Any, weight: Tensor, bias: Tensor, scale: Tensor | None = None) -> None:
    """Make an affine layer give ``weight @ h + bias``, and a head also ``scale`` whatever h is."""
    with torch.no_grad():
        if scale is not None:
            weight, bias = torch.cat([weight, torch.zeros_like(weight)]), torch.cat([bias, raw(scale)])
        head.weight.copy_(weight)
        head.bias.copy_(bias)


class Truth:
    """z2 ~ N(0, 1), z1 ~ N(a z2 + c, diag SCALES²), x ~ N(w z1 + b, NOISE² I), where w has orthogonal columns."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(3)
        self.w = torch.linalg.qr(torch.randn(3, 2, generator=g)).Q * torch.tensor([1.5, 0.7])
        self.b, self.a, self.c = (torch.randn(*s, generator=g) for s in ((3,), (2, 1), (2,)))
        self.of_z1 = self.a @ self.a.T + torch.diag(SCALES**2)
        self.of_x = self.w @ self.of_z1 @ self.w.T + NOISE**2 * torch.eye(3)
        self.mean = self.w @ self.c + self.b
        self.x = MultivariateNormal(self.mean, self.of_x).sample((20,))
        self.log_px = MultivariateNormal(self.mean.double(), self.of_x.double()).log_prob(self.x.double())

    def fill(self, model: HierarchicalVAE | LadderVAE) -> None:
        put(model.priors[0][1].head, self.a, self.c, SCALES)
        put(model.decoder[0], self.w, self.b)

    def bottom_up(self, stretch: float) -> HierarchicalVAE:
        """The posterior's means, and its marginal scales times ``stretch``."""
        model = HierarchicalVAE((3,), (2, 1), hidden=(), likelihood="gaussian", likelihood_options={"scale": NOISE})
        self.fill(model)
        gain = self.of_z1 @ self.w.T @ self.of_x.inverse()
        covariance = self.of_z1 - gain @ self.w @ self.of_z1
        put(model.encoders[0][1].head, gain, self.c - gain @ self.mean, stretch * covariance.diagonal().sqrt())
        gain = self.a.T @ self.of_z1.inverse()
        variance = 1 - gain @ self.a
        put(model.encoders[1][1].head, gain, -gain @ self.c, variance[0].sqrt())
        return model

    def ladder(self, stretch: float = 1.0) -> LadderVAE:
        """The exact posterior: p(x | z1) factorises over z1, and the ladder multiplies it by p(z1 | z2)."""
        model = LadderVAE((3,), (2, 1), hidden=(), likelihood="gaussian", likelihood_options={"scale": NOISE})
        self.fill(model)
        precision = (self.w.T @ self.w).diagonal() / NOISE**2
        pseudo = self.w.T / (self.w.T @ self.w).diagonal().unsqueeze(1)
        put(model.heads[0].head, pseudo, -pseudo @ self.b, stretch * precision**-0.5)
        gain = self.a.T @ self.w.T @ self.of_x.inverse()
        variance = 1 - gain @ self.w @ self.a
        put(model.heads[1].head, gain, -gain @ self.mean, stretch * variance[0].sqrt())
        return model


@pytest.fixture(scope="module")
def truth() -> Truth:
    torch.manual_seed(0)
    return Truth()


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return pv.datasets.load("digits", binarize="static", flatten=False).train


def small(kind: str, **options: Any) -> pv.VAEModel:
    torch.manual_seed(1)
    if kind == "nvae":
        return NVAE((1, 8, 8), (1, 2), **{"latent_channels": 2, "channels": 8, **options})
    cls = {"bottom-up": HierarchicalVAE, "ladder": LadderVAE}[kind]
    return cls((1, 8, 8), **{"latent_dims": (6, 4, 3), "hidden": (32,), **options})


def elbo(model: pv.VAEModel, x: Tensor) -> pd.Series:
    return pv.elbo_terms(model, x, num_samples=5, progress=False).pointwise["elbo"]


KINDS = ("bottom-up", "ladder", "nvae")


# -- ground truth ----------------------------------------------------------------------------------------


def test_the_exact_ladder_weighs_every_draw_alike(truth: Truth) -> None:
    """q = p(z1, z2 | x): log p(x, z) - log q(z | x) = log p(x) at every draw, and every KL is that of the posterior."""
    terms = truth.ladder().log_terms(truth.x, num_particles=50)
    torch.testing.assert_close(terms.log_weight.double(), truth.log_px.expand(50, 20), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bottom-up", "ladder"])
def test_log_marginal_reaches_the_exact_log_px_through_both_layers(truth: Truth, kind: str) -> None:
    model = truth.bottom_up(1.2) if kind == "bottom-up" else truth.ladder(1.2)
    p = pv.log_marginal(model, truth.x, num_samples=20_000, seed=1, progress=False).pointwise
    error, se = p["log_px"].to_numpy() - truth.log_px.numpy(), p["mc_se"].to_numpy()
    assert (se > 0).all()
    assert se.max() < 0.02
    assert (abs(error) < 4.5 * se).all()
    assert abs(error.mean()) < 3 * (se**2).sum() ** 0.5 / len(se)


def test_the_top_layers_kl_is_the_normals(truth: Truth) -> None:
    for model, name in ((truth.bottom_up(1.2), "bottom-up"), (truth.ladder(1.2), "ladder")):
        terms = model.log_terms(truth.x, num_particles=7)
        q = terms.posterior["z2"].base_dist
        expected = kl_divergence(Normal(q.loc, q.scale), Normal(0.0, 1.0)).sum(-1).expand(7, 20)
        torch.testing.assert_close(terms.closed_form_kl("z2"), expected)
        # Bottom-up, z1 is drawn before the z2 that its prior depends on.
        assert (terms.closed_form_kl("z1") is None) == (name == "bottom-up")


def test_the_ladders_closed_form_kl_is_the_mean_of_its_log_ratios(truth: Truth) -> None:
    terms = truth.ladder(1.2).log_terms(truth.x, num_particles=4000)
    for site in ("z1", "z2"):
        gap = (terms.closed_form_kl(site) - terms.log_posterior[site] + terms.log_prior[site]).double()
        assert (gap.mean(0).abs() < 4.5 * gap.std(0) / 4000**0.5).all()
        assert gap.std() > 0.1


# -- what holds for every one ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_the_rate_sum_to_it(digits: Tensor, kind: str) -> None:
    model = small(kind)
    p = pv.elbo_terms(model, digits[:10], num_samples=50, progress=False).pointwise
    sites = ["z3", "z2", "z1"]
    assert p[[f"kl_{site}" for site in sites]].sum(axis=1).to_numpy() == pytest.approx(p["kl"].to_numpy(), abs=1e-4)
    report = pv.collapse(model, digits[:30], num_samples=8, num_data=10, progress=False)
    assert report.sites.index.tolist() == sites
    assert report.sites["kl"].sum() == pytest.approx(report.rate, abs=1e-4)
    exact = [f"kl_exact_{site}" for site in sites if f"kl_exact_{site}" in p]
    assert exact == (["kl_exact_z3"] if kind == "bottom-up" else [f"kl_exact_{site}" for site in sites])
    assert ("kl_exact" in p) == (kind != "bottom-up")


@pytest.mark.parametrize("kind", KINDS)
def test_particles_at_once_equal_one_by_one(digits: Tensor, kind: str) -> None:
    model, x = small(kind).double(), digits[:4].double()
    latents, log_q = model.draw_posterior(x, num_particles=5)
    log_p = model.log_joint(x, latents=latents)
    for k in range(5):
        for b in range(4):
            one = {site: z[k : k + 1, b : b + 1] for site, z in latents.items()}
            torch.testing.assert_close(model.log_joint(x[b : b + 1], latents=one)[0, 0], log_p[k, b])
            torch.testing.assert_close(model.log_posterior(x[b : b + 1], latents=one)[0, 0], log_q[k, b])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_guide_and_prior_as_proposals_agree_on_log_px(digits: Tensor, kind: str) -> None:
    few = {} if kind == "nvae" else {"latent_dims": (2, 2, 1)}  # the prior finds the likely z of few dimensions only
    model, options = small(kind, **few), {"num_samples": 4000, "progress": False}
    if kind == "ladder":  # an untrained posterior that is narrower than the prior has weights of infinite variance
        with torch.no_grad():
            for head in model.heads:
                head.head.bias[head.latent_dim :] = 2.0
    one = pv.log_marginal(model, digits[:5], seed=0, **options).pointwise
    other = pv.log_marginal(model, digits[:5], proposal="prior", seed=1, **options).pointwise
    se = (one["mc_se"] ** 2 + other["mc_se"] ** 2) ** 0.5
    assert se.between(1e-5, 0.2).all()
    assert ((one["log_px"] - other["log_px"]).abs() < 4.5 * se).all()


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k == "nvae")) for k in KINDS])
def test_the_graph_engine_trains_it_to_the_same_weights(digits: Tensor, kind: str) -> None:
    trained = {}
    for compile in ("off", "graph"):
        trained[compile] = model = small(kind)
        before = elbo(model, digits[:300])
        objective = pv.ELBO(beta=pv.linear_warmup(2), num_particles=2)
        run = pv.fit(
            model, digits[:300], objective=objective, epochs=3, seed=0, compile=compile, progress=False, device="cpu"
        )
        assert run.engine == compile
        gain = elbo(model, digits[:300]) - before
        assert gain.mean() > 4 * gain.sem()
    for (name, a), b in zip(trained["off"].state_dict().items(), trained["graph"].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(digits: Tensor, kind: str, tmp_path) -> None:
    options = {"likelihood": "gaussian", "likelihood_options": {"scale": 0.3}}
    model = small(kind, **options)
    model.save(tmp_path / "model.safetensors")
    again = pv.load(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert again.construction == model.construction
    assert torch.equal(again.sample(3, seed=0), model.sample(3, seed=0))
    a, b = (m.reconstruct(digits[:3], seed=0) for m in (model, again))
    assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_sample_decode_and_plain_svi(digits: Tensor, kind: str) -> None:
    model = small(kind)
    assert model.sample(3, seed=0).shape == (3, 1, 8, 8)
    latents = model.sample_latents(3, seed=0)
    assert list(latents) == ["z3", "z2", "z1"]
    assert model.decode({"z3": latents["z3"]}).shape == (3, 1, 8, 8)
    torch.testing.assert_close(model.decode(latents), model.decode(latents))
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    before = elbo(model, digits[:100])
    for _ in range(20):
        svi.step(digits[:100])
    gain = elbo(model, digits[:100]) - before
    assert gain.mean() > 4 * gain.sem()


def test_one_layer_is_a_vae_and_has_a_closed_form(digits: Tensor) -> None:
    model = small("bottom-up", latent_dims=(5,))
    assert model.encode(digits[:3]).shape == (3, 5)
    assert pv.elbo_terms(model, digits[:3], num_samples=5, progress=False).pointwise["kl_exact"].gt(0).all()


# -- the NVAE ----------------------------------------------------------------------------------------------


def test_nvae_latents_are_maps_that_grow() -> None:
    model = NVAE((1, 28, 28), (1, 2), latent_channels=3, channels=8)
    shapes = {site: tuple(z.shape[1:]) for site, z in model.sample_latents(2).items()}
    assert shapes == {"z3": (3, 7, 7), "z2": (3, 14, 14), "z1": (3, 14, 14)}
    assert NVAE((3, 16, 24), (1, 1, 1), channels=8).sample(2).shape == (2, 3, 16, 24)


def test_nvae_penalty_is_lambda_times_the_singular_values(digits: Tensor) -> None:
    model = small("nvae", spectral_weight=0.5)
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    truth = sum(torch.linalg.svdvals(m.weight.flatten(1))[0] for m in layers)
    for _ in range(100):
        penalty = model.penalty()
    torch.testing.assert_close(penalty, 0.5 * truth, rtol=1e-3, atol=0)
    assert small("nvae", spectral_weight=0.0).penalty() is None


@pytest.mark.slow
def test_the_penalty_lowers_the_singular_values_that_training_ends_with(digits: Tensor) -> None:
    ends = {}
    for weight in (0.0, 1.0):
        model = small("nvae", spectral_weight=weight)
        pv.fit(model, digits[:300], epochs=4, learning_rate=3e-3, seed=0, progress=False, device="cpu")
        layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        ends[weight] = sum(torch.linalg.svdvals(m.weight.flatten(1))[0].item() for m in layers)
    assert ends[1.0] < 0.9 * ends[0.0]


# -- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [HierarchicalVAE, LadderVAE])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dims": ()}, "latent_dims must name at least one"),
        ({"latent_dims": (3, 0)}, "latent_dims must be at least 1; got 0"),
        ({"event_shape": ()}, "event_shape must name at least one"),
        ({"event_shape": (0,)}, "event_shape must be at least 1"),
        ({"hidden": (8, 0)}, "hidden must be at least 1"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
    ],
)
def test_bad_layers_are_named(cls: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**{"event_shape": (6,), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_shape": (1, 10, 8)}, "divisible by 4, for 2 resolutions"),
        ({"event_shape": (64,)}, "flatten=False"),
        ({"groups": ()}, "groups must name at least one"),
        ({"groups": (1, 0)}, "groups must be at least 1"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"channels": 0}, "channels"),
        ({"cells": 0}, "cells"),
        ({"spectral_weight": -1.0}, "spectral_weight must not be negative"),
        ({"spectral_weight": math.nan}, "spectral_weight must not be negative"),
        ({"spectral_weight": math.inf}, "spectral_weight must not be negative, NaN or infinite"),
    ],
)
def test_bad_nvaes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NVAE(**{"event_shape": (1, 8, 8), **options})


@pytest.mark.parametrize("kind", KINDS)
def test_bad_data_are_named(digits: Tensor, kind: str) -> None:
    model = small(kind)
    with pytest.raises(ValueError, match=r"the model needs \(N, 1, 8, 8\)"):
        pv.fit(model, digits[:, :, :6], epochs=1, progress=False, device="cpu")
    with pytest.raises(ValueError, match="NaN"):
        pv.log_marginal(model, digits[:3] * math.nan, progress=False)
