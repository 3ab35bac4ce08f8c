"""VQ-VAE: an exact bound, a codebook that is used, and a learnt prior that is worth its nats."""

import math
from itertools import product

import pyro
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.networks import perplexity
from pyrovae.zoo import VQVAE, PixelCNNPrior

QUIET = {"seed": 0, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def data() -> pv.datasets.Data:
    return pv.datasets.load("digits", binarize="static", flatten=False)


def digits_model(**options) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE((1, 8, 8), **{"num_codes": 32, "code_dim": 8, "downsampling": 2, "hidden": 16} | options)


@pytest.fixture(scope="module")
def trained(data: pv.datasets.Data) -> VQVAE:
    model = digits_model()
    pv.fit(model, data, epochs=15, learning_rate=3e-3, **QUIET)
    return model


@pytest.fixture(scope="module")
def with_prior(data: pv.datasets.Data, trained: VQVAE, tmp_path_factory) -> VQVAE:
    path = trained.save(tmp_path_factory.mktemp("vqvae") / "stage1.safetensors")
    model = VQVAE.load(path)
    model.fit_prior(data, prior_options={"hidden": 24, "num_layers": 3}, epochs=15, learning_rate=3e-3, **QUIET)
    return model


# -- a grid whose codes can all be summed over -----------------------------------------------------------


def tiny() -> tuple[VQVAE, Tensor]:
    """Two positions of four codes, away from initialisation, and 40 data."""
    torch.manual_seed(0)
    x = (torch.rand(40, 1, 2, 4) < torch.rand(40, 1, 1, 2).repeat_interleave(2, -1)).float()
    model = VQVAE((1, 2, 4), num_codes=4, code_dim=2, downsampling=2, hidden=8, num_blocks=1)
    pv.fit(model, x, epochs=60, batch_size=20, learning_rate=1e-2, **QUIET)
    return model, x


def exact(model: VQVAE, x: Tensor) -> Tensor:
    """log p(x) = log Σ_z p(z) p(x | z) over all 16 grids."""
    every = torch.tensor(list(product(range(4), repeat=2))).reshape(16, 1, 1, 2)
    with torch.no_grad():
        return model.double().log_joint(x.double(), latents={"z": every.expand(16, len(x), 1, 2)}).logsumexp(0)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["uniform", "learnt"])
def test_the_bound_is_log_p_of_x_and_its_codes_and_lies_below_log_p(prior: str) -> None:
    model, x = tiny()
    if prior == "learnt":
        model.fit_prior(x, prior_options={"hidden": 8, "num_layers": 2}, epochs=60, learning_rate=1e-2, **QUIET)
    model = model.double()
    log_px = exact(model, x)
    with torch.no_grad():
        joint = model.log_joint(x.double(), latents={"z": model.codes(x.double()).unsqueeze(0)})[0]
    result = pv.log_marginal(model, x.double(), num_samples=1, progress=False)
    bound = torch.tensor(result.pointwise["log_px"].to_numpy())
    torch.testing.assert_close(bound, joint)
    assert (bound < log_px).all()  # no code has posterior probability 1
    gap = (log_px - bound).mean().item()
    assert 0.0 < gap < math.log(16)  # at most that if the best of 16 grids is taken for every datum
    assert result.summary()["bits_per_dim"] == pytest.approx(-bound.mean().item() / (8 * math.log(2)))
    # More draws are the same draw.
    two = pv.log_marginal(model, x.double(), num_samples=2, progress=False)
    assert two.pointwise["log_px"].to_numpy() == pytest.approx(bound.numpy())
    assert two.pointwise["mc_se"].eq(0).all()
    assert (two.pointwise["reason"] == "bound").all()
    assert not two.reliable
    assert two.verdict.startswith("Bound: the guide leaves out what the prior has")
    # Draws from the prior estimate log p(x) itself.
    naive = pv.log_marginal(model, x.double(), num_samples=5000, proposal="prior", progress=False).pointwise
    z_score = (naive["log_px"] - log_px.numpy()) / naive["mc_se"]
    assert z_score.abs().max() < 4.5  # of 40
    # p(x) sums to one over all 256 images.
    images = torch.tensor(list(product([0.0, 1.0], repeat=8))).reshape(-1, 1, 2, 4)
    assert exact(model, images).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_elbo_terms_and_collapse_take_it_as_any_other() -> None:
    model, x = tiny()
    terms = pv.elbo_terms(model, x, num_samples=2, progress=False).pointwise
    rate = 2 * math.log(4)
    assert terms["kl"].to_numpy() == pytest.approx(rate)
    assert terms["kl_exact"].to_numpy() == pytest.approx(rate)
    assert terms["entropy"].abs().max() == 0.0
    assert terms["elbo"].to_numpy() == pytest.approx(terms["reconstruction"] - rate, abs=1e-5)
    report = pv.collapse(model, x, num_samples=2, progress=False)
    assert report.rate == pytest.approx(rate)
    codes = model.codes(x).flatten(1)
    _, counts = codes.unique(dim=0, return_counts=True)
    entropy = math.log(perplexity(counts))  # I(x; z) = H(z), since z is a function of x
    assert report.mutual_information == pytest.approx(entropy, abs=1e-5)


@pytest.mark.slow
def test_discrete_latents_are_refused_where_they_must_move_about() -> None:
    model, x = tiny()
    with pytest.raises(TypeError, match="discrete"):
        pv.ais(model, x[:2], progress=False)
    with pytest.raises(ValueError, match="discrete and has no mean"):
        model.encode(x)


# -- digits ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_than_half_of_the_codebook_is_used(trained: VQVAE, data: pv.datasets.Data) -> None:
    counts = trained.code_counts(data.test)
    assert counts.sum() == len(data.test) * 16
    assert (counts > 0).float().mean() > 0.5
    assert 8.0 < perplexity(counts) < 32.0


@pytest.mark.slow
def test_codes_tell_more_than_the_mean_digit(trained: VQVAE, data: pv.datasets.Data) -> None:
    with torch.no_grad():
        distortion = -trained.p(trained.codes(data.test)).log_prob(data.test)
    mean = data.train.mean(0).clamp(1e-3, 1 - 1e-3)
    base = -(data.test * mean.log() + (1 - data.test) * (1 - mean).log()).sum((1, 2, 3))
    gain = base - distortion
    assert gain.mean() > 5.0 * gain.std() / math.sqrt(len(gain))
    torch.testing.assert_close(trained.reconstruct(data.test[:5]), trained.p(trained.codes(data.test[:5])).mean)


@pytest.mark.slow
def test_the_learnt_prior_beats_the_uniform_one(trained: VQVAE, with_prior: VQVAE, data: pv.datasets.Data) -> None:
    results = {
        name: pv.log_marginal(model, data.test, num_samples=2, progress=False)
        for name, model in {"uniform": trained, "learnt": with_prior}.items()
    }
    row = pv.compare(results, reference="uniform").loc["learnt"]
    assert row["diff"] > 10.0 * row["diff_se"]
    assert row["bits_per_dim"] < pv.compare(results).loc["uniform", "bits_per_dim"]
    # The whole difference is in p(z): the same codes, the same decoder.
    codes = trained.codes(data.test)
    with torch.no_grad():
        worth = with_prior.prior().log_prob(codes) + 16 * math.log(32)
    # It is worth more than the best prior that takes positions for independent: their frequencies in training.
    counts = torch.nn.functional.one_hot(trained.codes(data.train), 32).sum(0) + 1.0
    independent = torch.distributions.Categorical(probs=counts).log_prob(codes).sum((-2, -1)) + 16 * math.log(32)
    more = worth - independent
    assert more.mean() > 4 * more.std() / math.sqrt(len(more))
    difference = results["learnt"].pointwise["log_px"] - results["uniform"].pointwise["log_px"]
    assert difference.to_numpy() == pytest.approx(worth.numpy(), abs=1e-3)


def test_sampling_goes_through_the_prior(with_prior: VQVAE, trained: VQVAE, data: pv.datasets.Data) -> None:
    codes = with_prior.sample_latents(400, seed=0)
    assert codes.shape == (400, 4, 4)
    assert torch.equal(codes, with_prior.sample_latents(400, seed=0))
    prior = with_prior.prior()
    torch.manual_seed(1)
    with torch.no_grad():
        of_draws, of_prior = prior.log_prob(codes), prior.log_prob(prior.sample(torch.Size((400,))))
        of_uniform = prior.log_prob(trained.sample_latents(400, seed=0))
    # Draws of the model are draws of the prior, whose mean log p is minus its entropy, above that of the uniform law;
    # uniform grids have a mean log p below it, by the KL divergence.
    error = ((of_draws.var() + of_prior.var()) / 400).sqrt()
    assert abs(of_draws.mean() - of_prior.mean()) < 4 * error
    assert of_draws.mean() - 4 * of_draws.std() / 20 > -16 * math.log(32)
    assert of_uniform.mean() + 4 * of_uniform.std() / 20 < -16 * math.log(32)
    assert with_prior.sample(3, seed=1).shape == (3, 1, 8, 8)
    assert with_prior.decode(codes[:6].reshape(2, 3, 4, 4)).shape == (2, 3, 1, 8, 8)


@pytest.mark.slow
def test_saved_and_loaded_with_its_prior(with_prior: VQVAE, data: pv.datasets.Data, tmp_path) -> None:
    with_prior.save(tmp_path / "model.safetensors")
    again = pv.load(tmp_path / "model.safetensors")
    assert isinstance(again.prior, PixelCNNPrior)
    assert again.construction == with_prior.construction
    a, b = (pv.log_marginal(m, data.test[:20], num_samples=1, progress=False) for m in (again, with_prior))
    assert a.pointwise["log_px"].tolist() == b.pointwise["log_px"].tolist()
    assert torch.equal(again.sample(4, seed=0), with_prior.sample(4, seed=0))


def test_a_prior_can_be_fitted_by_itself_and_assigned(trained: VQVAE, data: pv.datasets.Data) -> None:
    torch.manual_seed(0)
    prior = PixelCNNPrior(trained.grid_shape, 32, hidden=8, num_layers=2)
    codes = trained.codes(data.train)
    run = pv.fit(prior, codes.float(), epochs=2, **QUIET)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    with torch.no_grad():
        torch.testing.assert_close(prior.loss(codes[:9].float()), -prior().log_prob(codes[:9]))
    model = digits_model()
    model.prior = prior
    assert model.sample(2).shape == (2, 1, 8, 8)
    others = {r"num_codes=31.* needs 32": PixelCNNPrior((4, 4), 31), r"needs \(4, 4\)": PixelCNNPrior((2, 2), 32)}
    for message, other in others.items():
        with pytest.raises(ValueError, match=f"prior has .*{message}"):
            model.prior = other


# -- training --------------------------------------------------------------------------------------------


def test_the_loss_is_reconstruction_and_commitment(trained: VQVAE, data: pv.datasets.Data) -> None:
    x = data.test[:7]
    with torch.no_grad():
        features = trained.encoder(x).movedim(-3, -1)
        nearest = trained.quantizer.codebook[trained.codes(x)]
        expected = 0.25 * (features - nearest).square().sum((1, 2, 3)) - trained.p(trained.codes(x)).log_prob(x)
        torch.testing.assert_close(trained.loss(x), expected)


def test_a_traced_step_is_pyros_own_codebook_included(data: pv.datasets.Data) -> None:
    states = {}
    for compile in ("off", "graph"):
        model = digits_model()
        run = pv.fit(model, data.train[:400], epochs=3, batch_size=100, compile=compile, **QUIET)
        assert run.engine == compile
        states[compile] = model.state_dict()
    assert not torch.equal(states["off"]["quantizer.codebook"], digits_model().state_dict()["quantizer.codebook"])
    for name, value in states["off"].items():
        assert torch.equal(value, states["graph"][name]), name


def test_the_prior_is_traced_with_images_drawn_anew_in_every_batch() -> None:
    data = pv.datasets.load("digits", binarize="dynamic", flatten=False)
    model = digits_model()
    pv.fit(model, data, epochs=1, **QUIET)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"hidden": 8, "num_layers": 2}
    run = model.fit_prior(data, prior_options=options, epochs=2, compile="graph", **QUIET)
    assert run.engine == "graph"
    assert {"loss", "val_loss"} <= set(run.history.columns)
    assert model.prior.event_shape == (4, 4)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # stage one stays as it was


def test_it_resumes_from_a_checkpoint(data: pv.datasets.Data, tmp_path) -> None:
    whole, part = digits_model(), digits_model()
    pv.fit(whole, data.train[:300], epochs=3, **QUIET)
    pv.fit(part, data.train[:300], epochs=2, checkpoint=tmp_path, **QUIET)
    pv.fit(part, data.train[:300], epochs=3, checkpoint=tmp_path, **QUIET)
    assert torch.equal(whole.quantizer.codebook, part.quantizer.codebook)


@pytest.mark.parametrize(("likelihood", "options"), [("gaussian", {"scale": 0.3}), ("categorical", {"num_levels": 17})])
def test_other_likelihoods(likelihood: str, options: dict, tmp_path) -> None:
    data = pv.datasets.load("digits", flatten=False)
    model = digits_model(likelihood=likelihood, likelihood_options=options)
    pv.fit(model, data.train[:300], epochs=2, **QUIET)
    result = pv.log_marginal(model, data.test[:50], num_samples=1, progress=False)
    assert ("bits_per_dim" in result.summary()) == (likelihood == "categorical")
    model.save(tmp_path / "m.safetensors")
    assert torch.equal(pv.load(tmp_path / "m.safetensors").reconstruct(data.test[:3]), model.reconstruct(data.test[:3]))


class Independent(torch.nn.Module):
    """A prior that says 16 codes where one grid of them is needed."""

    def forward(self) -> torch.distributions.Distribution:
        return torch.distributions.Categorical(logits=torch.zeros(4, 4, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_shape": (1, 9, 8)}, r"divisible by downsampling=2, for the strides to fit; got \(1, 9, 8\)"),
        ({"event_shape": (64,)}, "channels, height, width"),
        ({"num_codes": 1}, "num_codes must be at least 2"),
        ({"code_dim": 0}, "code_dim must be at least 1"),
        ({"downsampling": 3}, "power of 2"),
        ({"commitment": 0.0}, "commitment must be positive"),
        ({"commitment": math.inf}, "commitment must be positive and finite"),
        ({"prior": "pixelcnn"}, "prior must be a module that returns.*got str.*call fit_prior"),
        ({"prior": torch.nn.Linear(2, 2)}, "got Linear, which cannot be called without arguments"),
        ({"prior": Independent()}, r"got one that returns Categorical.*Leave it out"),
        ({"decay": 1.0}, "decay"),
        ({"dead_below": -0.1}, "dead_below"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
        ({"prior": PixelCNNPrior((2, 2), 32)}, r"prior has grid_shape=\(2, 2\); this model needs \(4, 4\)"),
    ],
)
def test_bad_configurations_are_named(options: dict, message: str) -> None:
    event_shape = options.pop("event_shape", (1, 8, 8))
    with pytest.raises(ValueError, match=message):
        VQVAE(event_shape, **{"num_codes": 32, "downsampling": 2, "hidden": 8} | options)


def test_any_module_that_returns_a_distribution_over_grids_is_a_prior(tmp_path) -> None:
    class OverGrids(Independent):
        def forward(self) -> torch.distributions.Distribution:
            return pyro.distributions.Categorical(logits=torch.zeros(4, 4, 32)).to_event(2)

    model = digits_model(prior=OverGrids())
    assert model.sample(2, seed=0).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"prior of VQVAE holds a .*OverGrids, which JSON cannot"):
        model.save(tmp_path / "m.safetensors")
    model.save(tmp_path / "m.safetensors", exclude="prior")
    assert type(VQVAE.load(tmp_path / "m.safetensors", prior=OverGrids()).prior) is OverGrids


def test_bad_data_are_named(trained: VQVAE, data: pv.datasets.Data) -> None:
    with pytest.raises(ValueError, match="the model needs"):
        trained.codes(data.test.flatten(1))
    bad = data.test.clone()
    bad[3, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="row 3"):
        trained.code_counts(bad)
    with pytest.raises(ValueError, match="outside the support"):
        pv.fit(digits_model(), data.train + 0.5, epochs=1, **QUIET)
