"""Encoders that cannot be run for many parameters at once, or need not be: run once and played back."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.evaluation.inference._own_family import OwnFamily
from tests.models import TwoSites, binary


class Series(pv.VAEModel):
    """A series of 5 × 2 numbers, with a recurrent encoder and a linear head."""

    event_shape = (5, 2)

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head, self.decoder = encoder, head, nn.Linear(2, 10)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z).unflatten(-1, (5, 2)), 1.0).to_event(2), obs=x)

    def guide(self, x):
        h = self.rnn(x)[1]
        h = h[0] if isinstance(h, tuple) else h
        loc, raw = self.head(h[-1]).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class OfPosterior(Series):
    """The same, with a posterior of any family."""

    def __init__(self, encoder: nn.Module, posterior: nn.Module) -> None:
        super().__init__(encoder, nn.Identity())
        self.posterior = posterior

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.rnn(x)[1][-1]))


def recurrent(kind: type[nn.Module]) -> nn.Module:
    return kind(2, 8, num_layers=2, batch_first=True)


def check_draws(model: pv.VAEModel, x: torch.Tensor, *covariates: torch.Tensor) -> OwnFamily:
    """At the guide's own parameters, log q at the guide's draws is the guide's."""
    with torch.no_grad():
        q = OwnFamily(model, (x, *covariates))
        latents, log_q = model.draw_posterior(x, *covariates, num_particles=3)
        torch.testing.assert_close(q.log_prob(latents), log_q, rtol=1e-4, atol=1e-4)
        own, log_own = q.draw(3)
        torch.testing.assert_close(model.log_posterior(x, *covariates, latents=own), log_own, rtol=1e-4, atol=1e-4)
    return q


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_recurrent_encoder_is_played_back_and_the_head_spans_the_family(kind: type[nn.Module], head: str) -> None:
    torch.manual_seed(0)
    heads = {"linear": nn.Linear(8, 4), "mlp": nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))}
    model, x = Series(recurrent(kind), heads[head]), torch.randn(4, 5, 2)
    q = check_draws(model, x)
    assert [tuple(p.shape) for p, _ in q.parameters] == [(4, 4)]  # the last bias alone
    assert model.rnn in q._playback.modules
    assert "forward" not in model.rnn.__dict__
    calls = []
    hook = model.rnn.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        q.draw(2)
    hook.remove()
    assert len(calls) == 1  # the hook of what is played back
    if kind is nn.GRU and head == "linear":
        options = {"steps": 200, "num_samples": 500, "learning_rate": 0.05, "progress": False}
        result = pv.inference_gaps(model, x, **options)
        s = result.summary()
        assert abs(s["own"] - s["mean_field"]) < 4 * math.hypot(s["own_mc_se"], s["mean_field_mc_se"]) + 0.01
        assert s["amortization"] > 0.1
        assert result.converged


@pytest.mark.slow
@pytest.mark.parametrize("posterior", [pv.posteriors.FullRankNormal, pv.posteriors.IAF, pv.posteriors.Planar])
def test_a_posterior_after_a_recurrent_encoder(posterior: type[pv.posteriors.Posterior]) -> None:
    torch.manual_seed(0)
    model, x = OfPosterior(recurrent(nn.GRU), posterior(2, 8)), torch.randn(3, 5, 2)
    if posterior.can_score:
        check_draws(model, x)
    p = pv.inference_gaps(
        model, x, families=("own",), steps=40, num_samples=300, learning_rate=0.02, progress=False
    ).pointwise
    assert (p["own"] > p["elbo"] - 4 * p["amortization_se"]).all()


@pytest.mark.parametrize("kind", ["conv", "batch_norm", "both"])
def test_convolutions_and_batch_norm(kind: str) -> None:
    torch.manual_seed(0)
    encoder = {
        "conv": nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16)),
        "batch_norm": nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU()),
        "both": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 16), nn.ReLU()),
    }[kind]
    vae, x = pv.VAE((1, 8, 8), 2, hidden=(16,), encoder=encoder, posterior="full_rank"), binary(30, 64)
    x = x.reshape(30, 1, 8, 8)
    vae.train()
    vae.encoder(x)  # running statistics away from their start
    vae.eval()
    q = check_draws(vae, x[:5])
    assert vae.encoder in q._playback.modules


def test_batch_norm_in_a_guide_of_ones_own_is_fitted_inside_vmap() -> None:
    torch.manual_seed(0)

    class Own(Series):
        def guide(self, x):
            h = self.head(self.rnn(x.flatten(1)))  # no affine layer at the end: all is fitted
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(h[..., :2], h[..., 2:].exp()).to_event(1))

    model = Own(nn.Linear(10, 4), nn.BatchNorm1d(4)).eval()
    q = check_draws(model, torch.randn(5, 5, 2))
    assert sorted(tuple(p.shape) for p, _ in q.parameters) == [(5, 4), (5, 4), (5, 4)]  # bias, and the norm's two


def test_what_depends_on_draws_or_on_their_number_is_not_played_back() -> None:
    torch.manual_seed(0)

    class Ladder(TwoSites):
        """A frozen module after the first draw, one before it called twice, and one that sees every particle."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.wide, self.after = nn.Linear(6, 6), nn.Tanh(), nn.Tanh()

        def guide(self, x):
            with pyro.plate("data", len(x)):
                h = torch.relu(self.wide(x)) + self.wide(2 * x)
                loc, raw = self.encode_2(h).chunk(2, -1)
                z2 = pyro.sample("z2", dist.Normal(loc, (0.3 * raw).exp()).to_event(1))
                h = torch.cat([self.wide(h.expand(*z2.shape[:-1], 6)), self.after(z2)], -1)
                loc, raw = self.encode_1(h).chunk(2, -1)
                pyro.sample("z1", dist.Normal(loc, (0.3 * raw).exp()).to_event(1))

    model = Ladder()
    q = check_draws(model, binary(5))
    assert model.after not in q._playback.modules
    assert model.wide not in q._playback.modules


def test_a_recurrent_network_that_would_have_to_be_fitted_is_refused_in_a_sentence() -> None:
    class Bare(Series):
        def guide(self, x):
            h = self.rnn(x)[1][-1]
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(h[..., :2], h[..., 2:4].exp()).to_event(1))

    model = Bare(recurrent(nn.GRU), nn.Identity())
    with pytest.raises(ValueError, match=r"ends in a recurrent network: end that in a torch.nn.Linear"):
        pv.inference_gaps(model, torch.randn(3, 5, 2), steps=5, num_samples=10, progress=False)


def test_a_module_that_mixes_data_is_run_for_each_datum() -> None:
    """Its outputs for a batch are not those for one datum alone, which is what q* is fitted to."""

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    torch.manual_seed(0)
    model = TwoSites()
    model.encode_2 = nn.Sequential(Centred(), nn.Linear(6, 4))
    with torch.no_grad():
        q = OwnFamily(model, (binary(5),))
    assert not q._playback.modules
