"""Each autoencoder does what its theory says, on 8×8 digits."""

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.distributions import Bernoulli, kl_divergence
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyrovae as pv
from pyrovae.zoo.autoencoder import ACTIVATIONS, CORRUPTIONS

zoo = pv.zoo
DIGITS = pv.datasets.load("digits")
RECIPES: dict[str, Callable[[], zoo.Autoencoder]] = {
    "linear": lambda: zoo.linear_autoencoder((64,), 5),
    "deep": lambda: zoo.deep_autoencoder((64,), 5, hidden=(32, 16)),
    "bernoulli": lambda: zoo.deep_autoencoder((64,), 5, hidden=(32,), activation="tanh", reconstruction="bernoulli"),
    "gaussian_noise": lambda: zoo.denoising_autoencoder((64,), 20, hidden=(32,), corruption_options={"scale": 0.2}),
    "masking_noise": lambda: zoo.denoising_autoencoder((64,), 20, corruption="masking", hidden=(), tied=True),
    "sparse_kl": lambda: zoo.sparse_autoencoder((64,), 40, penalty_options={"target": 0.1}),
    "sparse_l1": lambda: zoo.sparse_autoencoder((64,), 40, penalty="l1", hidden=(32,)),
    "contractive": lambda: zoo.contractive_autoencoder((64,), 20),
    "contractive_deep": lambda: zoo.contractive_autoencoder((64,), 20, hidden=(32,), activation="softplus"),
}


def trained(model: zoo.Autoencoder, epochs: int = 60, **options) -> zoo.Autoencoder:
    options = {"learning_rate": 3e-3, "seed": 0, "device": "cpu", "progress": False, "compile": "graph"} | options
    pv.fit(model, DIGITS.train, epochs=epochs, **options)
    return model


def built(recipe: Callable[..., zoo.Autoencoder], *args, **options) -> zoo.Autoencoder:
    torch.manual_seed(0)
    return recipe((64,), *args, **options)


@cache
def trained_plain(code_dim: int, hidden: tuple[int, ...], code_activation: str, tied: bool = False) -> zoo.Autoencoder:
    """An autoencoder without corruption and penalty, to compare with."""
    options = {"activation": "softplus"} if tied else {}
    return trained(
        built(zoo.Autoencoder, code_dim, hidden=hidden, code_activation=code_activation, tied=tied, **options)
    )


def z_score(difference: Tensor) -> float:
    """The mean over its standard error."""
    return float(difference.mean() / (difference.std() / len(difference) ** 0.5))


# -- what theory says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code_dim", [4, 10])
def test_linear_autoencoder_spans_the_principal_components(code_dim: int) -> None:
    """Baldi & Hornik 1989. Of the encoder nothing is asked: pixels that never vary leave it undetermined."""
    x = (DIGITS.train - DIGITS.train.mean(0)).double()
    singular, components = torch.linalg.svd(x, full_matrices=False)[1:]
    model = built(zoo.linear_autoencoder, code_dim)
    trained(model, 100, batch_size=50, learning_rate=0.03, lr_schedule=lambda o: CosineAnnealingLR(o, 100))
    angles = np.degrees(subspace_angles(model.decoder[0].weight.detach().double(), components[:code_dim].T))
    assert angles.max() < 1.0
    least = 0.5 * singular[code_dim:].square().sum() / len(x)
    assert model.reconstruction_error(DIGITS.train).mean().item() == pytest.approx(least.item(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "options"), [("gaussian", {"scale": 0.4}), ("masking", {"fraction": 0.3})])
def test_denoiser_beats_the_plain_autoencoder_on_noisy_digits(noise: str, options: dict) -> None:
    plain = trained_plain(32, (128,), "identity")
    denoiser = trained(
        built(zoo.denoising_autoencoder, 32, hidden=(128,), corruption=noise, corruption_options=options), epochs=100
    )
    noisy = CORRUPTIONS[noise](**options)(DIGITS.test)
    gain = plain.reconstruction_error(DIGITS.test, given=noisy) - denoiser.reconstruction_error(
        DIGITS.test, given=noisy
    )
    assert z_score(gain) > 5
    # Better than leaving the noise in, too, which the identity would do.
    left_in = 0.5 * (noisy - DIGITS.test).square().sum(-1)
    assert z_score(left_in - denoiser.reconstruction_error(DIGITS.test, given=noisy)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.05, 0.2])
def test_sparse_autoencoder_reaches_its_target_activity(target: float) -> None:
    """The nearer, the heavier the penalty, on data not trained on; without it, units are active half the time."""
    away = {}
    for weight in (0.3, 3.0):
        model = built(zoo.sparse_autoencoder, 64, penalty_options={"weight": weight, "target": target})
        activity = trained(model, 80).transform(DIGITS.test).mean(0)
        away[weight] = (activity - target).abs().mean()
    assert activity.mean().item() == pytest.approx(target, rel=0.1)
    assert away[3.0] < 0.5 * away[0.3]
    assert away[3.0] < 0.1 * target
    plain = trained_plain(64, (), "sigmoid").transform(DIGITS.test).mean(0)
    assert (plain - target).abs().mean() > target


@pytest.mark.slow
def test_l1_makes_codes_sparser() -> None:
    """Of the units that are ever on, more are exactly off at a datum with the penalty than without, and with a heavy
    one than with a light one. Units that are always off, which rectifiers lead to by themselves, do not count.
    """
    models = [trained_plain(64, (), "relu")]
    for weight in (0.05, 0.2):
        models.append(trained(built(zoo.sparse_autoencoder, 64, penalty="l1", penalty_options={"weight": weight})))
    codes = [model.transform(DIGITS.test) for model in models]
    off = [(code[:, (code > 0).any(0)] == 0).float().mean(1) for code in codes]
    assert z_score(off[1] - off[0]) > 5
    assert z_score(off[2] - off[1]) > 5


def test_l1_cannot_be_escaped_by_rescaling() -> None:
    """Half the code and twice the decoder are the same autoencoder, and have the same loss."""
    model = built(zoo.sparse_autoencoder, 10, penalty="l1")
    before = model.loss(DIGITS.test)
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.mul_(0.5)
        model.decoder[0].weight.mul_(2.0)
    torch.testing.assert_close(model.loss(DIGITS.test), before)


def test_kl_penalty_is_the_kl_of_bernoullis() -> None:
    before = torch.randn(30, 7, dtype=torch.float64) - 2
    penalty, networks = zoo.KLPenalty(target=0.05), zoo.linear_autoencoder((4,), 7)
    target = torch.full((7,), 0.05, dtype=torch.float64)
    expected = kl_divergence(Bernoulli(target), Bernoulli(before.sigmoid().mean(0))).sum()
    torch.testing.assert_close(penalty(networks, before, before), expected)
    silent = torch.full((30, 1), -200.0, requires_grad=True)
    value = penalty(networks, silent, silent)
    value.backward()
    # KL(ρ ‖ ρ̂) ≈ ρ (log ρ - log ρ̂) + (1 - ρ) log(1 - ρ) with log ρ̂ = -200, whose slope is -ρ.
    assert value.item() == pytest.approx(0.05 * (np.log(0.05) + 200) + 0.95 * np.log(0.95), rel=1e-5)
    assert silent.grad.sum().item() == pytest.approx(-0.05, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (48,)], ids=["one layer", "deep"])
def test_contractive_autoencoder_has_the_smaller_jacobian(hidden: tuple[int, ...]) -> None:
    sizes = {"hidden": hidden, "activation": "softplus", "code_activation": "sigmoid", "tied": True}
    plain = trained_plain(32, hidden, "sigmoid", tied=True)
    contractive = trained(built(zoo.contractive_autoencoder, 32, penalty_options={"weight": 0.3}, **sizes))
    norms = [model.squared_jacobian_norm(DIGITS.test) for model in (plain, contractive)]
    assert z_score(norms[0] - norms[1]) > 5
    assert norms[1].mean() < 0.5 * norms[0].mean()
    # Not by giving up: it reconstructs better than the mean digit does.
    variance = 0.5 * (DIGITS.test - DIGITS.train.mean(0)).square().sum(-1)
    assert contractive.reconstruction_error(DIGITS.test).mean() < 0.6 * variance.mean()


# -- the Jacobian ----------------------------------------------------------------------------------------------


def by_autograd(model: zoo.Autoencoder, x: Tensor) -> Tensor:
    return torch.stack([jacobian(model._encode, row, create_graph=True).square().sum() for row in x])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_formula_for_one_layer_is_the_jacobian(activation: str) -> None:
    model = zoo.Autoencoder((6,), 4, code_activation=activation, penalty="contraction").double()
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = by_autograd(model, x)
    torch.testing.assert_close(model.penalty(model, x, model.encoder(x)), expected)
    torch.testing.assert_close(model.squared_jacobian_norm(x), expected.detach())


def test_hutchinson_is_unbiased_with_the_stated_variance() -> None:
    """For vectors of random signs the variance is 2 Σ_{i≠j} (JJᵀ)²_ij."""
    model = built(zoo.deep_autoencoder, 8, hidden=(32,), activation="tanh", code_activation="sigmoid").double()
    x, repeats = DIGITS.test[:10].double(), 2000
    exact = model.squared_jacobian_norm(x)
    torch.testing.assert_close(exact, by_autograd(model, x).detach())
    estimates = model.squared_jacobian_norm(x.repeat_interleave(repeats, 0), num_probes=1).unflatten(0, (10, repeats))
    grams = [(j @ j.T).square() for j in (jacobian(model._encode, row) for row in x)]
    variance = torch.stack([2 * (g.sum() - g.diagonal().sum()) for g in grams])
    z = (estimates.mean(1) - exact) / (variance / repeats).sqrt()
    assert z.abs().max() < 4
    assert abs(z.mean()) < 3 / 10**0.5
    torch.testing.assert_close(estimates.var(1), variance, rtol=0.2, atol=0)
    several = model.squared_jacobian_norm(x.repeat_interleave(repeats, 0), num_probes=4).unflatten(0, (10, repeats))
    torch.testing.assert_close(several.var(1), variance / 4, rtol=0.2, atol=0)


def test_gradients_pass_through_hutchinson() -> None:
    """With a single unit a sign squares to 1, and the estimate is exact."""
    model = zoo.contractive_autoencoder((6,), 1, hidden=(5,), activation="tanh").double()
    x = torch.randn(4, 6, dtype=torch.float64)
    weights = list(model.encoder.parameters())
    estimate = model.penalty(model, x, model.encoder(x))
    expected = by_autograd(model, x)
    torch.testing.assert_close(estimate, expected)
    for ours, theirs in zip(
        torch.autograd.grad(estimate.sum(), weights, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(expected.sum(), weights, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


# -- stacking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"tied": True, "activation": "sigmoid"}, {"corruption": "masking"}])
def test_pretraining_gives_a_better_start(options: dict) -> None:
    stacked = built(zoo.deep_autoencoder, 8, hidden=(64, 32), **options)
    random = stacked.reconstruction_error(DIGITS.test)
    runs = zoo.pretrain(stacked, DIGITS, epochs=20, learning_rate=3e-3, seed=0, progress=False, device="cpu")
    assert len(runs) == 3
    assert all(run.history["loss"].iloc[-1] < run.history["loss"].iloc[0] for run in runs)
    start = stacked.reconstruction_error(DIGITS.test)
    assert z_score(random - start) > 5
    trained(stacked, 10)
    assert z_score(start - stacked.reconstruction_error(DIGITS.test)) > 5


def test_pretraining_leaves_other_layers_alone() -> None:
    model = built(zoo.deep_autoencoder, 8, hidden=(16, 12))
    before = {name: p.clone() for name, p in model.named_parameters()}
    zoo.pretrain(model, DIGITS.train[:100], epochs=0, progress=False, device="cpu")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    zoo.pretrain(model, DIGITS.train[:100], epochs=1, progress=False, device="cpu")
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(TypeError, match=r"needs a pyrovae.zoo.Autoencoder"):
        zoo.pretrain(pv.VAE((64,), 2), DIGITS)
    with pytest.raises(ValueError, match=r"the model needs \(N, 64\)"):
        zoo.pretrain(model, torch.rand(10, 63))


# -- as models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_training_by_graph_and_step_by_step(name: str) -> None:
    torch.manual_seed(0)
    models = [RECIPES[name]()]
    models.append(copy.deepcopy(models[0]))
    runs = [
        pv.fit(m, DIGITS, epochs=3, seed=0, compile=engine, progress=False, device="cpu")
        for m, engine in zip(models, ("off", "graph"), strict=True)
    ]
    assert runs[1].engine == "graph"
    assert runs[0].history["val_loss"].iloc[-1] < runs[0].history["val_loss"].iloc[0]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_saved_and_loaded(name: str, tmp_path) -> None:
    model = RECIPES[name]()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save(tmp_path / "model.safetensors")
    again = pv.load(tmp_path / "model.safetensors")
    assert again.construction == model.construction
    assert torch.equal(again.reconstruct(DIGITS.test), model.reconstruct(DIGITS.test))
    model.train(), again.train()
    losses = []
    for m in (model, again):
        torch.manual_seed(0)
        losses.append(m.loss(DIGITS.test))
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", RECIPES)
def test_log_px_is_refused(name: str) -> None:
    for estimate in (pv.log_marginal, pv.ais, pv.elbo_terms, pv.collapse):
        with pytest.raises(TypeError, match="puts no density on the data"):
            estimate(RECIPES[name](), DIGITS.test)


@pytest.mark.parametrize("name", RECIPES)
def test_codes_and_back(name: str) -> None:
    model = RECIPES[name]().train()
    x = DIGITS.test[:20]
    code = model.transform(x)
    assert code.shape == (20, model.code_dim)
    assert not code.requires_grad
    assert model.training
    for form in (x.numpy(), pd.DataFrame(x.numpy().astype(float)), x.double()):
        torch.testing.assert_close(model.transform(form), code)
    assert torch.equal(model.inverse_transform(code), model.reconstruct(x))
    assert torch.equal(model.inverse_transform(code.numpy()), model.reconstruct(x))
    with torch.no_grad():
        out = model.decoder(model.code_activation(model.encoder(x)))
    error = model.reconstruction_error(x)
    if name == "bernoulli":
        assert torch.equal(model.reconstruct(x), out.sigmoid())
        torch.testing.assert_close(error, -Bernoulli(logits=out, validate_args=False).log_prob(x).sum(1))
    else:
        torch.testing.assert_close(error, 0.5 * (x - model.reconstruct(x)).square().sum(1))


@pytest.mark.parametrize("name", ["gaussian_noise", "masking_noise"])
def test_noise_is_for_training_alone(name: str) -> None:
    model, x = RECIPES[name](), DIGITS.test
    model.eval()
    assert torch.equal(model.loss(x), model.loss(x))
    torch.testing.assert_close(model.loss(x), model.reconstruction_error(x))
    model.train()
    assert not torch.equal(model.loss(x), model.loss(x))
    assert torch.equal(model.reconstruct(x), model.reconstruct(x))


def test_noises() -> None:
    x = torch.full((200, 500), 0.7)
    noise = zoo.GaussianNoise(scale=0.3)(x) - x
    assert abs(noise.mean()) < 4 * 0.3 / x.numel() ** 0.5
    assert noise.std().item() == pytest.approx(0.3, rel=4 / (2 * x.numel()) ** 0.5)
    lost = zoo.MaskingNoise(fraction=0.2)(x)
    assert set(lost.unique().tolist()) == {0.0, x[0, 0].item()}
    assert (lost == 0).float().mean().item() == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / x.numel()) ** 0.5)
    rescaled = zoo.MaskingNoise(fraction=0.2, rescale=True)(x)
    assert rescaled.mean().item() == pytest.approx(0.7, abs=4 * (0.7**2 * 0.2 / 0.8 / x.numel()) ** 0.5)


def test_images_keep_their_shape() -> None:
    model = zoo.denoising_autoencoder((1, 8, 8), 10, hidden=(32,), tied=True)
    x = DIGITS.train.reshape(-1, 1, 8, 8)
    zoo.pretrain(model, x, epochs=1, progress=False, device="cpu")
    pv.fit(model, x, epochs=1, progress=False, device="cpu")
    assert model.reconstruct(x[:7]).shape == (7, 1, 8, 8)
    assert model.squared_jacobian_norm(x[:7]).shape == (7,)


def test_tied_weights_are_one() -> None:
    model = trained(built(zoo.Autoencoder, 5, hidden=(16,), tied=True), 2)
    assert len(list(model.parameters())) == 6  # two weights, two biases of the encoder, two of the decoder
    encoder, decoder = [m for m in model.encoder if isinstance(m, nn.Linear)], model.decoder
    assert torch.equal(decoder[0].weight, encoder[1].weight.T)
    assert torch.equal(decoder[2].weight, encoder[0].weight.T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"code_dim": 0}, "code_dim must be at least 1"),
        ({"event_shape": ()}, "event_shape must name at least one size"),
        ({"hidden": (8, 0)}, "hidden must be at least 1"),
        ({"hidden": (8.5,)}, "hidden must be an integer"),
        ({"activation": "relo"}, "Did you mean 'relu'"),
        ({"code_activation": "softmax"}, "unknown code_activation 'softmax'"),
        ({"reconstruction": "absolute"}, "'squared_error', 'bernoulli'; got 'absolute'"),
        ({"corruption": "gausian"}, "Did you mean 'gaussian'"),
        ({"corruption": "gaussian", "corruption_options": {"scale": 0.0}}, "scale must be positive"),
        ({"corruption": "masking", "corruption_options": {"fraction": 1.0}}, "fraction must be a number in"),
        (
            {"corruption": "masking", "corruption_options": {"scale": 1.0}},
            "has options fraction, rescale; got 'scale'",
        ),
        (
            {"corruption_options": {"scale": 1.0}},
            "are for a corruption given by name; got NoneType",
        ),
        ({"penalty": "l2"}, "unknown penalty 'l2'"),
        ({"penalty": "l1", "penalty_options": {"weight": -1.0}}, "weight must be positive"),
        ({"penalty": "kl", "code_activation": "relu"}, "needs code_activation 'sigmoid'"),
        (
            {"penalty": "kl", "code_activation": "sigmoid", "penalty_options": {"target": 1.5}},
            "target must be a number in",
        ),
        ({"penalty": "contraction", "penalty_options": {"num_probes": 0}}, "num_probes must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.Autoencoder(**({"event_shape": (64,), "code_dim": 5} | arguments))


def test_bad_data() -> None:
    model = RECIPES["deep"]()
    with pytest.raises(ValueError, match=r"x has shape \(3, 63\); the model needs \(N, 64\)"):
        model.transform(torch.rand(3, 63))
    with pytest.raises(ValueError, match=r"code has shape \(3, 4\); the model needs \(N, 5\)"):
        model.inverse_transform(torch.rand(3, 4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.reconstruct(torch.full((3, 64), torch.nan))
    with pytest.raises(ValueError, match="a floating dtype is needed"):
        model.transform(torch.ones(3, 64, dtype=torch.int64))
    with pytest.raises(ValueError, match="given has 2 rows and x has 3"):
        model.reconstruction_error(torch.rand(3, 64), given=torch.rand(2, 64))
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        model.squared_jacobian_norm(torch.rand(3, 64), num_probes=0)
    with pytest.raises(ValueError, match="penalty must be one of 'kl', 'l1'; got 'contraction'"):
        zoo.sparse_autoencoder((64,), 5, penalty="contraction")
    for train in (pv.fit, zoo.pretrain):
        with pytest.raises(ValueError, match=r"data holds values from 0 to 16; reconstruction='bernoulli'"):
            train(RECIPES["bernoulli"](), 16 * DIGITS.train, progress=False, device="cpu")
