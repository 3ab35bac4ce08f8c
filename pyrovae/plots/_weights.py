"""Plots of importance weights: whether their tail lets log p̂(x) be believed."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.stats import genpareto
from torch import Tensor

from pyrovae._checks import as_real, require_instance
from pyrovae.evaluation import MarginalResult, khat_threshold
from pyrovae.evaluation.marginal._tail import pareto_tail, tail_length
from pyrovae.plots._axes import BLUE, FLAGGED, GREEN, GREY, check_frame, legend_above, new_axes

_NUM_BINS = 60


def log_weights(log_weight: Float[Tensor, "draws"] | Any, *, ax: Axes | None = None) -> Axes:
    """Plot a histogram of one datum's log-weights, with the generalised Pareto tail that k̂ is the shape of.

    The steps are what the fit expects in each bin above the threshold, up to the weight that half a draw in K exceeds.
    Where they run on far to the right of the last bar, weights are likely to be missing that would decide the sum.

    Args:
        log_weight: log-weights ``(K,)`` or ``(K, 1)`` in nats, as of :func:`pyrovae.evaluation.log_weights`.
        ax: where to draw.

    Raises:
        ValueError: another shape, fewer than two draws, weights that are NaN or +inf, or none above 0.

    Example:
        >>> import torch
        >>> ax = log_weights(torch.linspace(-5.0, 0.0, 1000))
        >>> int(sum(bar.get_height() for bar in ax.containers[0]))
        1000
    """
    check_frame("", ax)
    w = _one_datum(log_weight)
    k = len(w)
    m = min(tail_length(k), k - 1)
    largest = w.topk(m + 1).values
    khat, sigma = (float(value) for value in pareto_tail(largest.unsqueeze(0)))
    limit = khat_threshold(k)
    good = khat <= limit
    finite = w[w.isfinite()].numpy()
    top, threshold = float(largest[0]), float(largest[-1])

    ax = ax or new_axes(7, 4.5)
    zero = k - len(finite)
    label = f"{k} draws" + (f", {zero} of weight 0 not shown" if zero else "")
    # The threshold is an edge, so that bars and fit are counts of the same bins.
    start = threshold if math.isfinite(threshold) else float(finite.min())
    width = (top - float(finite.min())) / _NUM_BINS or 1.0
    # One bin more on either side, lest rounding lose the extremes.
    below, above = math.ceil((start - finite.min()) / width) + 1, math.ceil((top - start) / width) + 1
    ax.hist(finite, (start + width * np.arange(-below, above + 1)).tolist(), color=BLUE, alpha=0.55, label=label)
    if math.isfinite(sigma):
        fitted = genpareto(khat, scale=sigma)  # of excess weights, in units of the largest one
        end = math.log(math.exp(threshold - top) + fitted.isf(0.5 / m)) + top
        edges = start + width * np.arange(max(above, math.ceil((end - start) / width)) + 1)
        exceeding = m * fitted.sf(np.exp(edges - top) - math.exp(threshold - top))
        color = GREEN if good else FLAGGED
        ax.stairs(-np.diff(exceeding), edges, baseline=None, color=color, linewidth=2, label="generalised Pareto fit")
    if math.isfinite(threshold):
        ax.axvline(threshold, color="0.3", linestyle="--", linewidth=1, label=f"threshold of the {m} largest")
    log_px = float(w.logsumexp(0)) - math.log(k)
    ax.axvline(log_px, color="black", linewidth=1.2, label=f"log p̂(x) = {log_px:.2f}")
    ax.set(yscale="log", xlabel="log-weight (nats)", ylabel="draws")
    ax.set_ylim(bottom=0.1)
    ax.legend(frameon=False, fontsize="small", loc="best")
    ax.set_title(_title(khat, limit, k), color="black" if good else FLAGGED, fontsize="medium")
    return ax


def khats(result: MarginalResult, *, ax: Axes | None = None) -> Axes:
    """Plot k̂ of every datum, in the order of the data, with the threshold of K draws.

    Data that are unreliable for whatever reason are marked. Values that are not finite stand at the edges: infinite or
    undefined k̂ above, -inf (weights all equal in the tail) below.

    Args:
        result: of :func:`~pyrovae.log_marginal`.
        ax: where to draw.

    Example:
        >>> import pyrovae, torch
        >>> vae, x = pyrovae.VAE((6,), 2, hidden=(8,)), torch.zeros(5, 6)
        >>> ax = khats(pyrovae.log_marginal(vae, x, num_samples=100, progress=False))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('datum', 'Pareto k̂')
    """
    check_frame("", ax)
    require_instance(MarginalResult, result=result)
    khat, reliable = result.pointwise["khat"].to_numpy(), result.pointwise["reliable"].to_numpy(dtype=bool)
    limit = result.khat_threshold
    shown = [*khat[np.isfinite(khat)], *([limit] if math.isfinite(limit) else [])] or [0.0]
    low, high = min(shown), max(shown)
    pad = 0.08 * (high - low) or 0.1
    ax = ax or new_axes(7, 4.5)
    kinds = (
        ("", np.isfinite(khat), khat, "o"),
        (", k̂ = +∞", khat == np.inf, high + pad, "^"),
        (", k̂ = −∞", khat == -np.inf, low - pad, "v"),
        (", k̂ undefined", np.isnan(khat), high + pad, "X"),
    )
    for verdict, which, color in (("reliable", reliable, BLUE), ("unreliable", ~reliable, FLAGGED)):
        for suffix, kind, y, marker in kinds:
            data = np.flatnonzero(which & kind)
            if len(data):
                heights = np.broadcast_to(y, khat.shape)[data]
                size = 14 if marker == "o" else 40
                label = f"{verdict}{suffix} ({len(data)})"
                ax.scatter(data, heights, s=size, color=color, marker=marker, alpha=0.8, linewidths=0, label=label)
    if math.isfinite(limit):
        label = f"threshold {limit:.2f} of {result.num_samples} draws"
        ax.axhline(limit, color="0.3", linestyle="--", linewidth=1, label=label)
    ax.axhline(0.5, color=GREY, linestyle=":", linewidth=1, label="½: infinite variance above")
    ax.set_ylim(min(low, 0.5) - 2 * pad, max(high, 0.5) + 2 * pad)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="datum", ylabel="Pareto k̂")
    ax.grid(axis="y", alpha=0.3)
    legend_above(ax)
    return ax


def _one_datum(log_weight: Any) -> Float[Tensor, "draws"]:
    """The log-weights ``(K,)`` of one datum, checked, in float64 on the CPU."""
    w = as_real(log_weight, "log_weight").detach().cpu().double()
    w = w.squeeze(1) if w.dim() == 2 else w  # of one datum
    if w.dim() != 1:
        raise ValueError(
            f"log_weight has shape {tuple(w.shape)}; the weights (K,) of one datum are needed. Pass log_weight[:, i]."
        )
    if len(w) < 2:
        raise ValueError(f"log_weight has {len(w)} draw(s); at least 2 are needed.")
    if bad := int((w.isnan() | (w == math.inf)).sum()):
        raise ValueError(f"log_weight holds {bad} value(s) that are NaN or +inf; find the draws where the model fails.")
    if not bool(w.isfinite().any()):
        raise ValueError("log_weight is -inf for every draw: no draw has a weight above 0 to show.")
    return w


def _title(khat: float, limit: float, k: int) -> str:
    """The title: k̂, and whether it is over its threshold."""
    if math.isnan(khat):
        return f"k̂ undefined: {k} draws are too few for a fit"
    value = f"k̂ = {khat:.2f}".replace("-", "−").replace("inf", "∞")
    return f"{value} ≤ {limit:.2f}" if khat <= limit else f"{value} > {limit:.2f}: {k} draws do not suffice"
