"""Plots of latents: which dimensions carry information, and how the aggregate posterior fills the prior."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyrovae._checks import require_at_least, require_instance, require_seed
from pyrovae._random import seeded
from pyrovae.evaluation import CollapseReport
from pyrovae.evaluation._data import as_evaluation_data, require_density
from pyrovae.model import VAEModel
from pyrovae.plots._axes import BLUE, GREY, ORANGE, check_frame, legend_above, new_axes, styles
from pyrovae.plots._inputs import as_dims, by_name, single_site

_MAX_NAMED_DIMS = 32  # dimensions whose names fit below the bars
_DRAWS_PER_BATCH = 1000


def kl_per_dimension(report: CollapseReport | Mapping[str, CollapseReport], *, ax: Axes | None = None) -> Axes:
    """Plot KL(q(z_i | x) ‖ p(z_i)) of every latent dimension, averaged over data, largest first, with ± 2 standard
    errors.

    Active dimensions are blue, inactive ones orange; of several reports each has its colour, pale where inactive. A
    discrete site has one bar and no activity.

    Args:
        report: of :func:`~pyrovae.collapse`, whose verdict becomes the title; or several by name, side by side, each
            sorted by itself.
        ax: where to draw.

    Raises:
        ValueError: no reports.

    Example:
        >>> import pyrovae, torch
        >>> vae = pyrovae.VAE((6,), 3, hidden=(8,))
        >>> ax = kl_per_dimension(pyrovae.collapse(vae, torch.rand(20, 6).round(), progress=False))
        >>> len(ax.patches), ax.get_ylabel()
        (3, 'KL (nats per datum)')
    """
    check_frame("", ax)
    reports = by_name(report, "report", CollapseReport)
    tables = {name: r.dimensions.sort_values("kl", ascending=False) for name, r in reports.items()}
    longest = max(map(len, tables.values()))
    ax = ax or new_axes(min(14.0, max(7.0, 0.2 * longest * len(tables))), 4.5)
    width = 0.8 / len(tables)
    for i, ((name, table), style) in enumerate(zip(tables.items(), styles(), strict=False)):
        at = np.arange(len(table)) + (i - (len(tables) - 1) / 2) * width
        _bars(ax, at, width, table, reports[name].threshold, name, style["color"])
    ax.axhline(0.0, color="0.5", linewidth=0.8)
    single, few = isinstance(report, CollapseReport), longest <= _MAX_NAMED_DIMS
    if single:
        ax.set_title(textwrap.fill(reports[""].verdict, 80), fontsize="medium", pad=22)  # above the legend
    if single and few:
        names = _names(tables[""])
        ax.set_xticks(range(longest), names, rotation=90 if max(map(len, names)) > 2 else 0)
    else:
        ranks = range(0, longest, 1 if few else longest // 10)
        ax.set_xticks(ranks, [str(rank + 1) for rank in ranks])
    ax.set(xlabel="latent dimension" if single and few else "latent dimension by rank", ylabel="KL (nats per datum)")
    ax.set_xlim(-0.7, longest - 0.3)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    legend_above(ax, columns=3 if single else 2)
    return ax


def active_units(reports: Mapping[str, CollapseReport], *, ax: Axes | None = None) -> Axes:
    """Plot how many latent dimensions every model uses, of how many it has (Burda et al. 2016, sec. 5.3).

    Args:
        reports: of :func:`~pyrovae.collapse`, by name.
        ax: where to draw.

    Raises:
        ValueError: no reports.

    Example:
        >>> import pyrovae, torch
        >>> vae = pyrovae.VAE((6,), 3, hidden=(8,))
        >>> ax = active_units({"untrained": pyrovae.collapse(vae, torch.rand(20, 6).round(), progress=False)})
        >>> [float(bar.get_width()) for bar in ax.patches][0]
        3.0
    """
    check_frame("", ax)
    require_instance(Mapping, reports=reports)
    reports = by_name(reports, "reports", CollapseReport)
    ax = ax or new_axes(7, 0.4 * len(reports) + 1.3)
    total = [int(r.sites["dimensions"].sum()) for r in reports.values()]
    active = [int(r.sites["active"].sum()) for r in reports.values()]
    y = np.arange(len(reports))
    ax.barh(y, total, 0.7, color=GREY, alpha=0.25, label="dimensions")
    ax.barh(y, active, 0.7, color=BLUE, label="active")
    for at, (of, report) in enumerate(zip(active, reports.values(), strict=True)):
        ax.text(of + 0.01 * max(total), at, f" {of}, {report.rate:.1f} nats", va="center", fontsize="small")
    ax.set_yticks(y, list(reports))
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.25 * max(total)), xlabel="latent dimensions (in figures: active ones, rate)")  # room for the text
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(ax)
    return ax


def aggregate_posterior(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    dims: Sequence[int] = (0, 1),
    num_samples: int = 1,
    seed: int | None = 0,
    ax: Axes | None = None,
) -> Axes:
    """Plot draws from the aggregate posterior q(z) = 1/N Σ q(z | x_n) over as many draws from the prior.

    Where they differ, samples of the model come from latents that its decoder was not trained on. A single dimension
    is drawn as histograms.

    Args:
        model: a :class:`~pyrovae.VAEModel` with a single, continuous latent site.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide.
        dims: the two latent dimensions, or the one, to show; a one-dimensional latent needs no choice.
        num_samples: draws per datum.
        seed: seed of the draws.
        ax: where to draw.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`.
        ValueError: bad data, several latent sites, a discrete one, dimensions that are not there.

    Example:
        >>> import pyrovae, torch
        >>> ax = aggregate_posterior(pyrovae.VAE((6,), 3, hidden=(8,)), torch.zeros(20, 6), dims=(0, 2))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('z[0]', 'z[2]')
    """
    check_frame("", ax)
    require_at_least(1, num_samples=num_samples)
    require_seed(seed=seed)
    q, p = _draws(model, x, covariates, num_samples, seed)
    chosen = as_dims((0,) if q.shape[1] == 1 else dims, q.shape[1], (1, 2))
    labels = f"q(z), {len(x)} data", "p(z)"
    if len(chosen) == 1:
        ax = ax or new_axes(7, 4.5)
        of_q, of_p = q[:, chosen[0]].numpy(), p[:, chosen[0]].numpy()
        edges = np.histogram_bin_edges(np.concatenate([of_q, of_p]), bins=50).tolist()
        ax.hist(of_p, edges, density=True, color=ORANGE, alpha=0.5, label=labels[1])
        ax.hist(of_q, edges, density=True, color=BLUE, histtype="step", linewidth=1.8, label=labels[0])
        ax.set_ylabel("density of the draws")
    else:
        ax = ax or new_axes(5.5, 5.5)
        size = min(16.0, max(3.0, 16_000 / len(q)))
        for z, color, label in ((p, ORANGE, labels[1]), (q, BLUE, labels[0])):
            across, up = z[:, list(chosen)].T.numpy()
            ax.scatter(across, up, s=size, color=color, alpha=0.5, linewidths=0, label=label, rasterized=True)
        ax.set_ylabel(f"z[{chosen[1]}]")
        ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel(f"z[{chosen[0]}]")
    legend_above(ax, markerscale=2)
    return ax


def _bars(ax: Axes, at: np.ndarray, width: float, table: pd.DataFrame, threshold: float, name: str, own: str) -> None:
    """Draw the bars of one report, in its own colour if it has a name; else colours tell active from inactive."""
    discrete = table["activity"].isna().to_numpy()
    active = table["active"].to_numpy(dtype=bool)
    kinds = (
        (f"active (activity > {threshold:g})", active, BLUE, 1.0),
        ("inactive", ~active & ~discrete, ORANGE, 0.4 if name else 1.0),
        ("discrete", discrete, GREY, 1.0),
    )
    for label, which, color, alpha in kinds:
        if which.any():
            label = f"{name}, {label}: {which.sum()}" if name else f"{label}: {which.sum()}"
            ax.bar(at[which], table["kl"][which], width, color=own if name else color, alpha=alpha, label=label)
    ax.errorbar(at, table["kl"], yerr=2.0 * table["kl_se"], fmt="none", ecolor="black", elinewidth=0.8)


def _names(table: pd.DataFrame) -> list[str]:
    """The names of latent dimensions, with their site where there are several."""
    one_site = table["site"].nunique() == 1
    return [str(d) if one_site else f"{site}[{d}]" for site, d in zip(table["site"], table["dim"], strict=True)]


def _draws(
    model: VAEModel, x: Any, covariates: tuple[Any, ...], num_samples: int, seed: int | None
) -> tuple[Tensor, Tensor]:
    """Draw as many latents from q(z) as from p(z), ``(N·S, Z)`` each, on the CPU."""
    data = as_evaluation_data(require_density("model: aggregate_posterior", model), x, covariates)
    step, like = max(1, _DRAWS_PER_BATCH // num_samples), model.placement
    q, p = [], []
    with seeded(seed):
        for start in range(0, len(data), step):
            x_part, *rest = data.part(slice(start, start + step), like)
            draws = model.encode(x_part, *rest, num_samples=num_samples, seed=None)
            q.append(single_site(draws).flatten(0, 1))
            p += [model.sample_latents(len(x_part), *rest) for _ in range(num_samples)]
    n = len(data) * num_samples
    return torch.cat(q).reshape(n, -1).cpu(), torch.cat(p).reshape(n, -1).cpu()
