"""What every posterior family must satisfy, with parameters away from initialisation."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.autograd.functional import jacobian

from pyrovae.distributions import Flow, capabilities
from pyrovae.posteriors import POSTERIORS
from tests.cases import CONTEXT, LATENT, Unreparameterised, randomized
from tests.cases import POSTERIORS as CASES

FLOWS = [name for name, case in CASES.items() if isinstance(case()(torch.zeros(CONTEXT)), Flow)]
SCORABLE = [name for name, case in CASES.items() if case.inverse]


def draw(q: Any, *shape: int) -> torch.Tensor:
    return q.rsample(shape) if q.has_rsample else q.sample(shape)


def test_every_registered_family_has_a_case() -> None:
    assert {type(case()) for case in CASES.values()} - {Unreparameterised} == set(POSTERIORS.values())


@pytest.mark.parametrize("name", CASES)
def test_it_can_do_what_its_case_says(name: str) -> None:
    case = CASES[name]
    family = case()
    can = capabilities(family(torch.randn(4, CONTEXT)))
    assert can.inverse == case.inverse
    assert can.rsample == case.reparameterised
    assert family.can_score == (case.inverse is not None)


@pytest.mark.parametrize("name", POSTERIORS)
def test_built_from_two_sizes(name: str) -> None:
    q = POSTERIORS[name](latent_dim=4, context_dim=6)(torch.randn(7, 6))
    assert q.batch_shape == (7,)
    assert q.event_shape == (4,)
    assert q.has_rsample


@pytest.mark.parametrize("name", FLOWS)
def test_log_determinant_equals_autograd(name: str) -> None:
    family = randomized(CASES[name]())
    generator = torch.Generator().manual_seed(2)
    worst = 0.0
    for _ in range(20):
        context = torch.randn(CONTEXT, generator=generator, dtype=torch.float64)
        u = torch.randn(LATENT, generator=generator, dtype=torch.float64)
        transform = family(context).transform
        _, log_det = transform.call_and_ladj(u)
        exact = torch.linalg.slogdet(jacobian(lambda u, t=transform: t(u), u)).logabsdet
        worst = max(worst, (log_det - exact).abs().item())
    assert worst < 1e-8


@pytest.mark.parametrize("name", CASES)
def test_density_integrates_to_one(name: str) -> None:
    """E_r[q/r] over draws from a wide normal r, for families that can be scored; else E_q[r/q] over their own."""
    family = randomized(CASES[name](), scale=0.3)
    q, n = family(torch.randn(CONTEXT, dtype=torch.float64)), CASES[name].points
    with torch.no_grad():
        z = draw(q.expand((n,))) if isinstance(q, Flow) else draw(q, n)
        cover = z.T.cov() * (1.5 if family.can_score else 0.3)
        other = torch.distributions.MultivariateNormal(z.mean(0), cover)
        if family.can_score:
            z = other.sample((n,))
            ratio = (q.log_prob(z) - other.log_prob(z)).exp()
        else:
            expanded = q.expand((n,))
            z = draw(expanded)
            ratio = (other.log_prob(z) - expanded.log_prob(z)).exp()
    se = ratio.std() / math.sqrt(len(ratio))
    assert se < 0.05
    assert abs(ratio.mean() - 1.0) < 4 * se


@pytest.mark.parametrize("name", SCORABLE)
def test_a_draw_scores_the_same_as_any_other_point(name: str) -> None:
    q = randomized(CASES[name]())(torch.randn(6, CONTEXT, dtype=torch.float64))
    z = draw(q)
    tolerance = CASES[name].tolerance
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SCORABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_points_are_unlikely(name: str, dtype: torch.dtype) -> None:
    """What is found by search has no end beyond which everything is taken for the last point."""
    family = randomized(CASES[name](), scale=0.1).to(dtype)
    with torch.no_grad():
        q = family(torch.randn(1, CONTEXT, dtype=dtype))
        out = 4.0 ** torch.arange(1, 7, dtype=dtype)
        for direction in (1.0, -1.0):
            log_q = q.log_prob(direction * out[:, None] * torch.ones(LATENT, dtype=dtype)).flatten()
            assert log_q.isfinite().all()
            assert log_q.argmax() == 0
            assert (log_q[1:] < -100.0).all()


@pytest.mark.parametrize("name", [n for n in CASES if n not in SCORABLE])
def test_scoring_a_foreign_point_names_the_alternative(name: str) -> None:
    q = CASES[name]()(torch.randn(6, CONTEXT))
    q.rsample()
    with pytest.raises(NotImplementedError, match="can_score is True"):
        q.log_prob(torch.zeros(6, LATENT))


def test_a_draw_made_without_gradients_is_scored_with_them() -> None:
    q = CASES["iaf"]()(torch.randn(4, CONTEXT, requires_grad=True))
    z = q.sample()
    assert q.log_prob(z).requires_grad
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))
    p = CASES["planar"]()(torch.randn(4, CONTEXT, requires_grad=True))
    z = p.sample()
    with torch.no_grad():
        assert torch.isfinite(p.log_prob(z)).all()
    with pytest.raises(NotImplementedError, match="gradient only if that was drawn by rsample"):
        p.log_prob(z)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.smooth and case.reparameterised])
def test_reparameterised_gradient_equals_finite_differences(name: str) -> None:
    """Of E over fixed noise of a smooth function of z and log q, in every parameter direction at once."""
    family = randomized(CASES[name](), scale=0.3)
    context = torch.randn(4, CONTEXT, dtype=torch.float64)

    def value() -> torch.Tensor:
        torch.manual_seed(3)
        q = family(context)
        z = q.rsample()
        return (z.sin() + 0.1 * z.square()).sum() + q.log_prob(z).sum()

    value().backward()
    direction = [torch.randn_like(p) for p in family.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(family.parameters(), direction, strict=True) if p.grad is not None)
    eps, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(family.parameters(), direction, strict=True):
                p.add_(sign * eps * d)
            values.append(value())
            for p, d in zip(family.parameters(), direction, strict=True):
                p.sub_(sign * eps * d)
    numeric = (values[0] - values[1]) / (2 * eps)
    assert slope.item() == pytest.approx(numeric.item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_particles_broadcast_over_context(name: str) -> None:
    """A (K, B) draw from context (B, C) equals the draws made datum by datum with the same noise."""
    family = randomized(CASES[name](), scale=0.3)
    context = torch.randn(4, CONTEXT, dtype=torch.float64)
    together = family(context).expand((6, 4))
    torch.manual_seed(5)
    z = draw(together)
    log_q = together.log_prob(z)
    assert z.shape == (6, 4, LATENT)
    assert log_q.shape == (6, 4)
    repeated = family(context.expand(6, 4, CONTEXT))
    torch.manual_seed(5)
    z_slow = draw(repeated)
    torch.testing.assert_close(z, z_slow)
    torch.testing.assert_close(log_q, repeated.log_prob(z_slow))


@pytest.mark.parametrize("name", CASES)
def test_copies_and_saved_weights_draw_the_same(name: str, tmp_path) -> None:
    family = randomized(CASES[name]())
    context = torch.randn(4, CONTEXT, dtype=torch.float64)
    q = family(context)
    q.log_prob(draw(q))  # deepcopy must work after use
    torch.save(family.state_dict(), tmp_path / "weights.pt")
    fresh = CASES[name]().double()
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    draws = []
    for f in (family, copy.deepcopy(family), fresh):
        torch.manual_seed(4)
        draws.append(draw(f(context)))
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    torch.testing.assert_close(draws[0], draws[2], rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_runs_on_the_device(name: str, device: torch.device) -> None:
    family = CASES[name]().to(device)
    q = family(torch.randn(4, CONTEXT, device=device))
    z = draw(q)
    assert z.device.type == device.type
    assert torch.isfinite(q.log_prob(z)).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_one_latent_dimension(name: str) -> None:
    q = POSTERIORS[name](latent_dim=1, context_dim=6)(torch.randn(7, 6))
    assert torch.isfinite(q.log_prob(q.rsample())).all()


@pytest.mark.parametrize("name", ["sylvester", "sylvester_square", "householder_sylvester", "triangular_sylvester"])
def test_sylvester_columns_are_orthonormal(name: str) -> None:
    family = randomized(CASES[name]())
    for q in family.orthonormal(torch.randn(6, CONTEXT, dtype=torch.float64)):
        gram = q.mT @ q
        torch.testing.assert_close(gram, torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram))


@pytest.mark.parametrize("bad", [{"latent_dim": 0}, {"context_dim": -1}, {"latent_dim": 2.5}, {"num_flows": 0}])
def test_bad_sizes_are_named(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        POSTERIORS["planar"](**{"latent_dim": 3, "context_dim": 5, **bad})
