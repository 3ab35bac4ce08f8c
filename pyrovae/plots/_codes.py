"""Plots of codes: where an encoder puts the data."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae._checks import as_data, as_tensor
from pyrovae.plots._axes import check_frame, new_axes
from pyrovae.plots._inputs import as_dims


def codes(
    code: Float[Tensor, "data code"] | Any,
    labels: Int[Tensor, "data"] | Any,
    *,
    dims: tuple[int, int] = (0, 1),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Plot two dimensions of codes, each datum as the number of its class, so that no legend is needed.

    Args:
        code: codes or latents ``(N, Z)``, such as ``model.transform(x)`` or ``model.encode(x)``.
        labels: class of each datum ``(N,)``.
        dims: the two dimensions to show.
        title: above the axes.
        ax: where to draw.

    Raises:
        ValueError: labels of another length, dimensions that are not there.

    Example:
        >>> import torch
        >>> ax = codes(torch.randn(20, 3), torch.arange(20) % 10, dims=(0, 2))
        >>> ax.get_ylabel(), len(ax.collections)
        ('code[2]', 10)
    """
    check_frame(title, ax)
    points = as_data(code, "code", dtype=torch.float32).detach().cpu().float().numpy()
    names = as_tensor(labels, "labels").cpu().numpy()
    if names.ndim != 1 or names.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers (N,); got {names.dtype} of shape {names.shape}.")
    if points.ndim != 2 or len(points) != len(names):
        raise ValueError(f"code must be (N, Z) with N labels; got {points.shape} and {len(names)} labels.")
    across, up = as_dims(dims, points.shape[1], (2,))
    ax = ax or new_axes(5.5, 5.5)
    classes = np.unique(names)
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for i, name in enumerate(classes):
        of = points[names == name]
        color = palette(i % palette.N)
        ax.scatter(of[:, across], of[:, up], s=28, color=color, marker=f"${name}$", linewidths=0.2, rasterized=True)
    ax.set(xlabel=f"code[{across}]", ylabel=f"code[{up}]", title=title)
    return ax
