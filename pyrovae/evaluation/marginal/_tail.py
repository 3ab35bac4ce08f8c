"""The Pareto shape of the largest importance weights: whether their variance can be trusted."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_at_least, require_tensors


def tail_length(num_samples: int) -> int:
    """How many of the largest weights the fit uses: min(K/5, 3√K) (Vehtari et al. 2024, arXiv:1507.02646)."""
    return math.ceil(min(0.2 * num_samples, 3.0 * math.sqrt(num_samples)))


def khat_threshold(num_samples: int) -> float:
    """k̂ above min(1 - 1/log10 K, 0.7) says that K draws do not suffice (Vehtari et al. 2024, sec. 3.2.4)."""
    require_at_least(1, num_samples=num_samples)
    return min(1.0 - 1.0 / math.log10(num_samples), 0.7) if num_samples > 10 else -math.inf


def pareto_khat(largest: Float[Tensor, "batch tail_and_threshold"]) -> Float[Tensor, "batch"]:
    """Shape of a generalised Pareto distribution fitted to the largest weights of each row.

    The fit is the posterior-mean approximation of Zhang & Stephens (2009, Technometrics 51), vectorised over
    rows, with the weakly informative prior that Vehtari et al. (2024) put on the shape. It uses the tail
    alone, so the other weights need not be kept.

    Args:
        largest: log-weights in descending order, the last column being the threshold: the
            ``tail_length(K) + 1`` largest of K.

    Returns:
        k̂ for every row. It is NaN with fewer than five tail weights, any NaN weight or none above 0, -inf where the
        whole tail is equal (weights bounded by the threshold), +inf where ties in the tail rule a fit out.
    """
    require_tensors(largest=largest)
    if largest.dim() != 2 or not largest.shape[1]:
        raise ValueError(f"largest must have shape (data, log-weights); got {tuple(largest.shape)}.")
    return pareto_tail(largest)[0]


def pareto_tail(
    largest: Float[Tensor, "batch tail_and_threshold"],
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """The whole fit of :func:`pareto_khat`.

    Args:
        largest: as in :func:`pareto_khat`.

    Returns:
        k̂, and the scale σ of the weights' excess over the threshold, both divided by the largest weight. σ goes with
        the shape before the prior drew on it, as in ArviZ, and is NaN where k̂ is not finite.
    """
    w = largest.to(torch.float64)
    n = w.shape[1] - 1
    if n < 5:
        nothing = torch.full_like(w[:, 0], math.nan)
        return nothing, nothing
    # Weights relative to the largest, so that nothing overflows; a threshold that underflows is 0.
    excess = (w[:, :-1] - w[:, :1]).exp() - (w[:, -1:] - w[:, :1]).exp()
    excess = excess.flip(1)  # ascending
    largest_excess = excess[:, -1]
    quartile = excess[:, max(int(n / 4 + 0.5), 1) - 1]

    # Candidates for b = -k/σ, with their profile likelihoods (Zhang & Stephens, eqs. 3 and 4).
    m = 30 + int(math.sqrt(n))
    grid = 1.0 - torch.sqrt(m / (torch.arange(1, m + 1, dtype=w.dtype, device=w.device) - 0.5))
    b = grid / (3.0 * quartile.unsqueeze(1)) + 1.0 / largest_excess.unsqueeze(1)
    shape = torch.log1p(-b.unsqueeze(2) * excess.unsqueeze(1)).mean(2)
    profile = n * (torch.log(-b / shape) - shape - 1.0)
    mean_b = (profile.softmax(1) * b).sum(1)
    khat = torch.log1p(-mean_b.unsqueeze(1) * excess).mean(1)
    sigma = -khat / mean_b
    khat = (n * khat + 5.0) / (n + 10.0)

    khat = torch.where(quartile > 0, khat, torch.inf)
    khat = torch.where(largest_excess == 0, -torch.inf, khat)
    khat = torch.where(w.isnan().any(1) | (w[:, 0] == -math.inf), torch.nan, khat)
    return khat, torch.where(khat.isfinite(), sigma, torch.nan)
