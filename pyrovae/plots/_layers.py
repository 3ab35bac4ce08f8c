"""Plots of several latent sites: what each of them decides, and what it carries."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from pyrovae._checks import require_at_least, require_instance
from pyrovae._compat.torch import own_settings
from pyrovae.evaluation import CollapseReport
from pyrovae.model import VAEModel
from pyrovae.plots._axes import check_frame, legend_above, new_axes, styles
from pyrovae.plots._images import strips
from pyrovae.plots._inputs import as_picture, by_name


@own_settings()
def layer_samples(
    model: Any, image_shape: Sequence[int], *, n: int = 10, seed: int = 0, title: str = "", ax: Axes | None = None
) -> Axes:
    """Plot what every latent site decides: means of p(x | z) with some sites held at one draw and the others drawn
    anew.

    The first row holds nothing. Each further row holds one site more, in the order in which the model draws them (the
    top layers of a hierarchy come first), so a row shows what the sites it does not hold still decide. The first column
    is the draw itself.

    Args:
        model: a :class:`~pyrovae.VAEModel` with several latent sites, in no plate but that of the data.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        n: images per row, the draw included.
        seed: seed of the draws that are held.
        title: above the grid.
        ax: where to draw.

    Raises:
        ValueError: a model with a single latent site, ``n`` under 2.

    Example:
        >>> import pyrovae
        >>> ladder = pyrovae.zoo.LadderVAE((64,), (4, 2), hidden=(8,))
        >>> [label.get_text() for label in layer_samples(ladder, (8, 8)).get_yticklabels()]
        ['all drawn', 'z2 held']
    """
    check_frame(title, ax)
    as_picture(image_shape)
    require_at_least(2, n=n)
    require_instance(VAEModel, model=model)
    draws = model.sample_latents(n, seed=seed)
    if not isinstance(draws, dict):
        raise ValueError("layer_samples shows what several latent sites decide; this model has one. Use samples.")
    first, held = model.decode(draws), {}
    rows = {"all drawn": first}
    for site, z in list(draws.items())[:-1]:
        held[site] = z[:1].expand_as(z)
        rows[("… " if len(held) > 1 else "") + f"{site} held"] = torch.cat([first[:1], model.decode(held)[1:]])
    return strips(rows, image_shape, title=title, ax=ax)


def kl_per_site(report: CollapseReport | Mapping[str, CollapseReport], *, ax: Axes | None = None) -> Axes:
    """Plot every latent site's share of the rate, averaged over data, with ± 2 standard errors, and its active
    dimensions.

    Args:
        report: of :func:`~pyrovae.collapse`; or several by name, side by side. Sites of one name stand together.
        ax: where to draw.

    Raises:
        ValueError: no reports.

    Example:
        >>> import pyrovae, torch
        >>> ladder = pyrovae.zoo.LadderVAE((6,), (4, 2), hidden=(8,))
        >>> ax = kl_per_site(pyrovae.collapse(ladder, torch.rand(20, 6).round(), progress=False))
        >>> [label.get_text() for label in ax.get_xticklabels()], ax.get_ylabel()
        (['z2', 'z1'], 'KL (nats per datum)')
    """
    check_frame("", ax)
    tables: dict[str, pd.DataFrame] = {n: r.sites for n, r in by_name(report, "report", CollapseReport).items()}
    longest = max(tables.values(), key=len)  # whose order is taken; others' own come behind
    sites = list(dict.fromkeys(site for table in (longest, *tables.values()) for site in table.index))
    width = 0.8 / len(tables)
    ax = ax or new_axes(min(14.0, max(5.0, 0.8 * len(sites) * len(tables))), 4.5)
    for i, ((name, table), style) in enumerate(zip(tables.items(), styles(), strict=False)):
        at = np.array([sites.index(site) for site in table.index]) + (i - (len(tables) - 1) / 2) * width
        errors: dict[str, Any] = {"yerr": 2.0 * table["kl_se"], "error_kw": {"elinewidth": 0.8}}
        bars = ax.bar(at, table["kl"], width, color=style["color"], label=name or None, **errors)
        counts = [f"{a}/{d}" if d else "" for a, d in zip(table["active"], table["dimensions"], strict=True)]
        ax.bar_label(bars, counts, padding=2, fontsize="x-small")
    ax.axhline(0.0, color="0.5", linewidth=0.8)
    ax.margins(y=0.12)
    ax.set_xticks(range(len(sites)), sites)
    ax.set(xlabel="latent site; above the bars: active dimensions of all", ylabel="KL (nats per datum)")
    ax.set_xlim(-0.6, len(sites) - 0.4)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    if not isinstance(report, CollapseReport):
        legend_above(ax, columns=min(4, len(tables)))
    return ax
