"""The β-VAE's networks; its objectives are ``pv.ELBO(beta=...)``, ``pv.CapacityELBO`` and ``pv.BetaTCVAE``."""

from collections.abc import Sequence
from typing import Any

from pyrovae.likelihoods import Likelihood
from pyrovae.model import VAE


def beta_vae(
    event_shape: Sequence[int],
    latent_dim: int = 10,
    *,
    likelihood: str | Likelihood = "bernoulli",
    likelihood_options: dict[str, Any] | None = None,
) -> VAE:
    """Build the VAE of the disentanglement papers (Burgess et al. 2018, arXiv:1804.03599; Locatello et al. 2019,
    arXiv:1811.12359): strided convolutions, two dense layers of 256, ten latents, mean-field posterior, normal prior.

    Args:
        event_shape: ``(C, H, W)`` with even sides: images loaded with ``flatten=False``.
        latent_dim: Z.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, or a :class:`~pyrovae.likelihoods.Likelihood`.
        likelihood_options: options of a likelihood given by name.

    Raises:
        ValueError: another shape, an unknown likelihood, options that it does not have.
    """
    return VAE(
        event_shape,
        latent_dim,
        network="strided_conv",
        hidden=(256,),
        likelihood=likelihood,
        likelihood_options=likelihood_options,
    )
