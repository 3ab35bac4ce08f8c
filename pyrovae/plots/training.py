"""Training."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pyrovae.plots._axes import new_axes, styles
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
    ax = ax or new_axes(7, 4.5)
    lowest: list[float] = []
    for (name, run), style in zip(runs.items(), styles(), strict=False):
        history = run.history if isinstance(run, Run) else run
        if column not in history:
            raise ValueError(f"{name!r} has no {column!r}: fit it with validation, or pass column='loss'.")
        bound = -history[column]
        ax.plot(bound.index + 1, bound, label=name, linewidth=1.5, **style)
        lowest.append(float(np.nanquantile(bound, 0.1)))
    top = max(line.get_ydata().max() for line in ax.get_lines())  # type: ignore[union-attr]
    bottom = min(lowest)
    ax.set_ylim(bottom - 0.05 * (top - bottom), top + 0.08 * (top - bottom))
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{'validation' if column == 'val_loss' else 'training'} bound (nats)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize="small")
    return ax
