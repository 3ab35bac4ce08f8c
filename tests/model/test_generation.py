"""Drawing, encoding and decoding under models that observe labels, or integers, or read what they should not."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.model import _rows
from pyrovae.model._generation import Generation
from pyrovae.testing import DiscreteMixture
from tests.models import Conditional, TwoSites, binary

CENTERS = torch.tensor([[-9.0], [0.0], [9.0]])
QUIET = {"device": "cpu", "progress": False, "compile": "off"}


class Labelled(pv.VAEModel):
    """y ~ uniform over three classes, z ~ N(μ_y, 1), x ~ N(z, ¼); and what ``also`` observes. The guide is exact."""

    event_shape = (1,)

    def __init__(self, also, *, first=lambda w: None) -> None:
        super().__init__()
        self.also, self.first, self.unused = also, first, nn.Parameter(torch.zeros(1))

    def model(self, x: Tensor, y: Tensor | None = None, w: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3), obs=y)
            self.first(w)
            z = pyro.sample("z", dist.Normal(y @ CENTERS, 1.0).to_event(1))
            drawn = pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
            self.also(z, drawn, x, w)

    def guide(self, x: Tensor, y: Tensor | None = None, w: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=-(x - CENTERS.T).square() / 2.5))
            pyro.sample("z", dist.Normal((4 * x + y @ CENTERS) / 5, 0.2**0.5).to_event(1))


def normal(name: str, loc: Tensor, value: Tensor) -> None:
    pyro.sample(name, dist.Normal(loc, 1.0).to_event(1), obs=value)


def nothing(z: Tensor, drawn: Tensor, x: Tensor, w: Tensor | None) -> None:
    pass


def test_data_are_drawn_for_the_labels_given() -> None:
    """x | y ~ N(μ_y, 1.25), and z given both ~ N((4x + μ_y) / 5, 0.2)."""
    n, model = 3000, Labelled(nothing)
    for k in range(3):
        y = torch.eye(3)[k].expand(n, 3)
        x, latents = model.simulate(n, y, seed=k)
        assert list(latents) == ["z"]
        assert abs(x.mean() - CENTERS[k]).item() < 4.5 * (1.25 / n) ** 0.5
        error = latents["z"][0] - (4 * x + CENTERS[k]) / 5
        assert abs(error.mean().item()) < 4.5 * (0.2 / n) ** 0.5
        assert error.var().item() == pytest.approx(0.2, rel=4.5 * (2 / n) ** 0.5)
    drawn, latents = model.simulate(n, seed=0)
    assert list(latents) == ["y", "z"]
    counts = latents["y"][0].mean(0)
    assert (counts - 1 / 3).abs().max() < 4.5 * (2 / 9 / n) ** 0.5
    assert drawn.var().item() == pytest.approx(1.25 + 54, rel=0.1)


def test_bdmc_given_labels_encloses_the_joint() -> None:
    y = torch.eye(3)[torch.arange(6) % 3]
    sandwich = pv.bdmc(Labelled(nothing), 6, y, num_temperatures=5, num_leapfrog=2, **QUIET)
    loc = (y @ CENTERS)[:, 0]
    exact = math.log(1 / 3) + dist.Normal(loc, 1.25**0.5).log_prob(sandwich.x[:, 0])
    s = sandwich.summary()
    assert s["lower"] - 4 * s["lower_se"] - 1e-3 < exact.mean().item() < s["upper"] + 4 * s["upper_se"] + 1e-3
    assert s["gap"] < 0.1
    found = pv.log_marginal(Labelled(nothing), sandwich.x, y, num_samples=5, **QUIET).pointwise["log_px"]
    np.testing.assert_allclose(found, exact, atol=1e-4)


@pytest.mark.parametrize(
    ("also", "site"),
    [
        (lambda z, drawn, x, w: normal("w", z, w), "w"),
        (lambda z, drawn, x, w: normal("w", drawn, w), "w"),
        (lambda z, drawn, x, w: normal("again", z, x), "again"),
        (lambda z, drawn, x, w: pyro.sample("w", dist.Categorical(logits=z * torch.ones(3)), obs=w[:, 0]), None),
        (lambda z, drawn, x, w: pyro.sample("w", dist.Bernoulli(logits=z).to_event(1), obs=w), "w"),
    ],
    ids=["given z", "given x", "x twice", "same for all z", "classifier"],
)
def test_labels_that_depend_on_the_latents_are_refused(also, site: str | None) -> None:
    y, w = torch.eye(3), torch.tensor([[0.0], [1.0], [1.0]])
    model = Labelled(also)
    for run in (
        lambda: model.sample(3, y, w),
        lambda: pv.bdmc(model, 3, y, w, num_temperatures=5, num_leapfrog=1, **QUIET),
    ):
        if site is None:
            run()
        else:
            with pytest.raises(ValueError, match=f"site '{site}'.* depends on"):
                run()


def test_decoding_needs_no_labels() -> None:
    z, y = torch.randn(4, 1), torch.eye(3)[:1].expand(4, 3)
    for also in (lambda z, drawn, x, w: normal("w", z, w), lambda z, drawn, x, w: normal("w", drawn, w)):
        torch.testing.assert_close(Labelled(also).decode(z, y, torch.randn(4, 1)), z)


def test_labels_before_the_latents_and_apart_from_them_stay() -> None:
    def apart(z: Tensor, drawn: Tensor, x: Tensor, w: Tensor) -> None:
        normal("w", torch.ones(1), w)

    y, w = torch.eye(3).repeat(100, 1), torch.randn(300, 1)
    for model in (Labelled(apart), Labelled(nothing, first=lambda w: normal("w", torch.ones(1), w))):
        x, latents = model.simulate(300, y, w, seed=0)
        assert list(latents) == ["z"]
        assert (x - y @ CENTERS).abs().max() < 5 * 1.25**0.5


class Observed(pv.VAEModel):
    """x | z by a likelihood of ``d`` dimensions made from an affine function of z."""

    def __init__(self, likelihood, params: int, event_shape=(5,), read=lambda x: x) -> None:
        super().__init__()
        self.event_shape, self.likelihood, self.read = event_shape, likelihood, read
        self.decoder, self.encoder = nn.Linear(2, params), nn.Linear(math.prod(event_shape), 4)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        loc, raw = self.encoder(self.read(x).flatten(1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, (0.3 * raw).exp()).to_event(1))


INTEGERS = {
    "poisson": (lambda p: dist.Poisson(p.exp()).to_event(1), 5, (5,)),
    "categorical": (lambda p: dist.Categorical(logits=p.unflatten(-1, (5, 3))).to_event(1), 15, (5,)),
    "one-hot": (lambda p: dist.OneHotCategorical(logits=p), 5, (5,)),
    "binomial": (lambda p: dist.Binomial(7, logits=p).to_event(1), 5, (5,)),
    "geometric": (lambda p: dist.Geometric(logits=p).to_event(1), 5, (5,)),
    "negative binomial": (lambda p: dist.NegativeBinomial(4.0, logits=p).to_event(1), 5, (5,)),
    "multinomial": (lambda p: dist.Multinomial(20, logits=p), 5, (5,)),
    "beta-binomial": (lambda p: dist.BetaBinomial(p.exp(), 2.0, 9).to_event(1), 5, (5,)),
    "ordered": (lambda p: dist.OrderedLogistic(p, torch.tensor([-1.0, 0.5])).to_event(1), 5, (5,)),
    "zero-inflated": (lambda p: dist.ZeroInflatedPoisson(p.exp(), gate=torch.tensor(0.3)).to_event(1), 5, (5,)),
    "image": (lambda p: dist.Categorical(logits=p.unflatten(-1, (1, 4, 4, 3))).to_event(3), 48, (1, 4, 4)),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_what_a_model_draws_it_can_score(name: str) -> None:
    torch.manual_seed(1)
    model = Observed(*INTEGERS[name])
    x = model.sample(6, seed=0)
    for integers in (torch.int64, torch.int32):
        found = [pv.log_marginal(model, v, num_samples=20, **QUIET) for v in (x.to(integers), x.float(), x)]
        assert len({r.provenance.data_hash for r in found}) == 1
        assert len({tuple(r.pointwise["log_px"]) for r in found}) == 1
    assert np.isfinite(found[0].pointwise["log_px"]).all()
    torch.testing.assert_close(model.encode(x.long()), model.encode(x.float()), rtol=0, atol=0)
    reconstructed = model.reconstruct(x.long())
    assert reconstructed.shape == x.shape
    assert reconstructed.isfinite().all()
    assert model.interpolate(x[:3], x[3:], steps=2).shape == (2, 3, *x.shape[1:])


def test_integers_are_trained_on_annealed_and_simulated() -> None:
    for name in ("categorical", "poisson"):
        model = Observed(*INTEGERS[name])
        x = model.sample(40, seed=0).long()
        for data in (x, torch.utils.data.TensorDataset(x)):
            run = pv.fit(model, data, epochs=1, batch_size=20, **QUIET)
            assert np.isfinite(run.history["loss"]).all()
        assert np.isfinite(pv.fit(model, x, validation=0.5, epochs=1, **QUIET).history["val_loss"]).all()
        settings = {"num_temperatures": 5, "num_leapfrog": 2, "num_chains": 4, **QUIET}
        assert np.isfinite(pv.ais(model, x[:4], **settings).pointwise["log_px"]).all()
        assert abs(pv.bdmc(model, 4, **settings).summary()["gap"]) < 5


def test_a_model_that_looks_integers_up_is_given_integers() -> None:
    class Tokens(Observed):
        def model(self, x: Tensor) -> None:
            super().model(x.float())

    table = nn.Embedding(3, 1)
    looks_up, neither = (cls(*INTEGERS["categorical"], read=table) for cls in (Tokens, Observed))
    converts = Observed(*INTEGERS["categorical"], read=lambda x: table(x.long()))
    converts.load_state_dict(looks_up.state_dict(), strict=False)
    x = looks_up.sample(6, seed=0)
    a, b = (pv.log_marginal(m, x, num_samples=20, **QUIET).pointwise["log_px"] for m in (looks_up, converts))
    np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"neither as floats nor as integers .*look values up by x\.long"):
        neither.encode(x)
    factors = torch.arange(6)[:, None] % 2
    assert pv.disentanglement(looks_up, x.repeat(5, 1), factors.repeat(5, 1)).num_data == 30


CONTAINERS = {
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "tuple": lambda x: (x,),
    "Dataset": torch.utils.data.TensorDataset,
    "DataLoader": lambda x: torch.utils.data.DataLoader(x, 4),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_integers_are_the_same_data_in_every_container(container: str) -> None:
    class Tokens(Observed):
        def model(self, x: Tensor) -> None:
            super().model(x.float())

    torch.manual_seed(0)
    looks_up = Tokens(*INTEGERS["categorical"], read=nn.Embedding(3, 1))
    x, put = looks_up.sample(12, seed=0), CONTAINERS[container]
    assert np.isfinite(pv.fit(looks_up, put(x), validation=put(x), epochs=1, **QUIET).history["val_loss"]).all()
    if container in ("tensor", "array", "tuple"):
        assert np.isfinite(pv.fit(looks_up, put(x), validation=0.25, epochs=1, **QUIET).history["val_loss"]).all()
    counts = [Observed(*INTEGERS["poisson"]) for _ in range(2)]
    counts[1].load_state_dict(counts[0].state_dict())
    for model, data in zip(counts, (x, x.float()), strict=True):
        pv.fit(model, put(data), epochs=1, seed=0, **QUIET)
    assert all(torch.equal(v, counts[1].state_dict()[k]) for k, v in counts[0].state_dict().items())
    pixels, gaussian = torch.randint(0, 256, (12, 5), dtype=torch.uint8), Observed(*LOCATED["normal"])
    for bad, dtype in ((pixels, "uint8"), (pixels > 99, "bool"), (pixels.int(), "int32")):
        for enter in (
            lambda d: pv.fit(gaussian, put(d), epochs=1, **QUIET),
            lambda d: pv.fit(gaussian, d.float(), validation=put(d), epochs=1, **QUIET),
        ):
            with pytest.raises(ValueError, match=f"has dtype {dtype}; a floating dtype is needed"):
                enter(bad)
    data = torch.utils.data.DataLoader(pixels, 4)  # of which the transform makes what the model takes
    run = pv.fit(gaussian, data, batch_transform=lambda x: x / 255, epochs=1, **QUIET)
    assert run.history["loss"].max() < 50


@pytest.mark.parametrize(
    "likelihood",
    [
        lambda p: dist.Bernoulli(logits=p).to_event(1),
        lambda p: dist.Normal(p, 1.0).to_event(1),
        lambda p: pv.distributions.Levels(p.unsqueeze(-1).expand(*p.shape, 256)).to_event(1),
    ],
    ids=["bernoulli", "normal", "levels"],
)
def test_pixels_are_refused(likelihood) -> None:
    model, pixels = Observed(likelihood, 5), torch.randint(0, 256, (4, 5), dtype=torch.uint8)
    for run in (model.encode, model.reconstruct, lambda x: pv.fit(model, x, **QUIET), lambda x: pv.ais(model, x)):
        with pytest.raises(ValueError, match=r"dtype uint8; .* For 8-bit images pass x.float\(\) / 255"):
            run(pixels)
    with pytest.raises(ValueError, match="dtype bool"):
        Observed(*INTEGERS["poisson"]).encode(pixels > 3)
    with pytest.raises(ValueError, match=r"does not have: pass model\.double"):
        Observed(*INTEGERS["poisson"]).encode(torch.full((1, 5), 2**24 + 1))


def test_decoding_gives_the_mean_or_the_mode() -> None:
    z = torch.randn(2, 4, 2)
    expected = {
        "categorical": lambda p: p.unflatten(-1, (5, 3)).argmax(-1),
        "ordered": lambda p: (p > -1).long() + (p > 0.5).long(),
        "one-hot": lambda p: p.softmax(-1),
        "poisson": torch.exp,
        "multinomial": lambda p: 20 * p.softmax(-1),
    }
    for name, center in expected.items():
        model = Observed(*INTEGERS[name])
        if name == "ordered":  # of three classes the middle one is never the likeliest where its interval is short
            model.likelihood = lambda p: dist.OrderedLogistic(9 * p, torch.tensor([-9.0, 9.0])).to_event(1)
            torch.testing.assert_close(model.decode(z), (model.decoder(z) > -1).long() + (model.decoder(z) > 1).long())
            continue
        torch.testing.assert_close(model.decode(z), center(model.decoder(z)))
    for likelihood in (dist.Cauchy, lambda p, s: dist.StudentT(1.0, p, s), lambda p, s: dist.Cauchy(p, s).mask(False)):
        model = Observed(lambda p, of=likelihood: of(p, 1.0).to_event(1), 5)
        torch.testing.assert_close(model.decode(z), model.decoder(z))
    nowhere = dist.Categorical(logits=torch.zeros(2))
    mixed = Observed(
        lambda p: dist.MixtureSameFamily(nowhere, dist.Cauchy(p.unflatten(-1, (5, 2)), 1.0)).to_event(1), 10
    )
    with pytest.raises(ValueError, match=r"site 'x' \(MixtureSameFamily\) states neither a finite mean nor a mode"):
        mixed.decode(z)


def test_decode_takes_arrays_and_names_what_it_does_not_take() -> None:
    vae = pv.VAE((6,), 3, hidden=(16,))
    z = torch.randn(4, 3)
    torch.testing.assert_close(vae.decode(z.double().numpy()), vae.decode(z))
    torch.testing.assert_close(vae.decode({"z": z.numpy()}), vae.decode(z))
    for bad, message in (
        ({"Z": z}, "no latent site 'Z': it has 'z'"),
        ({"z": z, "x": z}, "no latent site 'x'"),
        (torch.zeros(4, 2), r"shape \(4, 2\); \(\.\.\., 3\) is needed"),
        ({"z": torch.zeros(4, 1, 3)}, r"shape \(4, 1, 3\); \(n, 3\) is needed"),
        ({}, "at least one latent site"),
        (z[:0], r"latents 'z' are empty, of shape \(0, 3\)"),
        ({"z": z[:0]}, r"latents 'z' are empty"),
        (
            torch.where(z > 0, math.nan, z),
            r"latents 'z' hold \d+ NaN or infinite value\(s\) in torch.float32: drop them\.$",
        ),
        (z / 0, r"latents 'z' hold 12 NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.decode(bad)


class Reading(Observed):
    """A decoder that reads x: each dimension is drawn given the one before it, or scaled by the sum."""

    def __init__(self, how: str) -> None:
        super().__init__(None, 5)
        self.how = how

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            p = self.decoder(z)
            if self.how == "before":
                p = p + nn.functional.pad(x, (1, 0))[..., :-1]
            elif self.how == "size":
                p = p + x.sum(-1, keepdim=True).log()
            else:
                p = p + torch.arange(2.0)[x.long()]
            pyro.sample("x", dist.Poisson(p.exp()).to_event(1), obs=x)


@pytest.mark.parametrize("how", ["before", "size", "index"])
def test_a_model_that_reads_x_cannot_do_without_it(how: str) -> None:
    model, x = Reading(how), binary(4, 5)
    x[:, 0] = 1.0
    for run in (
        lambda: model.sample(3),
        lambda: model.decode(torch.zeros(4, 2)),
        lambda: pv.bdmc(model, 4, num_temperatures=10, **QUIET),
    ):
        with pytest.raises(ValueError, match=r"site 'x' depends on the values of x"):
            run()
    assert model.sample_latents(3).shape == (3, 2)
    z = model.encode(x, num_samples=1)[0]
    if how == "size":
        expected = model.decoder(z).exp() * x.sum(-1, keepdim=True)
        torch.testing.assert_close(model.reconstruct(x), expected)


READS = {
    "centred": lambda x: x - x.mean(-1, keepdim=True),
    "differences": lambda x: nn.functional.pad(x.diff(dim=-1), (1, 0)),
    "argmax": lambda x: x.argmax(-1, keepdim=True).to(x.dtype),
    "layer norm": lambda x: nn.functional.layer_norm(x, x.shape[-1:]),
    "clamped size": lambda x: x.abs().sum(-1, keepdim=True).clamp(min=10.0),
    "zero on zeros and ones": lambda x: x**2 - x,
    "threshold": lambda x: (x > 2).to(x.dtype),
    "far threshold": lambda x: (x < -50).to(x.dtype),
    "product of the row": lambda x: x.prod(-1, keepdim=True),
    "sorted": lambda x: x.sort(-1).values - x,
    "mean of the batch": lambda x: x.mean(),
}
LOCATED = {
    "normal": (lambda p: dist.Normal(p, 1.0).to_event(1), 5, (5,)),
    "beta": (lambda p: dist.Beta(p.exp(), 2.0).to_event(1), 5, (5,)),
    "log-normal": (lambda p: dist.LogNormal(p, 1.0).to_event(1), 5, (5,)),
}


class Adding(Observed):
    """A likelihood whose parameters have ``f(x)`` added, or a prior that has."""

    def __init__(self, f, likelihood="normal", *, prior: bool = False) -> None:
        super().__init__(*LOCATED[likelihood])
        self.f, self.prior = f, prior

    def model(self, x: Tensor) -> None:
        f = self.f(x)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(2) + (f.reshape(-1, f.shape[-1] if f.dim() else 1)[:, -1:] if self.prior else 0.0)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z) + (0.0 if self.prior else f)), obs=x)


@pytest.mark.parametrize("how", READS)
def test_however_a_model_reads_x_it_cannot_do_without_it(how: str) -> None:
    for likelihood in LOCATED:
        model = Adding(READS[how], likelihood)
        for run in (lambda m=model: m.sample(3), lambda m=model: m.decode(torch.zeros(4, 2))):
            with pytest.raises(ValueError, match=r"site 'x' depends on the values of x"):
                run()
        assert model.sample_latents(3).shape == (3, 2)
    with pytest.raises(ValueError, match=r"site 'x' depends on the values of x"):
        pv.bdmc(Adding(READS[how]), 4, num_temperatures=10, **QUIET)
    with pytest.raises(ValueError, match=r"site 'z' depends on the values of x"):
        Adding(READS[how], prior=True).sample_latents(3)


@pytest.mark.parametrize("likelihood", LOCATED)
def test_a_model_that_takes_no_more_of_x_than_its_kind_needs_no_data(likelihood: str) -> None:
    def refuses_negative(x: Tensor) -> Tensor:
        if bool((x < 0).any()):
            raise ValueError("negative")
        return torch.zeros_like(x)

    table = torch.zeros(2, 5)
    for f in (torch.zeros_like, refuses_negative, lambda x: table[x[:, 0].long()], lambda x: 0 * torch.bernoulli(x)):
        model, plain = Adding(f, likelihood), Adding(torch.zeros_like, likelihood)
        model.load_state_dict(plain.state_dict())
        generators = torch.get_rng_state()
        torch.testing.assert_close(model.decode(torch.ones(4, 2)), plain.decode(torch.ones(4, 2)))
        assert torch.equal(torch.get_rng_state(), generators)
        assert torch.equal(plain.sample(3, seed=0), plain.sample(3, seed=0))


def test_surplus_and_missing_covariates_are_counted_wherever_they_enter() -> None:
    vae, y = pv.VAE((6,), 3, hidden=(16,)), torch.eye(3)
    x, z = binary(3), torch.zeros(3, 3)
    for run in (
        lambda: vae.encode(x, y),
        lambda: vae.reconstruct(x, y),
        lambda: vae.interpolate(x, x, y),
        lambda: vae.sample(3, y),
        lambda: vae.simulate(3, y),
        lambda: vae.sample_latents(3, y),
        lambda: vae.decode(z, y),
        lambda: pv.bdmc(vae, 3, y, num_temperatures=5, **QUIET),
    ):
        with pytest.raises(ValueError, match=r"VAE\.model takes 0 covariate\(s\); got 1"):
            run()
    for run in (lambda: Conditional().sample(3), lambda: Conditional().decode(z[:, :2])):
        with pytest.raises(ValueError, match=r"Conditional\.model takes 1 covariate\(s\); got 0"):
            run()
    with pytest.raises(ValueError, match=r"covariate 0 is empty: it has shape \(0, 2\)"):
        Conditional().decode(z[:, :2], torch.zeros(0, 2))


OUTSIDE = {
    "over": (torch.float32, 7),
    "under": (torch.float32, -1),
    "between": (torch.float32, 0.5),
    "integers": (torch.int64, 7),
    "negative integers": (torch.int64, -1),
}


@pytest.mark.parametrize("row", [0, 1, 5])
@pytest.mark.parametrize("kind", OUTSIDE)
def test_classes_that_there_are_not_are_named(kind: str, row: int) -> None:
    dtype, bad = OUTSIDE[kind]
    model, x = Observed(*INTEGERS["categorical"]), torch.ones(6, 5, dtype=dtype)
    x[row, 2] = bad
    message = rf"holds 1 value\(s\) outside the support of .* site 'x' \(Categorical: .*\), e\.g\. {bad}\."
    for run in (
        lambda: pv.log_marginal(model, x, num_samples=3, progress=False),
        lambda: pv.elbo_terms(model, x, num_samples=3, progress=False),
        lambda: pv.ais(model, x, num_temperatures=5, **QUIET),
        lambda: pv.fit(model, x, epochs=1, **QUIET),
        lambda: pv.fit(model, torch.utils.data.DataLoader(x, 2), epochs=1, **QUIET),
        lambda: pv.fit(model, torch.ones(6, 5), validation=x, epochs=1, **QUIET),
        lambda: pv.fit(model, x, objective=pyro.infer.Trace_ELBO(), epochs=1, **QUIET),
    ):
        with pytest.raises(ValueError, match=message):
            run()


class Plated(pv.VAEModel):
    """z ~ N(0, 1) for each datum, h ~ N(z, 1) for each of three groups of two, x ~ N(h, ½) over groups."""

    event_shape, max_plate_nesting = (3, 2), 2

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[-3]):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("groups", 3, dim=-2):
                h = pyro.sample("h", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 2]).to_event(1))
            x_loc = h.movedim(-3, -2) if h.dim() == 3 else h.movedim(-3, -2).unsqueeze(-4)
            pyro.sample("x", dist.Normal(x_loc, 0.5).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[-3]):
            pyro.sample("z", dist.Normal(x.mean((-2, -1)), 0.3))
            with pyro.plate("groups", 3, dim=-2):
                pyro.sample("h", dist.Normal(x.movedim(-2, -3), 0.1).to_event(1))


def test_latents_in_two_plates() -> None:
    model, x = Plated(), torch.randn(5, 3, 2)
    latents = model.sample_latents(5, seed=0)
    assert {name: tuple(z.shape) for name, z in latents.items()} == {"z": (5,), "h": (5, 3, 2)}
    torch.testing.assert_close(model.decode(latents), latents["h"])
    assert model.sample(4).shape == (4, 3, 2)
    mean, draws = model.encode(x), model.encode(x, num_samples=7)
    assert {name: tuple(z.shape) for name, z in draws.items()} == {"z": (7, 5), "h": (7, 5, 3, 2)}
    assert (mean["h"] - x).abs().max() < 5 * 0.1 / 16
    assert (model.reconstruct(x) - x).abs().max() < 5 * 0.1
    simulated, where = model.simulate(4000, seed=0)
    assert where["h"].shape == (1, 3, 4000, 2)
    residual = simulated - where["h"][0].movedim(0, 1)
    assert residual.std().item() == pytest.approx(0.5, rel=4.5 / 48_000**0.5)


def test_missing_cells_are_drawn_too() -> None:
    class Missing(Observed):
        def model(self, x: Tensor, seen: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).mask(seen).to_event(1), obs=x)

        def guide(self, x: Tensor, seen: Tensor) -> None:
            super().guide(x * seen)

    model, seen = Missing(None, 5), torch.arange(5) < torch.arange(6).unsqueeze(-1)
    x = model.sample(6, seen, seed=0)
    assert (x != 0).all()
    torch.testing.assert_close(model.reconstruct(x, seen), model.decode(model.encode(x, seen, num_samples=1)[0], seen))


def test_auxiliary_sites_are_no_latents() -> None:
    class Auxiliary(pv.VAE):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", self.q(x), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(2 * u, -3 * math.log(2) * torch.ones(u.shape[:-1]), event_dim=1))

    vae, x = Auxiliary((6,), 3, hidden=(16,)), binary(4)
    draws = vae.encode(x, num_samples=10_000)
    assert draws.shape == (10_000, 4, 3)
    assert ((draws.mean(0) - 2 * vae.q(x).mean).abs() < 5 * draws.std(0) / 100).all()
    assert vae.reconstruct(x).shape == (4, 6)


def test_what_has_no_mean_or_no_line_says_so() -> None:
    mixture, x = DiscreteMixture(torch.zeros(3), torch.randn(3, 6)), binary(4)
    with pytest.raises(ValueError, match=r"site 'k' is discrete\. Decode its values"):
        mixture.interpolate(x, x)

    class Heavy(pv.VAE):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Cauchy(self.encoder(x)[:, :3], 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'z' .* has no mean: pass num_samples"):
        Heavy((6,), 3, hidden=(16,)).encode(x)


# -- large data ------------------------------------------------------------------------------------------------------


def whole(monkeypatch: pytest.MonkeyPatch, run) -> Tensor:
    """What ``run`` gives where all rows are one block."""
    with monkeypatch.context() as patch:
        patch.setattr(_rows, "_FIRST_ROWS", 10**6)
        return run()


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600, 1111])
def test_blocks_give_what_all_rows_at_once_give(n: int, monkeypatch) -> None:
    """Without draws, and with those of one site and one particle, which are the same; the others' lengths follow."""
    monkeypatch.setattr(_rows, "BLOCK", {"cpu": 2**16})
    model, two = pv.VAE((6,), 3, hidden=(8,)), TwoSites()
    y, z, x = torch.randn(n, 2), torch.randn(n, 3), binary(n)
    conditional = Conditional()
    for run in (
        lambda: model.encode(x),
        lambda: model.decode(z),
        lambda: model.decode(z.reshape(1, n, 3)),
        lambda: model.reconstruct(x, seed=3),
        lambda: model.sample_latents(n, seed=3),
        lambda: conditional.encode(x, y),
        lambda: conditional.reconstruct(x, y),
        lambda: conditional.decode(z[:, :2], y),
        lambda: two.decode({"z1": z, "z2": z[:, :2]}),
        lambda: model.interpolate(x, 1 - x, steps=2),
    ):
        torch.testing.assert_close(run(), whole(monkeypatch, run))
    drawn, latents = model.simulate(n, seed=1)
    assert (drawn.shape, latents["z"].shape) == ((n, 6), (1, n, 3))
    assert model.encode(x, num_samples=4).shape == (4, n, 3)
    assert {site: z.shape for site, z in two.encode(x).items()} == {"z1": (n, 3), "z2": (n, 2)}
    assert Plated().encode(torch.randn(n, 3, 2))["h"].shape == (n, 3, 2)


def test_draws_of_blocks_are_draws(monkeypatch) -> None:
    """Of every row from its own posterior and prior, in the first block and in later ones, from a seed."""
    monkeypatch.setattr(_rows, "BLOCK", {"cpu": 2**16})
    model = Labelled(nothing)
    n = 3000
    x, y = torch.linspace(-9, 9, n).unsqueeze(1), torch.eye(3)[torch.arange(n) % 3]
    z = model.encode(x, y, num_samples=4, seed=5)
    error = (z - (4 * x + y @ CENTERS) / 5) / 0.2**0.5
    for rows in (slice(256), slice(256, n)):
        k = error[:, rows].numel()
        assert abs(error[:, rows].mean().item()) < 4.5 / k**0.5
        assert error[:, rows].var().item() == pytest.approx(1.0, rel=4.5 * (2 / k) ** 0.5)
    assert torch.equal(z, model.encode(x, y, num_samples=4, seed=5))
    drawn, latents = model.simulate(n, y, seed=2)
    error = (latents["z"][0] - (4 * drawn + y @ CENTERS) / 5) / 0.2**0.5  # a pair belongs together
    assert error.var().item() == pytest.approx(1.0, rel=4.5 * (2 / n) ** 0.5)


def test_memory_does_not_grow_with_the_rows(monkeypatch) -> None:
    """What the largest block allocates, of ten times as many rows."""

    def largest(n: int) -> int:
        sizes = []
        run = Generation._mean_or_mode

        def counted(self, x, covariates, values):
            sizes.append(len(x))
            return run(self, x, covariates, values)

        with monkeypatch.context() as patch:
            patch.setattr(Generation, "_mean_or_mode", counted)
            pv.VAE((6,), 3, hidden=(800,)).decode(torch.randn(n, 3))
        assert sum(sizes) == n
        return max(sizes)

    monkeypatch.setattr(_rows, "BLOCK", {"cpu": 2**22})
    assert 16 <= largest(2000) == largest(20_000) < 1000


# -- rows that fail --------------------------------------------------------------------------------------------------


class Lookup(pv.VAEModel):
    """A table of five looked up by a covariate, by whatever means."""

    event_shape = (6,)

    def __init__(self, find) -> None:
        super().__init__()
        self.table, self.find = nn.Embedding(5, 2), find
        self.decoder, self.encoder = nn.Linear(4, 6), nn.Linear(8, 4)

    def of(self, c: Tensor) -> Tensor:
        return self.find(self.table, c.long())

    def model(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            y = self.of(c).expand(*z.shape[:-1], 2)
            pyro.sample("x", dist.Normal(self.decoder(torch.cat([z, y], -1)), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> None:
        loc, raw = self.encoder(torch.cat([x, self.of(c)], -1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


LOOKUPS = {
    "embedding": lambda table, c: table(c),
    "index": lambda table, c: table.weight[c],
    "one-hot": lambda table, c: nn.functional.one_hot(c, 5).float()[:, :2],
    "gather": lambda table, c: table.weight.gather(0, c.unsqueeze(1).expand(-1, 2)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", [0, 1, 777])
@pytest.mark.parametrize("how", LOOKUPS)
def test_an_index_out_of_range_is_named_whichever_row_it_is_in(how: str, row: int, device: torch.device) -> None:
    model, x, c = Lookup(LOOKUPS[how]).to(device), torch.randn(1000, 6), torch.arange(1000) % 5
    c[row] = 9
    options = {"device": device, "progress": False, "epochs": 1}
    loader = DataLoader(TensorDataset(x, c), 100, shuffle=True)
    named = rf"row {row} of covariate 0.* cannot be computed on"
    second = (x[2:700], c[2:700])
    for run, message in (
        (lambda: model.encode(x, c), named),
        (lambda: model.encode(x, c, num_samples=2), named),
        (lambda: model.reconstruct(x, c), named),
        (lambda: pv.log_marginal(model, x, c, num_samples=2, progress=False), named),
        (lambda: pv.elbo_terms(model, x, c, num_samples=2, progress=False), named),
        (lambda: pv.collapse(model, x, c, num_samples=2, progress=False), named),
        (lambda: pv.disentanglement(model, x, torch.arange(1000)[:, None] % 2, c, progress=False), named),
        (lambda: pv.fit(model, (x, c), compile="graph", **options), named),
        (lambda: pv.fit(model, (x, c), compile="off", **options), named),
        (lambda: pv.fit(model, (x, c), validation=0.5, **options), named),
        (lambda: pv.fit(model, second, validation=(x, c), **options), named),
        (lambda: pv.fit(model, loader, **options), r"row \d+ of covariate 0 of a batch of data cannot"),
    ):
        with pytest.raises(ValueError, match=message):
            run()
    assert model.encode(*second).shape == (698, 2)  # nor has a device been lost


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_a_row_that_makes_nan_is_named(where: str) -> None:
    x = torch.randn(1000, 6)
    x[777, 0] = 7.75

    def poison(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        marked = (args[0][..., :1] == 7.75) if where == "encoder" else (args[0][..., :1] > 1e5)
        return torch.where(marked, torch.nan, out)

    model = pv.VAE((6,), 2, hidden=(8,), likelihood="gaussian")
    if where == "decoder":  # which the marked row's latents reach alone

        class Far(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: Tensor) -> Tensor:
                q = self.inner(x)
                return torch.where(x[..., :1] == 7.75, 1e7, q)

        model.encoder = Far(model.encoder)
        with torch.no_grad():
            model.posterior.head.weight[:2].abs_()
    getattr(model, where).register_forward_hook(poison)
    options = {"epochs": 1, "device": "cpu", "progress": False}
    for compile in ("off", "graph"):
        with pytest.raises(pv.NonFiniteLoss, match=r"is NaN for 1 of 100 data \(row 777\)"):
            pv.fit(model, x, compile=compile, **options)
    with pytest.raises(pv.NonFiniteLoss, match=r"validation loss .* for 1 of 1000 data \(row 777\)"):
        pv.fit(model, x[:700], validation=x, **options)
    with pytest.raises(pv.NonFiniteLoss, match=r"loss .* for 1 of \d+ data \(row 777\)"):
        pv.fit(model, x, validation=0.5, **options)
    with pytest.raises(ValueError, match=r"row 777 of x"):
        model.reconstruct(x)
    if where == "encoder":
        with pytest.raises(ValueError, match=r"row 777 of x"):
            model.encode(x)
        with pyro.distributions.validation_enabled(False), pytest.raises(ValueError, match=r"row 777 of x"):
            model.encode(x, num_samples=2)
    for run in (pv.log_marginal, pv.elbo_terms, pv.collapse):
        with pytest.warns(UserWarning, match=r"is NaN for row 777 of x, of 1000 data") as warned:
            run(model, x, num_samples=3, progress=False)
        assert {w.filename for w in warned} == {__file__}
    with pytest.warns(UserWarning, match="row 7 of x, of 10 data"):
        pv.ais(model, x[770:780], num_temperatures=3, num_chains=3, num_leapfrog=1, progress=False)


def test_an_error_for_all_rows_stays_what_it_is() -> None:
    model = pv.VAE((6,), 2, hidden=(8,))
    model.encoder = nn.Linear(5, 8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.encode(binary(300))


def test_interpolate_names_the_end_that_is_at_fault() -> None:
    model = pv.VAE((6,), 2, hidden=(8,))
    model.encoder = nn.Sequential(OnlyPositive(), model.encoder)
    good, bad = binary(700), binary(700)
    bad[555, 2] = -1.0
    for name, ends in {"start": (bad, good), "end": (good, bad)}.items():
        with pytest.raises(ValueError, match=rf"^(row 555 of {name} cannot|.* is NaN for row 555 of {name}:)"):
            model.interpolate(*ends)


class OnlyPositive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


@pytest.mark.parametrize("z", [torch.zeros(3, 2) + 0j, np.zeros((3, 2), bool), np.zeros((3, 2), complex)])
def test_decode_takes_real_numbers(z) -> None:
    with pytest.raises(ValueError, match=r"^z must be real numbers; got torch\.(bool|complex)"):
        pv.VAE((6,), 2, hidden=(8,)).decode(z)


@pytest.mark.parametrize("z", [pd.Series([1.0, 2.0]), pd.Index([1.0, 2.0])])
def test_decode_takes_no_labels(z) -> None:
    with pytest.raises(TypeError, match=r"^latents 'z' are a pandas (Series|Index): pass an array"):
        pv.VAE((6,), 2, hidden=(8,)).decode(z)


def test_what_is_too_large_for_the_model_is_refused() -> None:
    model, x = pv.VAE((6,), 2, hidden=(8,), likelihood="gaussian"), torch.zeros(10, 6).double()
    x[7, 1] = 1e300
    for call in (
        model.encode,
        model.reconstruct,
        lambda x: model.encode(x.numpy()),
        lambda x: pv.fit(model, x, epochs=1, progress=False),
        lambda x: pv.log_marginal(model, x, num_samples=4, progress=False),
    ):
        with pytest.raises(
            ValueError, match=r"^(x|data) holds 1 value\(s\) too large for float32, the first in row 7\."
        ):
            call(x)
    with pytest.raises(ValueError, match=r"^latents 'z' hold 1 NaN or infinite value\(s\) in torch.float32"):
        model.decode(x[:, :2])
    assert model.double().encode(x).shape == (10, 2)
