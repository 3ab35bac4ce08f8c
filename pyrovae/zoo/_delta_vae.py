"""The δ-VAE, whose posterior keeps a committed distance from the prior."""

from collections.abc import Sequence
from typing import Any

from pyrovae._checks import lookup
from pyrovae.model import VAE
from pyrovae.posteriors import POSTERIORS, MeanFieldNormal


def delta_vae(event_shape: Sequence[int], latent_dim: int, *, delta: float, channels: int = 1, **options: Any) -> VAE:
    """Build a δ-VAE, in which KL(q(z | x) ‖ p(z)) is at least ``delta`` for every x, whatever the weights (Razavi et
    al. 2019, "Preventing posterior collapse with δ-VAEs", arXiv:1901.03416).

    The prior is :class:`~pyrovae.priors.AR1` and the posterior mean-field; the derivation is there. Nothing is
    constrained in training, so every objective, network and likelihood fits. The rate is spent, but nothing makes the
    decoder read what it buys: compare the mutual information (:func:`~pyrovae.collapse`).

    Args:
        event_shape: shape of one datum.
        latent_dim: Z.
        delta: δ, the committed rate in nats per datum.
        channels: chains that the latent vector is divided into; see :class:`~pyrovae.priors.AR1`.
        options: further arguments of :class:`~pyrovae.VAE`.

    Raises:
        ValueError: a δ that the chains do not reach; another prior; a posterior that does not factorise, for which no
            rate is committed.
    """
    posterior = options.pop("posterior", "mean_field")
    family = lookup(POSTERIORS, posterior, "posterior") if isinstance(posterior, str) else type(posterior)
    if not issubclass(family, MeanFieldNormal):
        raise ValueError(
            f"posterior must be 'mean_field'; got {family.__name__}. A posterior with correlated "
            f"dimensions can equal the AR(1) prior, so that no rate is committed; for that combination build "
            f"pv.VAE(prior='ar1', posterior=...)."
        )
    for name in ("prior", "prior_options"):
        if name in options:
            raise ValueError(f"{name} is set by delta_vae, from delta and channels; got {options[name]!r}.")
    prior_options = {"delta": delta, "channels": channels}
    return VAE(event_shape, latent_dim, posterior=posterior, prior="ar1", prior_options=prior_options, **options)
