"""Continuity and completeness where they are known, and of an autoencoder against a VAE."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.evaluation import completeness, continuity


def test_a_straight_walk_is_even_and_a_jump_is_not() -> None:
    codes = torch.randn(50, 2)
    straight = continuity(lambda z: z @ torch.randn(2, 7, generator=torch.Generator().manual_seed(0)), codes, steps=20)
    assert len(straight) == 500
    np.testing.assert_allclose(straight["evenness"], 1.0, atol=1e-4)
    np.testing.assert_allclose(straight["detour"], 1.0, atol=1e-4)
    ends = torch.tensor([[-1.0], [1.5]])
    jump = continuity(lambda z: (z > 0).float(), ends, steps=20, num_pairs=4)
    assert (jump["evenness"] == 1 / 20).all()
    assert (jump[["largest_step", "path", "distance", "detour"]] == 1).all(axis=None)


def test_a_walk_around_the_circle_and_at_growing_speed() -> None:
    ends = torch.tensor([[0.0], [math.pi]], dtype=torch.float64)
    arc = continuity(lambda z: torch.cat([z.cos(), z.sin()], -1), ends, num_pairs=3)
    np.testing.assert_allclose(arc["evenness"], 1.0, atol=1e-9)
    np.testing.assert_allclose(arc["detour"], math.pi / 2, rtol=2e-4)  # chords: π²/24 S² shorter
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    square = continuity(torch.square, ends, steps=50, num_pairs=3)
    np.testing.assert_allclose(square["evenness"], 50 / 99)  # 1/50 over (50² - 49²)/50²
    still = continuity(torch.zeros_like, ends, num_pairs=3)
    assert still["evenness"].isna().all()


def test_pairs_are_of_different_data_and_come_from_the_seed() -> None:
    codes = torch.arange(3.0).unsqueeze(1)
    a = continuity(lambda z: z, codes, num_pairs=3000)
    assert set(a["distance"].round(3)) == {1.0, 2.0}
    assert abs((a["distance"] > 1.5).mean() - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000)
    assert a.equals(continuity(lambda z: z, codes, num_pairs=3000))
    assert not a.equals(continuity(lambda z: z, codes, num_pairs=3000, seed=1))
    images = continuity(lambda z: z.reshape(-1, 1, 1, 1).expand(-1, 1, 30, 30), codes, num_pairs=100)  # in pieces
    np.testing.assert_allclose(images["path"], images["distance"], rtol=1e-5)


def test_completeness_measures_in_distances_between_data() -> None:
    test = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    train = torch.tensor([[0.0, 2.0], [10.0, 2.0], [0.0, 0.0]])  # the third is more than as many
    found = completeness(lambda z: z, torch.tensor([[0.0, 0.0], [0.0, 3.0], [10.0, -0.5]]), test, train)
    assert found["nearest"].tolist() == [0.0, 3.0, 0.5]
    assert found["relative"].tolist() == [0.0, 1.5, 0.25]
    assert found["test_index"].tolist() == [0, 0, 1]


def test_bad_arguments_are_named() -> None:
    two = torch.zeros(2, 3)
    for call, message in (
        (lambda: continuity(lambda z: z, two[:1]), "codes holds one code"),
        (lambda: continuity(lambda z: z, two, steps=1), "steps must be at least 2"),
        (lambda: continuity(lambda z: z, two * math.nan), "codes holds 6 NaN"),
        (lambda: continuity(lambda z: z / 0, two + 1), "what decode gives holds 3 NaN or infinite"),
        (lambda: continuity(lambda z: z.sum(0), two), r"decode gives shape \(3,\) for 1 codes"),
        (lambda: completeness(lambda z: z, two, two, two[:1]), "train holds 1 data and test 2"),
        (lambda: completeness(lambda z: z, two, two, two), "every test datum is among the training data"),
        (lambda: completeness(lambda z: z, two[:0], two, two + 1), "z is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


class Autoencoder(pv.LossModel):
    """The VAE's networks and its reconstruction term, without the noise and without the KL."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.encoder = pv.networks.MLP(64, (128, 128), latent_dim)
        self.decoder = pv.networks.MLP(latent_dim, (128, 128), 64)

    def loss(self, x: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.decoder(self.encoder(x)), x, reduction="none").sum(1)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x).detach()

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).sigmoid()


def trained(kind: str, latent_dim: int, seed: int) -> Autoencoder | pv.VAE:
    data = pv.datasets.load("digits", binarize="dynamic")
    torch.manual_seed(seed)
    model = Autoencoder(latent_dim) if kind == "ae" else pv.VAE((64,), latent_dim, hidden=(128, 128))
    pv.fit(model, data, epochs=40, seed=seed, device="cpu", progress=False)
    return model


@pytest.mark.slow
def test_the_vaes_latent_plane_is_more_continuous_than_the_autoencoders() -> None:
    """The change is spread more evenly over the way, and the way is straighter."""
    x = pv.datasets.load("digits", binarize="dynamic").test
    for seed in (0, 1):
        vae, ae = (
            continuity(model.decode, model.encode(x)) for model in (trained("vae", 2, seed), trained("ae", 2, seed))
        )
        for column, sign in (("evenness", 1), ("detour", -1), ("largest_step", -1)):
            difference, error = vae[column].mean() - ae[column].mean(), math.hypot(vae[column].sem(), ae[column].sem())
            print(f"seed {seed}, {column}: VAE {vae[column].mean():.3f}, AE {ae[column].mean():.3f} (± {error:.3f})")
            assert sign * difference > 4 * error


@pytest.mark.slow
def test_the_vaes_latent_space_is_more_complete_than_the_autoencoders() -> None:
    """In eight dimensions an autoencoder's codes leave most of the space empty."""
    data = pv.datasets.load("digits")
    x = pv.datasets.load("digits", binarize="dynamic").test
    generator = torch.Generator().manual_seed(5)
    for seed in (0, 1):
        found = {}
        for kind in ("vae", "ae"):
            model = trained(kind, 8, seed)
            codes = model.encode(x)
            low, high = codes.amin(0), codes.amax(0)
            places = {
                "prior": torch.randn(1000, 8, generator=generator),
                "box": low + (high - low) * torch.rand(1000, 8, generator=generator),
            }
            for place, z in places.items():
                found[kind, place] = completeness(model.decode, z, data.test, data.train)["relative"]
        for place in ("prior", "box"):
            vae, ae = found["vae", place], found["ae", place]
            error = math.hypot(vae.sem(), ae.sem())
            print(f"seed {seed}, {place}: VAE {vae.mean():.3f}, AE {ae.mean():.3f} (± {error:.3f})")
            assert ae.mean() - vae.mean() > 4 * error


def test_small_distances_between_many_numbers_are_exact() -> None:
    """Distances by matrix products, which torch takes for more than 25 rows, would be off by 0.01."""
    images = torch.rand(40, 784, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="among the training data"):
        completeness(lambda z: images[: len(z)], torch.zeros(10, 2), images, images)
    found = completeness(lambda z: images[: len(z)], torch.zeros(10, 2), images, images + 0.1)
    assert (found["nearest"] == 0).all()
    assert found["test_index"].tolist() == list(range(10))


def test_sizes_that_do_not_match_are_named() -> None:
    x = torch.rand(5, 4)
    with pytest.raises(ValueError, match="train has 3 numbers a datum and test 4"):
        completeness(lambda z: x[: len(z)], torch.zeros(2, 2), x, torch.rand(5, 3))
    with pytest.raises(ValueError, match="decode gives 3 numbers a datum and test has 4"):
        completeness(lambda z: torch.rand(len(z), 3), torch.zeros(2, 2), x, x + 1.0)
