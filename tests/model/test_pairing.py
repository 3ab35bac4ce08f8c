"""Model and guide are a pair, or the site that keeps them from being one is named."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyrovae as pv

QUIET: dict[str, Any] = {"device": "cpu", "progress": False}


def pair(model: Callable[..., Any], guide: Callable[..., Any], event: int = 2) -> pv.VAEModel:
    class Pair(pv.VAEModel):
        def __init__(self) -> None:
            super().__init__()
            self.event_shape, self.unused = (event,), nn.Parameter(torch.zeros(1))

        def model(self, x: Tensor, *covariates: Tensor) -> None:
            with pyro.plate("data", len(x)):
                model(x, *covariates)

        def guide(self, x: Tensor, *covariates: Tensor) -> None:
            with pyro.plate("data", len(x)):
                guide(x, *covariates)

    return Pair()


def standard(x: Tensor) -> Any:
    return dist.Normal(x.new_zeros(2), 1.0).to_event(1)


def observe(x: Tensor, z: Tensor) -> None:
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def plain_model(x: Tensor) -> None:
    observe(x, pyro.sample("z", standard(x)))


def exact_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))


def exact(x: Tensor) -> Tensor:
    return dist.Normal(x.new_zeros(2), 2**0.5).to_event(1).log_prob(x)


X = torch.tensor([[0.3, -1.0], [1.5, 0.2], [-2.0, 0.7], [0.0, 0.0]])
HALF = torch.tensor([True, False, True, False])


# -- masks -----------------------------------------------------------------------------------------------------------


def masked_model(how: str) -> Callable[..., None]:
    def model(x: Tensor) -> None:
        m = HALF[: len(x)]
        if how == "poutine":
            with poutine.mask(mask=m):
                z = pyro.sample("z", standard(x))
        elif how == "distribution":
            z = pyro.sample("z", standard(x).expand([len(x)]).mask(m))
        elif how == "elements":
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1))
        elif how == "everything":
            with poutine.mask(mask=False):
                z = pyro.sample("z", standard(x))
        observe(x, z)

    return model


@pytest.mark.parametrize("how", ["poutine", "distribution", "elements", "everything"])
def test_mask_in_one_of_model_and_guide_names_the_site(how: str) -> None:
    with pytest.raises(ValueError, match="site 'z' is masked in the model only"):
        pv.log_marginal(pair(masked_model(how), exact_guide), X, num_samples=10, **QUIET)

    def guide(x: Tensor) -> None:
        with poutine.mask(mask=HALF[: len(x)]):
            exact_guide(x)

    with pytest.raises(ValueError, match="site 'z' is masked in the guide only"):
        pv.ais(pair(plain_model, guide), X, num_temperatures=5, num_chains=2, **QUIET)


def test_equal_masks_are_a_number_and_different_ones_are_not() -> None:
    """Where z is masked in both, log p(x, z) - log q(z | x) is that of the likelihood alone."""

    def guide_with(mask: Tensor) -> Callable[..., None]:
        def guide(x: Tensor) -> None:
            with poutine.mask(mask=mask[: len(x)]):
                exact_guide(x)

        return guide

    terms = pair(masked_model("distribution"), guide_with(HALF)).log_terms(X, num_particles=3)
    torch.testing.assert_close(terms.log_weight[:, HALF], exact(X)[HALF].expand(3, 2))
    torch.testing.assert_close(terms.log_weight[:, ~HALF], terms.log_likelihood["x"][:, ~HALF])
    assert pv.log_marginal(pair(masked_model("poutine"), guide_with(HALF)), X, num_samples=10, **QUIET) is not None
    late = HALF.clone()
    late[3] = True  # past the two data that are run with validation
    with pytest.raises(ValueError, match="site 'z' is masked differently"):
        pv.log_marginal(pair(masked_model("poutine"), guide_with(late)), X, num_samples=10, **QUIET)
    with pytest.raises(ValueError, match="site 'z' is masked differently"):
        pv.fit(pair(masked_model("poutine"), guide_with(late)), X, epochs=1, batch_size=4, **QUIET)


def test_values_imputed_under_obs_mask_name_their_site() -> None:
    seen = torch.tensor([True, False, True, True])

    def model(x: Tensor) -> None:
        z = pyro.sample("z", standard(x))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x, obs_mask=seen[: len(x)])

    def guide(x: Tensor) -> None:
        exact_guide(x)
        pyro.sample("x_unobserved", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="site 'x_unobserved' is masked in the model only"):
        pv.log_marginal(pair(model, guide), X, num_samples=10, **QUIET)
    with pytest.raises(ValueError, match="site 'x_unobserved' of the model is missing"):
        pv.log_marginal(pair(model, exact_guide), X, num_samples=10, **QUIET)


# -- factors, scales, observations -----------------------------------------------------------------------------------


def test_factors_scales_and_observations_of_the_guide_are_refused() -> None:
    def model(x: Tensor) -> None:
        plain_model(x)
        pyro.factor("bonus", 70.0 * torch.ones(len(x)))

    with pytest.raises(ValueError, match=r"site 'bonus' of the model is a pyro\.factor"):
        pv.log_marginal(pair(model, exact_guide), X, num_samples=10, **QUIET)

    def guide(x: Tensor) -> None:
        exact_guide(x)
        pyro.factor("bonus", torch.ones(len(x)), has_rsample=True)

    with pytest.raises(ValueError, match=r"site 'bonus' of the guide is a pyro\.factor"):
        pv.collapse(pair(plain_model, guide), X, **QUIET)

    def observing(x: Tensor) -> None:
        exact_guide(x)
        pyro.sample("y", standard(x), obs=x)

    with pytest.raises(ValueError, match="site 'y' of the guide is observed"):
        pair(plain_model, observing).log_terms(X)

    def scaled(x: Tensor) -> None:
        with poutine.scale(scale=0.5):
            exact_guide(x)

    with pytest.raises(ValueError, match="scaled differently"):
        pv.log_marginal(pair(plain_model, scaled), X, num_samples=10, **QUIET)


class NoPair(pv.VAEModel):
    """z ~ N(0, I), x ~ N(W z, I), q(z | x) = N(V x, I): with what keeps model and guide from being a pair."""

    event_shape = (2,)

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.decoder, self.encoder = how, nn.Linear(2, 2), nn.Linear(2, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] < 9 if self.how == "mask in the model" else True):
            z = pyro.sample("z", standard(x))
            with poutine.mask(mask=x[:, 0] < 99):
                observe(x, self.decoder(z))
            if self.how == "factor":
                pyro.factor("bonus", self.decoder(z).sum(-1))

    def guide(self, x: Tensor) -> None:
        scale, mask = 0.5 if self.how == "scale in the guide" else 1.0, self.how != "mask in the guide" or x[:, 0] < 9
        with pyro.plate("data", len(x)), poutine.scale(scale=scale), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))
            if self.how == "factor in the guide":
                pyro.factor("bonus", z.sum(-1), has_rsample=True)


NO_PAIRS = {
    "factor": r"site 'bonus' of the model is a pyro\.factor",
    "factor in the guide": r"site 'bonus' of the guide is a pyro\.factor",
    "scale in the guide": "the sites are scaled differently",
    "mask in the guide": "site 'z' is masked in the guide only",
    "mask in the model": "site 'z' is masked in the model only",
}


@pytest.mark.parametrize("how", NO_PAIRS)
def test_no_pair_trains_under_pyros_objectives_alone(how: str) -> None:
    torch.manual_seed(0)
    model, data = NoPair(how), torch.randn(40, 2)
    twin = NoPair(how)
    twin.load_state_dict(model.state_dict())
    settings: dict[str, Any] = {"epochs": 2, "compile": "off", **QUIET}
    for objective in (None, pv.ELBO(), pv.IWAE(3)):
        with pytest.raises(ValueError, match=NO_PAIRS[how]):
            pv.fit(model, data, objective=objective, **settings)
    for objective in (Trace_ELBO(), TraceMeanField_ELBO()):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.warns(UserWarning, match=f"trained like this, but no estimator.*{NO_PAIRS[how]}") as caught:
            run = pv.fit(model, data, validation=data[:5], objective=objective, **settings)
        assert len([w for w in caught if "no estimator" in str(w.message)]) == 1
        assert run.history[["loss", "val_loss"]].notna().all(axis=None)
        assert not any(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=NO_PAIRS[how]):
        pv.log_marginal(model, data, num_samples=5, **QUIET)

    # What is minimised is Pyro's loss: a step of size 1 is its gradient, within 5 standard errors of two means of 60.
    other, sgd = NoPair(how), {"epochs": 1, "batch_size": 40, "optimizer": lambda p: torch.optim.SGD(p, lr=1.0)}
    other.load_state_dict(twin.state_dict())
    with pytest.warns(UserWarning, match="no estimator"):
        run = pv.fit(twin, data, objective=Trace_ELBO(num_particles=60), seed=0, **settings | sgd)
    draws = []
    with pyro.settings.context(module_local_params=True):
        for _ in range(60):
            loss = Trace_ELBO().differentiable_loss(other.model, other.guide, data) / 40
            grads = torch.autograd.grad(loss, list(other.parameters()))
            draws.append(torch.cat([loss.detach().reshape(1), *(g.flatten() for g in grads)]))
    expected, bound = torch.stack(draws).mean(0), 5 * (2 * torch.stack(draws).var(0) / 60).sqrt()
    moved = [(p - q).flatten() for p, q in zip(other.parameters(), twin.parameters(), strict=True)]
    found = torch.cat([torch.tensor([run.history["loss"][0]]), *moved]).detach()
    assert ((found - expected).abs() < bound + 1e-5).all()


def test_data_outside_the_support_are_refused_under_any_objective() -> None:
    class Counts(NoPair):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", standard(x))
                pyro.sample("x", dist.Poisson(self.decoder(z).exp()).to_event(1), obs=x)
                pyro.factor("bonus", z.sum(-1))

    data = torch.ones(40, 2)
    data[30, 1] = -1.0
    for objective in (Trace_ELBO(), pv.ELBO()):
        with pytest.raises(ValueError, match=r"outside the support .*\(Poisson|pyro\.factor"):
            pv.fit(Counts("factor"), data, objective=objective, epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"data holds 1 value\(s\) outside the support .* site 'x' \(Poisson"):
        pv.fit(Counts("factor"), data, objective=Trace_ELBO(), epochs=1, **QUIET)


def test_the_warning_that_a_model_cannot_be_evaluated_is_one_sentence() -> None:
    class Narrow(NoPair):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", standard(x))
                observe(x, self.decoder(torch.cat([z[..., :1], x[:, :1]], -1)))

    with pytest.warns(UserWarning, match="no estimator of log p.* fails on data of shape") as caught:
        pv.fit(Narrow(""), torch.randn(40, 2), epochs=1, compile="off", **QUIET)
    for warning in caught:
        assert "Trace Shapes" not in str(warning.message)
        assert "\n" not in str(warning.message)


def test_guide_that_is_a_point_has_no_log_px_but_trains() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Delta(x / 2).to_event(1))

    class Learnt(pv.VAEModel):
        def __init__(self) -> None:
            super().__init__()
            self.event_shape, self.a = (2,), nn.Parameter(torch.zeros(()))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                plain_model(x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.a * x).to_event(1))

    model = Learnt()
    with pytest.warns(UserWarning, match="no estimator of log p.* site 'z' of the guide is a point mass"):
        pv.fit(model, X.repeat(50, 1), epochs=60, learning_rate=0.05, seed=0, **QUIET)
    assert model.a.item() == pytest.approx(0.5, abs=0.02)  # the maximum of log p(x, z)
    with pytest.raises(ValueError, match="site 'z' of the guide is a point mass"):
        pv.log_marginal(model, X, num_samples=10, **QUIET)


def test_deterministic_sites_are_no_part_of_it() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", standard(x))
        observe(x, pyro.deterministic("mean", z))

    terms = pair(model, exact_guide).log_terms(X, num_particles=2)
    torch.testing.assert_close(terms.log_weight, exact(X).expand(2, 4))


# -- auxiliary sites -------------------------------------------------------------------------------------------------


def auxiliary(transform: Callable[[Tensor], Tensor], log_density: Callable[[Tensor], Any]) -> Callable[..., None]:
    """u ~ N(0, I), z a function of it."""

    def guide(x: Tensor) -> None:
        u = pyro.sample("u", standard(x), infer={"is_auxiliary": True})
        z = transform(u)
        pyro.sample("z", dist.Delta(z, log_density=log_density(u), event_dim=1))

    return guide


MATRIX = torch.tensor([[2.0, 0.0], [1.0, 0.5]])


@pytest.mark.parametrize(
    ("transform", "log_density"),
    [
        (lambda u: u + 1.0, lambda u: u.new_zeros(u.shape[:-1])),
        (lambda u: 0.7 * u, lambda u: u.new_full(u.shape[:-1], -2 * math.log(0.7))),
        (lambda u: u @ MATRIX.T, lambda u: u.new_zeros(u.shape[:-1])),  # of determinant 1
        (lambda u: u + u.tanh(), lambda u: -(2 - u.tanh().square()).log().sum(-1)),
    ],
)
def test_auxiliary_sites_with_the_density_of_their_transformation(transform: Any, log_density: Any) -> None:
    result = pv.log_marginal(pair(plain_model, auxiliary(transform, log_density)), X, num_samples=40_000, **QUIET)
    p = result.pointwise
    assert ((p["log_px"] - exact(X).numpy()).abs() < 5 * p["mc_se"]).all()


def test_auxiliary_sites_of_a_constrained_latent() -> None:
    """z on the simplex from u of one dimension less, with the density that torch's transform states."""
    stick = torch.distributions.StickBreakingTransform()

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Dirichlet(x.new_tensor([2.0, 3.0, 1.0])))
        observe(x, z[..., :2])

    def guide(x: Tensor) -> None:
        u = pyro.sample("u", standard(x), infer={"is_auxiliary": True})
        z = stick(u)
        pyro.sample("z", dist.Delta(z, log_density=-stick.log_abs_det_jacobian(u, z), event_dim=1))

    direct = pv.log_marginal(pair(model, guide), X, num_samples=20_000, proposal="prior", **QUIET).pointwise
    made = pv.log_marginal(pair(model, guide), X, num_samples=20_000, **QUIET).pointwise
    error = (direct["mc_se"] ** 2 + made["mc_se"] ** 2) ** 0.5
    assert ((direct["log_px"] - made["log_px"]).abs() < 4 * error).all()


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (auxiliary(lambda u: 2.0 * u, lambda u: u.new_zeros(u.shape[:-1])), "log_density that is not"),
        (auxiliary(lambda u: u + u.tanh(), lambda u: u.sum(-1)), "log_density"),
        (auxiliary(lambda u: 0.0 * u, lambda u: u.new_zeros(u.shape[:-1])), "can be undone"),
        (auxiliary(lambda u: torch.ones_like(u), lambda u: u.new_zeros(u.shape[:-1])), "can be undone"),
        (auxiliary(lambda u: u[..., :1].expand(u.shape), lambda u: u.new_zeros(u.shape[:-1])), "can be undone"),
    ],
)
def test_auxiliary_sites_without_it_are_refused(guide: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        pv.log_marginal(pair(plain_model, guide), X, num_samples=10, **QUIET)
    assert "'u'" in str(caught.value)


def test_auxiliary_sites_that_are_not_transformed_are_refused() -> None:
    def mixed(x: Tensor) -> None:
        u = pyro.sample("u", standard(x), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(u, 1.0).to_event(1))

    with pytest.raises(ValueError, match="site 'u' of the guide is auxiliary and 'z' is drawn after it"):
        pv.log_marginal(pair(plain_model, mixed), X, num_samples=10, **QUIET)

    def idle(x: Tensor) -> None:
        exact_guide(x)
        pyro.sample("u", standard(x), infer={"is_auxiliary": True})

    with pytest.raises(ValueError, match="site 'u' of the guide is auxiliary, but no latent is made from it"):
        pv.log_marginal(pair(plain_model, idle), X, num_samples=10, **QUIET)


# -- subsampled plates -----------------------------------------------------------------------------------------------


def test_subsampled_plate_under_pyros_objective_is_per_datum() -> None:
    """The history is that of our objective, which does not look at scales, and so are the steps."""

    class Subsampled(pv.VAEModel):
        def __init__(self) -> None:
            super().__init__()
            self.event_shape, self.a = (2,), nn.Parameter(torch.zeros(2))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", 1000, subsample=x):
                observe(x, self.a + pyro.sample("z", standard(x)))

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", 1000, subsample=x):
                exact_guide(x)

    ends = []
    data = torch.randn(250, 2, generator=torch.Generator().manual_seed(0)) + 1.0
    for objective in (pv.ELBO(analytic_kl=False), Trace_ELBO(max_plate_nesting=1)):
        model = Subsampled()
        options: dict[str, Any] = {"epochs": 3, "batch_size": 100, "clip_norm": 0.5, "seed": 1, "compile": "off"}
        run = pv.fit(model, data, objective=objective, validation=data[:50], **options, **QUIET)
        ends.append((run.history[["loss", "val_loss"]].to_numpy(), model.a.detach().numpy()))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-5)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4)
    assert ends[0][0].min() > 2.0  # nats per datum, not per thousand
    assert ends[0][0].max() < 6.0


def test_auxiliary_siblings_are_refused_too() -> None:
    """Densities that hold for some data alone, a map of two branches, a masked source, a latent called auxiliary."""

    def for_some(x: Tensor) -> None:
        u = pyro.sample("u", standard(x), infer={"is_auxiliary": True})
        scale = torch.where(x[:, :1] > 0.8, 3.0, 2.0)
        density = u.new_full(u.shape[:-1], -2 * math.log(2.0))
        pyro.sample("z", dist.Delta(scale * u, log_density=density, event_dim=1))

    def folded(x: Tensor) -> None:
        u = pyro.sample("u", standard(x), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u.abs(), event_dim=1))

    def masked(x: Tensor) -> None:
        u = pyro.sample("u", standard(x).mask(False), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u + x / 2, event_dim=1))

    def misnamed(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1), infer={"is_auxiliary": True})

    for guide, message in (
        (for_some, "log_density that is not"),
        (folded, "log_density that is not"),
        (masked, "site 'u' of the guide is auxiliary and masked"),
        (misnamed, "site 'z' of the guide is a latent of the model"),
    ):
        with pytest.raises(ValueError, match=message):
            pv.log_marginal(pair(plain_model, guide), X, num_samples=10, **QUIET)


def test_auxiliary_guides_are_encoded_and_measured() -> None:
    def guide(x: Tensor) -> None:
        u = pyro.sample("u", standard(x), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(x / 2 + 0.1 * u, u.new_full(u.shape[:-1], -2 * math.log(0.1)), event_dim=1))

    model = pair(plain_model, guide)
    torch.testing.assert_close(model.encode(X), X / 2, rtol=0, atol=5 * 0.1 / 16)  # the mean of 256 draws
    report = pv.collapse(model, X, **QUIET)
    assert report.estimator == "gaussian bound"
    assert "cannot be scored at a point it did not draw" in report.reason


# -- spaces, plates, angles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "guide"),
    [
        (dist.Normal(0.0, 1.0), dist.Poisson(1.0)),
        (dist.Normal(0.0, 1.0), dist.Bernoulli(torch.tensor(0.5))),
        (dist.Bernoulli(torch.tensor(0.5)), dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), torch.tensor(0.5))),
        (dist.OneHotCategorical(torch.ones(3)), dist.RelaxedOneHotCategorical(torch.tensor(0.1), torch.ones(3))),
        (dist.Dirichlet(torch.full((3,), 2.0)), dist.Normal(torch.full((3,), 1 / 3), 0.02).to_event(1)),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.Dirichlet(torch.full((3,), 2.0))),
    ],
)
def test_model_and_guide_on_different_spaces_are_refused(prior: Any, guide: Any) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", prior)
        observe(
            x,
            z.reshape(*z.shape[: z.dim() - prior.event_dim], -1)[..., :1].expand(
                *z.shape[: z.dim() - prior.event_dim], 2
            ),
        )

    with pytest.raises(ValueError, match=r"site 'z' is .* in the model .* and .* in the guide"):
        pv.log_marginal(pair(model, lambda x: pyro.sample("z", guide.expand([len(x)]))), X, num_samples=10, **QUIET)


def test_guide_on_a_part_of_the_reals_makes_a_bound() -> None:
    """z ~ N(0, 1) and a guide that draws z > 0 alone: what it estimates is the part of log p(x) there."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 1]).to_event(1), obs=x)

    half = pair(model, lambda x: pyro.sample("z", dist.HalfNormal(x.new_ones(len(x)))), event=1)
    result = pv.log_marginal(half, X[:, :1], num_samples=1000, **QUIET)
    assert (result.pointwise["log_px"] < dist.Normal(0.0, 2**0.5).log_prob(X[:, 0]).numpy()).all()
    assert result.pointwise["reason"].str.contains("bound").all()
    assert result.verdict.startswith("Bound: ")
    with pytest.raises(ValueError, match="site 'z' on a part of the reals only"):
        pv.ais(half, X[:, :1], num_temperatures=5, num_chains=4, **QUIET)
    assert pv.bdmc(half, 3, num_temperatures=20, num_chains=10, **QUIET).start == "prior"
    with pytest.raises(ValueError, match="have no coordinates in the posterior"):
        pv.bdmc(half, 6, num_temperatures=5, num_chains=4, start="posterior", **QUIET)


def test_angles_have_mass_on_one_turn() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.VonMises(x.new_zeros(()), 2.0))
        pyro.sample("x", dist.Normal(z.cos().unsqueeze(-1), 1.0).expand([*z.shape, 1]).to_event(1), obs=x)

    wide = pair(model, lambda x: pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 4.0)), event=1)
    found = pv.log_marginal(wide, X[:, :1], num_samples=20_000, **QUIET).pointwise
    z = torch.linspace(-math.pi, math.pi, 20_001)[:-1]
    joint = dist.VonMises(0.0, 2.0).log_prob(z) + dist.Normal(z.cos(), 1.0).log_prob(X[:, :1])
    exact = joint.logsumexp(1) + math.log(2 * math.pi / 20_000)
    assert ((found["log_px"] - exact.numpy()).abs() < 4 * found["mc_se"]).all()


def test_plates_that_are_not_whole_are_refused() -> None:
    def inner(x: Tensor) -> Tensor:
        with pyro.plate("parts", 10, subsample_size=5, dim=-2):
            return pyro.sample("z", standard(x))

    def model(x: Tensor) -> None:
        observe(x, inner(x).sum(0))

    nested = pair(model, inner)
    nested.max_plate_nesting = 2
    with pytest.raises(ValueError, match="plate 'parts' of site 'z' takes 5 at random"):
        nested.log_terms(X)

    class Few(pv.VAEModel):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=1) as rows:
                observe(x[rows], pyro.sample("z", standard(x)))

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=1) as rows:
                exact_guide(x[rows])

    with pytest.raises(ValueError, match="plate 'data' of site 'z' has 1 rows where 4 data came"):
        Few().log_terms(X)


def test_plates_of_size_one_inside_others_keep_their_place() -> None:
    """Sites in the outer of two plates, or in both: one particle and fifty give the same density."""

    class Outer(pv.VAEModel):
        max_plate_nesting = 3

        def draw(self, x: Tensor, scale: float, observed: bool) -> None:
            with pyro.plate("data", len(x), dim=-1), pyro.plate("outer", 2, dim=-3):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), scale))
                with pyro.plate("middle", 2, dim=-2):
                    w = pyro.sample("w", dist.Normal(z, scale))
                    if observed:
                        pyro.sample("x", dist.Normal(z + w, 1.0), obs=x[:, 0].expand(2, 2, len(x)))

        def model(self, x: Tensor) -> None:
            self.draw(x, 1.0, True)

        def guide(self, x: Tensor) -> None:
            self.draw(x, 0.8, False)

    terms = Outer().log_terms(X, num_particles=4)
    for k in range(4):
        one = terms.latents.draws(slice(k, k + 1))
        torch.testing.assert_close(
            Outer().log_joint(X, latents=one)[0],
            terms.log_likelihood["x"][k] + terms.log_prior["z"][k] + terms.log_prior["w"][k],
        )
