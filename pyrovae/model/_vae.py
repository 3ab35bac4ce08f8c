"""``VAE``, a VAE composed of parts."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, Self

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import as_sizes, lookup, require_at_least, require_instance
from pyrovae._random import restored_on_error
from pyrovae.likelihoods import LIKELIHOODS, Likelihood
from pyrovae.model._base import VAEModel
from pyrovae.networks import NETWORKS, ConvDecoder
from pyrovae.networks._architectures import build_decoder, build_encoder, is_mlp
from pyrovae.posteriors import POSTERIORS
from pyrovae.priors import PRIORS, Prior


class VAE(VAEModel):
    """A VAE of one latent vector, composed of prior p(z), likelihood p(x | z), posterior q(z | x), and two networks.

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
        require_at_least(1, latent_dim=latent_dim)
        self.event_shape = shape = as_sizes(event_shape, "event_shape")
        hidden = as_sizes(hidden, "hidden", empty=True)
        require_instance(nn.Module | None, encoder=encoder, decoder=decoder)
        encoder_class, decoder_class = lookup(NETWORKS, network, "network")
        if not hidden and (encoder is not None or not is_mlp(encoder_class)):
            raise ValueError("hidden must name at least one width, the context's, for this encoder; got none.")
        self.latent_dim = latent_dim
        context_dim = hidden[-1] if hidden else prod(shape)
        with restored_on_error():
            self.likelihood = LIKELIHOODS.build(likelihood, likelihood_options, event_dim=len(shape))
            self.posterior = POSTERIORS.build(
                posterior, posterior_options, latent_dim=latent_dim, context_dim=context_dim
            )
            self.prior = self._built_prior(prior, prior_options)
            make_decoder = partial(build_decoder, decoder_class, latent_dim, shape, hidden, self.likelihood.num_params)
            if decoder is None and decoder_class is ConvDecoder:
                decoder = make_decoder()  # in this order a seed's initial weights are drawn
            self.encoder = build_encoder(encoder_class, shape, hidden) if encoder is None else encoder
            self.decoder = make_decoder() if decoder is None else decoder

    def _built_prior(self, prior: str | Prior, options: Mapping[str, Any] | None) -> Any:
        family = lookup(PRIORS, prior, "prior") if isinstance(prior, str) else prior
        sizes = {"event_shape": self.event_shape} if getattr(family, "uses_posterior", False) else {}
        built = PRIORS.build(prior, options, latent_dim=self.latent_dim, **sizes)
        if getattr(built, "uses_posterior", False) and not getattr(self.posterior, "can_score", True):
            scorable = [name for name, family in POSTERIORS.items() if family.can_score]
            raise ValueError(
                f"{type(built).__name__} scores the posterior at points it did not draw, which "
                f"{type(self.posterior).__name__} cannot. Use one of {', '.join(scorable)}, or another prior."
            )
        return built

    def with_prior(self, prior: str | Prior, prior_options: Mapping[str, Any] | None = None) -> Self:
        """A copy of the model with another prior, which is not trained (:func:`~pyrovae.refit_prior` does).

        Args:
            prior: as in the constructor; a copy of a module.
            prior_options: as in the constructor.

        Raises:
            ValueError: see the constructor.
        """
        new = copy.deepcopy(self)
        with restored_on_error():
            new._replace_prior(copy.deepcopy(new._built_prior(prior, prior_options)), prior, prior_options)
        return new

    def _replace_prior(self, built: nn.Module, *arguments: Any) -> None:
        self.prior = built.to(self.placement).train(self.training)
        for name, value in zip(("prior", "prior_options"), arguments, strict=True):
            self._set_argument(name, value)

    def q(self, x: Float[Tensor, "*batch_event"]) -> dist.Distribution:
        """The posterior q(z | x): batch ``(...)`` for ``x`` of shape ``(..., *event_shape)``."""
        return self.posterior(self.encoder(x))

    def p(self, z: Float[Tensor, "*batch latent"]) -> dist.Distribution:
        """The distribution p(x | z): batch ``(...)`` for ``z`` of shape ``(..., Z)``."""
        assert self.event_shape is not None
        return self.likelihood.distribution(self.decoder(z), z.shape[:-1], self.event_shape)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(self.q))
            pyro.sample("x", self.p(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))
