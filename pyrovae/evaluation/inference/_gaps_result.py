"""The table of gaps, and what speaks against it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyrovae.evaluation._result import Result
from pyrovae.evaluation.marginal._tail import khat_threshold
from pyrovae.evaluation.marginal._verdict import TOLERATED, combined_se, se_over_data

FAMILIES = ("own", "mean_field")
NUM_PROPOSED = 5000  # draws from all proposals together that log p(x) is estimated with
_TRIFLE = 2e-4  # nats
_SURE = 4.0  # standard errors
_ROUNDING = 1e-6  # of a float32
_EQUAL = 1e-3  # standard error up to which weights have no tail to judge
_PLATEAU = 0.05  # nats that the second cycle of a fit that has converged may gain


@dataclass(frozen=True, kw_only=True)
class GapsResult(Result):
    """log p(x), the bounds L[q] and L[q*], and the gaps between them, in nats.

    Attributes:
        pointwise: one row per datum. ``log_px``, with ``log_px_bias``, how far its expectation lies from log p(x)
            (below, by half the squared error, as long as that is small), and ``log_px_khat``, the Pareto shape of the
            importance weights where it was estimated here; ``elbo`` = L[q] of the guide; ``own`` and
            ``mean_field`` = L[q*] of the best q* found in the guide's own family and among factorised normals;
            ``approximation`` = log_px - own; ``amortization`` = own - elbo; ``mean_field_approximation`` = log_px -
            mean_field; ``own_gain`` and ``mean_field_gain``, what L[q*] gained in the second cycle of the steps; each
            with its Monte Carlo standard error, ``_se``. ``own_converged`` and ``mean_field_converged``: whether that
            change and two of its errors are under 0.05 nats, and it is no gain beyond four errors. Columns of families
            not asked for are missing.
        steps: optimisation steps for each q*.
        num_samples: draws that each L was evaluated with.
        proposal: what log p(x) was estimated from: the mixture of the named ones, ``elbo`` being the guide and
            ``wide`` a factorised normal with wider scales; ``"ais"``; or ``"given"``.
        provenance: the data, the model and the seed.
    """

    pointwise: pd.DataFrame
    steps: int
    num_samples: int
    proposal: str

    @property
    def converged(self) -> bool:
        """Whether every datum's q* has, of each family."""
        return bool(self.pointwise.filter(regex="_converged$").all(axis=None))

    def summary(self) -> pd.Series:
        """Means over data; ``_se`` is the standard error over data, which contains what Monte Carlo noise alone makes,
        ``_mc_se``. A datum that is not finite makes the mean so.
        """
        p = self.pointwise
        row: dict[str, Any] = {"N": len(p)}
        for name in (str(c) for c in p if not str(c).endswith("_se")):
            row[name] = p[name].mean(skipna=False)
            if f"{name}_se" in p:
                row[f"{name}_se"] = se_over_data(p[name])
                row[f"{name}_mc_se"] = combined_se(p[f"{name}_se"])
        return pd.Series(row, name=self.provenance.model_name)


def gaps_table(columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The columns in order, with the differences between them."""
    order = [c for c in ("log_px", "elbo", "own", "mean_field") if c in columns]
    table = pd.DataFrame({name: columns[name] for c in order for name in (c, f"{c}_se")})
    table.insert(2, "log_px_bias", -0.5 * table["log_px_se"] ** 2)
    if "log_px_khat" in columns:
        table.insert(3, "log_px_khat", columns["log_px_khat"])
    for name, upper, lower in (
        ("approximation", "log_px", "own"),
        ("amortization", "own", "elbo"),
        ("mean_field_approximation", "log_px", "mean_field"),
    ):
        if lower in columns and upper in columns:
            with np.errstate(invalid="ignore"):  # both may be -inf
                table[name] = columns[upper] - columns[lower]
            table[f"{name}_se"] = np.hypot(columns[f"{upper}_se"], columns[f"{lower}_se"])
    for family in FAMILIES:
        if family in columns:
            for name in (f"{family}_gain", f"{family}_gain_se"):
                table[name] = columns[name]
            gain, se = columns[f"{family}_gain"], columns[f"{family}_gain_se"]
            # A gain is significant, however short the steps, where the gradient is large beside its noise.
            table[f"{family}_converged"] = (abs(gain) + 2.0 * se <= _PLATEAU) & (gain <= _SURE * se + _TRIFLE)
    return table


def warn(table: pd.DataFrame) -> None:
    """Say where the table of :func:`gaps_table` cannot be right."""
    _warn_if_heavy(table)
    _warn_if_below(table)
    _warn_unless_converged(table)
    _warn_if_short(table)


def _warn_if_heavy(table: pd.DataFrame) -> None:
    """Where few weights make up the estimate of log p(x), its standard error says too little."""
    if "log_px_khat" in table:
        heavy = (table["log_px_khat"] > khat_threshold(NUM_PROPOSED)) & (table["log_px_se"] > _EQUAL)
        if heavy.mean() > TOLERATED:
            warnings.warn(
                f"log p(x) is not reliable for {heavy.sum()} of {len(table)} data: the importance weights' k̂ is over "
                f"{khat_threshold(NUM_PROPOSED):.2f}, so that it is probably too low and its standard error too small. "
                f"Pass log_px='ais'.",
                stacklevel=4,
            )


def _warn_if_below(table: pd.DataFrame) -> None:
    """log p(x) - L is a divergence: where it is negative, the estimate of log p(x) is too low."""
    for name in ("elbo", *FAMILIES):
        if name in table:
            below = table[name] - table["log_px"]
            se = pd.Series(np.hypot(table[f"{name}_se"], table["log_px_se"]))
            slack = _ROUNDING * table[name].abs()
            count = int((below > _SURE * se + slack).sum())
            if count or below.mean() > _SURE * combined_se(se) + slack.mean():
                warnings.warn(
                    f"log p(x) is estimated below L of {name!r} by more than {_SURE:.0f} standard errors for {count} "
                    f"of {len(table)} data, and by {below.mean():.3g} nats in the mean over all. A gap cannot be "
                    f"negative: the estimate of log p(x) is too low. Pass log_px='ais', or a tighter one of your own.",
                    stacklevel=4,
                )


def _warn_unless_converged(table: pd.DataFrame) -> None:
    """An optimum is one where more steps gain nothing."""
    for name in FAMILIES:
        if name in table and not table[f"{name}_converged"].all():
            gain = table[f"{name}_gain"]
            warnings.warn(
                f"q* of {name!r} has not converged, or cannot be shown to have, for "
                f"{(~table[f'{name}_converged']).sum()} of {len(table)} data: in the second cycle of the steps L[q*] "
                f"changed by {gain.mean():.3g} nats in the mean, and by {gain.min():.3g} to {gain.max():.3g}. The "
                f"approximation gap is overstated: take more steps, or another learning_rate.",
                stacklevel=4,
            )


def _warn_if_short(table: pd.DataFrame) -> None:
    """An optimum that the guide itself, or a simpler family, surpasses was not found."""
    for other in ("elbo", "mean_field"):
        if "own" in table and other in table:
            with np.errstate(invalid="ignore"):  # both may be -inf
                short = table[other].mean() - table["own"].mean()
            if short > 4.0 * combined_se(pd.Series(np.hypot(table["own_se"], table[f"{other}_se"]))) + 0.01:
                warnings.warn(
                    f"L[q*] of the own family ends {short:.3g} nats below {other}: its optimum was not found. Take "
                    f"more steps or another learning_rate; the approximation gap is overstated by at least that.",
                    stacklevel=4,
                )
