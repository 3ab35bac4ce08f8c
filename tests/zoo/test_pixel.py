"""Pixel by pixel models: exact densities, agreement with quadrature, and posterior collapse on real digits."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.zoo import PixelCNN, PixelVAE
from tests.cases import randomized

SHAPE = (1, 2, 3)
EVERY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).reshape(-1, *SHAPE)
SMALL = {"pixelcnn": {"hidden": 6, "num_layers": 2}, "gru": {"hidden": 6}}


def alone(decoder: str) -> PixelCNN:
    return randomized(PixelCNN(SHAPE, decoder=decoder, decoder_options=SMALL[decoder]), scale=0.6)


def conditioned(decoder: str, **options: object) -> PixelVAE:
    torch.manual_seed(0)
    vae = PixelVAE(SHAPE, 1, decoder=decoder, decoder_options=SMALL[decoder], context_dim=3, hidden=[8], **options)
    return randomized(vae, scale=0.6)


@pytest.mark.parametrize("decoder", ["pixelcnn", "gru"])
def test_alone_log_p_is_exact_and_every_estimator_says_so(decoder: str) -> None:
    model, x = alone(decoder), EVERY.double()
    with torch.no_grad():
        exact = model.log_prob(x)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert exact.std() > 0.1
    for k in (1, 700):
        result = pv.log_marginal(model, x, num_samples=k, progress=False)
        torch.testing.assert_close(torch.tensor(result.pointwise["log_px"]), exact)
        assert (result.pointwise["mc_se"] == 0).all()
        assert result.pointwise["ess"].min() == pytest.approx(k)
        assert result.pointwise["reliable"].all()
        assert result.reliable
        assert result.mean_error == 0
        assert result.verdict.startswith("Mean exact: 0 of")
    parts = pv.elbo_terms(model, x, num_samples=2, progress=False).pointwise
    torch.testing.assert_close(torch.tensor(parts["elbo"]), exact)
    assert (parts["kl"] == 0).all()
    with pytest.raises(ValueError, match="PixelCNN has no latents"):
        pv.collapse(model, x, progress=False)
    with pytest.raises(ValueError, match="PixelCNN has no latents"):
        pv.ais(model, x, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pixelcnn", "gru"])
def test_alone_it_learns_a_distribution(decoder: str) -> None:
    """512 images whose second row repeats the first: the entropy is 3 log 2."""
    rows = torch.bernoulli(torch.full((512, 1, 1, 3), 0.5), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = PixelCNN(SHAPE, decoder=decoder, decoder_options={"hidden": 12})
    options = {"epochs": 25, "batch_size": 64, "learning_rate": 1e-2, "seed": 0, "progress": False, "device": "cpu"}
    run = pv.fit(model, rows.expand(-1, -1, 2, -1).clone(), compile="graph", **options)
    assert run.engine == "graph"
    with torch.no_grad():
        log_p = model.log_prob(EVERY)
    repeats = (EVERY[:, :, 0] == EVERY[:, :, 1]).all(-1).squeeze(1)
    assert repeats.sum() == 8
    # KL from the law, uniform over 8 images, to the model: as small as that to frequencies counted among N = 512 images
    # is, 2 N KL being χ² of 7 degrees of freedom.
    kl = -math.log(8) - log_p[repeats].mean().item()
    assert 0 <= 2 * 512 * kl < 7 + 4 * math.sqrt(2 * 7)
    # The share of draws that repeat has the model's own mass.
    drawn, mass = model.sample(400, seed=0), log_p[repeats].exp().sum().item()
    share = (drawn[:, :, 0] == drawn[:, :, 1]).all(-1).float().mean().item()
    assert abs(share - mass) < 4 * math.sqrt(mass * (1 - mass) / 400)


def by_quadrature(vae: PixelVAE, x: Tensor) -> Tensor:
    """log p(x) over a grid of the only latent."""
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    with torch.no_grad():
        log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)[:, None]
        return (vae.p(z[:, None, None]).log_prob(x) + log_prior).logsumexp(0) + (z[1] - z[0]).log()


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pixelcnn", "gru"])
def test_conditioned_on_z_log_marginal_is_that_of_quadrature(decoder: str) -> None:
    vae, x = conditioned(decoder), EVERY.double()
    exact = by_quadrature(vae, x)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-6)
    some = x[::5]
    result = pv.log_marginal(vae, some, num_samples=3000, proposal="prior", progress=False).pointwise
    error = torch.tensor(result["log_px"]) - exact[::5]
    assert (error.abs() < 4 * torch.tensor(result["mc_se"]) + 1e-6).all()
    assert result["mc_se"].max() < 0.1
    drawn = vae.sample(3000, seed=0)
    share = (drawn == x[0]).flatten(1).all(1).double().mean().item()
    p = float(exact[0].exp())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 3000)


@pytest.mark.parametrize("conditioning", ["map", "vector"])
@pytest.mark.parametrize("decoder", ["pixelcnn", "gru"])
def test_particles_and_pictures(decoder: str, conditioning: str) -> None:
    vae = conditioned(decoder, conditioning=conditioning)
    x = EVERY[:5].double()
    terms = vae.log_terms(x, num_particles=3)
    for k in range(3):
        torch.testing.assert_close(terms.log_likelihood["x"][k], vae.p(terms.latents["z"][k]).log_prob(x))
    assert vae.reconstruct(x).shape == (5, *SHAPE)
    assert vae.interpolate(x[:2], x[2:4], steps=3).shape == (3, 2, *SHAPE)
    assert torch.equal(vae.decode(torch.zeros(4, 1)), vae.decode(torch.zeros(4, 1)))


@pytest.mark.parametrize("decoder", ["pixelcnn", "gru"])
def test_saved_and_loaded_it_is_the_same(decoder: str, tmp_path: Path) -> None:
    x = EVERY[:7].double()
    for model in (alone(decoder), conditioned(decoder, conditioning="vector", input_dropout=0.25)):
        other = pv.load(model.save(tmp_path / "model.safetensors"))
        assert type(other) is type(model)
        assert other.construction == model.construction
        assert other.decoder.input_dropout == model.decoder.input_dropout
        a, b = (pv.log_marginal(m, x, num_samples=5, progress=False).pointwise["log_px"] for m in (model, other))
        assert a.equals(b)


def test_dropped_pixels_are_dropped_in_training_alone_and_stay_targets() -> None:
    vae, x = conditioned("pixelcnn", input_dropout=0.5), EVERY[:20].double()
    z = torch.zeros(20, 1, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(0)
        vae.train()
        first, second = vae.p(z).log_prob(x), vae.p(z).log_prob(x)
        vae.eval()
        plain = vae.p(z).log_prob(x)
        vae.decoder.input_dropout = 0.0
        assert torch.equal(vae.train().p(z).log_prob(x), plain)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, plain)


@pytest.mark.parametrize("decoder", ["pixelcnn", "gru"])
def test_it_trains_as_a_graph_with_the_same_bits(decoder: str) -> None:
    states = []
    for compile in ("off", "graph"):
        torch.manual_seed(0)
        vae = PixelVAE(SHAPE, 2, decoder=decoder, decoder_options=SMALL[decoder], hidden=[8], input_dropout=0.3)
        run = pv.fit(vae, EVERY, epochs=2, batch_size=16, seed=0, compile=compile, device="cpu", progress=False)
        assert run.engine == compile
        states.append(vae.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow
def test_other_likelihoods_networks_and_posteriors() -> None:
    x = torch.randint(0, 4, (6, 2, 4, 8)) / 3
    for decoder in ("pixelcnn", "gru"):
        vae = PixelVAE(
            (2, 4, 8),
            3,
            decoder=decoder,
            decoder_options={"hidden": 4},
            network="conv",
            hidden=[8],
            likelihood="categorical",
            likelihood_options={"num_levels": 4},
            posterior="iaf",
            prior="mixture",
        )
        pv.fit(vae, x, epochs=1, progress=False, device="cpu")
        assert math.isfinite(pv.log_marginal(vae, x, num_samples=20, progress=False).pointwise["log_px"].mean())
        levels = vae.sample(2, seed=0) * 3
        torch.testing.assert_close(levels, levels.round())


def test_with_a_committed_rate_it_cannot_collapse() -> None:
    prior = {"prior": "ar1", "prior_options": {"delta": 1.5}}
    vae = PixelVAE(SHAPE, 4, hidden=[8], decoder_options=SMALL["pixelcnn"], **prior)
    pv.fit(vae, EVERY, epochs=3, progress=False, device="cpu")  # every image once: nothing to encode
    report = pv.collapse(vae, EVERY, progress=False)
    assert report.rate > 1.5


@pytest.mark.slow
def test_posterior_collapse_on_digits_and_free_bits_against_it() -> None:
    """The decoder models digits without z, so that plain training leaves none of 8 latents active (for these nine
    epochs: this small one finds a use for a few tenths of a nat later).
    """
    data = pv.datasets.load("digits", binarize="threshold", flatten=False)
    options = {"epochs": 9, "learning_rate": 2e-3, "seed": 0, "device": "cpu", "progress": False}
    decoder = {"conditioning": "vector", "context_dim": 16, "decoder_options": {"hidden": 16, "num_layers": 3}}
    found = {}
    for name, objective in {"plain": pv.ELBO(), "free bits": pv.ELBO(free_bits=0.5)}.items():
        torch.manual_seed(0)
        vae = PixelVAE(data.event_shape, 8, hidden=[128], **decoder)
        pv.fit(vae, data.train, objective=objective, **options)
        found[name] = pv.collapse(vae, data.test[:200], num_samples=16, progress=False)
    assert found["plain"].sites["active"].sum() == 0
    assert found["plain"].rate < 0.1
    assert found["plain"].verdict.startswith("Posterior collapse")
    assert found["free bits"].sites["active"].sum() >= 6
    assert found["free bits"].rate > 2
    plain, free = found["plain"], found["free bits"]
    error = math.hypot(plain.mutual_information_se, free.mutual_information_se)
    assert free.mutual_information - plain.mutual_information > 4 * error
    assert plain.mutual_information < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_shape": (64,)}, r"event_shape must be \(channels, height, width\).*flatten=False"),
        ({"event_shape": (1, 0, 3)}, "event_shape must"),
        ({"decoder": "pixelcn"}, "unknown decoder 'pixelcn'. Did you mean 'pixelcnn'"),
        ({"decoder_options": {"context_dim": 4}}, "got 'context_dim', which follows from the model's own"),
        ({"decoder_options": {"layers": 4}}, "decoder 'pixelcnn' has options hidden, num_layers, kernel_size; got 'la"),
        ({"decoder": "gru", "decoder_options": {"width": 4}}, "decoder 'gru' has options hidden; got 'width'"),
        ({"decoder_options": {"num_layers": 0}}, "num_layers must be at least 1"),
        ({"decoder_options": {"kernel_size": 2}}, "kernel_size must be at least 3"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
    ],
)
def test_bad_configuration(options: dict, message: str) -> None:
    options = {"event_shape": SHAPE} | options
    with pytest.raises(ValueError, match=message):
        PixelCNN(**options)
    with pytest.raises(ValueError, match=message):
        PixelVAE(latent_dim=2, **options)


def test_bad_dropout_context_and_data() -> None:
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"input_dropout must be a number in \[0, 1\)"):
            PixelVAE(SHAPE, 2, input_dropout=bad)
    with pytest.raises(ValueError, match="context_dim must be at least 1"):
        PixelVAE(SHAPE, 2, context_dim=0)
    with pytest.raises(ValueError, match="conditioning must be one of 'map', 'vector'"):
        PixelVAE(SHAPE, 2, conditioning="bias")
    with pytest.raises(ValueError, match="outside the support"):
        pv.fit(PixelCNN(SHAPE), torch.full((4, *SHAPE), 0.5), epochs=1, progress=False, device="cpu")
    with pytest.raises(ValueError, match="NaN"):
        pv.log_marginal(PixelCNN(SHAPE), torch.full((4, *SHAPE), math.nan), progress=False)
    with pytest.raises(ValueError, match="has shape"):
        pv.log_marginal(PixelCNN(SHAPE), torch.zeros(4, 6), progress=False)


def test_what_is_built_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense decoder of a categorical of 256 levels at 28×28, to be thrown away, would have 60 million parameters."""
    made, init = [], torch.nn.Linear.__init__

    def counted(self, n_in: int, n_out: int, *args: object, **kwargs: object) -> None:
        made.append(n_in * n_out)
        init(self, n_in, n_out, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Linear, "__init__", counted)
    options = {"likelihood": "categorical", "likelihood_options": {"num_levels": 256}, "decoder_options": {"hidden": 4}}
    vae = PixelVAE((1, 28, 28), 2, **options)
    kept = sum(m.weight.numel() for m in vae.modules() if isinstance(m, torch.nn.Linear))
    assert vae.construction["arguments"]["likelihood_options"] == {"num_levels": 256}
    assert vae.likelihood.num_params == 256
    assert sum(made) == kept
    with pytest.raises(ValueError, match="likelihood_options are for a likelihood given by name"):
        PixelVAE(SHAPE, 2, likelihood=vae.likelihood, likelihood_options={"num_levels": 4})
