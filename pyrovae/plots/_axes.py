"""Axes, legends and colours that all plots share."""

from collections.abc import Iterator
from itertools import cycle, product
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from pyrovae._checks import require_instance

# Okabe & Ito (2008), without the yellow, which white paper swallows.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "#000000")
GREY = "#999999"
FLAGGED = VERMILION  # what should not be relied on


def check_frame(title: Any, ax: Any) -> None:
    """Raise a ``TypeError`` unless these are a title and axes, or ``None``."""
    require_instance(str, title=title)
    require_instance(Axes | None, ax=ax)


def new_axes(width: float, height: float) -> Axes:
    """Make the axes of a new figure, of a size in inches, whose labels all fit."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def legend_above(ax: Axes, columns: int = 2, **options: Any) -> None:
    """Put a small legend above the axes, where it hides nothing."""
    ax.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, **options)


def styles() -> Iterator[dict[str, Any]]:
    """Line styles without end: every colour, then the same with other dashes."""
    return cycle({"color": color, "linestyle": dashes} for dashes, color in product(("-", "--", ":", "-."), PALETTE))
