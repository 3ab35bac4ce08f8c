"""Losses and gradients equal Pyro's at the same seed."""

import math

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import pyrovae as pv
from pyrovae.testing import DiscreteMixture
from tests.models import TwoSites, binary

MODELS = {
    "mean_field": lambda: pv.VAE((6,), 3, hidden=(16,)),
    "full_rank": lambda: pv.VAE((6,), 3, hidden=(16,), posterior="full_rank", prior="mixture"),
    "iaf": lambda: pv.VAE((6,), 3, hidden=(16,), posterior="iaf"),
    "planar": lambda: pv.VAE((6,), 3, hidden=(16,), posterior="planar"),
    "sylvester": lambda: pv.VAE((6,), 3, hidden=(16,), posterior="sylvester"),
    "two_sites": TwoSites,
}


def loss_and_gradients(model, objective, x):
    model.zero_grad()
    torch.manual_seed(7)
    with pyro.settings.context(module_local_params=True):
        loss = objective.loss_and_grads(model.model, model.guide, x)
        torch.manual_seed(7)
        assert objective.loss(model.model, model.guide, x) == pytest.approx(loss, rel=1e-5)
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, theirs) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    scale = max(g.abs().max() for g in theirs[1].values())
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-5, atol=1e-5 * scale.item())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("particles", [1, 4])
def test_elbo_equals_trace_elbo(name: str, particles: int) -> None:
    model, x = MODELS[name]().double(), binary().double()
    theirs = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    assert_equal(
        loss_and_gradients(model, pv.ELBO(analytic_kl=False, num_particles=particles), x),
        loss_and_gradients(model, theirs, x),
    )


@pytest.mark.parametrize("name", ["mean_field", "iaf", "planar", "sylvester", "two_sites"])
@pytest.mark.parametrize("particles", [1, 4])
def test_analytic_elbo_equals_trace_mean_field_elbo(name: str, particles: int) -> None:
    model, x = MODELS[name]().double(), binary().double()
    theirs = TraceMeanField_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    assert_equal(loss_and_gradients(model, pv.ELBO(num_particles=particles), x), loss_and_gradients(model, theirs, x))


@pytest.mark.parametrize("name", MODELS)
def test_iwae_equals_renyi_elbo(name: str) -> None:
    model, x = MODELS[name]().double(), binary().double()
    theirs = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert_equal(loss_and_gradients(model, pv.IWAE(num_particles=5), x), loss_and_gradients(model, theirs, x))


def test_score_function_gradient_equals_trace_elbo() -> None:
    model, x = DiscreteMixture(torch.zeros(3), torch.randn(3, 6)).double(), binary().double()
    assert_equal(loss_and_gradients(model, pv.ELBO(analytic_kl=False), x), loss_and_gradients(model, Trace_ELBO(), x))


@pytest.mark.parametrize("analytic_kl", ["auto", False])
def test_score_function_gradient_is_unbiased(analytic_kl) -> None:
    """Averaged over many draws it equals the gradient of the ELBO with the discrete latent summed over."""
    model, x = DiscreteMixture(torch.zeros(3), torch.randn(3, 6)), binary(2)

    def encoder_gradient() -> torch.Tensor:
        gradient = torch.cat([model.encoder.weight.grad.flatten(), model.encoder.bias.grad])
        model.zero_grad()
        return gradient

    log_q = model.encoder(x).log_softmax(-1)
    log_x_given_k = torch.distributions.Bernoulli(logits=model.logits).log_prob(x.unsqueeze(1)).sum(-1)
    elbo = (log_q.exp() * (log_x_given_k + model.log_weights.log_softmax(0) - log_q)).sum()
    (-elbo).backward()
    exact = encoder_gradient()
    gradients = []
    for _ in range(200):
        pv.ELBO(analytic_kl=analytic_kl, num_particles=100).loss_and_grads(model.model, model.guide, x)
        gradients.append(encoder_gradient())
    sampled = torch.stack(gradients)
    se = sampled.std(0) / len(sampled) ** 0.5
    used = exact != 0
    assert used.any()
    assert ((sampled.mean(0) - exact).abs()[used] < 4.5 * se[used]).all()


def test_beta_weighs_the_kl_and_nothing_else() -> None:
    model, x = MODELS["iaf"](), binary()
    terms = model.log_terms(x)
    kl = (terms.log_posterior["z"] - terms.log_prior["z"]).mean(0)
    for beta in (0.0, 0.3, 4.0):
        torch.testing.assert_close(pv.ELBO(beta=beta).per_datum(terms), terms.reconstruction.mean(0) - beta * kl)


def test_schedules() -> None:
    linear = pv.linear_warmup(10)
    assert [linear(t) for t in (0, 5, 10, 50, math.inf)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    cosine = pv.cosine_warmup(10, start=0.2)
    assert [cosine(t) for t in (0, 5, math.inf)] == pytest.approx([0.2, 0.6, 1.0])
    cycle = pv.cyclical(10, rise=0.5, cycles=2)
    assert [cycle(t) for t in (0, 2.5, 5, 9, 10, 12.5, 20, math.inf)] == [0, 0.5, 1, 1, 0, 0.5, 1, 1]
    with pytest.raises(ValueError, match="duration"):
        pv.linear_warmup(0)
    with pytest.raises(ValueError, match="rise"):
        pv.cyclical(10, rise=0)
    with pytest.raises(ValueError, match="duration must be positive and finite"):
        pv.cosine_warmup(math.inf)
    for cycles in (0, -1, 1.5):
        with pytest.raises(ValueError, match="cycles must be"):
            pv.cyclical(10, cycles=cycles)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "1"])
def test_weights_are_finite_and_not_negative(bad: float) -> None:
    for make, name in (
        (lambda: pv.linear_warmup(10, end=bad), "end"),
        (lambda: pv.linear_warmup(10, start=bad), "start"),
        (lambda: pv.cosine_warmup(10, end=bad), "end"),
        (lambda: pv.cyclical(10, end=bad), "end"),
        (lambda: pv.ELBO(beta=bad), "beta"),
    ):
        with pytest.raises(ValueError, match=f"{name} must not be negative, NaN or infinite; got {bad!r}"):
            make()


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_a_function_as_schedule_is_checked_at_each_time(bad: float) -> None:
    for objective, name in (
        (pv.ELBO(beta=lambda t: bad if t > 1 else 1.0), "beta"),
        (pv.CapacityELBO(lambda t: bad if t > 1 else 1.0), "capacity"),
    ):
        assert objective.weights(1.0) == {name: 1.0}
        with pytest.raises(ValueError, match=f"{name}, a schedule, at time t=2 must not be negative"):
            objective.weights(2.0)
    objective = pv.ELBO(beta=lambda t: bad if t >= 1 else 1.0)
    with pytest.raises(ValueError, match="beta, a schedule, at time t=1 must not"):
        pv.fit(MODELS["iaf"](), binary(), objective=objective, epochs=3, validation=None, progress=False, device="cpu")


def test_refusals() -> None:
    model, x = MODELS["iaf"](), binary()
    with pytest.raises(ValueError, match=r"set objective\.time before each step of SVI"):
        pv.ELBO(beta=pv.linear_warmup(10)).loss(model.model, model.guide, x)
    with pytest.raises(ValueError, match="no closed-form KL"):
        pv.ELBO(analytic_kl=True).loss(model.model, model.guide, x)
    with pytest.raises(ValueError, match="num_particles"):
        pv.IWAE(num_particles=0)
    with pytest.raises(ValueError, match="beta"):
        pv.ELBO(beta=-1.0)
    discrete = DiscreteMixture(torch.zeros(3), torch.randn(3, 6))
    with pytest.raises(ValueError, match="reparameterised"):
        pv.IWAE().loss(discrete.model, discrete.guide, x)
