"""Plots of codebooks: which codes are in use."""

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae._checks import require_tensors
from pyrovae.networks import perplexity
from pyrovae.plots._axes import BLUE, ORANGE, VERMILION, check_frame, new_axes


def codebook_usage(counts: Int[Tensor, "codes"], *, title: str = "", ax: Axes | None = None) -> Axes:
    """Plot how often each code occurs, most frequent first, beside equal use of all.

    Perplexity exp(-Σ p log p) is the number of equally frequent codes that would be as hard to guess.

    Args:
        counts: how often each code occurs, ``(K,)``: ``vqvae.code_counts(x)``, or
            :func:`pyrovae.networks.code_counts` of any codes.
        title: above the picture.
        ax: where to draw.

    Raises:
        ValueError: counts of another shape, negative or all zero.

    Example:
        >>> import torch
        >>> ax = codebook_usage(torch.tensor([5, 0, 10, 5]), title="four codes")
        >>> [round(float(bar.get_height()), 2) for bar in ax.patches]
        [0.5, 0.25, 0.25, 0.0]
    """
    check_frame(title, ax)
    require_tensors(integers=True, counts=counts)
    if counts.dim() != 1:
        raise ValueError(f"counts must be one number for each code, (K,); got shape {tuple(counts.shape)}.")
    effective = perplexity(counts)
    share = np.sort(counts.detach().cpu().double().numpy())[::-1] / float(counts.sum())
    k, used = len(share), int((share > 0).sum())
    ax = ax or new_axes(7, 4)
    label = f"{used} of {k} codes in use ({used / k:.0%})"
    ax.bar(np.arange(1, k + 1), share, width=1.0, color=BLUE, edgecolor="white", linewidth=30.0 / k, label=label)
    ax.axhline(1.0 / k, color=ORANGE, linestyle="--", label="all equally often")
    at = effective + 0.5  # so many bars lie to its left
    ax.plot([at, at], [0.0, share[0]], color=VERMILION, linestyle=":", label=f"perplexity {effective:.1f}")
    ax.set(xlim=(0.5, k + 0.5), ylim=(0.0, 1.35 * share[0]))  # room for the legend
    ax.set(xlabel="code, by frequency", ylabel="share of all positions", title=title)
    ax.legend(frameon=False, fontsize="small", loc="upper right")
    return ax
