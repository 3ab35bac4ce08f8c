"""What is drawn are the tables' numbers, and what cannot be relied on is marked."""

import dataclasses
import doctest
import importlib
import math
from collections.abc import Iterator
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle, StepPatch
from torch import nn

import pyrovae as pv
from pyrovae.evaluation.marginal._tail import pareto_tail, tail_length
from pyrovae.plots._axes import BLUE, FLAGGED, GREY, ORANGE, PALETTE
from tests.models import Conditional, TwoSites, binary

FILES = sorted({getattr(pv.plots, name).__module__ for name in pv.plots.__all__})


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FILES)
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    public = [f for f in pv.plots.__all__ if getattr(pv.plots, f).__module__ == name]
    outcome = doctest.testmod(module)
    assert outcome.attempted >= 2 * len(public) > 0
    assert outcome.failed == 0


def legend(ax: Axes) -> list[str]:
    return [t.get_text() for t in ax.get_legend().get_texts()]


def steps(ax: Axes) -> StepPatch:
    return next(of for of in ax.patches if isinstance(of, StepPatch))


def line(ax: Axes, label: str):
    return next(of for of in ax.get_lines() if str(of.get_label()).startswith(label))


def test_curves_show_bounds_from_the_first_epoch() -> None:
    x = torch.zeros(20, 6)
    runs = {"a": pv.fit(pv.VAE((6,), 2, hidden=(8,)), x, validation=x, epochs=3, progress=False, device="cpu")}
    line = pv.plots.curves(runs).get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == pytest.approx((-runs["a"].history["val_loss"]).tolist())


def test_more_curves_than_colours_differ_in_their_dashes() -> None:
    history = pd.DataFrame({"val_loss": [2.0, 1.0]})
    lines = pv.plots.curves({str(i): history for i in range(10)}).get_lines()
    assert len({(of.get_color(), of.get_linestyle()) for of in lines}) == 10


def test_curves_of_other_columns_are_drawn_as_they_are() -> None:
    history = pd.DataFrame({"rate": [5.0, math.nan, 0.5]})  # looked at every other epoch
    ax = pv.plots.curves({"a": history}, column="rate")
    assert ax.get_lines()[0].get_ydata().tolist() == [5.0, 0.5]
    assert ax.get_lines()[0].get_xdata().tolist() == [1, 3]
    assert ax.get_ylabel() == "rate (nats)"
    with pytest.raises(ValueError, match="'a' has no 'active_units': let a callback record it"):
        pv.plots.curves({"a": history}, column="active_units")


def test_active_units_are_the_reports() -> None:
    vae = pv.VAE((6,), 3, hidden=(8,))
    report = pv.collapse(vae, binary(20), progress=False, threshold=0.02)
    ax = pv.plots.active_units({"a": report, "b": report})
    assert [bar.get_width() for bar in ax.patches] == [3, 3] + 2 * [int(report.dimensions["active"].sum())]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert f"{report.rate:.1f} nats" in ax.texts[0].get_text()
    with pytest.raises(ValueError, match="reports is empty"):
        pv.plots.active_units({})


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


def test_codebook_usage_is_sorted_and_named() -> None:
    counts = torch.tensor([0, 6, 2, 4, 0, 0, 0, 0])
    ax = pv.plots.codebook_usage(counts)
    bars = [bar for bar in ax.patches if isinstance(bar, Rectangle)]
    assert [bar.get_height() for bar in bars] == pytest.approx([0.5, 1 / 3, 1 / 6, 0, 0, 0, 0, 0])
    assert "3 of 8 codes in use (38%)" in legend(ax)
    effective = math.exp(0.5 * math.log(2) + math.log(3) / 3 + math.log(6) / 6)
    assert f"perplexity {effective:.1f}" in legend(ax)
    assert line(ax, "all equally often").get_ydata()[0] == 1 / 8
    with pytest.raises(ValueError, match="one number for each code"):
        pv.plots.codebook_usage(counts.reshape(2, 4))


# -- log_weights -------------------------------------------------------------------------------------------


def pareto_weights(shape: float, k: int = 5000) -> torch.Tensor:
    u = torch.rand(k, dtype=torch.float64)
    return -shape * u.log() - 20.0


@pytest.mark.parametrize(("shape", "color"), [(0.2, "#009E73"), (1.5, FLAGGED)])
def test_log_weights_counts_fit_and_verdict(shape: float, color: str) -> None:
    w = pareto_weights(shape)
    ax = pv.plots.log_weights(w.unsqueeze(1))
    m = tail_length(5000)
    threshold = w.sort(descending=True).values[m].item()
    bars = [bar for bar in ax.patches if isinstance(bar, Rectangle)]
    edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
    assert sum(bar.get_height() for bar in bars) == 5000
    assert [bar.get_height() for bar in bars] == pytest.approx(np.histogram(w, edges)[0], abs=1)  # rounded edges
    assert line(ax, f"threshold of the {m} largest").get_xdata()[0] == threshold
    assert line(ax, "log p̂(x)").get_xdata()[0] == pytest.approx(w.logsumexp(0).item() - math.log(5000))
    khat = pareto_tail(w.topk(m + 1).values.unsqueeze(0))[0].item()
    assert ax.get_title().startswith(f"k̂ = {khat:.2f} ")
    assert ("do not suffice" in ax.get_title()) == (shape > 1)
    fit = steps(ax)
    assert to_hex(fit.get_edgecolor()) == color.lower()
    assert to_hex(ax.title.get_color()) == (color.lower() if shape > 1 else "#000000")
    # Of the m weights above the threshold, the fit expects all but half of one up to where it ends.
    expected, at, _ = fit.get_data()
    assert at[0] == pytest.approx(threshold)
    assert m - 0.5 <= expected.sum() <= m
    # Bin by bin it agrees with the bars within their Poisson noise.
    counts = np.histogram(w, at)[0]
    many = expected >= 10
    assert many.sum() >= 3
    assert (np.abs(counts - expected)[many] < 4 * np.sqrt(expected[many])).all()


@pytest.mark.slow
def test_log_weights_loses_no_draw_to_rounding() -> None:
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(100, generator=generator, dtype=torch.float64).clamp(max=0.3 * (seed % 3))  # ties at the top
        ax = pv.plots.log_weights(w)
        assert sum(bar.get_height() for bar in ax.patches if isinstance(bar, Rectangle)) == 100
        plt.close(ax.figure)


def test_log_weights_that_are_zero_equal_or_few() -> None:
    w = torch.randn(1000)
    w[:10] = -math.inf
    ax = pv.plots.log_weights(w)
    assert sum(bar.get_height() for bar in ax.patches if isinstance(bar, Rectangle)) == 990
    assert "1000 draws, 10 of weight 0 not shown" in legend(ax)
    ax = pv.plots.log_weights(np.zeros(1000))
    assert ax.get_title() == "k̂ = −∞ ≤ 0.67"
    assert not any("Pareto" in text for text in legend(ax))
    assert pv.plots.log_weights(torch.randn(10)).get_title() == "k̂ undefined: 10 draws are too few for a fit"
    rare = torch.full((1000,), -math.inf)
    rare[:90] = torch.randn(90)  # the threshold itself is a weight of 0
    expected, edges, _ = steps(pv.plots.log_weights(rare)).get_data()
    assert np.isfinite(edges).all()
    assert np.isfinite(expected).all()


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (torch.zeros(50, 3), r"log_weight has shape \(50, 3\).*Pass log_weight\[:, i\]"),
        (torch.zeros(1), "has 1 draw"),
        (torch.tensor([0.0, math.nan, math.inf]), r"holds 2 value\(s\) that are NaN or \+inf"),
        (torch.full((30,), -math.inf), "no draw has a weight above 0"),
    ],
)
def test_log_weights_refuses(w: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pv.plots.log_weights(w)


# -- khats, bounds -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marginal() -> tuple[pv.VAE, torch.Tensor, pv.MarginalResult]:
    torch.manual_seed(0)
    vae, x = pv.VAE((6,), 2, hidden=(8,)), binary(12)
    return vae, x, pv.log_marginal(vae, x, num_samples=1000, progress=False)


def test_khats_are_marked_clipped_and_counted(marginal) -> None:
    result = marginal[2]
    p = result.pointwise.copy()
    p["khat"] = [0.1, 0.3, 0.9, 0.2, math.inf, math.inf, -math.inf, math.nan, 0.4, 0.5, 0.6, 1.2]
    p["reliable"] = [True, True, False, False, False, False, True, False, True, True, True, False]
    ax = pv.plots.khats(dataclasses.replace(result, pointwise=p))
    drawn = {str(c.get_label()): (to_hex(c.get_facecolor()[0]), c.get_offsets()) for c in ax.collections}
    color, points = drawn["reliable (5)"]
    assert color == BLUE.lower()
    assert points.tolist() == [[0, 0.1], [1, 0.3], [8, 0.4], [9, 0.5], [10, 0.6]]
    color, points = drawn["unreliable (3)"]
    assert color == FLAGGED.lower()
    assert points.tolist() == [[2, 0.9], [3, 0.2], [11, 1.2]]
    low, high = ax.get_ylim()
    assert drawn["unreliable, k̂ = +∞ (2)"][1][:, 0].tolist() == [4, 5]
    assert (drawn["unreliable, k̂ = +∞ (2)"][1][:, 1] > 1.2).all()
    assert drawn["unreliable, k̂ undefined (1)"][1][:, 0].tolist() == [7]
    assert low < drawn["reliable, k̂ = −∞ (1)"][1][0, 1] < 0.1
    assert drawn["unreliable, k̂ = +∞ (2)"][1][0, 1] < high
    assert line(ax, "threshold 0.67").get_ydata()[0] == pytest.approx(2 / 3)
    assert set(drawn) <= set(legend(ax))


def test_khats_all_undefined_and_without_a_threshold(marginal) -> None:
    vae, x, _ = marginal
    ax = pv.plots.khats(pv.log_marginal(vae, x, num_samples=10, progress=False))
    assert legend(ax)[0] == "unreliable, k̂ undefined (12)"
    assert not any("threshold" in text for text in legend(ax))


def test_bounds_are_the_tables(marginal) -> None:
    vae, x, result = marginal
    other = pv.log_marginal(vae, x, num_samples=200, seed=1, progress=False)
    annealed = pv.ais(vae, x, num_temperatures=5, num_chains=4, num_leapfrog=2, progress=False)
    ax = pv.plots.bounds({"a": result, "b": other}, ais={"b": annealed})
    for name, r, color in (("a", result, PALETTE[0]), ("b", other, PALETTE[1])):
        table, drawn = r.bound_table(), line(ax, name)
        assert drawn.get_color() == color
        assert drawn.get_xdata().tolist() == list(r.bounds)
        np.testing.assert_array_equal(drawn.get_ydata(), table["log_px"])
        band = next(c for c in ax.collections if to_hex(c.get_facecolor()[0]) == color.lower())
        for k in r.bounds:
            half = 2 * table.loc[k, "mc_se"]
            heights = [y for x, y in band.get_paths()[0].vertices if x == k]
            assert (min(heights), max(heights)) == pytest.approx((table["log_px"][k] - half, table["log_px"][k] + half))
    diamonds = [of for of in ax.get_lines() if of.get_marker() == "D"]
    assert [(d.get_xdata()[0], d.get_ydata()[0]) for d in diamonds] == [
        (1000, result.summary()["jackknife"]),
        (200, other.summary()["jackknife"]),
    ]
    row = annealed.summary()
    assert line(ax, "b, AIS").get_ydata() == [row["log_px"]] * 2
    band = ax.patches[0]
    heights = band.get_patch_transform().transform(band.get_path().vertices)[:, 1]
    half = 2 * row["mc_se"]
    assert (min(heights), max(heights)) == pytest.approx((row["log_px"] - half, row["log_px"] + half))
    assert legend(ax) == ["a", "b", "b, AIS", "jackknife at K"]
    assert legend(pv.plots.bounds(result, ais=annealed))[1] == "VAE(MeanFieldNormal), AIS"


def test_bounds_that_are_not_finite_are_named(marginal) -> None:
    result = marginal[2]
    p = result.pointwise.copy()
    p.loc[0, "L_1"] = -math.inf
    ax = pv.plots.bounds({"a": dataclasses.replace(result, pointwise=p)})
    assert legend(ax)[0] == "a (not finite at k = 1)"
    assert np.isfinite(ax.get_ylim()).all()


def test_bounds_refuses(marginal) -> None:
    vae, x, result = marginal
    other = pv.log_marginal(vae, x[:5], num_samples=50, progress=False)
    annealed = pv.ais(vae, x[:5], num_temperatures=2, num_chains=2, num_leapfrog=1, progress=False)
    with pytest.raises(ValueError, match="results is empty"):
        pv.plots.bounds({})
    with pytest.raises(ValueError, match="'b' evaluated on other data"):
        pv.plots.bounds({"a": result, "b": other})
    with pytest.raises(ValueError, match=r"ais: 'VAE.*' evaluated on other data"):
        pv.plots.bounds(result, ais=annealed)
    with pytest.raises(ValueError, match="ais has 'c', which is not among the results: a"):
        pv.plots.bounds({"a": result}, ais={"c": annealed})
    with pytest.raises(ValueError, match="ais must be a mapping"):
        pv.plots.bounds({"a": result, "b": result}, ais=annealed)


# -- gaps --------------------------------------------------------------------------------------------------


class Gaps:
    def __init__(self, *values: float) -> None:
        self._values = values

    def summary(self) -> pd.Series:
        names = ["approximation", "approximation_se", "amortization", "amortization_se"]
        return pd.Series([*self._values, "posterior"], index=[*names, "start"])


@pytest.mark.parametrize("form", ["objects", "summaries", "table"])
def test_gaps_are_the_summaries(form: str) -> None:
    tables = {"MF": Gaps(0.8, 0.1, 1.5, 0.2), "IAF": Gaps(0.1, 0.05, -0.02, 0.3)}
    summaries = {name: of.summary() for name, of in tables.items()}
    given = {"objects": tables, "summaries": summaries, "table": pd.DataFrame(summaries).T}[form]
    ax = pv.plots.gaps(given)
    assert [bar.get_width() for bar in ax.patches] == [0.8, 0.1, 1.5, -0.02]
    segments = np.concatenate([np.array(c.get_segments())[:, :, 0] for c in ax.collections])
    np.testing.assert_allclose(segments, [[0.6, 1.0], [0.0, 0.2], [1.1, 1.9], [-0.62, 0.58]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["MF", "IAF"]
    assert legend(ax) == ["approximation gap", "amortisation gap"]
    with pytest.raises(ValueError, match="tables is empty"):
        pv.plots.gaps({})
    with pytest.raises(ValueError, match="summary of 'a' lacks approximation_se, amortization_se; it has"):
        pv.plots.gaps({"a": {"approximation": 1.0, "amortization": 2.0}})


# -- latents -----------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> pv.CollapseReport:
    report = pv.collapse(pv.VAE((6,), 4, hidden=(8,)), binary(20), progress=False)
    columns = {"kl": [0.1, 2.0, 0.5, 1.0], "activity": [0.001, 1.0, math.nan, 0.5], "kl_se": 0.05}
    return dataclasses.replace(
        report, dimensions=report.dimensions.assign(**columns, active=[False, True, False, True])
    )


def test_kl_is_sorted_and_colours_tell_active_dimensions(report) -> None:
    ax = pv.plots.kl_per_dimension(report)
    bars = sorted(ax.patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in bars] == [2.0, 1.0, 0.5, 0.1]
    colors = [to_hex(bar.get_facecolor()) for bar in bars]
    assert colors == [BLUE.lower(), BLUE.lower(), GREY.lower(), ORANGE.lower()]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "3", "2", "0"]
    assert legend(ax) == ["active (activity > 0.01): 2", "inactive: 1", "discrete: 1"]
    assert ax.get_title() == report.verdict
    segments = ax.collections[0].get_segments()
    assert segments[0][:, 1].tolist() == pytest.approx([1.9, 2.1])


def test_kl_of_several_reports_and_of_many_dimensions(report) -> None:
    ax = pv.plots.kl_per_dimension({"a": report, "b": report})
    assert len(ax.patches) == 8
    assert {to_hex(bar.get_facecolor()) for bar in ax.patches} == {PALETTE[0].lower(), PALETTE[1].lower()}
    lefts = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(lefts))  # side by side
    assert "b, active (activity > 0.01): 2" in legend(ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "3", "4"]
    wide = dataclasses.replace(report, dimensions=pd.concat([report.dimensions] * 20, ignore_index=True))
    for given in (wide, {"a": wide}):
        ax = pv.plots.kl_per_dimension(given)
        assert len(ax.get_xticks()) < 15
        assert ax.get_xlabel() == "latent dimension by rank"
    with pytest.raises(ValueError, match="report is empty"):
        pv.plots.kl_per_dimension({})


def test_kl_names_dimensions_by_site_where_there_are_several() -> None:
    ax = pv.plots.kl_per_dimension(pv.collapse(TwoSites(), binary(20), progress=False))
    assert {t.get_text() for t in ax.get_xticklabels()} == {"z1[0]", "z1[1]", "z1[2]", "z2[0]", "z2[1]"}


def canvas(ax: Axes, columns: int, rows: int) -> np.ndarray:
    """The images of a grid of (2, 3) ones, ``(rows, columns, 2, 3)``."""
    pixels = np.asarray(ax.get_images()[0].get_array())[1:, 1:].reshape(rows, 3, columns, 4)
    return pixels[:, :2, :, :3].transpose(0, 2, 1, 3)


class Split(pv.VAEModel):
    """The top site decides the first pixel, the next the second, and the last one the third."""

    event_shape = (6,)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = [pyro.sample(name, dist.Normal(x.new_zeros(1), 1.0).to_event(1)) for name in ("z3", "z2", "z1")]
            logits = torch.cat([*z, z[0].new_zeros(*z[0].shape[:-1], 3)], -1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def test_layer_samples_hold_one_site_more_in_every_row() -> None:
    ax = pv.plots.layer_samples(Split(), (2, 3), n=7, title="split")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all drawn", "z3 held", "… z2 held"]
    rows = canvas(ax, 7, 3)
    assert (rows[:, 0] == rows[0, 0]).all()  # the draw itself
    for r, row in enumerate(rows):
        first = row[:, 0, :]  # the three pixels that vary
        for site in range(3):
            assert len(np.unique(first[:, site])) == (1 if site < r else 7)
    with pytest.raises(ValueError, match="this model has one"):
        pv.plots.layer_samples(Known(), (1, 3))
    with pytest.raises(ValueError, match="n must be at least 2"):
        pv.plots.layer_samples(Split(), (2, 3), n=1)


def test_kl_per_site_is_the_reports() -> None:
    two = pv.collapse(TwoSites(), binary(20), progress=False)
    one = pv.collapse(pv.VAE((6,), 3, hidden=(8,)), binary(20), progress=False)
    ax = pv.plots.kl_per_site({"one": one, "two": two})
    assert [t.get_text() for t in ax.get_xticklabels()] == ["z2", "z1", "z"]
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([*one.sites["kl"], *two.sites["kl"]])
    centers = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert centers == pytest.approx([2 - 0.2, 0 + 0.2, 1 + 0.2])
    assert [t.get_text() for t in ax.texts] == [f"{a}/{d}" for r in (one, two) for a, d in r.sites.iloc[:, 2:].values]
    assert legend(ax) == ["one", "two"]
    assert pv.plots.kl_per_site(two).get_legend() is None
    with pytest.raises(ValueError, match="report is empty"):
        pv.plots.kl_per_site({})


class Known(pv.VAEModel):
    """z ~ N(1, 2²), q(z | x) = N(x, 0.001²)."""

    event_shape = (3,)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_ones(3), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.001).to_event(1))


def test_aggregate_posterior_draws_both() -> None:
    x = torch.randn(1500, 3) * 3  # more than one block
    ax = pv.plots.aggregate_posterior(Known(), x, dims=(2, 0), num_samples=2)
    p, q = (c.get_offsets() for c in ax.collections)
    assert legend(ax) == ["p(z)", "q(z), 1500 data"]
    assert q.shape == p.shape == (3000, 2)
    found = np.sort(q[:, 0])[::2]
    assert np.abs(found - np.sort(x[:, 2].numpy())).max() < 0.01
    assert abs(p.mean() - 1.0) < 4 * 2 / math.sqrt(6000)
    assert abs(p.std() - 2.0) < 4 * 2 / math.sqrt(12000)
    assert len(np.unique(p[:, 0])) == 3000  # blocks do not repeat each other's draws
    again = pv.plots.aggregate_posterior(Known(), x, dims=(2, 0), num_samples=2).collections[1].get_offsets()
    np.testing.assert_array_equal(again, q)
    state = torch.get_rng_state()
    pv.plots.aggregate_posterior(Known(), x[:5])
    assert torch.equal(state, torch.get_rng_state())


def test_aggregate_posterior_of_one_dimension_is_a_histogram() -> None:
    x = torch.randn(500, 3)
    for ax in (
        pv.plots.aggregate_posterior(Known(), x, dims=(1,)),
        pv.plots.aggregate_posterior(pv.VAE((6,), 1, hidden=(8,)), binary(500)),
    ):
        prior = [bar for bar in ax.patches if isinstance(bar, Rectangle)]
        assert sum(bar.get_height() * bar.get_width() for bar in prior) == pytest.approx(1.0)
        assert set(legend(ax)) == {"p(z)", "q(z), 500 data"}
        assert ax.get_ylabel() == "density of the draws"


def test_aggregate_posterior_with_covariates_and_refusals() -> None:
    ax = pv.plots.aggregate_posterior(Conditional(), binary(10), torch.randn(10, 2))
    assert len(ax.collections[1].get_offsets()) == 10
    with pytest.raises(ValueError, match="latent sites z2, z1: a single one is needed"):
        pv.plots.aggregate_posterior(TwoSites(), binary(10))
    for dims in ((0, 3), (0, 0), (0, 1, 2), (-1, 0), ()):
        with pytest.raises(ValueError, match="different latent dimensions from 0 to 2; got"):
            pv.plots.aggregate_posterior(Known(), torch.randn(5, 3), dims=dims)
    with pytest.raises(TypeError, match=r"aggregate_posterior needs a pyrovae\.VAEModel"):
        pv.plots.aggregate_posterior(torch.nn.Linear(2, 2), binary(5))
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        pv.plots.aggregate_posterior(Known(), torch.randn(5, 3), num_samples=0)


def test_strips_have_a_row_for_every_model() -> None:
    """The shown pixels are the data's, the noisy data's, and each model's reconstruction of its input."""
    x, noisy = torch.rand(3, 64), torch.rand(3, 64)
    models = {name: pv.zoo.linear_autoencoder((64,), 4, reconstruction="bernoulli") for name in "ab"}
    strips = {
        pv.plots.reconstructions(models, x, (8, 8)): {"data": x, **{n: m.reconstruct(x) for n, m in models.items()}},
        pv.plots.denoising(models, x, noisy, (8, 8)): {
            "clean": x,
            "noisy": noisy,
            **{n: m.reconstruct(noisy) for n, m in models.items()},
        },
    }
    for ax, rows in strips.items():
        assert [t.get_text() for t in ax.get_yticklabels()] == list(rows)
        canvas = ax.get_images()[0].get_array()
        for r, expected in enumerate(rows.values()):
            for c in range(3):
                shown = canvas[r * 9 + 1 : r * 9 + 9, c * 9 + 1 : c * 9 + 9]
                np.testing.assert_allclose(shown, expected[c].reshape(8, 8), atol=1e-6)
    with pytest.raises(ValueError, match=r"noisy has shape \(2, 64\) and x has \(3, 64\)"):
        pv.plots.denoising(models, x, noisy[:2], (8, 8))


def test_codes_are_drawn_by_class() -> None:
    code, labels = torch.randn(30, 4), torch.arange(30) % 3
    ax = pv.plots.codes(code, labels, dims=(3, 1))
    for name, drawn in enumerate(ax.collections):
        np.testing.assert_allclose(drawn.get_offsets(), code[labels == name][:, [3, 1]], rtol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("code[3]", "code[1]")
    with pytest.raises(ValueError, match="2 different latent dimensions from 0 to 3"):
        pv.plots.codes(code, labels, dims=(0, 4))
    with pytest.raises(ValueError, match=r"\(30, 4\) and 29 labels"):
        pv.plots.codes(code, labels[1:])


# -- walks through the latent space ------------------------------------------------------------------------


class Pair(nn.Module):
    """Decodes z to an image of two pixels, z itself."""

    latent_dim = 3

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z[..., :2]


class Square(pv.VAEModel):
    """z ~ U(0, 1)³, the image's two pixels are z[0] and z[1]."""

    event_shape = (2,)

    def model(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(x.new_zeros(3), x.new_ones(3)).to_event(1))
            loc = z[..., :2] if shift is None else z[..., :2] + shift.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(0.4 * torch.ones(len(x), 3), 0.6 * torch.ones(len(x), 3)).to_event(1))


def pixels(ax: Axes, rows: int, columns: int) -> np.ndarray:
    """Images of one row and two columns, ``(rows, columns, 2)``."""
    grid = ax.get_images()[0].get_array()
    return np.stack([[grid[2 * r + 1, 3 * c + 1 : 3 * c + 3] for c in range(columns)] for r in range(rows)])


def test_manifold_goes_through_the_priors_inverse_distribution_function() -> None:
    found = pixels(pv.plots.manifold(Square(), (1, 2), n=4, dims=(1, 0)), 4, 4)
    middles = np.array([0.125, 0.375, 0.625, 0.875])
    error = 5 * 0.5 / math.sqrt(20_000)  # of an empirical quantile
    assert np.abs(found[..., 1] - middles).max() < error  # z[1] goes across
    assert np.abs(found[..., 0] - middles[::-1, None]).max() < error  # z[0] goes up
    vae = pv.VAE((2,), 3, hidden=(), likelihood="gaussian")
    with torch.no_grad():
        vae.decoder[0].weight.copy_(torch.tensor([[0.2, 0.0, 0.0], [0.0, 0.2, 0.5]]))
        vae.decoder[0].bias.copy_(torch.tensor([0.5, 0.5]))
    ax = pv.plots.manifold(vae, (1, 2), n=4)
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(middles)).numpy()
    np.testing.assert_allclose(pixels(ax, 4, 4)[0, :, 0], 0.5 + 0.2 * normal, atol=1e-6)
    np.testing.assert_allclose(pixels(ax, 4, 4)[:, 0, 1], 0.5 + 0.2 * normal[::-1], atol=1e-6)  # z[2] at its median, 0
    assert [t.get_text() for t in ax.get_xticklabels()] == ["-1.2", "-0.32", "0.32", "1.2"]


def test_manifold_of_what_has_no_prior() -> None:
    ax = pv.plots.manifold(Pair(), (1, 2), n=3, extent=(0.0, 1.0, 0.2, 0.4))
    found = pixels(ax, 3, 3)
    np.testing.assert_allclose(found[..., 0], [[0, 0.5, 1]] * 3, atol=1e-6)
    np.testing.assert_allclose(found[..., 1], np.transpose([[0.4, 0.3, 0.2]] * 3), atol=1e-6)
    with pytest.raises(TypeError, match="Pair has no prior whose quantiles could be taken: say where to go by extent="):
        pv.plots.manifold(Pair(), (1, 2))
    with pytest.raises(ValueError, match="extent must be left < right, bottom < top"):
        pv.plots.manifold(Pair(), (1, 2), extent=(1.0, 0.0, 0.0, 1.0))
    for dims in ((0, 3), (0, 0), (0,), (0, 1, 2), (-1, 0)):
        with pytest.raises(ValueError, match="latent dimensions"):
            pv.plots.manifold(Square(), (1, 2), n=2, dims=dims)
    with pytest.raises(ValueError, match="latent sites z2, z1: a single one is needed"):
        pv.plots.manifold(TwoSites(), (2, 3))
    with pytest.raises(ValueError, match="n must be at least 2"):
        pv.plots.manifold(Square(), (1, 2), n=1)


def test_traversals_change_one_latent_and_hold_the_others() -> None:
    ax = pv.plots.traversals(Square(), torch.zeros(1, 2), (1, 2), values=(0.0, 0.25, 1.0))
    found = pixels(ax, 3, 3)
    np.testing.assert_allclose(found[0], [[0.0, 0.5], [0.25, 0.5], [1.0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(found[1], [[0.5, 0.0], [0.5, 0.25], [0.5, 1.0]], atol=1e-6)
    np.testing.assert_allclose(found[2], 0.5, atol=1e-6)  # the decoder does not use z[2]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["z[0]", "z[1]", "z[2]"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.25", "1"]


def test_traversals_of_several_data_with_covariates() -> None:
    shift = torch.tensor([0.0, 0.1])
    ax = pv.plots.traversals(Square(), torch.zeros(2, 2), (1, 2), shift, dims=(1,), values=(0.0, 0.5))
    np.testing.assert_allclose(pixels(ax, 2, 2)[..., 1], [[0.0, 0.5], [0.1, 0.6]], atol=1e-6)
    np.testing.assert_allclose(pixels(ax, 2, 2)[..., 0], [[0.5, 0.5], [0.6, 0.6]], atol=1e-6)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["datum 0", "datum 1"]
    both = pv.plots.traversals(Square(), torch.zeros(2, 2), (1, 2), shift, dims=(1, 0))
    assert [t.get_text() for t in both.get_yticklabels()][:2] == ["datum 0, z[1]", "datum 0, z[0]"]
    assert [t.get_text() for t in both.get_xticklabels()][::4] == ["1 %", "50 %", "99 %"]
    assert np.abs(pixels(both, 4, 9)[0, :, 1] - np.linspace(0.01, 0.99, 9)).max() < 5 * 0.5 / math.sqrt(20_000)
    with pytest.raises(ValueError, match="values is empty"):
        pv.plots.traversals(Square(), torch.zeros(1, 2), (1, 2), values=())
    with pytest.raises(ValueError, match="latent dimensions from 0 to 2"):
        pv.plots.traversals(Square(), torch.zeros(1, 2), (1, 2), dims=(3,))
    with pytest.raises(ValueError, match="x has shape"):
        pv.plots.traversals(Square(), torch.zeros(1, 3), (1, 2))


def test_everything_draws_where_it_is_told(marginal, report) -> None:
    vae, x, result = marginal
    history = pd.DataFrame({"val_loss": [2.0, 1.0]})
    calls = {
        "active_units": lambda ax: pv.plots.active_units({"a": report}, ax=ax),
        "aggregate_posterior": lambda ax: pv.plots.aggregate_posterior(vae, x, ax=ax),
        "bounds": lambda ax: pv.plots.bounds(result, ax=ax),
        "calibration": lambda ax: pv.plots.calibration(
            pv.calibration(vae, 10, num_draws=4, progress=False), level=0.9, ax=ax
        ),
        "codebook_usage": lambda ax: pv.plots.codebook_usage(torch.tensor([3, 1]), ax=ax),
        "codes": lambda ax: pv.plots.codes(torch.randn(5, 2), torch.arange(5), ax=ax),
        "curves": lambda ax: pv.plots.curves({"a": history}, ax=ax),
        "denoising": lambda ax: pv.plots.denoising({"a": vae}, x, x, (2, 3), ax=ax),
        "forest": lambda ax: pv.plots.forest(pv.compare({"a": result, "b": result}), reference="a", ax=ax),
        "gaps": lambda ax: pv.plots.gaps({"a": Gaps(1, 1, 1, 1)}, ax=ax),
        "images": lambda ax: pv.plots.images(x, (2, 3), ax=ax),
        "khats": lambda ax: pv.plots.khats(result, ax=ax),
        "kl_per_dimension": lambda ax: pv.plots.kl_per_dimension(report, ax=ax),
        "kl_per_site": lambda ax: pv.plots.kl_per_site(report, ax=ax),
        "layer_samples": lambda ax: pv.plots.layer_samples(TwoSites(), (2, 3), ax=ax),
        "log_weights": lambda ax: pv.plots.log_weights(torch.randn(100), ax=ax),
        "manifold": lambda ax: pv.plots.manifold(vae, (2, 3), n=3, ax=ax),
        "reconstructions": lambda ax: pv.plots.reconstructions(vae, x, (2, 3), ax=ax),
        "samples": lambda ax: pv.plots.samples(vae, (2, 3), ax=ax),
        "traversals": lambda ax: pv.plots.traversals(vae, x[:1], (2, 3), ax=ax),
    }
    assert list(calls) == sorted(pv.plots.__all__)
    for call in calls.values():
        ax = plt.subplots()[1]
        before = plt.get_fignums()
        assert call(ax) is ax
        assert plt.get_fignums() == before
        assert ax.has_data() or ax.get_images()
        plt.close(ax.figure)
