"""What distributions say of themselves, and charts brought by users."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from torch import Tensor, nn
from torch.distributions import constraints

import pyrovae as pv
from pyrovae.distributions import Chart, Levels, PointMass, capabilities, register_chart
from pyrovae.distributions._capabilities import moment
from pyrovae.distributions._charts import as_chart
from pyrovae.posteriors import POSTERIORS

ZEROS = torch.zeros(2)
NORMAL = dist.Normal(ZEROS, 1.0).to_event(1)
MIXTURE = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), NORMAL.expand([2]))


def flow(transform: Any) -> Any:
    return dist.TransformedDistribution(NORMAL, [transform])


# mean, inverse, rsample, discrete
CASES: dict[str, tuple[Any, tuple[bool, str | None, bool, bool]]] = {
    "normal": (NORMAL, (True, "exact", True, False)),
    "mvn": (dist.MultivariateNormal(ZEROS, torch.eye(2)), (True, "exact", True, False)),
    "masked": (NORMAL.mask(torch.tensor(True)), (True, "exact", True, False)),
    "gamma": (dist.Gamma(torch.ones(2), 1.0).to_event(1), (True, "exact", True, False)),
    "log normal": (dist.LogNormal(ZEROS, 1.0), (True, "exact", True, False)),
    "mixture": (MIXTURE, (True, "exact", False, False)),
    "bernoulli": (dist.Bernoulli(logits=ZEROS), (True, "exact", False, True)),
    "categorical": (dist.Categorical(logits=ZEROS), (True, "exact", False, True)),
    "levels": (Levels(torch.zeros(3, 4)), (True, "exact", False, True)),
    "point mass": (PointMass(torch.tensor([1, 2]), 4), (False, "exact", False, True)),
    "delta": (dist.Delta(ZEROS, event_dim=1), (True, "exact", True, False)),
    "affine": (flow(T.AffineTransform(1.0, 2.0)), (False, "exact", True, False)),
    "sigmoid": (flow(T.SigmoidTransform()), (False, "exact", True, False)),
    "composed": (flow(T.ComposeTransform([T.ExpTransform(), T.ExpTransform()])), (False, "exact", True, False)),
    "inverted": (flow(T.AffineTransform(1.0, 2.0).inv), (False, "exact", True, False)),
    "inverted twice": (flow(T.ExpTransform().inv.inv), (False, "exact", True, False)),
    "planar": (flow(T.Planar(2)), (False, None, True, False)),
    "radial": (flow(T.Radial(2)), (False, None, True, False)),
    "polynomial": (flow(T.polynomial(2)), (False, None, True, False)),
    "block autoregressive": (flow(T.block_autoregressive(2)), (False, None, True, False)),
    "neural autoregressive": (flow(T.neural_autoregressive(2)), (False, None, True, False)),
    "affine coupling": (flow(T.affine_coupling(2)), (False, "exact", True, False)),
    "spline coupling": (flow(T.spline_coupling(2)), (False, "exact", True, False)),
    "planar inside": (flow(T.ComposeTransform([T.AffineTransform(0.0, 2.0), T.Planar(2)])), (False, None, True, False)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_distribution_can_do(case: str) -> None:
    p, expected = CASES[case]
    can = capabilities(p)
    assert (can.mean, can.inverse, can.rsample, can.discrete) == expected
    if can.inverse is None:  # and so it is: another value than its own draw cannot be scored
        z = p.rsample()
        with pytest.raises((KeyError, NotImplementedError)):
            p.log_prob(z + 1.0)
    else:
        assert p.log_prob(p.sample().clone()).isfinite().all()


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_posterior_says_whether_it_can_be_scored(posterior: str) -> None:
    q = POSTERIORS[posterior](3, 5)
    assert (capabilities(q(torch.zeros(5))).inverse is not None) == q.can_score


def test_moments_that_are_not_finite_or_not_stated_are_none() -> None:
    assert moment(dist.Cauchy(ZEROS, 1.0), "mean") is None
    assert moment(dist.StudentT(1.0), "variance") is None
    assert moment(flow(T.AffineTransform(1.0, 2.0)), "mean") is None
    assert moment(dist.Categorical(logits=ZEROS), "mean") is None
    assert torch.equal(moment(NORMAL, "variance"), torch.ones(2))  # type: ignore[arg-type]


def test_support_is_that_of_the_components_or_not_stated() -> None:
    class Silent(dist.TorchDistribution):
        arg_constraints: dict[str, Any] = {}  # noqa: RUF012
        has_rsample = True

    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Exponential(torch.ones(2)))
    assert capabilities(mixture).support is constraints.nonnegative
    assert capabilities(Silent(validate_args=False)).support is None
    assert not capabilities(Silent(validate_args=False)).discrete


class Cubed(dist.TorchDistribution):
    """z = u³ for u ~ N(m, 1): a user's own distribution, whose density torch's bijections know nothing of."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support, has_rsample = constraints.real, True

    def __init__(self, m: Tensor) -> None:
        self.m = m
        super().__init__(m.shape, torch.Size(), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Cubed":
        return Cubed(self.m.expand(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return (self.m + torch.randn(*sample_shape, *self.batch_shape)) ** 3

    def log_prob(self, z: Tensor) -> Tensor:
        u = z.sign() * z.abs() ** (1 / 3)
        return dist.Normal(self.m, 1.0).log_prob(u) - (3 * u.square()).log()


def test_chart_of_a_users_own_distribution() -> None:
    """Annealing moves it in the coordinates that the chart says, also inside to_event, and meets quadrature."""
    seen = []

    @register_chart(Cubed)
    class OfCubed(Chart):
        def __init__(self, fn: Cubed) -> None:
            self.m = fn.m

        def draw(self) -> Tensor:
            return self.m + torch.randn(self.m.shape)

        def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(u.shape)
            return u**3, (3 * u.square()).log()

        def locate(self, z: Tensor) -> Tensor:
            return z.sign() * z.abs() ** (1 / 3)

        def log_base(self, u: Tensor) -> Tensor:
            return dist.Normal(self.m, 1.0).log_prob(u)

    class Model(pv.VAEModel):
        def __init__(self) -> None:
            super().__init__()
            self.event_shape, self.unused = (2,), nn.Parameter(torch.zeros(()))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", Cubed(x.new_zeros(2)).to_event(1))
                pyro.sample("x", dist.Normal(z.sign() * z.abs() ** (1 / 3), 0.5).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", Cubed(0.5 * x).to_event(1))

    x = torch.tensor([[0.3, -0.2], [1.0, 2.0]])
    found = pv.ais(Model(), x, num_temperatures=50, num_chains=16, progress=False).pointwise
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x).sum(1).numpy()  # in u all is normal
    assert ((found["log_px"] - exact).abs() < 4 * found["mc_se"]).all()
    assert seen


def test_chart_of_an_event_that_stands_before_its_transform() -> None:
    """An elementwise transform of a vector, and a vector made by the transform: the density of z either way."""
    for p in (
        dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [T.AffineTransform(1.0, 2.0)]),
        dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), [T.StickBreakingTransform()]),
    ):
        chart = as_chart(p.expand([5]))
        u = chart.draw()
        z, log_det = chart(u)
        torch.testing.assert_close(chart.log_base(u) - log_det, p.log_prob(z), rtol=1e-4, atol=1e-4)
