"""The waist: shapes, sums, agreement with slow twins, and refusals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyrovae as pv
from pyrovae.posteriors import POSTERIORS
from tests.models import Conditional, TwoSites, binary


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("k", [1, 5])
def test_terms_are_per_particle_and_datum(posterior: str, k: int) -> None:
    vae = pv.VAE((6,), 3, posterior=posterior, hidden=(16,))
    terms = vae.log_terms(binary(4), num_particles=k)
    for group in (terms.log_likelihood, terms.log_prior, terms.log_posterior):
        assert {t.shape for t in group.values()} == {(k, 4)}
    torch.testing.assert_close(
        terms.log_weight, terms.log_likelihood["x"] + terms.log_prior["z"] - terms.log_posterior["z"]
    )


@pytest.mark.parametrize("make", [lambda: pv.VAE((6,), 3, hidden=(16,)), TwoSites, lambda: TwoSites(bottom_up=True)])
def test_vectorised_terms_equal_traces_made_one_by_one(make) -> None:
    """Each (particle, datum) entry against a trace of that datum alone with those latents."""
    model, x = make(), binary(3)
    terms = model.log_terms(x, num_particles=4)
    for k in range(4):
        for i in range(3):
            values = {name: z[k, i : i + 1] for name, z in terms.latents.items()}
            q = poutine.trace(poutine.condition(model.guide, data=values)).get_trace(x[i : i + 1])
            p = poutine.trace(poutine.condition(model.model, data=values)).get_trace(x[i : i + 1])
            expected = p.log_prob_sum() - q.log_prob_sum()
            torch.testing.assert_close(terms.log_weight[k, i], expected, rtol=1e-5, atol=1e-5)


def test_log_joint_agrees_with_log_terms() -> None:
    model, x = TwoSites(), binary(3)
    terms = model.log_terms(x, num_particles=4)
    joint = model.log_joint(x, latents=terms.latents)
    torch.testing.assert_close(joint, terms.log_weight + terms.log_posterior["z1"] + terms.log_posterior["z2"])
    with pytest.raises(ValueError, match="no value for site 'z1'"):
        model.log_joint(x, latents={"z2": terms.latents["z2"]})


def test_the_encoder_runs_once_per_datum() -> None:
    vae = pv.VAE((6,), 3, hidden=(16,))
    seen = []
    vae.encoder.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    vae.log_terms(binary(4), num_particles=50)
    assert seen == [(4, 6)]


def test_covariates_pass_through() -> None:
    model, x, y = Conditional(), binary(5), torch.randn(5, 2)
    assert model.log_terms(x, y, num_particles=3).log_weight.shape == (3, 5)
    torch.manual_seed(1)
    a = model.log_terms(x, y).log_weight
    torch.manual_seed(1)
    b = model.log_terms(x, y + 1.0).log_weight
    assert (a != b).all()


def test_nested_plates_are_summed() -> None:
    class Nested(pv.VAEModel):
        max_plate_nesting = 2

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                with pyro.plate("pixels", x.shape[1]):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.mean(1), 0.7))

    x = torch.randn(4, 5)
    terms = Nested().log_terms(x, num_particles=3)
    z = terms.latents["z"].reshape(3, 4)
    expected = dist.Normal(z.unsqueeze(-1), 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(terms.log_likelihood["x"], expected)
    assert Nested().log_terms(x).log_likelihood["x"].shape == (1, 4)


def test_masks_count_and_subsampling_does_not() -> None:
    class Masked(pv.VAEModel):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", 1000, subsample=x):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                with poutine.mask(mask=torch.tensor([True, False, True])):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", 1000, subsample=x):
                pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.randn(3)
    terms = Masked().log_terms(x, num_particles=2)
    expected = dist.Normal(terms.latents["z"], 1.0).log_prob(x) * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(terms.log_likelihood["x"], expected)


def _broken(model_body, guide_body) -> pv.VAEModel:
    class Broken(pv.VAEModel):
        def model(self, x: Tensor) -> None:
            model_body(x)

        def guide(self, x: Tensor) -> None:
            guide_body(x)

    return Broken()


def _normal(name: str, x: Tensor, **kwargs) -> Tensor:
    return pyro.sample(name, dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1), **kwargs)


def _in_plate(*names: str, observe: bool = False, scale: float = 1.0):
    def body(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in names:
                with poutine.scale(scale=scale):
                    pyro.sample(name, dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            if observe:
                pyro.sample("x", dist.Normal(x.new_zeros(6), 1.0).to_event(1), obs=x)

    return body


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (_in_plate("z"), _in_plate("z"), "observes nothing"),
        (_in_plate("z", "w", observe=True), _in_plate("z"), "'w' of the model is missing from the guide"),
        (_in_plate("z", observe=True), _in_plate("z", "w"), "'w' of the guide is missing from the model"),
        (_in_plate("z", observe=True, scale=0.5), _in_plate("z", scale=0.5), "poutine.scale"),
        (
            lambda x: (_normal("z", x), _in_plate(observe=True)(x)),
            lambda x: _normal("z", x),
            "'z' is not inside the data plate",
        ),
    ],
)
def test_malformed_models_are_refused(model, guide, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _broken(model, guide).log_terms(binary(4))


def test_closed_form_kl_respects_the_order_of_sampling() -> None:
    """Bottom-up, p(z1 | z2) depends on a draw made after z1: the closed form would be wrong, and is not used."""
    x = binary(3)
    top_down = TwoSites().log_terms(x)
    assert top_down.closed_form_kl("z1") is not None
    assert top_down.closed_form_kl("z2") is not None
    bottom_up = TwoSites(bottom_up=True).log_terms(x)
    assert bottom_up.closed_form_kl("z1") is None
    assert bottom_up.closed_form_kl("z2") is not None


@pytest.mark.parametrize("bottom_up", [False, True])
def test_closed_form_elbo_has_the_expectation_of_the_sampled_one(bottom_up: bool) -> None:
    model, x = TwoSites(bottom_up=bottom_up), binary(5)
    with torch.no_grad():
        terms = model.log_terms(x, num_particles=200_000)
        difference = pv.ELBO()._per_particle(terms, 1.0) - pv.ELBO(analytic_kl=False)._per_particle(terms, 1.0)
    se = difference.std(0) / 200_000**0.5
    assert (difference.mean(0).abs() < 4.5 * se).all()
    assert difference.abs().max() > 0


def test_masked_latents_have_no_closed_form() -> None:
    class MaskedLatent(pv.VAEModel):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                with poutine.mask(mask=torch.tensor([True, False, True])):
                    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)), poutine.mask(mask=torch.tensor([True, False, True])):
                pyro.sample("z", dist.Normal(x, 1.0))

    terms = MaskedLatent().log_terms(torch.randn(3))
    assert terms.closed_form_kl("z") is None
    assert terms.kl("z")[0, 1] == 0.0


def test_a_delta_with_log_density_keeps_it() -> None:
    """Pyro's closed form for a Delta leaves its log_density out; the bound must not."""

    class Pushed(pv.VAEModel):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(2.0 * u, log_density=-torch.tensor(2.0).log().expand(len(x))))

    model, x = Pushed(), torch.randn(5)
    torch.manual_seed(3)
    ours = pv.ELBO().loss(model.model, model.guide, x)
    torch.manual_seed(3)
    assert ours == pytest.approx(Trace_ELBO().loss(model.model, model.guide, x), rel=1e-6)
