"""One shape of latents, whatever the particles and plates: a model of two plates meets its exact values everywhere."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.model import Latents

QUIET: dict[str, Any] = {"progress": False}
PARTS, NOISE = 3, 0.5


class Nested(pv.VAEModel):
    """z ~ N(0, 1), w_j ~ N(z, I) of two dimensions in a plate of parts, x_j ~ N(w_j, σ² I); ``detune`` shifts the exact
    guide.
    """

    max_plate_nesting = 2

    def __init__(self, detune: float = 0.0) -> None:
        super().__init__()
        self.event_shape, self.detune, self.unused = (PARTS, 2), detune, nn.Parameter(torch.zeros(1).double())

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("parts", PARTS, dim=-2):
                w = pyro.sample("w", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 2]).to_event(1))
                pyro.sample("x", dist.Normal(w, NOISE).to_event(1), obs=x.movedim(1, 0))

    def guide(self, x: Tensor) -> None:
        precision = 1.0 + 2 * PARTS / (1.0 + NOISE**2)
        mean = x.sum((1, 2)) / (1.0 + NOISE**2) / precision + self.detune
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(mean, precision**-0.5))
            with pyro.plate("parts", PARTS, dim=-2):
                gain = 1.0 / (1.0 + NOISE**2)
                center = gain * x.movedim(1, 0) + (1.0 - gain) * z.unsqueeze(-1) + self.detune
                pyro.sample("w", dist.Normal(center, (NOISE**2 * gain) ** 0.5).to_event(1))

    def exact(self, x: Tensor) -> Tensor:
        covariance = torch.ones(6, 6) + (1.0 + NOISE**2) * torch.eye(6)
        return torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance.double()).log_prob(
            x.flatten(1)
        )


class Gathered(Nested):
    """The same, with x observed outside the plate of parts, in the data's own shape."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("parts", PARTS, dim=-2):
                w = pyro.sample("w", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 2]).to_event(1))
            mean = w.movedim(-3, -2)  # with particles, (K, B, parts, 2)
            pyro.sample("x", dist.Normal(mean.unsqueeze(1) if mean.dim() > 3 else mean, NOISE).to_event(2), obs=x)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, PARTS, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_latents_have_one_shape(k: int, x: Tensor) -> None:
    terms = Nested().log_terms(x, num_particles=k)
    for latents in (terms.latents, Nested().draw_posterior(x, num_particles=k)[0]):
        assert isinstance(latents, Latents)
        assert {site: tuple(z.shape) for site, z in latents.items()} == {"z": (k, 1, 5), "w": (k, PARTS, 5, 2)}
        assert latents.by_datum("z").shape == (k, 5, 1)
        assert latents.flat().shape == (k, 5, 1 + 2 * PARTS)
        for site, z in latents.unflattened(latents.flat()).items():
            assert torch.equal(z, latents[site])
    w = terms.latents["w"]
    torch.testing.assert_close(terms.by_datum("w")[0, 3], w[0, :, 3].flatten(), rtol=0, atol=0)
    torch.testing.assert_close(terms.latents.rows(slice(1, 3))["w"], w[:, :, 1:3], rtol=0, atol=0)
    torch.testing.assert_close(terms.latents.draws(slice(1))["w"], w[:1], rtol=0, atol=0)


@pytest.mark.parametrize("k", [1, 2])
def test_exact_guide_gives_every_estimator_the_exact_value(k: int, x: Tensor) -> None:
    """With the exact posterior as guide every importance weight is p(x)."""
    model, exact = Nested(), Nested().exact(x)
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-10}
    for same in (model, Gathered()):
        terms = same.log_terms(x, num_particles=k)
        torch.testing.assert_close(terms.log_weight, exact.expand(k, 5), **close)
    log_q = model.log_posterior(x, latents=terms.latents)
    torch.testing.assert_close(model.log_joint(x, latents=terms.latents) - log_q, exact.expand(k, 5), **close)
    for objective in (pv.ELBO(analytic_kl=False, num_particles=k), pv.IWAE(k)):
        torch.testing.assert_close(objective.per_datum(terms), exact, **close)
    torch.testing.assert_close(pv.evaluation.log_weights(model, x, num_samples=k), exact.expand(k, 5), **close)
    result = pv.log_marginal(model, x, num_samples=k, **QUIET)
    torch.testing.assert_close(torch.tensor(result.pointwise["log_px"].to_numpy()), exact, **close)
    pointwise = pv.elbo_terms(model, x, num_samples=k, **QUIET).pointwise
    torch.testing.assert_close(torch.tensor(pointwise["elbo"].to_numpy()), exact, **close)
    prior = pv.log_marginal(model, x, num_samples=200_000 * k, proposal="prior", **QUIET).pointwise
    assert ((prior["log_px"] - exact.numpy()).abs() < 4 * prior["mc_se"]).all()


@pytest.mark.slow
def test_annealing_meets_the_exact_value_from_either_start(x: Tensor) -> None:
    exact = Nested().exact(x).numpy()
    for start, bound in (("posterior", 1e-8), ("prior", None)):
        options: dict[str, Any] = {"num_temperatures": 200, "num_chains": 16, "start": start, **QUIET}
        p = pv.ais(Nested(), x, **options).pointwise
        assert ((p["log_px"] - exact).abs() < (4 * p["mc_se"] if bound is None else bound)).all()
    p = pv.ais(Nested(detune=0.3), x, num_temperatures=50, num_chains=8, **QUIET).pointwise
    assert ((p["log_px"] - exact).abs() < 4 * p["mc_se"]).all()
    b = pv.bdmc(Gathered(), 4, num_temperatures=10, num_chains=4, num_leapfrog=4, **QUIET)
    truth = Nested().exact(b.x.double()).numpy()
    assert (b.pointwise[["lower", "upper"]].sub(truth, axis=0)).abs().max().max() < 1e-8


@pytest.mark.parametrize("k", [2, 3])
def test_collapse_of_two_plates(k: int, x: Tensor) -> None:
    """The rate is the closed form's mean; marginal KL and information sum to it."""
    report = pv.collapse(Nested(), x.repeat(8, 1, 1), num_samples=k, **QUIET)
    assert list(report.dimensions["site"]) == ["z"] + ["w"] * (2 * PARTS)
    terms = Nested().log_terms(x, num_particles=4000)
    rate = terms.log_posterior["z"] + terms.log_posterior["w"] - terms.log_prior["z"] - terms.log_prior["w"]
    error = rate.var() / rate.numel() + report.rate_se**2
    assert abs(report.rate - float(rate.mean())) < 4 * math.sqrt(float(error))
    assert report.mutual_information + report.marginal_kl == pytest.approx(report.rate)
    assert report.mutual_information == pytest.approx(math.log(5), abs=0.2)  # five data, eight times each: far apart


@pytest.mark.parametrize("k", [1, 2])
def test_free_bits_of_two_plates(k: int, x: Tensor) -> None:
    """Every dimension in every part is one: λ counts 1 + 6 times where all are free."""

    class Factorised(Nested):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.mean((1, 2)), 0.5))
                with pyro.plate("parts", PARTS, dim=-2):
                    pyro.sample("w", dist.Normal(x.movedim(1, 0), 0.4).to_event(1))

    terms = Factorised().log_terms(x, num_particles=k)
    kl = torch.cat([terms.closed_form_kl_by_dimension(site) for site in ("z", "w")], -1)  # type: ignore[list-item]
    assert kl.shape == (k, 5, 7)
    for site, dims in (("z", slice(1)), ("w", slice(1, None))):
        torch.testing.assert_close(kl[..., dims].sum(-1), terms.closed_form_kl(site))
    free = pv.ELBO(free_bits=100.0, num_particles=k).per_datum(terms)
    torch.testing.assert_close(free, terms.reconstruction.mean(0) - 700.0)
    some = pv.ELBO(free_bits=0.5, num_particles=k).per_datum(terms)
    paid = torch.where(kl.mean((0, 1)) > 0.5, kl, 0.5).sum(-1).mean(0)
    torch.testing.assert_close(some, terms.reconstruction.mean(0) - paid)


def test_gaps_of_two_plates(x: Tensor) -> None:
    """The guide is exact, so that no gap is left to its own family."""
    gaps = pv.inference_gaps(Nested(), x, steps=20, families=("mean_field",), **QUIET).pointwise
    assert (gaps["elbo"].to_numpy() - Nested().exact(x).numpy()).__abs__().max() < 1e-9
    assert (gaps["mean_field"] < gaps["elbo"] + 4 * gaps["mean_field_se"]).all()
