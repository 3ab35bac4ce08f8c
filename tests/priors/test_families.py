"""What every prior must satisfy."""

import math

import pytest
import torch

import pyrovae as pv
from pyrovae.posteriors import MeanFieldNormal
from pyrovae.priors import PRIORS, VampPrior
from tests.cases import CONTEXT, LATENT, randomized
from tests.cases import PRIORS as CASES


def posterior_at(x: torch.Tensor):
    torch_state = torch.get_rng_state()
    family = randomized(MeanFieldNormal(LATENT, CONTEXT))
    torch.set_rng_state(torch_state)
    return family(x)


def test_every_registered_family_has_a_case() -> None:
    assert {type(case()) for case in CASES.values()} == set(PRIORS.values())


@pytest.mark.parametrize("name", CASES)
def test_density_integrates_to_one_and_matches_samples(name: str) -> None:
    with torch.no_grad():
        p = randomized(CASES[name](), scale=CASES[name].scale)(posterior_at)
        z = p.sample((200_000,))
        assert z.shape == (200_000, LATENT)
        wide = torch.distributions.MultivariateNormal(z.mean(0), 1.5 * z.T.cov())
        other = wide.sample((200_000,))
        integral = (p.log_prob(other) - wide.log_prob(other)).exp()
        # E_p[r/p] = 1 only if the draws follow the density.
        narrow = torch.distributions.MultivariateNormal(z.mean(0), 0.3 * z.T.cov())
        match = (narrow.log_prob(z) - p.log_prob(z)).exp()
    for ratio in (integral, match):
        se = ratio.std() / math.sqrt(len(ratio))
        assert se < 0.05
        assert abs(ratio.mean() - 1.0) < 4 * se


def test_vamp_is_the_mixture_of_posteriors() -> None:
    prior = randomized(VampPrior(LATENT, event_shape=(CONTEXT,), num_pseudo_inputs=4))
    z = torch.randn(7, LATENT, dtype=torch.float64)
    q = posterior_at(prior.pseudo_inputs)
    by_hand = torch.stack([q.log_prob(z[i].expand(4, LATENT)).logsumexp(0) - math.log(4) for i in range(7)])
    torch.testing.assert_close(prior(posterior_at).log_prob(z), by_hand)
    assert 0 < prior.pseudo_inputs.min() < prior.pseudo_inputs.max() < 1


def test_vamp_passes_a_gradient_to_its_pseudo_inputs() -> None:
    """The exact one: central differences of log p(z), in float64."""
    prior = randomized(VampPrior(LATENT, event_shape=(CONTEXT,), num_pseudo_inputs=4))
    z = torch.randn(7, LATENT, dtype=torch.float64)

    def log_p(raw: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(prior, {"raw": raw}, (posterior_at,)).log_prob(z)

    raw = prior.raw.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(log_p, raw)
    assert (torch.autograd.grad(log_p(raw).sum(), raw)[0].abs() > 1e-6).all()


def test_training_moves_vamps_pseudo_inputs() -> None:
    torch.manual_seed(0)
    vae = pv.VAE((6,), LATENT, prior="vamp", prior_options={"num_pseudo_inputs": 5}, hidden=(16,))
    before = vae.prior.pseudo_inputs.detach().clone()
    pv.fit(vae, (torch.rand(40, 6) < 0.4).float(), epochs=2, seed=0, progress=False, device="cpu")
    moved = (vae.prior.pseudo_inputs - before).abs()
    assert (moved > 1e-5).all(), "every coordinate of every pseudo-input"


def test_vamp_without_a_posterior_says_so() -> None:
    with pytest.raises(ValueError, match="posterior_at"):
        VampPrior(LATENT, event_shape=(CONTEXT,))()
