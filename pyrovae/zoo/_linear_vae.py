"""The linear VAE, whose optimum is probabilistic PCA."""

from collections.abc import Sequence
from math import prod
from typing import Literal

from pyrovae._checks import as_sizes, require_at_least
from pyrovae.model import VAE


def linear_vae(event_shape: Sequence[int], latent_dim: int, *, scale: float | Literal["shared"] = "shared") -> VAE:
    """Build the linear VAE: z ~ N(0, I), x ~ N(W z + b, σ² I), q(z|x) = N(V x + c, diag s²) (Lucas et al. 2019,
    arXiv:1911.02469, eq. 6).

    Its ELBO has no local maxima beside the global ones, which are those of probabilistic PCA: there the ELBO equals
    log p(x), W has orthogonal columns, and the active latents are those whose eigenvalue of the data's covariance is
    over σ². :meth:`pyrovae.testing.LinearGaussian.maximum_likelihood` is that optimum in closed form.

    Args:
        event_shape: shape of one datum.
        latent_dim: Z.
        scale: σ: a number, or ``"shared"`` to learn it.

    Raises:
        ValueError: σ is to be learnt and ``latent_dim`` is not under the datum's size D: the likelihood is unbounded.

    Example:
        >>> linear_vae((64,), 8).decoder
        MLP(
          (0): Linear(in_features=8, out_features=64, bias=True)
        )
    """
    require_at_least(1, latent_dim=latent_dim)
    size = prod(as_sizes(event_shape, "event_shape"))
    if isinstance(scale, str) and scale == "shared" and latent_dim >= size:
        raise ValueError(
            f"latent_dim must be under {size}, the size of a datum, or the likelihood grows without bound as the "
            f"learnt σ goes to 0; got {latent_dim}. Take fewer latents, or give scale a number."
        )
    return VAE(
        event_shape,
        latent_dim,
        hidden=(),
        likelihood="gaussian",
        likelihood_options={"scale": scale},
        posterior_options={"scale": "constant"},
    )
