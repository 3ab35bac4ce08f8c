"""A part comes by name or built, to every model that has parts: with the same result, and the same checks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import likelihoods, networks, posteriors, priors, zoo

IMAGE = (1, 4, 4)
PIXEL = {"context_dim": 8, "spatial_context": True}


class Case(NamedTuple):
    """A model and one of its parts."""

    make: Callable[..., nn.Module]
    argument: str
    name: str
    options: dict[str, Any]
    built: Callable[[], nn.Module]
    wrong: Callable[[], nn.Module]
    message: str
    place: str = ""


def vae(**parts: Any) -> pv.VAE:
    return pv.VAE((6,), 3, hidden=(8,), **parts)


def hierarchy(**parts: Any) -> zoo.HierarchicalVAE:
    return zoo.HierarchicalVAE((6,), (3, 2), hidden=(8,), **parts)


def autoencoder(**parts: Any) -> zoo.Autoencoder:
    return zoo.Autoencoder((6,), 3, code_activation="sigmoid", **parts)


def of_likelihood(make: Callable[..., nn.Module], event_dim: int, place: str = "likelihood") -> Case:
    options = {"num_levels": 5}
    built, wrong = (lambda n=n: likelihoods.Categorical(n, **options) for n in (event_dim, 2))
    return Case(make, "likelihood", "categorical", options, built, wrong, f"event_dim=2.* needs {event_dim}", place)


def of_decoder(make: Callable[..., nn.Module]) -> Case:
    options = {"hidden": 4, "num_layers": 2}
    built, wrong = (lambda n=n: networks.GatedPixelCNN(1, n, **options, **PIXEL) for n in (1, 2))
    return Case(make, "decoder", "pixelcnn", options, built, wrong, "out_channels=2.* needs 1", "decoder.network")


CASES = {
    "VAE, likelihood": of_likelihood(vae, 1),
    "VAE, posterior": Case(
        vae,
        "posterior",
        "planar",
        {"num_flows": 2},
        lambda: posteriors.Planar(3, 8, num_flows=2),
        lambda: posteriors.Planar(3, 9),
        "context_dim=9.* needs 8",
    ),
    "VAE, prior": Case(
        vae,
        "prior",
        "mixture",
        {"num_components": 4},
        lambda: priors.MixtureOfGaussians(3, num_components=4),
        lambda: priors.StandardNormal(2),
        "latent_dim=2.* needs 3",
    ),
    "VAE, VampPrior": Case(
        vae,
        "prior",
        "vamp",
        {"num_pseudo_inputs": 4},
        lambda: priors.VampPrior(3, event_shape=(6,), num_pseudo_inputs=4),
        lambda: priors.VampPrior(3, event_shape=(2, 3)),
        r"event_shape=\(2, 3\).* needs \(6,\)",
    ),
    "hierarchical": of_likelihood(hierarchy, 1),
    "ladder": of_likelihood(lambda **parts: zoo.LadderVAE((6,), (3, 2), hidden=(8,), **parts), 1),
    "NVAE": of_likelihood(lambda **parts: zoo.NVAE(IMAGE, (1,), channels=4, **parts), 3),
    "VQ-VAE": of_likelihood(lambda **parts: zoo.VQVAE(IMAGE, hidden=4, **parts), 3),
    "PixelCNN, likelihood": of_likelihood(lambda **parts: zoo.PixelCNN(IMAGE, **parts), 3, "decoder.likelihood"),
    "PixelCNN, decoder": of_decoder(lambda **parts: zoo.PixelCNN(IMAGE, **parts)),
    "PixelVAE, likelihood": of_likelihood(lambda **parts: zoo.PixelVAE(IMAGE, 2, hidden=(8,), **parts), 3),
    "PixelVAE, decoder": of_decoder(lambda **parts: zoo.PixelVAE(IMAGE, 2, hidden=(8,), **parts)),
    "β-VAE": of_likelihood(lambda **parts: zoo.beta_vae((1, 8, 8), **parts), 3),
    "non-amortized": Case(
        lambda **parts: zoo.NonAmortizedVAE(vae(), 7, **parts),
        "posterior",
        "full_rank",
        {},
        lambda: posteriors.FullRankNormal(3, 6),
        lambda: posteriors.FullRankNormal(2, 6),
        "latent_dim=2.* needs 3",
    ),
    "δ-VAE": Case(
        lambda **parts: zoo.delta_vae((6,), 3, delta=0.5, hidden=(8,), **parts),
        "posterior",
        "mean_field",
        {"scale": "constant"},
        lambda: posteriors.MeanFieldNormal(3, 8, scale="constant"),
        lambda: posteriors.MeanFieldNormal(3, 9),
        "context_dim=9.* needs 8",
    ),
    "autoencoder, corruption": Case(
        autoencoder, "corruption", "masking", {"fraction": 0.5}, lambda: zoo.MaskingNoise(fraction=0.5), None, ""
    ),
    "autoencoder, penalty": Case(
        autoencoder, "penalty", "kl", {"target": 0.1}, lambda: zoo.KLPenalty(target=0.1), None, ""
    ),
    "denoising": Case(
        lambda **parts: zoo.denoising_autoencoder((6,), 3, **parts),
        "corruption",
        "gaussian",
        {"scale": 0.1},
        lambda: zoo.GaussianNoise(scale=0.1),
        None,
        "",
    ),
    "sparse": Case(
        lambda **parts: zoo.sparse_autoencoder((6,), 3, **parts),
        "penalty",
        "l1",
        {"weight": 0.2},
        lambda: zoo.L1Penalty(weight=0.2),
        None,
        "",
    ),
}


def numbers(model: nn.Module) -> torch.Tensor:
    """What is trained, at a seed: for models of one state the same."""
    torch.manual_seed(3)
    x = (torch.rand(7, *model.event_shape) < 0.5).float()
    rows = (torch.arange(7),) if isinstance(model, zoo.NonAmortizedVAE) else ()
    return model.log_terms(x, *rows).log_weight if isinstance(model, pv.VAEModel) else model.loss(x)


@pytest.mark.parametrize("name", CASES)
def test_by_name_and_built_are_one_model(name: str) -> None:
    case = CASES[name]
    place = case.place or case.argument
    by_name = case.make(**{case.argument: case.name, f"{case.argument}_options": case.options})
    part = case.built()
    built = case.make(**{case.argument: part})
    assert built.get_submodule(place) is part
    assert type(by_name.get_submodule(place)) is type(part)
    part.load_state_dict(copy.deepcopy(by_name.get_submodule(place).state_dict()))
    built.load_state_dict(by_name.state_dict())
    assert torch.equal(numbers(by_name), numbers(built))


@pytest.mark.parametrize("name", CASES)
def test_what_a_built_part_must_be(name: str) -> None:
    case = CASES[name]
    kind = case.argument
    with pytest.raises(ValueError, match=f"{kind}_options are for a {kind} given by name"):
        case.make(**{case.argument: case.built(), f"{case.argument}_options": {"any": 1}})
    with pytest.raises((TypeError, ValueError), match=f"{kind} must be .*; got (float|0.5)"):
        case.make(**{case.argument: 0.5})
    with pytest.raises(ValueError, match=f"{kind} '{case.name}' has options .*; got 'any'"):
        case.make(**{case.argument: case.name, f"{case.argument}_options": {"any": 1}})
    if case.wrong is not None:
        with pytest.raises(ValueError, match=f"{kind} has {case.message}: build it with"):
            case.make(**{case.argument: case.wrong()})


def test_what_follows_from_the_model_is_no_option() -> None:
    with pytest.raises(ValueError, match=r"has options num_flows; got 'latent_dim', which follows from the model's"):
        vae(posterior="planar", posterior_options={"latent_dim": 4})
    with pytest.raises(ValueError, match=r"'standard_normal' has options \(none\); got 'event_shape'\."):
        vae(prior="standard_normal", prior_options={"event_shape": (6,)})


def test_a_family_of_any_options_gets_them() -> None:
    class Wide(posteriors.Planar):
        def __init__(self, latent_dim: int, context_dim: int, **options: Any) -> None:
            super().__init__(latent_dim, context_dim, num_flows=2 * options["half"])

    posteriors.POSTERIORS["wide"] = Wide
    try:
        assert vae(posterior="wide", posterior_options={"half": 3}).posterior.num_flows == 6
    finally:
        del posteriors.POSTERIORS["wide"]


def test_a_model_with_a_built_part_is_loaded_with_one(tmp_path: Path) -> None:
    model = hierarchy(likelihood=likelihoods.Categorical(1, num_levels=5))
    with pytest.raises(ValueError, match=r"exclude=\['likelihood'\]"):
        model.save(tmp_path / "model.safetensors")
    model.save(tmp_path / "model.safetensors", exclude="likelihood")
    built = likelihoods.Categorical(1, num_levels=5)
    again = zoo.HierarchicalVAE.load(tmp_path / "model.safetensors", likelihood=built)
    assert torch.equal(numbers(model), numbers(again))


def test_a_penalty_of_ones_own() -> None:
    class Small(zoo.Penalty):
        def forward(self, networks: Any, x: torch.Tensor, pre_activation: torch.Tensor) -> torch.Tensor:
            return networks.code_activation(pre_activation).square().sum(-1)

    model = zoo.sparse_autoencoder((6,), 3, penalty=Small(weight=2.0))
    x = torch.rand(5, 6)
    code = model.transform(x)
    torch.testing.assert_close(model.loss(x), model.reconstruction_error(x) + 2.0 * code.square().sum(-1))


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_a_likelihood_takes_a_networks_output_however_flat(lead: tuple[int, ...]) -> None:
    likelihood = likelihoods.Categorical(3, num_levels=5)
    params = torch.randn(*lead, 5, *IMAGE)
    for end in ((5, *IMAGE), (5 * 16,), (5, 4, 4), (1, 80)):
        p = likelihood.distribution(params.reshape(*lead, *end), lead, IMAGE)
        assert (p.batch_shape, p.event_shape) == (lead, IMAGE)
        assert torch.equal(p.log_prob(torch.zeros(IMAGE)), likelihood(params).log_prob(torch.zeros(IMAGE)))
