"""Plot of a calibration: how far ranks are from uniform."""

from typing import Any

from matplotlib.axes import Axes

from pyrovae._checks import require_instance
from pyrovae.evaluation import Calibration
from pyrovae.plots._axes import BLUE, GREY, ORANGE, check_frame, legend_above, new_axes

_MOST_NAMED = 6


def calibration(report: Calibration, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Plot the empirical distribution functions of the ranks less the uniform one, and the band that each stays in as a
    whole with probability ``level``. A curve that starts above the band and ends below it is that of a guide too
    narrow; one that is all below, of draws that are too low.

    Args:
        report: of :func:`~pyrovae.calibration`.
        level: of the band, for one statistic.
        ax: where to draw.

    Example:
        >>> import torch
        >>> import pyrovae as pv
        >>> report = pv.calibration(pv.VAE((6,), 2, hidden=(8,)), num_data=20, num_draws=9, progress=False)
        >>> calibration(report).get_xlabel()
        "rank among the guide's draws, as a share"
    """
    require_instance(Calibration, report=report)
    check_frame("", ax)
    bands, off, what = report.bands(level), report.deviations(), report.tests()["what"]
    ax = ax or new_axes(6, 4)
    ax.fill_between(
        bands.index, bands["lower"], bands["upper"], color=GREY, alpha=0.3, linewidth=0, label=f"{level:.0%} band"
    )
    named = [name for name in what.index if what[name]][:_MOST_NAMED]
    for name in what.index:
        style: dict[str, Any] = {"color": ORANGE, "linewidth": 1.2} if what[name] else {"color": BLUE, "linewidth": 0.8}
        ax.plot(off.index, off[name], label=f"{name}: {what[name]}" if name in named else None, **style)
    ax.set_xlabel("rank among the guide's draws, as a share")
    ax.set_ylabel("share of data below, less uniform")
    legend_above(ax)
    return ax
