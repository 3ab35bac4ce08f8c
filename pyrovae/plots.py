"""Pictures. Every function draws on an ``Axes`` (a new one by default) and returns it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae.training import Run


def curves(runs: Mapping[str, Run | pd.DataFrame], *, column: str = "val_loss", ax: Axes | None = None) -> Axes:
    """Training curves: a column of every run's history, as a bound in nats per datum, over epochs.

    Args:
        runs: runs of :func:`~pyrovae.fit`, or their histories, by name.
        column: ``"val_loss"`` or ``"loss"``; its negative is drawn.
        ax: where to draw.

    Example:
        >>> import pandas as pd
        >>> ax = curves({"mean-field": pd.DataFrame({"val_loss": [30.0, 25.0, 24.0]})})
        >>> ax.get_ylabel()
        'validation bound (nats)'
    """
    ax = ax or plt.subplots(figsize=(7, 4.5))[1]
    lowest: list[float] = []
    for name, run in runs.items():
        history = run.history if isinstance(run, Run) else run
        if column not in history:
            raise ValueError(f"{name!r} has no {column!r}: fit it with validation, or pass column='loss'.")
        bound = -history[column]
        ax.plot(bound.index + 1, bound, label=name, linewidth=1.5)
        lowest.append(float(np.nanquantile(bound, 0.1)))
    top = max(line.get_ydata().max() for line in ax.get_lines())  # type: ignore[union-attr]
    bottom = min(lowest)
    ax.set_ylim(bottom - 0.05 * (top - bottom), top + 0.08 * (top - bottom))
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{'validation' if column == 'val_loss' else 'training'} bound (nats)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize="small")
    return ax


def forest(
    comparison: pd.DataFrame, *, reference: str | None = None, interval: float = 1.96, ax: Axes | None = None
) -> Axes:
    """Paired differences of mean log p(x) to the reference, with confidence intervals.

    The thick bar is the Monte Carlo part of the interval, the thin one the whole.

    Args:
        comparison: table of :func:`~pyrovae.compare`.
        reference: the model differences were taken to; by default the row whose ``diff_se`` is 0.
        interval: half-width in standard errors; 1.96 for 95 %.
        ax: where to draw.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame(
        ...     {"diff": [0.4, 0.0], "diff_se": [0.1, 0.0], "diff_mc_se": [0.02, 0.0]}, index=["IAF", "mean-field"]
        ... )
        >>> [t.get_text() for t in forest(table).get_yticklabels()]
        ['IAF', 'mean-field']
    """
    ax = ax or plt.subplots(figsize=(7, 0.45 * len(comparison) + 1.5))[1]
    if reference is None:
        reference = str(comparison.index[comparison["diff_se"] == 0][0])
    y = np.arange(len(comparison))
    ax.axvline(0.0, color="0.5", linewidth=1)
    ax.errorbar(comparison["diff"], y, xerr=interval * comparison["diff_se"], fmt="none", ecolor="C0", elinewidth=1.5)
    ax.errorbar(comparison["diff"], y, xerr=interval * comparison["diff_mc_se"], fmt="none", ecolor="C0", elinewidth=4)
    at_reference = np.asarray(comparison.index == reference)
    ax.plot(comparison["diff"][~at_reference], y[~at_reference], "o", color="C0")
    ax.plot(comparison["diff"][at_reference], y[at_reference], "o", color="0.5", fillstyle="none")
    ax.set_yticks(y, [str(name) for name in comparison.index])
    ax.invert_yaxis()
    ax.set_xlabel(f"log p(x) minus that of {reference} (nats per datum)")
    ax.grid(axis="x", alpha=0.3)
    return ax


def images(
    x: Tensor,
    image_shape: Sequence[int],
    *,
    columns: int = 10,
    row_labels: Sequence[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A grid of grey images.

    Args:
        x: ``(N, *event_shape)`` with values in [0, 1], row by row.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        columns: images per row.
        row_labels: a label for each row.
        title: above the grid.
        ax: where to draw.

    Example:
        >>> import torch
        >>> images(torch.rand(20, 64), (1, 8, 8)).get_images()[0].get_array().shape
        (19, 91)
    """
    height, width = tuple(image_shape)[-2:]
    pictures = x.detach().cpu().float().reshape(-1, height, width).clamp(0, 1)
    rows = math.ceil(len(pictures) / columns)
    canvas = torch.ones(rows * (height + 1) + 1, columns * (width + 1) + 1)
    canvas[:] = 0.5
    for i, picture in enumerate(pictures):
        r, c = divmod(i, columns)
        top, left = r * (height + 1) + 1, c * (width + 1) + 1
        canvas[top : top + height, left : left + width] = picture
    ax = ax or plt.subplots(figsize=(0.7 * columns + 1.2, 0.75 * rows * height / width + 0.6))[1]
    ax.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([(r + 0.5) * (height + 1) for r in range(len(row_labels))], list(row_labels))
    ax.tick_params(length=0)
    ax.set_title(title)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def reconstructions(
    model: Any, x: Tensor, image_shape: Sequence[int], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Data above their reconstructions: the mean of p(x | z) at one draw z ~ q(z | x).

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``; one column each.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        title: above the grid.
        ax: where to draw.

    Example:
        >>> import pyrovae, torch
        >>> vae = pyrovae.VAE((64,), 2, hidden=(8,))
        >>> reconstructions(vae, torch.zeros(5, 64), (8, 8), title="untrained").get_title()
        'untrained'
    """
    pair = torch.cat([x.cpu(), model.reconstruct(x).cpu()])
    return images(pair, image_shape, columns=len(x), row_labels=("data", "decoded"), title=title, ax=ax)


def samples(
    model: Any, image_shape: Sequence[int], *, n: int = 20, seed: int = 0, title: str = "", ax: Axes | None = None
) -> Axes:
    """Means of p(x | z) at draws z ~ p(z), from a model with a single latent site.

    Args:
        model: a :class:`~pyrovae.VAE`.
        image_shape: ``(1, H, W)`` or ``(H, W)``.
        n: how many.
        seed: seed of the draws.
        title: above the grid.
        ax: where to draw.

    Example:
        >>> import pyrovae
        >>> samples(pyrovae.VAE((64,), 2, hidden=(8,)), (8, 8), title="untrained").get_title()
        'untrained'
    """
    return images(model.decode(model.sample_latents(n, seed=seed)), image_shape, title=title, ax=ax)
