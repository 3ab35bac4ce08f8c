"""Plots of training."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrovae._checks import require_instance
from pyrovae.plots._axes import check_frame, new_axes, styles
from pyrovae.plots._inputs import by_name
from pyrovae.training import FitResult

_COLUMN_LABELS = {
    "val_loss": "validation bound (nats)",
    "loss": "training bound (nats)",
    "rate": "rate (nats)",
    "active_units": "active latent dimensions",
}


def curves(runs: Mapping[str, FitResult | pd.DataFrame], *, column: str = "val_loss", ax: Axes | None = None) -> Axes:
    """Plot training curves: a column of every run's history over epochs. Losses are drawn as bounds, in nats per datum.

    Args:
        runs: runs of :func:`~pyrovae.fit`, or their histories, by name.
        column: ``"val_loss"`` or ``"loss"``, whose negative is drawn; or another one, such as the ``"rate"`` or
            ``"active_units"`` of a :class:`~pyrovae.CollapseMonitor`, which is drawn as it is.
        ax: where to draw.

    Raises:
        ValueError: a run without that column.

    Example:
        >>> import pandas as pd
        >>> ax = curves({"mean-field": pd.DataFrame({"val_loss": [30.0, 25.0, 24.0]})})
        >>> ax.get_ylabel()
        'validation bound (nats)'
    """
    check_frame("", ax)
    require_instance(str, column=column)
    runs = by_name(runs, "runs")
    for name, run in runs.items():
        require_instance(FitResult | pd.DataFrame, **{f"runs[{name!r}]": run})
        if column not in (run.history if isinstance(run, FitResult) else run):
            fix = (
                "fit it with validation, or pass column='loss'" if column == "val_loss" else "let a callback record it"
            )
            raise ValueError(f"runs: {name!r} has no {column!r}: {fix}.")
    ax = ax or new_axes(7, 4.5)
    loss = column in ("val_loss", "loss")
    lowest: list[float] = []
    for (name, run), style in zip(runs.items(), styles(), strict=False):
        history = run.history if isinstance(run, FitResult) else run
        values = (-history[column] if loss else history[column]).dropna()
        ax.plot(values.index + 1, values, label=name, linewidth=1.5, **style)
        lowest.append(float(np.nanquantile(values, 0.1)))
    if loss:  # the first epochs would squeeze the rest
        top = max(line.get_ydata().max() for line in ax.get_lines())  # type: ignore[union-attr]
        bottom = min(lowest)
        ax.set_ylim(bottom - 0.05 * (top - bottom), top + 0.08 * (top - bottom))
    ax.set(xlabel="epoch", ylabel=_COLUMN_LABELS.get(column, column))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize="small")
    return ax
