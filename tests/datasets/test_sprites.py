"""Sprites: one image for every combination of factors, drawn where and how the factors say."""

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae.datasets._sprites import draw

COUNTS = (3, 4, 8, 8, 8)


def image(size: int = 32, counts: tuple[int, ...] = COUNTS, **factors: int) -> np.ndarray:
    row = [factors.get(name, 0) for name in ("shape", "scale", "rotation", "x", "y")]
    return draw(np.array([row]), counts, size)[0]


@pytest.mark.slow
def test_splits_hold_every_combination_once() -> None:
    data = pv.datasets.load("sprites", binarize="threshold")
    assert (len(data.train), len(data.val), len(data.test)) == (4916, 614, 614)
    assert data.image_shape == (1, 32, 32)
    assert data.factor_names == ("shape", "scale", "rotation", "x", "y")
    factors = torch.cat([data.factors[s] for s in ("train", "val", "test")])
    assert factors.dtype == torch.int64
    assert len(factors.unique(dim=0)) == len(factors) == 3 * 4 * 8**3
    assert (factors.amax(0) + 1).tolist() == list(COUNTS)
    assert set(data.train.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(data.labels["test"], data.factors["test"][:, 0])
    images = torch.cat([data.train, data.val, data.test])
    assert len(images.unique(dim=0)) == len(images)  # so that every factor can be read off


def test_same_parameters_same_images() -> None:
    options = {"size": 16, "scales": 2, "rotations": 3, "positions": 4}
    a, b = (pv.datasets.load("sprites", flatten=False, **options) for _ in range(2))
    assert a.hash == b.hash
    assert a.event_shape == (1, 16, 16)
    assert len(a.train) + len(a.val) + len(a.test) == 3 * 2 * 3 * 16
    assert ((16 * a.train) % 1 == 0).all()  # the share of sixteen points in a pixel
    assert pv.datasets.load("sprites", seed=1, **options).hash == pv.datasets.load("sprites", **options).hash


def test_position_moves_and_scale_grows() -> None:
    def centre(picture: np.ndarray) -> np.ndarray:
        rows, columns = np.indices(picture.shape)
        return np.array([(columns * picture).sum(), (rows * picture).sum()]) / picture.sum()

    for shape in range(3):
        base = {"shape": shape, "scale": 3, "rotation": 0}
        a, b = centre(image(x=0, y=0, **base)), centre(image(x=7, y=7, **base))
        room = 2 * 32 * (0.5 - 0.26 - 1 / 32)  # the same for all shapes; y counts upwards
        # Each centre is off by at most half the distance between the points of a pixel, ⅛.
        np.testing.assert_allclose(b - a, [room, -room], atol=2 / 8)
        areas = [image(128, shape=shape, scale=s, x=3, y=3).sum() for s in range(4)]
        # The smallest is a hundred points wide, and its width is counted to within one of them.
        assert areas[0] == pytest.approx(0.55**2 * areas[3], rel=0.03)
        assert areas == sorted(areas)
    largest = [image(shape=s, scale=3, x=3, y=3).sum() for s in range(3)]
    assert max(largest) < 1.1 * min(largest)


def test_area_of_the_square_and_the_ellipse() -> None:
    radius = 0.26 * 64
    assert image(64, shape=0, scale=3, x=3, y=3).sum() == pytest.approx(1.4**2 * radius**2, rel=0.01)
    assert image(64, shape=1, scale=3, x=3, y=3).sum() == pytest.approx(np.pi * 0.62 * radius**2, rel=0.01)


def test_nothing_is_cut_off() -> None:
    for size in (8, 16, 32, 33):
        factors = np.array([[s, 3, r, x, y] for s in range(3) for r in range(8) for x in (0, 7) for y in (0, 7)])
        pictures = draw(factors, COUNTS, size)
        assert pictures[:, [0, -1]].max() == pictures[:, :, [0, -1]].max() == 0
        areas = pictures.sum((1, 2)).reshape(3, -1)
        assert (areas.std(1) / areas.mean(1) < 0.03).all()


def test_rotations_span_the_symmetry_of_the_shape() -> None:
    """The step after the last is the first picture again; a square by 90°, an ellipse by 180°, a heart by 360°."""
    odd = (3, 1, 8, 1, 1)
    for shape, turns in enumerate((1, 2, 4)):
        pictures = [image(33, odd, shape=shape, rotation=r) for r in range(9)]
        np.testing.assert_array_equal(pictures[8], pictures[0])
        apart = [np.abs(a - b).sum() for i, a in enumerate(pictures[:8]) for b in pictures[:i]]
        assert min(apart) > 3
        if turns > 1:  # a quarter turn, which np.rot90 makes exactly, is 8 / turns steps
            np.testing.assert_allclose(pictures[8 // turns], np.rot90(pictures[0]), atol=2 / 16)


def test_a_factor_with_one_value_and_bad_options() -> None:
    data = pv.datasets.load("sprites", size=16, scales=1, rotations=1, positions=3)
    assert data.factors["train"].amax(0).tolist()[1:3] == [0, 0]
    for options, match in [
        ({"size": 7}, "size must be at least 8; got 7"),
        ({"positions": 0}, "positions must be at least 1"),
        ({"scales": 1, "rotations": 1, "positions": 1}, "3 images"),
        ({"colours": 3}, "unknown option 'colours'.*size, scales, rotations, positions"),
    ]:
        with pytest.raises(ValueError, match=match):
            pv.datasets.load("sprites", **options)
    with pytest.raises(ValueError, match="unknown option 'size' of the data set 'digits', which takes no options"):
        pv.datasets.load("digits", size=16)
