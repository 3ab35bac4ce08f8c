"""The AR(1) prior of the δ-VAE, Razavi et al. (2019, arXiv:1901.03416)."""

import math

import torch

from pyrovae._checks import require_at_least, require_not_negative
from pyrovae.distributions import AR1 as AR1Process
from pyrovae.priors._base import PosteriorAt, Prior

# Least 1 - α²: float32 still resolves steps of √(1 - α²), a thousandth of what they are steps of.
_MIN_INNOVATION_VARIANCE = 1e-6


class AR1(Prior):
    """The AR(1) prior: C stationary Gaussian chains of length n = Z/C, at least δ nats from every factorised posterior.

    In each chain z₁ ~ N(0, 1), z_t = α z_{t-1} + √(1 - α²) ε_t; the latent vector holds one chain after the other.

    The committed rate: every z_t is correlated with its neighbours in the prior and independent of them in a mean-field
    posterior, so the two are never equal. For q = N(m, diag s²) and the prior's precision matrix Λ, which is
    tridiagonal with determinant (1 - α²)^-(n-1),

        KL(q ‖ p) = ½ [ Σ_t (Λ_tt s_t² - 1 - ln s_t²) + mᵀΛm + (n - 1) ln(1 - α²) ],

    convex in m and ln s, with its one minimum at m = 0, s_t² = 1/Λ_tt. Λ_tt is 1/(1 - α²) at both ends and
    (1 + α²)/(1 - α²) between them, so that

        KL(q ‖ p) ≥ ½ [ (n - 2) ln(1 + α²) - ln(1 - α²) ] = δ/C,

    the paper's bound. It needs no constraint on the posterior's scales: a posterior whose scales are kept in an
    interval, or shared between the z_t, can only lie farther away. It holds for every factorised q, as the normal is
    the nearest to p of those with its means and variances. It does not hold for posteriors with correlated dimensions
    (``full_rank``, flows), which may come as near to this prior as they like. The right-hand side rises from 0 with α,
    so that δ determines α.

    Args:
        latent_dim: Z.
        delta: δ, the least KL(q(z | x) ‖ p(z)) of a factorised posterior, in nats per datum, over all chains.
        channels: C, chains with the same share of δ and at least two dimensions each. More of them reach a larger δ.

    Attributes:
        alpha: α.

    Raises:
        ValueError: ``channels`` does not divide ``latent_dim`` into chains of at least two, or a δ that such chains do
            not reach with 1 - α² ≥ 1e-6, or δ ≤ 0.
    """

    zeros: torch.Tensor

    def __init__(self, latent_dim: int, *, delta: float = 1.0, channels: int = 1) -> None:
        super().__init__(latent_dim)
        require_at_least(1, channels=channels)
        length, rest = divmod(latent_dim, channels)
        if rest or length < 2:
            raise ValueError(
                f"channels must divide latent_dim into chains of at least 2; got latent_dim={latent_dim} and "
                f"channels={channels}. An independent dimension commits no rate."
            )
        require_not_negative(delta=delta)
        delta = float(delta)
        most = channels * minimum_rate(-math.log(_MIN_INNOVATION_VARIANCE), length)
        if not 0.0 < delta <= most:
            raise ValueError(
                f"delta must be in (0, {most:.4g}] nats for {channels} chain(s) of length {length}; got {delta}. "
                f"More channels or a larger latent_dim reach further."
            )
        self.delta, self.channels, self.length = delta, channels, length
        decay = _decay(self.delta / channels, length)
        self.alpha, self._scale = math.sqrt(-math.expm1(-decay)), math.exp(-0.5 * decay)
        self.register_buffer("zeros", torch.zeros(channels), persistent=False)

    def forward(self, posterior_at: PosteriorAt | None = None) -> AR1Process:
        # From Python's numbers, so that a model in float64 has them in float64.
        alpha, scale = (torch.full_like(self.zeros, value) for value in (self.alpha, self._scale))
        return AR1Process(alpha, self.length, scale=scale)

    def extra_repr(self) -> str:
        return f"delta={self.delta}, channels={self.channels}, length={self.length}, alpha={self.alpha:.4g}"


def minimum_rate(decay: float, length: int) -> float:
    """The least KL of one chain, ½ [(n - 2) ln(1 + α²) - ln(1 - α²)], in nats, by ``decay`` = -ln(1 - α²)."""
    return 0.5 * ((length - 2) * math.log1p(-math.expm1(-decay)) + decay)


def _decay(rate: float, length: int) -> float:
    """The decay at which the minimum rate, which rises with it, is ``rate``, by bisection."""
    low, high = 0.0, 2.0 * rate
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if minimum_rate(middle, length) < rate else (low, middle)
    return high
