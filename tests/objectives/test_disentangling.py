"""The controlled capacity and the β-TCVAE: against what can be computed, and trained."""

import math
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, Normal

import pyrovae as pv
from pyrovae.objectives import BetaTCVAE, CapacityELBO
from pyrovae.testing import DiscreteMixture
from pyrovae.zoo import VQVAE, LadderVAE, PixelCNN
from tests.models import TwoSites, binary


def vae(**options) -> pv.VAE:
    torch.manual_seed(0)
    model = pv.VAE((6,), 3, hidden=(16,), **options).double()
    with torch.no_grad():  # posteriors that differ from datum to datum, and from the prior
        model.posterior.head.weight.mul_(4) if hasattr(model.posterior, "head") else None
    return model


# -- the capacity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 4])
def test_capacity_zero_is_the_beta_vae(particles: int) -> None:
    model, x = vae(), binary().double()
    terms = model.log_terms(x, num_particles=particles)
    ours = CapacityELBO(0.0, gamma=7.0, num_particles=particles).per_datum(terms)
    torch.testing.assert_close(ours.mean(), pv.ELBO(beta=7.0, num_particles=particles).per_datum(terms).mean())


@pytest.mark.parametrize("make", [vae, lambda: vae(posterior="iaf"), lambda: TwoSites().double()])
def test_capacity_penalises_the_distance_of_the_mean_rate(make) -> None:
    model, x = make(), binary().double()
    terms = model.log_terms(x)
    rate = sum(terms.kl(site).mean() for site in terms.log_posterior).item()
    for capacity in (0.5 * rate, 2.0 * rate):
        bound = CapacityELBO(capacity, gamma=10.0).per_datum(terms)
        expected = terms.reconstruction.mean(0) - 10.0 * abs(rate - capacity)
        torch.testing.assert_close(bound, expected)


def test_trained_rate_is_the_capacity() -> None:
    """With γ far above what another nat of rate is worth, the rate in training ends at C, wherever C is."""
    data = pv.datasets.load("digits", binarize="threshold")
    for capacity in (2.0, 6.0):
        torch.manual_seed(0)
        model = pv.VAE((64,), 4, hidden=(64,))
        objective = CapacityELBO(pv.linear_warmup(10, end=capacity), gamma=100.0)
        run = pv.fit(model, data.train, objective=objective, epochs=25, seed=0, progress=False, device="cpu")
        assert run.engine == "graph"  # the schedule is an input of the traced step
        with torch.no_grad():
            rate = model.log_terms(data.train).kl("z")[0]
        # Half a nat: what a batch's mean rate of 100 data may be off by, three standard errors of it.
        assert abs(rate.mean() - capacity) < 3 * rate.std() / 100**0.5 < 0.5 * capacity


def test_capacity_schedule_settles_and_needs_a_time() -> None:
    model, x = vae(), binary().double()
    objective = CapacityELBO(pv.linear_warmup(10, end=25.0))
    with pytest.raises(ValueError, match=r"capacity is a schedule: pass capacity=..., one of objective.weights\(t\)"):
        objective.per_datum(model.log_terms(x))
    assert objective.weights(5.0) == {"capacity": 12.5}
    assert not objective.settled(5.0)
    assert objective.weights(math.inf) == {"capacity": 25.0}
    assert objective.settled(math.inf)
    assert CapacityELBO(3.0).settled(0.0)
    terms = model.log_terms(x)
    assert torch.equal(objective.per_datum(terms, capacity=3.0), CapacityELBO(3.0).per_datum(terms))
    assert pickle.loads(pickle.dumps(objective)).weights(5.0) == {"capacity": 12.5}


# -- the β-TCVAE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("estimator", ["stratified", "weighted"])
def test_equal_weights_give_the_elbo_draw_by_draw(particles: int, estimator: str) -> None:
    model, x = vae(), binary().double()
    terms = model.log_terms(x, num_particles=particles)
    ours = BetaTCVAE(1000, beta=1.0, estimator=estimator, num_particles=particles).per_datum(terms)
    theirs = pv.ELBO(analytic_kl=False, num_particles=particles).per_datum(terms)
    torch.testing.assert_close(ours, theirs)


def exact_parts(model: pv.VAE, x: Tensor, z: Tensor) -> list[Tensor]:
    """The three parts at draws ``(K, N, Z)``, where ``x`` is the whole set: the mixtures as torch has them."""
    q = model.q(x).base_dist
    even = torch.distributions.Categorical(logits=torch.zeros(len(x), dtype=z.dtype))
    joint = MixtureSameFamily(even, torch.distributions.Independent(Normal(q.loc, q.scale), 1)).log_prob(z)
    each = MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.zeros(z.shape[-1], len(x), dtype=z.dtype)),
        Normal(q.loc.T, q.scale.T),
    ).log_prob(z)
    log_q, log_p = model.q(x).log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1)
    return [log_q - joint, joint - each.sum(-1), each.sum(-1) - log_p]


@pytest.mark.parametrize("particles", [1, 3])
def test_parts_are_exact_where_the_batch_is_the_data_set(particles: int) -> None:
    model, x = vae(), binary(40).double()
    terms = model.log_terms(x, num_particles=particles)
    exact = exact_parts(model, x, terms.latents["z"].reshape(particles, 40, 3))
    parts = BetaTCVAE(40, num_particles=particles).decompose(terms)
    for ours, theirs in zip(parts, exact, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(sum(parts), terms.log_posterior["z"] - terms.log_prior["z"])
    # "weighted" has log q(z) and every log q(z_j) too low by log N.
    log_n = math.log(40)
    weighted = BetaTCVAE(40, estimator="weighted", num_particles=particles).decompose(terms)
    for ours, theirs, shift in zip(weighted, exact, (log_n, 2 * log_n, -3 * log_n), strict=True):
        torch.testing.assert_close(ours, theirs + shift)


def test_exact_parts_have_the_signs_of_divergences() -> None:
    """Averaged over draws: a mutual information between 0 and log N, a total correlation, KLs; they sum to the rate."""
    model, x = vae(), binary(40).double()
    terms = model.log_terms(x, num_particles=2000)
    with torch.no_grad():
        parts = BetaTCVAE(40, num_particles=2000).decompose(terms)
    means = [part.mean().item() for part in parts]
    assert 0 < means[0] < math.log(40)
    assert means[1] > 0
    assert means[2] > 0
    by_draw = sum(parts).mean(1)
    exact = terms.closed_form_kl("z").mean()
    assert abs(by_draw.mean() - exact) < 4 * by_draw.std() / len(by_draw) ** 0.5


def test_stratified_densities_are_unbiased_over_batches() -> None:
    """At a draw of datum 0, averaged over batches of the other data, the estimate of q(z) is q(z)."""
    model, x = vae(), binary(20).double()
    n, b = len(x), 4
    terms = model.log_terms(x)
    exact = (terms.log_posterior["z"] - exact_parts(model, x, terms.latents["z"])[0])[0, 0].exp()
    weights = BetaTCVAE(n)._log_weights(b, x)[0].exp()
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    q_of_all = model.q(x).log_prob(terms.latents["z"][0, 0]).exp()
    batches = torch.combinations(torch.arange(1, n), b - 1)
    estimates = weights[0] * q_of_all[0] + (weights[1:] * q_of_all[batches]).sum(-1)
    torch.testing.assert_close(estimates.mean(), exact)


def test_a_single_datum_has_the_weight_gamma() -> None:
    model, x = vae(), binary(1).double()
    terms = model.log_terms(x)
    ours = BetaTCVAE(100, beta=6.0, alpha=3.0, gamma=2.0).per_datum(terms)
    torch.testing.assert_close(ours, pv.ELBO(beta=2.0, analytic_kl=False).per_datum(terms))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [BetaTCVAE(1297), BetaTCVAE(1297, estimator="weighted")])
def test_training_lowers_the_total_correlation(objective: BetaTCVAE) -> None:
    """And is traced; the rest of the last, ragged batch goes through Pyro."""
    data = pv.datasets.load("digits", binarize="threshold")
    measured = {}
    for name, chosen in {"elbo": pv.ELBO(), "tc": objective}.items():
        torch.manual_seed(0)
        model = pv.VAE((64,), 4, hidden=(64,))
        run = pv.fit(model, data.train, objective=chosen, epochs=25, seed=0, progress=False, device="cpu")
        assert run.engine == "graph"
        torch.manual_seed(0)
        with torch.no_grad():
            part = BetaTCVAE(1297).decompose(model.log_terms(data.train)).total_correlation
        measured[name] = part.mean(), part.std() / part.numel() ** 0.5
    difference = measured["elbo"][0] - measured["tc"][0]
    assert difference > 4 * math.hypot(measured["elbo"][1], measured["tc"][1])


class Correlated(pv.VAEModel):
    """A prior that does not factorise."""

    event_shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(6, 2), torch.nn.Linear(2, 6)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(x.new_zeros(2), torch.eye(2) + 0.5))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize(
    "make",
    [*(partial(pv.VAE, (6,), 3, hidden=(16,), posterior=name) for name in ("full_rank", "iaf", "planar")), TwoSites],
)
def test_other_posteriors_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"one latent site, whose posterior is a normal of independent dim.*; got z"):
        BetaTCVAE(100).per_datum(make().log_terms(binary()))


def test_refusals() -> None:
    x = binary()
    with pytest.raises(ValueError, match=r"prior that factorises.*MultivariateNormal"):
        BetaTCVAE(100).per_datum(Correlated().log_terms(x))
    with pytest.raises(ValueError, match=r"prior that factorises"):
        BetaTCVAE(100).per_datum(pv.VAE((6,), 3, hidden=(16,), prior="mixture").log_terms(x))
    with pytest.raises(ValueError, match=r"more than num_data=2"):
        BetaTCVAE(2).per_datum(pv.VAE((6,), 3, hidden=(16,)).log_terms(x))
    for bad in ({"beta": -1.0}, {"alpha": -1.0}, {"gamma": -0.5}, {"beta": math.inf}, {"alpha": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must not be negative"):
            BetaTCVAE(100, **bad)
    with pytest.raises(ValueError, match="num_data"):
        BetaTCVAE(0)
    with pytest.raises(ValueError, match="'stratified', 'weighted'; got 'minibatch'"):
        BetaTCVAE(100, estimator="minibatch")
    with pytest.raises(ValueError, match="capacity must not be negative"):
        CapacityELBO(-1.0)
    with pytest.raises(ValueError, match="capacity must not be negative, NaN or infinite"):
        CapacityELBO(math.inf)
    with pytest.raises(ValueError, match="gamma must not be negative"):
        CapacityELBO(1.0, gamma=-1.0)
    with pytest.raises(ValueError, match="gamma must not be negative, NaN or infinite"):
        CapacityELBO(1.0, gamma=math.inf)
    discrete = DiscreteMixture(torch.zeros(3), torch.randn(3, 6))
    with pytest.raises(ValueError, match="reparameterised"):
        CapacityELBO(1.0).loss(discrete.model, discrete.guide, x)


@pytest.mark.parametrize(
    ("make", "objective", "message"),
    [
        (lambda: LadderVAE((1, 4, 4), (2, 2), hidden=(8,)), BetaTCVAE(60), "BetaTCVAE needs one latent site"),
        (lambda: VQVAE((1, 4, 4), num_codes=4, hidden=4), CapacityELBO(1.0), "CapacityELBO needs reparameterised"),
        (lambda: VQVAE((1, 4, 4), num_codes=4, hidden=4), pv.IWAE(2), "IWAE needs reparameterised"),
        (lambda: PixelCNN((1, 4, 4)), BetaTCVAE(60), "BetaTCVAE needs a latent site; the model has no latents"),
        (lambda: PixelCNN((1, 4, 4)), CapacityELBO(1.0), "CapacityELBO needs latent sites; the model has no latents"),
    ],
)
def test_fit_refuses_before_it_trains(make, objective, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "per_datum", lambda terms: pytest.fail("a step was taken"))
    with pytest.raises(ValueError, match=message):
        pv.fit(
            make(), torch.zeros(60, 1, 4, 4), objective=objective, epochs=1, compile="off", progress=False, device="cpu"
        )
