import doctest

import pandas as pd
import pytest
import torch

import pyrovae as pv
import pyrovae.plots


@pytest.mark.filterwarnings("ignore:More than 20 figures")
def test_docstring_examples() -> None:
    outcome = doctest.testmod(pyrovae.plots)
    assert outcome.attempted >= 8
    assert outcome.failed == 0


def test_curves_show_bounds_from_the_first_epoch() -> None:
    x = torch.zeros(20, 6)
    runs = {"a": pv.fit(pv.VAE((6,), 2, hidden=(8,)), x, validation=x, epochs=3, progress=False)}
    line = pv.plots.curves(runs).get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == pytest.approx((-runs["a"].history["val_loss"]).tolist())


def test_forest_intervals_are_the_tables() -> None:
    table = pd.DataFrame({"diff": [0.4, 0.0], "diff_se": [0.1, 0.0], "diff_mc_se": [0.02, 0.0]}, index=["IAF", "MF"])
    ax = pv.plots.forest(table, interval=2.0)
    segments = [bar.get_segments()[0] for bar in ax.collections]
    assert [(s[0, 0], s[1, 0]) for s in segments] == [pytest.approx((0.2, 0.6)), pytest.approx((0.36, 0.44))]
    assert "MF" in ax.get_xlabel()


def test_images_are_placed_row_by_row() -> None:
    x = torch.zeros(3, 4)
    x[2, 3] = 1.0  # third image, bottom right pixel
    grid = pv.plots.images(x, (2, 2), columns=2).get_images()[0].get_array()
    assert grid.shape == (7, 7)
    assert grid[5, 2] == 1.0
