"""``VAE``: a VAE composed of parts."""

from collections.abc import Sequence
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import at_least, lookup
from pyrovae.likelihoods import LIKELIHOODS, Likelihood
from pyrovae.model._base import VAEModel
from pyrovae.networks import MLP, ConvDecoder, ConvEncoder, GatedMLP, StridedDecoder, StridedEncoder
from pyrovae.networks._conv import as_image_shape
from pyrovae.posteriors import POSTERIORS
from pyrovae.priors import PRIORS, Prior

_MLPS: dict[str, type[MLP] | type[GatedMLP]] = {"mlp": MLP, "gated_mlp": GatedMLP}
NETWORKS = (*_MLPS, "conv", "strided_conv")


class VAE(VAEModel):
    """A VAE of one latent vector: prior p(z), likelihood p(x|z), posterior q(z|x), and two networks.

    Every part is a registry name or a module that is called as that part's base class is (``posteriors.Posterior``,
    ``priors.Prior``, ``likelihoods.Likelihood``). By name, ``*_options`` go to the part's constructor.

    Args:
        event_shape: shape of one datum, e.g. ``(784,)``, or ``(1, 28, 28)`` for the conv networks.
        latent_dim: Z.
        posterior: a name in ``posteriors.POSTERIORS``, or a module ``(..., C) -> distribution``.
        prior: a name in ``priors.PRIORS``, or a module.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, or a module.
        network: ``"mlp"``, ``"gated_mlp"``, ``"conv"`` (gated, :class:`~pyrovae.networks.ConvEncoder`) or
            ``"strided_conv"`` (plain, :class:`~pyrovae.networks.StridedEncoder`), for whichever of ``encoder`` and
            ``decoder`` is not given.
        hidden: widths of the MLPs' hidden layers, encoder order; the decoder mirrors them. The last one is
            the context's width. For the conv networks only the last one counts. With none, ``()``, the context is the
            datum itself, flat, and the decoder is affine (a gated MLP's last layer is too).
        encoder: a module ``(..., *event_shape) -> (..., hidden[-1])`` instead of ``network``.
        decoder: a module ``(..., Z) -> (..., P, *event_shape)``, or with those last dimensions flattened in
            any way, where P is the likelihood's ``num_params``.
        posterior_options: options of a posterior given by name.
        prior_options: options of a prior given by name.
        likelihood_options: options of a likelihood given by name.

    Raises:
        ValueError: an unknown name, options for a part given as a module, a VampPrior with a posterior
            that cannot be scored, no ``hidden`` width where a network of another kind needs one.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        *,
        posterior: str | nn.Module = "mean_field",
        prior: str | Prior = "standard_normal",
        likelihood: str | Likelihood = "bernoulli",
        network: str = "mlp",
        hidden: Sequence[int] = (300, 300),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        posterior_options: dict[str, Any] | None = None,
        prior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        at_least(1, latent_dim=latent_dim)
        self.event_shape = tuple(int(n) for n in event_shape)
        if not self.event_shape or min(self.event_shape) < 1:
            raise ValueError(f"event_shape must hold positive sizes, e.g. (784,); got {tuple(event_shape)}.")
        hidden = tuple(hidden)
        if not hidden and (network in ("conv", "strided_conv") or encoder is not None):
            raise ValueError("hidden must name at least one width, the context's, for this encoder; got none.")
        context_dim = hidden[-1] if hidden else prod(self.event_shape)
        self.latent_dim = latent_dim
        of_prior: dict[str, Any] = {"latent_dim": latent_dim}
        if isinstance(prior, str) and lookup(PRIORS, prior, "prior").uses_posterior:
            of_prior["event_shape"] = self.event_shape
        of_posterior = {"latent_dim": latent_dim, "context_dim": context_dim}
        of_likelihood = {"event_dim": len(self.event_shape)}
        self.likelihood = _build(LIKELIHOODS, "likelihood", likelihood, likelihood_options, of_likelihood)
        self.posterior = _build(POSTERIORS, "posterior", posterior, posterior_options, of_posterior)
        self.prior = _build(PRIORS, "prior", prior, prior_options, of_prior)
        if getattr(self.prior, "uses_posterior", False) and not getattr(self.posterior, "can_score", True):
            scorable = [name for name, family in POSTERIORS.items() if family.can_score]
            raise ValueError(
                f"{type(self.prior).__name__} scores the posterior at points it did not draw, which "
                f"{type(self.posterior).__name__} cannot. Use one of {', '.join(scorable)}, or another prior."
            )
        outputs = self.likelihood.num_params
        if encoder is None or decoder is None:
            built = _networks(network, self.event_shape, latent_dim, hidden, outputs)
        self.encoder = built[0] if encoder is None else encoder
        self.decoder = built[1] if decoder is None else decoder

    def q(self, x: Float[Tensor, "*batch_event"]) -> dist.Distribution:
        """q(z | x): batch ``(...)`` for ``x`` of shape ``(..., *event_shape)``."""
        return self.posterior(self.encoder(x))

    def p(self, z: Float[Tensor, "*batch latent"]) -> dist.Distribution:
        """p(x | z): batch ``(...)`` for ``z`` of shape ``(..., Z)``."""
        assert self.event_shape is not None
        params = self.decoder(z)
        return self.likelihood(params.reshape(*z.shape[:-1], self.likelihood.num_params, *self.event_shape))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(self.q))
            pyro.sample("x", self.p(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))


def _build(registry: dict[str, Any], kind: str, part: Any, options: Any, sizes: dict[str, Any]) -> Any:
    if isinstance(part, str):
        return lookup(registry, part, kind)(**sizes, **(options or {}))
    if options:
        raise ValueError(f"{kind}_options are for a {kind} given by name; this one is already built.")
    return part


def _networks(
    network: str, event_shape: tuple[int, ...], latent_dim: int, hidden: tuple[int, ...], outputs: int
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of one architecture."""
    name = lookup({name: name for name in NETWORKS}, network, "network")
    if name == "conv":
        image_shape = as_image_shape(event_shape)
        decoder: nn.Module = ConvDecoder(latent_dim, image_shape, outputs * image_shape[0])
        return ConvEncoder(image_shape, hidden[-1]), decoder
    if name == "strided_conv":
        strided = StridedEncoder(event_shape, hidden[-1])
        return strided, StridedDecoder(latent_dim, event_shape, outputs * event_shape[0])
    mlp, flatten = _MLPS[name], nn.Flatten(-len(event_shape))
    if not hidden:
        return flatten, mlp(latent_dim, (), outputs * prod(event_shape))
    encoder: nn.Module = mlp(prod(event_shape), hidden[:-1], hidden[-1], final_activation=True)
    if len(event_shape) > 1:
        encoder = nn.Sequential(flatten, encoder)
    return encoder, mlp(latent_dim, hidden[::-1], outputs * prod(event_shape))
