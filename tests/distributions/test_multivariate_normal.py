"""The normal that scores its own draws from their noise."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.distributions import MultivariateNormal
from pyrovae.distributions._charts import as_chart


def ill_conditioned(n: int = 384) -> torch.Tensor:
    return 0.6 * torch.randn(n, n).tril(-1) + torch.eye(n)


def case(*batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*batch, 3), torch.randn(*batch, 3, 3).tril(-1) + torch.rand(*batch, 3).add(0.5).diag_embed()


def test_own_draws_are_scored_from_their_noise() -> None:
    """The log-density of a draw has mean -n/2 (1 + ln 2π) - Σ ln Lᵢᵢ and variance n/2, however L is conditioned."""
    n = 384
    q = MultivariateNormal(torch.zeros(n), scale_tril=ill_conditioned(n)).expand((2000,))
    z = q.rsample()
    log_q, mean = q.log_prob(z), -0.5 * n * (1 + math.log(2 * math.pi))
    assert abs(float(log_q.mean()) - mean) < 4.5 * (n / 2 / 2000) ** 0.5
    assert float(log_q.var()) == pytest.approx(n / 2, rel=4.5 * (2 / 2000) ** 0.5)
    assert float((q.log_prob(z.clone()) - log_q).abs().max()) > 1e4  # what a solve makes of the same values


@pytest.mark.parametrize("batch", [(), (4,)])
def test_it_is_the_normal_of_pyro(batch: tuple[int, ...]) -> None:
    loc, tril = case(*batch)
    ours, pyros = MultivariateNormal(loc, scale_tril=tril), dist.MultivariateNormal(loc, scale_tril=tril)
    wide = ours.expand((5, *batch))
    assert isinstance(wide, MultivariateNormal)
    for q, shape in ((ours, (6,)), (ours, ()), (wide, (2,)), (wide, ())):
        torch.manual_seed(3)
        z = q.rsample(shape)
        torch.testing.assert_close(q.log_prob(z), pyros.log_prob(z), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(q.log_prob(z.clone()), pyros.log_prob(z))
        torch.manual_seed(3)
        torch.testing.assert_close(z, pyros.expand(q.batch_shape).rsample(shape))
    twin = copy.deepcopy(ours)
    torch.testing.assert_close(twin.log_prob(z), pyros.log_prob(z))
    base = dist.Normal(torch.zeros(3), 2.0).to_event(1).expand(ours.batch_shape)
    torch.testing.assert_close(kl_divergence(ours, base), kl_divergence(pyros, base))
    assert type(as_chart(ours)) is type(as_chart(pyros))


def test_gradients() -> None:
    """Of a reparameterised draw: d log q / dL = -diag(1 / Lᵢᵢ), and 0 for the mean. Of one made without gradients:
    those of the density at a given value.
    """
    loc, tril = (t.requires_grad_() for t in case(4))
    q = MultivariateNormal(loc, scale_tril=tril)
    g_loc, g_tril = torch.autograd.grad(q.log_prob(q.rsample()).sum(), (loc, tril), materialize_grads=True)
    torch.testing.assert_close(g_loc, torch.zeros_like(g_loc))
    torch.testing.assert_close(g_tril, -(1 / tril.diagonal(dim1=-2, dim2=-1)).diag_embed())
    with torch.no_grad():
        z = q.rsample()
    found, expected = (
        torch.autograd.grad(p.log_prob(z).sum(), (loc, tril))
        for p in (q, dist.MultivariateNormal(loc, scale_tril=tril))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


class Guided(pv.VAEModel):
    """z ~ N(0, I) of as many dimensions as the guide's distribution, which is given, has."""

    event_shape = (2,)

    def __init__(self, q: dist.TorchDistribution) -> None:
        super().__init__()
        self.q, self.unused = q, nn.Parameter(torch.zeros(1))

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.q.loc), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :2], 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q)


def test_a_guide_whose_draws_cannot_be_scored_is_refused() -> None:
    x, factor = torch.randn(4, 2), torch.randn(60, 5)
    wrong = (
        dist.MultivariateNormal(torch.zeros(200), scale_tril=ill_conditioned(200)),
        dist.LowRankMultivariateNormal(torch.zeros(60), factor, torch.full((60,), 1e-9)),
    )
    for q in wrong:
        for run in (pv.log_marginal, lambda model, x, **_: pv.fit(model, x, epochs=1, progress=False, device="cpu")):
            with pytest.raises(ValueError, match=r"site 'z' is wrong by .* pyrovae.distributions.MultivariateNormal"):
                run(Guided(q), x, progress=False)
    right = (
        dist.MultivariateNormal(torch.zeros(60), scale_tril=torch.eye(60) + 0.1 * torch.randn(60, 60).tril(-1)),
        dist.LowRankMultivariateNormal(torch.zeros(60), factor, torch.ones(60)),
        MultivariateNormal(torch.zeros(200), scale_tril=ill_conditioned(200)),
    )
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), 2.0 * torch.eye(2)).log_prob(x).numpy()
    for q in right:  # an estimate of p(x) without bias is a thousand times too large once in a thousand (Markov)
        above = pv.log_marginal(Guided(q), x, num_samples=10, progress=False).pointwise["log_px"] - exact
        assert np.isfinite(above).all()
        assert above.max() < math.log(1000)
