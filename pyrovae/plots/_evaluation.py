"""Plots of evaluations: differences between models, bounds on log p(x), gaps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pyrovae._checks import require_columns, require_instance, require_positive
from pyrovae.evaluation import AISResult, MarginalResult
from pyrovae.evaluation.marginal._compare import same_data
from pyrovae.plots._axes import BLUE, GREY, ORANGE, check_frame, legend_above, new_axes, styles
from pyrovae.plots._inputs import by_name

_GAP_COLUMNS = ("approximation", "approximation_se", "amortization", "amortization_se")


def forest(
    comparison: pd.DataFrame, *, reference: str | None = None, interval: float | None = None, ax: Axes | None = None
) -> Axes:
    """Plot paired differences of mean log p(x) to a reference, with confidence intervals.

    The thick bar is the Monte Carlo part of the interval, the thin one the whole.

    Args:
        comparison: table of :func:`~pyrovae.compare`.
        reference: the model differences were taken to; by default the row whose ``diff_se`` is 0.
        interval: half-width in standard errors; by default the table's own ``diff_low`` to
            ``diff_high`` where it has them, else 1.96.
        ax: where to draw.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame(
        ...     {"diff": [0.4, 0.0], "diff_se": [0.1, 0.0], "diff_mc_se": [0.02, 0.0]}, index=["IAF", "mean-field"]
        ... )
        >>> [t.get_text() for t in forest(table).get_yticklabels()]
        ['IAF', 'mean-field']
    """
    check_frame("", ax)
    require_columns(("diff", "diff_se", "diff_mc_se"), comparison=comparison)
    require_instance(str | None, reference=reference)
    if interval is not None:
        require_positive(interval=interval)
    if reference is not None and reference not in comparison.index:
        raise ValueError(f"reference must be a row of comparison; got {reference!r}.")
    ax = ax or new_axes(7, 0.45 * len(comparison) + 1.5)
    if reference is None:
        reference = str(comparison.index[comparison["diff_se"] == 0][0])
    y = np.arange(len(comparison))
    ax.axvline(0.0, color="0.5", linewidth=1)
    if interval is None and "diff_high" in comparison:
        half = comparison["diff_high"] - comparison["diff"]
        noise = half * (comparison["diff_mc_se"] / comparison["diff_se"]).fillna(0.0)
    else:
        width = 1.96 if interval is None else interval
        half, noise = width * comparison["diff_se"], width * comparison["diff_mc_se"]
    ax.errorbar(comparison["diff"], y, xerr=half, fmt="none", ecolor=BLUE, elinewidth=1.5)
    ax.errorbar(comparison["diff"], y, xerr=noise, fmt="none", ecolor=BLUE, elinewidth=4)
    at_reference = np.asarray(comparison.index == reference)
    ax.plot(comparison["diff"][~at_reference], y[~at_reference], "o", color=BLUE)
    ax.plot(comparison["diff"][at_reference], y[at_reference], "o", color="0.5", fillstyle="none")
    ax.set_yticks(y, [str(name) for name in comparison.index])
    ax.set_ylim(len(y) - 0.5, -0.5)
    break_or_space = "\n" if len(str(reference)) > 20 else " "
    ax.set_xlabel(f"log p(x) minus that of {reference}{break_or_space}(nats per datum)")
    ax.grid(axis="x", alpha=0.3)
    return ax


def bounds(
    results: MarginalResult | Mapping[str, MarginalResult],
    *,
    ais: AISResult | Mapping[str, AISResult] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot L_k over the number of draws k, averaged over data, as it rises towards log p(x) (Burda et al. 2016, theorem
    1).

    Bands are ± 2 Monte Carlo standard errors, for these data; what other data would change is not in them. All L_k of
    a model come from the same draws, so its curve is far smoother than its band is wide.

    Args:
        results: a result of :func:`~pyrovae.log_marginal`, or several on the same data, by name. A diamond at K marks
            the jackknife.
        ais: a result of :func:`~pyrovae.ais` on the same data, or several by the names of the results: dashed lines.
        ax: where to draw.

    Raises:
        ValueError: no results, results on different data, or AIS of a model that is not among them.

    Example:
        >>> import pyrovae, torch
        >>> vae, x = pyrovae.VAE((6,), 2, hidden=(8,)), torch.zeros(5, 6)
        >>> ax = bounds({"mean-field": pyrovae.log_marginal(vae, x, num_samples=100, progress=False)})
        >>> ax.get_lines()[0].get_xdata().tolist()
        [1, 10, 100]
    """
    check_frame("", ax)
    name = results.provenance.model_name if isinstance(results, MarginalResult) else ""
    runs = by_name(results, "results", MarginalResult, name)
    annealed = _annealed(ais, list(runs))
    hash_ = next(iter(runs.values())).provenance.data_hash
    same_data({name: r.provenance.data_hash for name, r in runs.items()}, "results", hash_)
    same_data({name: r.provenance.data_hash for name, r in annealed.items()}, "ais", hash_)
    ax = ax or new_axes(7, 4.5)
    for (name, result), style in zip(runs.items(), styles(), strict=False):
        color, table = style["color"], result.bound_table()
        mean, band = table["log_px"], 2.0 * table["mc_se"]
        infinite = [str(k) for k in table.index[~np.isfinite(mean)]]
        label = f"{name} (not finite at k = {', '.join(infinite)})" if infinite else name
        ax.plot(table.index, mean.where(np.isfinite(mean)), marker="o", markersize=4, label=label, **style)
        ax.fill_between(table.index, mean - band, mean + band, color=color, alpha=0.2, linewidth=0)
        ax.plot(result.num_samples, result.summary()["jackknife"], "D", color=color, fillstyle="none", markersize=8)
        if name in annealed:
            row = annealed[name].summary()
            ax.axhline(row["log_px"], color=color, linestyle=(0, (6, 2)), linewidth=1.2, label=f"{name}, AIS")
            low, high = row["log_px"] - 2.0 * row["mc_se"], row["log_px"] + 2.0 * row["mc_se"]
            ax.axhspan(low, high, color=color, alpha=0.1, linewidth=0)
    ax.set(xscale="log", xlabel="number of draws k", ylabel="mean $L_k$ (nats per datum)")
    ax.grid(alpha=0.3)
    jackknife = Line2D([], [], color=GREY, marker="D", fillstyle="none", linestyle="none", label="jackknife at K")
    handles = [*ax.get_legend_handles_labels()[0], jackknife]
    legend_above(ax, handles=handles, title="bands: ± 2 Monte Carlo standard errors")
    return ax


def gaps(tables: Mapping[str, Any] | pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Plot the approximation gap of a posterior family and the amortisation gap of its encoder (Cremer et al. 2018,
    arXiv:1801.03558), with ± 2 standard errors, in nats per datum.

    Args:
        tables: by name, objects whose ``summary()`` has ``approximation``, ``approximation_se``, ``amortization`` and
            ``amortization_se``, or such summaries; or a DataFrame with these columns and a row for each model.
        ax: where to draw.

    Raises:
        ValueError: nothing to draw, or a summary that lacks one of the four.

    Example:
        >>> row = {"approximation": 0.8, "approximation_se": 0.1, "amortization": 1.5, "amortization_se": 0.2}
        >>> [float(bar.get_width()) for bar in gaps({"mean-field": row}).patches]
        [0.8, 1.5]
    """
    check_frame("", ax)
    rows = by_name(dict(tables.iterrows()) if isinstance(tables, pd.DataFrame) else tables, "tables")
    rows = {name: of.summary() if hasattr(of, "summary") else of for name, of in rows.items()}
    for name, row in rows.items():
        require_instance(Mapping | pd.Series, **{f"tables[{name!r}]": row})
        if missing := [column for column in _GAP_COLUMNS if column not in row]:
            has = ", ".join(map(str, row.keys()))
            raise ValueError(f"tables: the summary of {name!r} lacks {', '.join(missing)}; it has {has}.")
    table = pd.DataFrame({name: dict(row) for name, row in rows.items()}).T[list(_GAP_COLUMNS)].astype(float)
    ax = ax or new_axes(7, 0.7 * len(table) + 1.3)
    y, height = np.arange(len(table)), 0.38
    for which, label, color, at in (
        ("approximation", "approximation gap", BLUE, y - 0.5 * height),
        ("amortization", "amortisation gap", ORANGE, y + 0.5 * height),
    ):
        ax.barh(at, table[which], height, color=color, label=label)
        ax.errorbar(table[which], at, xerr=2.0 * table[f"{which}_se"], fmt="none", ecolor="black", capsize=3)
    ax.axvline(0.0, color="0.5", linewidth=1)
    ax.set_yticks(y, [str(name) for name in table.index])
    ax.invert_yaxis()
    ax.set_xlabel("gap (nats per datum, ± 2 standard errors)")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    legend_above(ax)
    return ax


def _annealed(ais: AISResult | Mapping[str, AISResult] | None, names: list[str]) -> Mapping[str, AISResult]:
    """Arrange annealed results by the names of the models that they are of.

    Raises:
        ValueError: a single one of several models, or one of a model that is not there.
    """
    if ais is not None and not isinstance(ais, AISResult):
        ais = by_name(ais, "ais", AISResult) if not isinstance(ais, Mapping) or ais else {}
    if isinstance(ais, AISResult):
        if len(names) > 1:
            raise ValueError(f"ais must be a mapping where there are several results: pass {{{names[0]!r}: ...}}.")
        return {names[0]: ais}
    if unknown := [name for name in ais or {} if name not in names]:
        raise ValueError(f"ais has {unknown[0]!r}, which is not among the results: {', '.join(names)}.")
    return ais or {}
