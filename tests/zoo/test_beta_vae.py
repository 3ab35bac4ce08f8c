"""The recipe of the disentanglement papers."""

from pathlib import Path

import pytest
import torch

import pyrovae as pv


def test_it_trains_on_sprites_and_is_stored(tmp_path: Path) -> None:
    data = pv.datasets.load("sprites", binarize="threshold", flatten=False, size=16, scales=2, rotations=2, positions=5)
    model = pv.zoo.beta_vae(data.event_shape, 4)
    with torch.no_grad():
        untrained = pv.ELBO().loss(model.model, model.guide, data.test) / len(data.test)
    run = pv.fit(
        model,
        data.train,
        objective=pv.ELBO(beta=2.0),
        epochs=8,
        batch_size=30,
        seed=0,
        progress=False,
        device="cpu",
        compile="graph",
    )
    assert run.engine == "graph"
    assert run.history["loss"].iloc[-1] < 0.5 * untrained
    again = pv.load(model.save(tmp_path / "model"))
    torch.testing.assert_close(again.encode(data.test), model.encode(data.test))
    assert pv.disentanglement(model, data.test, data.factors["test"], threshold=0.0).summary()["active"] == 4


@pytest.mark.parametrize("shape", [(1, 15, 16), (256,), (16, 16), (1, 4, 4)])
def test_shapes_that_do_not_halve(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="height and width even"):
        pv.zoo.beta_vae(shape)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="latent_dim"):
        pv.zoo.beta_vae((1, 16, 16), 0)
    with pytest.raises(ValueError, match="unknown likelihood"):
        pv.zoo.beta_vae((1, 16, 16), likelihood="bernouli")
