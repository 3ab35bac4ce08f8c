"""Gradient estimators: no noise at the posterior, no bias elsewhere, less variance than without."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.objectives import Objective
from tests.cases import CONTEXT, LATENT, POSTERIORS, randomized
from tests.models import TwoSites

PATHWISE = {"stl": pv.ELBO(gradient="stl"), "dreg": pv.IWAE(4, gradient="dreg")}


def gradients(objective: Objective, model: pv.VAEModel, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    objective.differentiable_loss(model.model, model.guide, x).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


class Exact(pv.VAEModel):
    """z ~ N(0, I), x | z ~ N(z, I): the posterior is N(x/2, I/2), which the guide starts at."""

    def __init__(self, shift: float = 0.0, stretch: float = 1.0) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((2,), shift, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full((2,), math.log(math.sqrt(0.5) * stretch), dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.offset, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + self.loc, self.log_scale.exp()).to_event(1))


class Chain(Exact):
    """Two sites, the second drawn after the first; the posterior in that order: z₂ | x, then z₁ | z₂ (and x)."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b + self.offset, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """b has variance 2 before x comes, so that b | x is N(2x/3, 2/3), and a | b is N(b/2, 1/2)."""
        scale = math.sqrt(4.0 / 3.0)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(2.0 / 3.0 * x + self.loc, scale * self.log_scale.exp()).to_event(1))
            pyro.sample("a", dist.Normal(b / 2 + self.loc, self.log_scale.exp()).to_event(1))


X = torch.tensor([[1.5, -0.3], [0.2, 0.9], [-2.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("model", [Exact, Chain])
@pytest.mark.parametrize("name", PATHWISE)
def test_at_the_posterior_every_draw_gives_the_gradient_zero(name: str, model: Callable[[], pv.VAEModel]) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        found = gradients(PATHWISE[name], model(), X)
        assert max(found[p].abs().max() for p in ("loc", "log_scale")) < 1e-12
    usual = gradients(pv.ELBO(analytic_kl=False), model(), X)
    assert usual["log_scale"].abs().max() > 0.1


def expected_gradient(objective: Callable[[int], Objective], model: pv.VAEModel, x: Tensor, repeats: int, at_once: int):
    """Mean and standard error of the gradient, by parameter, over independent draws: of copies of the data."""
    found = [gradients(objective(0), model, x.repeat(at_once, *(1,) * (x.dim() - 1))) for _ in range(repeats)]
    stacked = {name: torch.stack([f[name] for f in found]) / at_once for name in found[0]}
    return {name: (g.mean(0), g.std(0) / math.sqrt(repeats)) for name, g in stacked.items()}


def assert_alike(a: dict[str, Any], b: dict[str, Any]) -> None:
    """All parameters' means within four standard errors, but for one in a thousand of them."""
    z = torch.cat([((a[n][0] - b[n][0]) / (a[n][1] ** 2 + b[n][1] ** 2 + 1e-24).sqrt()).flatten() for n in a])
    assert (z.abs() > 4.0).double().mean() < 1e-3 + 1e-9, z.abs().max()
    assert z.square().mean() < 1.0 + 4.0 * math.sqrt(2.0 / len(z)) + 0.5


UNBIASED = {
    "stl": (lambda _: pv.ELBO(gradient="stl"), lambda _: pv.ELBO(analytic_kl=False)),
    "score": (lambda _: pv.ELBO(gradient="score", num_particles=3), lambda _: pv.ELBO(analytic_kl=False)),
    "dreg": (lambda _: pv.IWAE(4, gradient="dreg"), lambda _: pv.IWAE(4)),
    "vimco": (lambda _: pv.IWAE(4, gradient="vimco"), lambda _: pv.IWAE(4)),
}


@pytest.mark.parametrize("model", [Exact, Chain])
@pytest.mark.parametrize("name", UNBIASED)
def test_its_expectation_is_that_of_the_reparameterised_gradient(name: str, model: Any) -> None:
    """Which is that of finite differences, below."""
    torch.manual_seed(1)
    one, other = (
        expected_gradient(objective, model(0.3, 1.4), X, repeats=60, at_once=400) for objective in UNBIASED[name]
    )
    assert_alike(one, other)


class AtItsOwnGuide(pv.VAEModel):
    """The posterior is a copy of the guide, whatever family that is of: p(z) is the copy, and x says nothing of z."""

    def __init__(self, family: nn.Module) -> None:
        super().__init__()
        self.family = family
        self.target = copy.deepcopy(family).requires_grad_(False)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.target(x))
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.family(x))


@pytest.mark.parametrize("family", [name for name, case in POSTERIORS.items() if case.inverse and case.reparameterised])
def test_every_family_sticks_where_the_posterior_is_the_guide(family: str) -> None:
    """Flows without a cheap inverse by their Jacobian, the others through log q at the draws."""
    case = POSTERIORS[family]
    model = AtItsOwnGuide(randomized(case(), scale=0.3))
    x = torch.randn(4, CONTEXT, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for objective in (pv.ELBO(gradient="stl"), pv.IWAE(3, gradient="dreg")):
        torch.manual_seed(0)
        found = torch.cat([g.flatten() for n, g in gradients(objective, model, x).items() if "family" in n])
        torch.manual_seed(0)
        usual = gradients(pv.IWAE(objective.num_particles), model, x)
        scale = torch.cat([g.flatten() for n, g in usual.items() if "family" in n]).norm()
        assert scale > 0.05
        assert found.norm() < 1e-6 * max(1.0, case.tolerance / 1e-8) * scale


@pytest.mark.parametrize("family", ["planar", "radial", "triangular_sylvester", "iaf", "naf"])
def test_the_score_of_a_flow_from_its_jacobian(family: str) -> None:
    """Against central differences of log q(T(u)) in u, by the chain rule: no inverse enters."""
    q = randomized(POSTERIORS[family](), scale=0.3)(torch.randn(1, CONTEXT, dtype=torch.float64))
    with torch.no_grad():
        torch.manual_seed(0)
        u = q.base.rsample()

        def image(u: Tensor) -> tuple[Tensor, Tensor]:
            z, log_det = q.transform.call_and_ladj(u)
            return z, q.base.log_prob(u) - log_det

    torch.manual_seed(0)
    z = q.rsample()
    score = q.score(z)
    eps = 1e-5
    for direction in torch.eye(LATENT, dtype=torch.float64):
        (z_up, up), (z_down, down) = (image(u + sign * eps * direction) for sign in (1, -1))
        along = ((z_up - z_down) / (2 * eps) * score).sum()
        assert along.item() == pytest.approx(((up - down) / (2 * eps)).item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("family", ["planar", "mixture", "iaf", "realnvp"])
def test_unbiased_for_flows_and_mixtures(family: str) -> None:
    torch.manual_seed(0)
    model = pv.VAE((CONTEXT,), LATENT, hidden=(CONTEXT,), posterior=POSTERIORS[family]()).double()
    x = torch.bernoulli(torch.full((3, CONTEXT), 0.5, dtype=torch.float64))
    for one, other in ((pv.ELBO(gradient="stl"), pv.ELBO()), (pv.IWAE(3, gradient="dreg"), pv.IWAE(3))):
        assert_alike(*(expected_gradient(lambda _, o=o: o, model, x, repeats=60, at_once=200) for o in (one, other)))


def test_unbiased_where_the_prior_is_made_of_the_guide() -> None:
    torch.manual_seed(0)
    model = pv.VAE((6,), 2, hidden=(8,), prior="vamp", prior_options={"num_pseudo_inputs": 3}).double()
    x = torch.bernoulli(torch.full((3, 6), 0.5, dtype=torch.float64))
    for one, other in ((pv.ELBO(gradient="stl"), pv.ELBO()), (pv.IWAE(3, gradient="dreg"), pv.IWAE(3))):
        assert_alike(*(expected_gradient(lambda _, o=o: o, model, x, repeats=60, at_once=200) for o in (one, other)))


def test_reparameterised_gradients_are_those_of_finite_differences() -> None:
    """Of the expected bound of L_4, at common random numbers: what all others are compared with."""
    values = {}
    for eps in (1e-3, -1e-3):
        model = Exact(0.3 + eps, 1.4)
        torch.manual_seed(0)
        with torch.no_grad():
            terms = model.log_terms(X.repeat(50_000, 1), num_particles=4)
            values[eps] = pv.IWAE(4).per_datum(terms).unflatten(0, (50_000, 3)).sum(1)
    slopes = (values[1e-3] - values[-1e-3]) / 2e-3
    torch.manual_seed(1)
    mean, se = expected_gradient(lambda _: pv.IWAE(4, gradient="dreg"), Exact(0.3, 1.4), X, 60, 400)["loc"]
    error = math.hypot(float(se.norm()), float(slopes.std()) / math.sqrt(len(slopes)))
    assert -float(mean.sum()) == pytest.approx(float(slopes.mean()), abs=4 * error)


class Switches(pv.VAEModel):
    """Three Bernoulli latents, all eight values of which can be summed over."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(4, 3).double(), nn.Linear(3, 4).double()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5, dtype=x.dtype)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=3.0 * self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))

    def log_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log q and log w at all eight values, ``(8, B)``."""
        z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=x.dtype)] * 3).unsqueeze(1)
        log_q = dist.Bernoulli(logits=self.encoder(x)).log_prob(z).sum(-1)
        likelihood = dist.Bernoulli(logits=3.0 * self.decoder(z)).log_prob(x).sum(-1)
        return log_q, likelihood + 3 * math.log(0.5) - log_q

    def bound(self, x: Tensor, k: int) -> Tensor:
        """E[L_K] by enumerating all 8ᴷ draws."""
        log_q, log_w = self.log_weights(x)
        draws = torch.cartesian_prod(*[torch.arange(8)] * k).reshape(-1, k)
        log_p = log_q[draws].sum(1)
        return (log_p.exp() * (log_w[draws].logsumexp(1) - math.log(k))).sum(0)


DISCRETE = {
    "rloo": (pv.ELBO(num_particles=3), 1),
    "score": (pv.ELBO(gradient="score"), 1),
    "vimco": (pv.IWAE(3, gradient="vimco"), 3),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_latents_against_enumeration(name: str) -> None:
    objective, k = DISCRETE[name]
    model, x = Switches(), torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    (-model.bound(x, k).sum()).backward()
    exact = {n: p.grad.clone() for n, p in model.named_parameters()}
    torch.manual_seed(0)
    found = expected_gradient(lambda _: objective, model, x, repeats=100, at_once=400)
    assert_alike(found, {n: (g, torch.zeros_like(g)) for n, g in exact.items()})


def test_baselines_take_nine_tenths_of_the_variance() -> None:
    """Against the plain score function of the same bound and as many draws: of every draw's own value for the ELBO,
    which is their mean, of the bound for all draws together.
    """

    def variance(objective: Objective, plain: Callable[[Tensor], Tensor] | None = None) -> float:
        model = Switches()
        x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
        found = []
        for seed in range(400):
            torch.manual_seed(seed)
            if plain is None:
                g = gradients(objective, model, x)
            else:
                model.zero_grad()
                terms = pv.model.log_terms(model.model, model.guide, x, num_particles=objective.num_particles)
                value, log_q = plain(terms.log_weight), terms.log_posterior["z"]
                (-(value.mean(0) + value.detach() * (log_q - log_q.detach())).sum()).backward()
                g = {n: p.grad.clone() for n, p in model.named_parameters()}
            found.append(torch.cat([g["encoder.weight"].flatten(), g["encoder.bias"]]))
        return float(torch.stack(found).var(0).sum())

    k = 10
    iwae = (
        variance(pv.IWAE(k, gradient="vimco")),
        variance(pv.IWAE(k, gradient="vimco"), lambda w: (w.logsumexp(0) - math.log(k)).expand(k, -1)),
    )
    elbo = variance(pv.ELBO(num_particles=k)), variance(pv.ELBO(num_particles=k), lambda w: w / k)
    assert iwae[0] < 0.1 * iwae[1]
    assert elbo[0] < 0.1 * elbo[1]


def test_piwae_trains_the_model_by_one_bound_and_the_guide_by_another() -> None:
    torch.manual_seed(0)
    model = pv.VAE((6,), 2, hidden=(8,)).double()
    x = torch.bernoulli(torch.full((5, 6), 0.5, dtype=torch.float64))
    found = {}
    for name, objective in {"piwae": pv.PIWAE(3, 4), "miwae": pv.MIWAE(3, 4), "iwae": pv.IWAE(12)}.items():
        torch.manual_seed(1)
        found[name] = gradients(objective, model, x)
    for name, gradient in found["piwae"].items():
        other = "iwae" if name.startswith("decoder") else "miwae"
        torch.testing.assert_close(gradient, found[other][name], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(gradient, found[{"iwae": "miwae", "miwae": "iwae"}[other]][name])


def test_bounds_between_the_elbo_and_the_importance_weighted() -> None:
    torch.manual_seed(0)
    terms = TwoSites().log_terms((torch.rand(5, 6) < 0.5).float(), num_particles=12)
    elbo, iwae = terms.log_weight.mean(0), pv.IWAE(12).per_datum(terms)
    torch.testing.assert_close(pv.MIWAE(12, 1).per_datum(terms), elbo)
    torch.testing.assert_close(pv.MIWAE(1, 12).per_datum(terms), iwae)
    torch.testing.assert_close(pv.CIWAE(0.25, 12).per_datum(terms), 0.25 * elbo + 0.75 * iwae)
    torch.testing.assert_close(pv.PIWAE(3, 4).per_datum(terms), iwae)
    assert (pv.MIWAE(3, 4).per_datum(terms) <= iwae + 1e-6).all()


ENGINE = [pv.ELBO(gradient="stl"), pv.ELBO(gradient="score", num_particles=2), pv.IWAE(3, gradient="dreg")]
ENGINE += [pv.IWAE(3, gradient="vimco"), pv.MIWAE(2, 3), pv.PIWAE(2, 3), pv.CIWAE(0.3, 3)]


@pytest.mark.parametrize("objective", ENGINE, ids=["stl", "score", "dreg", "vimco", "miwae", "piwae", "ciwae"])
@pytest.mark.parametrize("make", [TwoSites, lambda: pv.VAE((6,), 3, hidden=(8,), posterior="iaf")], ids=["two", "iaf"])
def test_a_graph_takes_the_same_steps(objective: Objective, make: Callable[[], pv.VAEModel]) -> None:
    x, weights = (torch.rand(100, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float(), []
    for engine in ("off", "graph"):
        torch.manual_seed(0)
        model = make()
        options = {"epochs": 2, "batch_size": 20, "seed": 0, "progress": False, "device": "cpu"}
        run = pv.fit(model, x, objective=objective, compile=engine, **options)
        assert run.engine == engine
        weights.append(model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("objective", ENGINE, ids=["stl", "score", "dreg", "vimco", "miwae", "piwae", "ciwae"])
@pytest.mark.parametrize("family", POSTERIORS)
def test_every_family_trains_by_every_estimator_or_says_by_which(objective: Objective, family: str) -> None:
    case = POSTERIORS[family]
    torch.manual_seed(0)
    model, x = pv.VAE((6,), LATENT, hidden=(CONTEXT,), posterior=case()), (torch.rand(20, 6) < 0.5).float()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    short = {"epochs": 1, "progress": False, "device": "cpu", "seed": 0}
    score = getattr(objective, "gradient", None) in ("score", "vimco")
    if (score and case.inverse is None) or not (score or case.reparameterised):
        with pytest.raises(ValueError, match=r"gradient='(stl|vimco)'"):
            pv.fit(model, x, objective=objective, **short)
        return
    run = pv.fit(model, x, objective=objective, **short)
    assert run.history["loss"].notna().all()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved >= {"encoder", "posterior", "decoder"}


def test_what_an_estimator_cannot_do_is_refused_before_training() -> None:
    x = (torch.rand(20, 6) < 0.5).float()
    short = {"epochs": 1, "progress": False, "device": "cpu"}
    with pytest.raises(ValueError, match="analytic_kl=True"):
        pv.ELBO(analytic_kl=True, gradient="stl")
    with pytest.raises(ValueError, match="gradient must be one of"):
        pv.IWAE(gradient="score")
    with pytest.raises(ValueError, match="num_particles must be at least 2"):
        pv.IWAE(1, gradient="vimco")
    with pytest.warns(UserWarning, match="'stl' is biased"):
        pv.IWAE(5, gradient="stl")
    for objective in (pv.ELBO(gradient="stl"), pv.IWAE(gradient="dreg")):
        with pytest.raises(ValueError, match="not reparameterised: use ELBO"):
            pv.fit(Switches(), x[:, :4].double(), objective=objective, **short)

    class Point(Exact):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(x / 2 + self.loc).to_event(1))

    for objective in (pv.ELBO(gradient="score"), pv.IWAE(gradient="vimco")):
        with pytest.raises(ValueError, match="use ELBO\\(gradient='stl'\\) or IWAE\\(gradient='dreg'\\)"):
            pv.fit(pv.VAE((6,), 2, posterior="planar"), x, objective=objective, **short)
        with pytest.raises(ValueError, match="no density of its own"):
            pv.fit(Point(), X, objective=objective, **short)

    class Dropping(TwoSites):
        def guide(self, x: Tensor) -> None:
            super().guide(nn.functional.dropout(x, 0.5))

    with pytest.raises(ValueError, match="random beside its sites"):
        pv.fit(Dropping(), x, objective=pv.ELBO(gradient="stl"), **short)
