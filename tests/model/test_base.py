"""What a model gets for nothing: sampling, encoding, saving, clear errors."""

import copy
import subprocess
import sys

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import pyrovae as pv
from pyrovae.posteriors import POSTERIORS
from pyrovae.testing import BetaBernoulli, DiscreteMixture
from tests.models import Conditional, TwoSites, binary


def small(posterior: str = "mean_field", **options) -> pv.VAE:
    return pv.VAE((6,), 3, posterior=posterior, hidden=(16,), **options)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_sample_encode_decode_reconstruct_interpolate(posterior: str) -> None:
    vae, x = small(posterior), binary(4)
    draws = vae.sample(7, seed=1)
    assert draws.shape == (7, 6)
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(draws, vae.sample(7, seed=1), rtol=0, atol=0)
    assert vae.encode(x).shape == (4, 3)
    assert vae.encode(x, num_samples=5).shape == (5, 4, 3)
    assert vae.decode(torch.randn(2, 5, 3)).shape == (2, 5, 6)
    assert vae.decode(torch.randn(3)).shape == (6,)
    assert vae.reconstruct(x).shape == (4, 6)
    lines = vae.interpolate(x[:2], x[2:], steps=5)
    assert lines.shape == (5, 2, 6)
    torch.testing.assert_close(lines[0], vae.decode(vae.encode(x[:2])))
    torch.testing.assert_close(lines[-1], vae.decode(vae.encode(x[2:])))


def test_decode_is_the_mean_of_the_likelihood() -> None:
    vae, z = small(), torch.randn(4, 3)
    torch.testing.assert_close(vae.decode(z), vae.p(z).mean)
    torch.testing.assert_close(vae.decode(torch.tensor([0, 1, 2])), vae.p(torch.tensor([0.0, 1.0, 2.0])).mean)


def test_encode_is_the_posterior_mean() -> None:
    """In closed form, and by draws where there is none: within 4.5 standard errors of a far larger average."""
    vae, x = small("planar"), binary(4)
    mean = vae.encode(x)
    draws = vae.encode(x, num_samples=20_000, seed=5)
    assert ((mean - draws.mean(0)).abs() < 4.5 * draws.std(0) * (1 / 256 + 1 / 20_000) ** 0.5).all()
    vae = small()
    torch.testing.assert_close(vae.encode(x), vae.q(x).mean)


def test_sampling_leaves_the_generator_and_mode_alone() -> None:
    vae = small().train()
    x, state = binary(2), torch.get_rng_state()
    vae.sample(3, seed=1)
    vae.encode(x, num_samples=2, seed=1)
    vae.decode(torch.zeros(1, 3))
    vae.reconstruct(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert vae.encoder.training


def test_several_sites_and_covariates() -> None:
    model = TwoSites()
    codes = model.encode(binary(4))
    assert {name: tuple(z.shape) for name, z in codes.items()} == {"z2": (4, 2), "z1": (4, 3)}
    assert model.decode(codes).shape == (4, 6)
    assert model.reconstruct(binary(4)).shape == (4, 6)
    with pytest.raises(ValueError, match="single latent site"):
        model.interpolate(binary(2), binary(2))
    with pytest.raises(ValueError, match=r"z2.*dict"):
        model.decode(torch.randn(4, 2))
    conditional, y = Conditional(), torch.randn(4, 2)
    assert conditional.sample(4, y).shape == (4, 6)
    assert conditional.reconstruct(binary(4), y).shape == (4, 6)
    a, b = binary(4), binary(4)
    lines = conditional.interpolate(a, b, y, steps=3)
    torch.testing.assert_close(lines[0], conditional.decode(conditional.encode(a, y), y))
    torch.testing.assert_close(lines[2], conditional.decode(conditional.encode(b, y), y))


def test_discrete_and_scalar_latents() -> None:
    mixture, x = DiscreteMixture(torch.zeros(3), torch.randn(3, 6)), binary(4)
    with pytest.raises(ValueError, match="'k' is discrete and has no mean: pass num_samples"):
        mixture.encode(x)
    assert mixture.encode(x, num_samples=5).shape == (5, 4)
    torch.testing.assert_close(mixture.decode(torch.tensor([2, 0])), mixture.logits[[2, 0]].sigmoid())
    assert mixture.reconstruct(x).shape == (4, 6)
    coin = BetaBernoulli(6)
    assert coin.encode(x).shape == (4,)
    torch.testing.assert_close(coin.decode(torch.tensor([0.2, 0.7]))[:, 0], torch.tensor([0.2, 0.7]))
    assert coin.decode(torch.tensor(0.2)).shape == (6,)
    assert coin.reconstruct(x).shape == (4, 6)
    assert coin.interpolate(x, x, steps=3).shape == (3, 4, 6)


@pytest.mark.parametrize("make", [small, lambda: small("iaf", prior="mixture"), TwoSites])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, pv.ELBO, pv.IWAE])
def test_plain_svi_trains_composed_and_subclassed_models(make, elbo) -> None:
    pyro.clear_param_store()
    model, x = make(), binary(50)
    before = copy.deepcopy(model.state_dict())
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), elbo())
    losses = [svi.step(x) for _ in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.split(".")[0] for name in moved} >= {"decoder"}
    assert any("encode" in name for name in moved)
    pyro.clear_param_store()


def test_models_live_side_by_side() -> None:
    pyro.clear_param_store()
    a, b = small(), small()
    pv.fit(a, binary(50), epochs=2, progress=False, device="cpu")
    before = copy.deepcopy(b.state_dict())
    pv.log_marginal(b, binary(5), num_samples=10, progress=False)
    assert len(pyro.get_param_store()) == 0
    assert all(torch.equal(v, before[k]) for k, v in b.state_dict().items())


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_save_and_load(posterior: str, tmp_path) -> None:
    vae, x = small(posterior, prior="mixture", posterior_options={}), binary(4)
    path = vae.save(tmp_path / "new" / "vae.safetensors")
    for twin in (pv.load(path), pv.VAE.load(path)):
        assert isinstance(twin, pv.VAE)
        assert twin.construction == vae.construction
        torch.testing.assert_close(twin.encode(x), vae.encode(x), rtol=0, atol=0)
    assert [p.name for p in path.parent.iterdir()] == ["vae.safetensors"]


def test_save_and_load_a_subclass(tmp_path) -> None:
    model = DiscreteMixture(torch.zeros(3), torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"log_weights of DiscreteMixture holds a Tensor, which JSON cannot: build it"):
        model.save(tmp_path / "m.safetensors")
    path = model.save(tmp_path / "m.safetensors", exclude=["log_weights", "logits"])
    with pytest.raises(ValueError, match="pass log_weights, logits"):
        DiscreteMixture.load(path)
    twin = DiscreteMixture.load(path, log_weights=torch.zeros(3), logits=torch.zeros(3, 6))
    torch.testing.assert_close(twin.logits, model.logits)
    with pytest.raises(ValueError, match="holds a DiscreteMixture, not a VAE"):
        pv.VAE.load(path)
    with pytest.raises(ValueError, match="do not fit"):
        DiscreteMixture.load(path, log_weights=torch.zeros(2), logits=torch.zeros(2, 6))


def test_saved_precision_tied_weights_and_options(tmp_path) -> None:
    vae = pv.VAE((6,), np.int64(3), posterior="iaf", posterior_options={"hidden": (8, 8)}, hidden=(16,)).double()
    twin = pv.load(vae.save(tmp_path / "a"))
    assert twin.construction == vae.construction
    assert twin.placement.dtype == torch.float64
    assert all(torch.equal(v, vae.state_dict()[k]) for k, v in twin.state_dict().items())
    fixed = pv.VAE((6,), 3, hidden=(16,), likelihood="gaussian", likelihood_options={"scale": np.float32(1.5)})
    assert pv.load(fixed.save(tmp_path / "c")).likelihood.scale == 1.5
    tied = TwoSites()
    tied.encode_2.bias = tied.middle.bias = torch.nn.Parameter(torch.randn(4))
    tied.middle = torch.nn.Linear(2, 6)
    tied.encode_1.bias = tied.middle.bias
    with pytest.raises(ValueError, match=r"encode_1.bias is tensor encode_1.bias as built, and tensor middle.bias now"):
        tied.save(tmp_path / "b")  # loaded and trained further, they would part


def test_damaged_and_missing_models_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no model at"):
        pv.load(tmp_path / "none")
    path = small().save(tmp_path / "vae.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        pv.load(path)


@pytest.mark.slow
def test_a_killed_save_leaves_the_old_file(tmp_path) -> None:
    path = small().save(tmp_path / "vae.safetensors")
    before = path.read_bytes()
    code = (
        "import os, sys, pyrovae as pv\n"
        "def die(*args): os.kill(os.getpid(), 9)\n"
        "os.replace = die\n"
        "pv.VAE((6,), 3, hidden=(16,)).save(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_bytes() == before
    pv.load(path)


def test_unknown_names_suggest_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"unknown posterior 'planer'. Did you mean 'planar'\? Registered: mean_field"):
        small("planer")
    with pytest.raises(ValueError, match="unknown prior"):
        small(prior="x")
    with pytest.raises(ValueError, match="unknown likelihood"):
        small(likelihood="poisson")
    with pytest.raises(ValueError, match="unknown network"):
        small(network="resnet")
    assert isinstance(small("Mean-Field").posterior, pv.posteriors.MeanFieldNormal)


def test_vamp_refuses_posteriors_that_cannot_be_scored() -> None:
    for name, family in POSTERIORS.items():
        if family.can_score:
            small(name, prior="vamp", prior_options={"num_pseudo_inputs": 5}).log_terms(binary(4), num_particles=2)
        else:
            with pytest.raises(ValueError, match=r"VampPrior scores .* Use one of mean_field"):
                small(name, prior="vamp")


@pytest.mark.parametrize(
    "bad", [{"latent_dim": 0}, {"event_shape": ()}, {"hidden": (), "network": "conv"}, {"event_shape": (0,)}]
)
def test_bad_arguments_are_named(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        pv.VAE(**{"event_shape": (6,), "latent_dim": 3, **bad})
    with pytest.raises(ValueError, match="prior_options"):
        small(prior=pv.priors.StandardNormal(3), prior_options={"num_components": 3})


def test_images_and_custom_networks() -> None:
    conv = pv.VAE(
        (1, 8, 8), 3, network="conv", hidden=(32,), likelihood="categorical", likelihood_options={"num_levels": 17}
    )
    x = torch.randint(0, 17, (4, 1, 8, 8)) / 16
    assert conv.log_terms(x, num_particles=2).log_weight.shape == (2, 4)
    assert conv.sample(3).shape == (3, 1, 8, 8)
    flat = pv.VAE((1, 8, 8), 3, network="gated_mlp", hidden=(32, 16), likelihood="gaussian")
    assert flat.log_terms(x, num_particles=2).log_weight.shape == (2, 4)
    custom = pv.VAE((6,), 3, hidden=(16,), encoder=pv.networks.MLP(6, [9], 16), decoder=pv.networks.MLP(3, [9], 6))
    assert custom.log_terms(binary(4)).log_weight.shape == (1, 4)


def test_undefined_model_and_unknown_event_shape() -> None:
    with pytest.raises(NotImplementedError, match="must define model"):
        pv.VAEModel().model(binary(2))

    class Shapeless(TwoSites):
        event_shape = None

    with pytest.raises(ValueError, match=r"set self.event_shape"):
        Shapeless().sample(3)
    with pytest.raises(ValueError, match="n must be at least 1"):
        small().sample(0)


@pytest.mark.parametrize("objective", [pv.ELBO(), Trace_ELBO()], ids=["ours", "Pyro's"])
def test_param_statements_are_left_out_in_runs_of_our_own_alone(objective) -> None:
    """``pyro.infer.SVI`` learns from them what to train, whoever's objective it has, even after a run of ours."""
    x, model = binary(20), pv.VAE((6,), 3, hidden=(16,))
    pv.fit(model, x, epochs=1, compile="off", device="cpu", progress=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
    svi.step(x)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.numel() > 16)
    with pyro.poutine.trace() as heard:
        model.model(x)
    assert any(site["type"] == "param" for site in heard.trace.nodes.values())


@pytest.mark.cuda
def test_data_and_latents_from_any_device_give_results_on_the_models() -> None:
    model, x = pv.VAE((6,), 3, hidden=(16,)), (torch.rand(5, 6) < 0.5).float()
    here = model.log_terms(x)
    model.cuda()
    terms = model.log_terms(x)
    assert terms.log_weight.device.type == "cuda"
    latents, log_q = model.draw_posterior(x, num_particles=3)
    on_cpu = {site: z.cpu() for site, z in latents.items()}
    torch.testing.assert_close(model.log_posterior(x, latents=on_cpu), log_q)
    assert model.log_joint(x, latents=on_cpu).device.type == model.encode(x).device.type == "cuda"
    assert model.log_prior(x, latents=on_cpu)["z"].shape == here.log_weight.expand(3, 5).shape
    assert model.draw_prior(x, num_particles=2)[1].device.type == model.reconstruct(x).device.type == "cuda"


def test_autocast_around_a_call_does_not_reach_densities_and_draws() -> None:
    torch.manual_seed(0)
    model, x, latents = small(), binary(8), {"z": torch.ones(2, 8, 3)}

    def everything() -> list[torch.Tensor]:
        torch.manual_seed(1)
        (z, log_q), (prior, log_p, likelihood) = (
            model.draw_posterior(x, num_particles=1),
            model.draw_prior(x, num_particles=2),
        )
        scored = [model.log_joint(x, latents=latents), model.log_posterior(x, latents=latents)]
        scored += [model.log_prior(x, latents=latents)["z"], model.log_terms(x, num_particles=2).log_weight]
        return [z["z"], log_q, prior["z"], log_p, likelihood, *scored]

    plain = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = everything()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, inside, strict=True))
