"""Free bits against values worked out by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv

LAMBDA = 0.5


class Fixed(pv.VAEModel):
    """q(z | x) = N(x, 1) by dimension, so that KL_d = x_d² / 2; log p(x | z) = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(x + 0 * z.mean()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.scale * x, 1.0).to_event(1))


X = torch.tensor([[2.0, 1.0, 0.1], [4.0, 0.5, 0.3]])  # KL: 2, 0.5, 0.005; 8, 0.125, 0.045. Means 5, 0.3125, 0.025


@pytest.mark.parametrize("particles", [1, 3])
def test_every_dimension_costs_its_mean_kl_or_what_is_free(particles: int) -> None:
    vae = Fixed()
    objective = pv.ELBO(free_bits=LAMBDA, beta=2.0, num_particles=particles)
    per_datum = objective.per_datum(vae.log_terms(X, num_particles=particles))
    torch.testing.assert_close(per_datum, -2.0 * torch.tensor([2.0 + 2 * LAMBDA, 8.0 + 2 * LAMBDA]))
    (gradient,) = torch.autograd.grad(-per_datum.mean(), vae.scale)
    torch.testing.assert_close(gradient, torch.tensor([2.0 * 10.0, 0.0, 0.0]))  # β mean x², and none below λ
    bound = objective.loss(vae.model, vae.guide, X)
    assert bound == pytest.approx(2 * (10.0 + 4 * LAMBDA))
    assert bound > pv.ELBO(beta=2.0).loss(vae.model, vae.guide, X)


def test_without_free_bits_nothing_changes() -> None:
    vae = Fixed()
    terms = vae.log_terms(X)
    torch.testing.assert_close(pv.ELBO(free_bits=0).per_datum(terms), pv.ELBO().per_datum(terms))
    torch.testing.assert_close(pv.ELBO(free_bits=1e-9).per_datum(terms), pv.ELBO().per_datum(terms))


class TwoSites(pv.VAEModel):
    """z1 then z2 | z1, normal at every dimension, plus a plate nested inside that of the data."""

    max_plate_nesting = 2

    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([2.0, 0.1]))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("b", dist.Normal(a[..., 0], 1.0))
            pyro.sample("x", dist.Normal(a[..., :1], 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(self.loc.expand(len(x), 2), 1.0).to_event(1))
            with pyro.plate("parts", 3, dim=-2):
                steps = torch.tensor([0.0, 0.1, 3.0])[:, None]
                pyro.sample("b", dist.Normal(a[..., 0] + steps, 1.0))


@pytest.mark.parametrize("particles", [1, 4])
def test_several_sites_and_nested_plates(particles: int) -> None:
    vae = TwoSites()
    terms = vae.log_terms(torch.zeros(5, 1), num_particles=particles)
    paid = terms.reconstruction.mean(0) - pv.ELBO(free_bits=LAMBDA, num_particles=particles).per_datum(terms)
    # Site a: 2²/2 and λ. Site b, for which each of three parts is a dimension: λ, λ and 3²/2.
    torch.testing.assert_close(paid, torch.full((5,), 2.0 + LAMBDA + 2 * LAMBDA + 4.5))


def test_training_keeps_the_rate_at_what_is_free_with_the_same_bits_as_a_graph() -> None:
    data = torch.bernoulli(torch.full((200, 6), 0.5), generator=torch.Generator().manual_seed(0))  # nothing to encode
    states = []
    for compile in ("off", "graph"):
        torch.manual_seed(0)
        vae = pv.VAE((6,), 2, hidden=[16])
        options = {"epochs": 60, "seed": 0, "progress": False, "device": "cpu", "compile": compile}
        run = pv.fit(vae, data, objective=pv.ELBO(free_bits=0.3), **options)
        assert run.engine == compile
        states.append(vae.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    report = pv.collapse(vae, data, progress=False)
    # Up to λ per dimension costs nothing, and independent bits give no reason to stay below or to go above.
    assert report.rate > 0.3
    assert report.rate < 2 * 0.3 + 0.1


@pytest.mark.parametrize(
    ("options", "site"),
    [({"posterior": "full_rank"}, "MultivariateNormal"), ({"posterior": "iaf"}, "Flow"), ({"prior": "mixture"}, "z")],
)
def test_a_site_that_does_not_factorise_is_refused_before_training(options: dict, site: str) -> None:
    vae = pv.VAE((6,), 3, hidden=[8], **options)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(ValueError, match=f"free_bits=0.5 needs the KL of every dimension.*{site}"):
        pv.fit(vae, torch.zeros(10, 6), objective=pv.ELBO(free_bits=0.5), epochs=1, progress=False, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_bad_free_bits(bad: float) -> None:
    with pytest.raises(ValueError, match="free_bits must not be negative, NaN or infinite"):
        pv.ELBO(free_bits=bad)


def test_free_bits_and_no_closed_form() -> None:
    with pytest.raises(ValueError, match="free_bits needs the KL"):
        pv.ELBO(free_bits=0.1, analytic_kl=False)
