"""What every prior must satisfy."""

import copy
import math
from pathlib import Path

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
        n = 2 * CASES[name].points
        z = p.sample((n,))
        assert z.shape == (n, LATENT)
        wide = torch.distributions.MultivariateNormal(z.mean(0), 1.5 * z.T.cov())
        other = wide.sample((n,))
        integral = (p.log_prob(other) - wide.log_prob(other)).exp()
        # E_p[r/p] = 1 only if the draws follow the density.
        narrow = torch.distributions.MultivariateNormal(z.mean(0), 0.3 * z.T.cov())
        match = (narrow.log_prob(z) - p.log_prob(z)).exp()
    for ratio in (integral, match):
        se = ratio.std() / math.sqrt(len(ratio))
        assert se < 0.05
        assert abs(ratio.mean() - 1.0) < 4 * se


@pytest.mark.parametrize("name", PRIORS)
def test_estimators_take_every_prior(name: str) -> None:
    """From the prior, in the best posterior of a datum, on the model's own data: log p(x) is one number."""
    torch.manual_seed(0)
    vae = pv.VAE((6,), 2, prior=name, prior_options={"num_pseudo_inputs": 5} if name == "vamp" else None, hidden=(8,))
    x, quiet = (torch.rand(4, 6) < 0.4).float(), {"progress": False}
    known = pv.log_marginal(vae, x, num_samples=5000, **quiet).pointwise
    annealed = pv.ais(vae, x, num_temperatures=50, num_chains=32, start="prior", **quiet).pointwise
    error = (annealed["mc_se"].pow(2) + known["mc_se"].pow(2)).pow(0.5)
    assert ((annealed["log_px"] - known["log_px"]).abs() < 4 * error).all()
    gaps = pv.inference_gaps(vae, x, steps=100, num_samples=200, log_px=known["log_px"].to_numpy(), **quiet).pointwise
    assert (gaps["approximation"] > -0.1).all()
    sandwich = pv.bdmc(vae, 4, num_temperatures=50, **quiet).summary()
    assert float(sandwich["gap"].iloc[0] if hasattr(sandwich["gap"], "iloc") else sandwich["gap"]) < 0.5
    assert len(pv.calibration(vae, 20, num_draws=9, **quiet).ranks) == 20


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


def exemplars(num: int = 4) -> VampPrior:
    return VampPrior(LATENT, event_shape=(CONTEXT,), num_pseudo_inputs=num, exemplars=True)


def test_exemplars_are_data_and_stay_so() -> None:
    torch.manual_seed(0)
    x = (torch.rand(40, 6) < 0.4).float() * torch.arange(1, 41.0)[:, None] / 40  # every datum another
    vae = pv.VAE(
        (6,),
        LATENT,
        prior="vamp",
        prior_options={"num_pseudo_inputs": 5, "exemplars": True},
        likelihood="continuous_bernoulli",
    )
    vae.prior.start_at(x)
    chosen = vae.prior.pseudo_inputs.clone()
    assert ((chosen[:, None] == x).all(2).sum(1) == 1).all()
    assert len(chosen.unique(dim=0)) == 5
    pv.fit(vae, x, epochs=2, seed=0, progress=False, device="cpu")
    assert torch.equal(vae.prior.pseudo_inputs, chosen)
    z = torch.randn(7, LATENT)
    by_hand = vae.q(chosen).log_prob(z[:, None]).logsumexp(1) - math.log(5)
    torch.testing.assert_close(vae.prior(vae.q).log_prob(z), by_hand)


def test_exemplars_are_saved_and_copied(tmp_path: Path) -> None:
    options = {"num_pseudo_inputs": 3, "exemplars": True}
    vae = pv.VAE((6,), LATENT, prior="vamp", prior_options=options, hidden=(8,))
    x = torch.rand(9, 6)
    vae.prior.start_at(x)
    vae.save(tmp_path / "vae.safetensors")
    for other in (pv.load(tmp_path / "vae.safetensors"), copy.deepcopy(vae)):
        assert torch.equal(other.prior.pseudo_inputs, vae.prior.pseudo_inputs)


def test_learnt_pseudo_inputs_can_start_at_data() -> None:
    prior = VampPrior(LATENT, event_shape=(CONTEXT,), num_pseudo_inputs=4)
    x = torch.rand(4, CONTEXT).round()
    prior.start_at(x)
    assert torch.equal(prior.pseudo_inputs.round().unique(dim=0), x.unique(dim=0))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        prior.start_at(2 * torch.ones(4, CONTEXT))


def test_exemplars_that_are_missing_or_do_not_fit_are_refused() -> None:
    vae = pv.VAE((CONTEXT,), LATENT, prior="vamp", prior_options={"exemplars": True})
    for use in (
        lambda: pv.fit(vae, torch.rand(40, CONTEXT).round(), epochs=1, progress=False),
        lambda: vae.sample(2),
    ):
        with pytest.raises(ValueError, match="start_at"):
            use()
    other = pv.VAE((CONTEXT,), LATENT, prior="vamp", prior_options={"exemplars": True})
    other.load_state_dict(vae.state_dict())
    with pytest.raises(ValueError, match="start_at"):
        other.sample(2)
    for data in (torch.rand(3, CONTEXT), torch.rand(4, CONTEXT + 1), torch.full((4, CONTEXT), torch.nan)):
        with pytest.raises(ValueError, match="data must be"):
            exemplars().start_at(data)
