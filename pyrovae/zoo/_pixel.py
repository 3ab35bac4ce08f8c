"""Autoregressive models of images: a PixelCNN alone, and as the decoder of a VAE."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import as_sizes, lookup, placed, require_at_least, require_instance, require_one_of, require_within
from pyrovae._parts import Registry
from pyrovae._random import restored_on_error
from pyrovae.distributions import Autoregressive
from pyrovae.distributions._capabilities import innermost
from pyrovae.likelihoods import LIKELIHOODS, Likelihood
from pyrovae.model import VAE, VAEModel
from pyrovae.networks import MLP, NETWORKS, GatedPixelCNN, RowGRU, StridedDecoder
from pyrovae.networks._architectures import build_decoder
from pyrovae.networks._conv import as_image_shape

DECODERS: Registry[nn.Module] = Registry("decoder", nn.Module, pixelcnn=GatedPixelCNN, gru=RowGRU)


class PixelDecoder(nn.Module):
    """A decoder p(x | z) that is a distribution over images whose pixels are drawn one after another.

    The autoregressive network is told a vector of ``context_dim`` numbers at every pixel: where the pixel is (learnt)
    plus what z says, the same everywhere (van den Oord et al. 2016, arXiv:1606.05328, sec. 2.3) or pixel by pixel
    (Gulrajani et al. 2017, arXiv:1611.05013).

    Args:
        event_shape: ``(C, H, W)``.
        likelihood: of one pixel, given the network's output.
        network: ``"pixelcnn"`` (:class:`~pyrovae.networks.GatedPixelCNN`), ``"gru"``
            (:class:`~pyrovae.networks.RowGRU`), or a module that is called as they are, with a spatial context.
        network_options: options of a network given by name.
        upsample: what z says: ``(..., Z)`` to vectors ``(..., context_dim)`` or to maps ``(..., context_dim, H, W)``,
            which may come with those last dimensions flattened in any way; ``None`` where there is no z.
        context_dim: numbers that the network is told at a pixel.
        input_dropout: probability, in training, that the network does not see a pixel (Bowman et al. 2016,
            arXiv:1511.06349, "word dropout"). What it is to predict stays.

    Raises:
        TypeError: a network that is neither a name nor a module.
        ValueError: an ``event_shape`` that is no image's, an unknown network, bad options, a built network of other
            sizes.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood,
        *,
        network: str | nn.Module = "pixelcnn",
        network_options: dict[str, Any] | None = None,
        upsample: nn.Module | None = None,
        context_dim: int = 8,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = self.event_shape = _as_image(event_shape)
        require_at_least(1, context_dim=context_dim)
        require_within("[0, 1)", input_dropout=input_dropout)
        require_instance(Likelihood, likelihood=likelihood)
        require_instance(nn.Module | None, upsample=upsample)
        self.likelihood, self.upsample, self.input_dropout = likelihood, upsample, input_dropout
        with restored_on_error():
            self.position = nn.Parameter(0.1 * torch.randn(context_dim, height, width))
            sizes = {"in_channels": channels, "out_channels": likelihood.num_params * channels, "width": width}
            self.network = DECODERS.build(
                network, network_options, **sizes, context_dim=context_dim, spatial_context=True
            )
            some = likelihood(torch.zeros(likelihood.num_params, *self.event_shape))
            self._support = innermost(some).support

    def forward(self, z: Float[Tensor, "*batch latent"] | None) -> Autoregressive:
        """The distribution p(x | z) with batch ``(...)``; without z, p(x) with batch ``()``."""
        context: Tensor = self.position
        batch_shape: tuple[int, ...] = ()
        if self.upsample is not None and z is not None:
            batch_shape = z.shape[:-1]
            said = self.upsample(z).reshape(*batch_shape, len(context), -1)  # one number a channel, or one a pixel
            said = said.unsqueeze(-1) if said.shape[-1] == 1 else said.reshape(*batch_shape, *context.shape)
            context = context + said

        def conditional(x: Tensor) -> dist.Distribution:
            params = self.network(self._seen(x), context)
            return self.likelihood.distribution(params, params.shape[:-3], x.shape[-3:])

        return Autoregressive(conditional, self.event_shape, batch_shape, support=self._support, like=self.position)

    def _seen(self, x: Tensor) -> Tensor:
        """The pixels that the network sees, in [-1, 1]; 0, as beyond the border, for those that are dropped."""
        x = 2 * x - 1
        if not (self.training and self.input_dropout):
            return x
        return x * (torch.rand_like(x[..., :1, :, :]) >= self.input_dropout)


class PixelCNN(VAEModel):
    """A PixelCNN without latents (van den Oord et al. 2016, arXiv:1606.05328): log p(x) is exact.

    ``log_marginal(model, x, num_samples=1)`` is :meth:`log_prob` with its diagnostics.

    Args:
        event_shape: ``(C, H, W)``.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, of one pixel, or a :class:`~pyrovae.likelihoods.Likelihood`.
        likelihood_options: options of a likelihood given by name.
        decoder: ``"pixelcnn"``, ``"gru"``, or a network as :class:`PixelDecoder` takes it, of ``context_dim=8``.
        decoder_options: of :class:`~pyrovae.networks.GatedPixelCNN` (``hidden``, ``num_layers``, ``kernel_size``) or
            of :class:`~pyrovae.networks.RowGRU` (``hidden``).

    Raises:
        TypeError: a part that is neither a name nor a module.
        ValueError: an ``event_shape`` that is no image's, an unknown name, options that a part does not have or that
            are out of range, a built part of another size.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        decoder: str | nn.Module = "pixelcnn",
        decoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = _as_image(event_shape)
        pixel = LIKELIHOODS.build(likelihood, likelihood_options, event_dim=3)
        self.decoder = PixelDecoder(self.event_shape, pixel, network=decoder, network_options=decoder_options)

    def log_prob(self, x: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch"]:
        """The log-density log p(x) in nats: exact, and differentiable."""
        return self.decoder(None).log_prob(placed(x, self.placement))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.decoder(None), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw nothing: there are no latents to infer."""


class PixelVAE(VAE):
    """A VAE whose decoder draws an image pixel by pixel, given z (Gulrajani et al. 2017, arXiv:1611.05013, with one
    latent vector).

    Such a decoder can do without z: trained plainly, the posterior tends to collapse onto the prior (Bowman et al.
    2016, arXiv:1511.06349; Chen et al. 2017, arXiv:1611.02731). ``examples/posterior_collapse.py`` measures remedies.

    ``decode`` and ``reconstruct`` average a few draws, because the mean of p(x | z) has no closed form.

    Args:
        event_shape: ``(C, H, W)``.
        latent_dim: Z.
        decoder: ``"pixelcnn"``, ``"gru"``, or a network as :class:`PixelDecoder` takes it.
        decoder_options: of :class:`~pyrovae.networks.GatedPixelCNN` (``hidden``, ``num_layers``, ``kernel_size``: few
            layers and a small kernel limit what it sees) or of :class:`~pyrovae.networks.RowGRU` (``hidden``).
        conditioning: how the decoder is told z: ``"map"``, as that paper does, through networks as of
            :class:`~pyrovae.VAE`'s decoder; or ``"vector"``, the same at every pixel, which the decoder ignores sooner.
        context_dim: numbers that the decoder is told at a pixel.
        input_dropout: probability, in training, that the decoder does not see a pixel.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, of one pixel, or a module.
        network: as in :class:`~pyrovae.VAE`; the map of z is made by a network of the same kind, and beside a
            ``"strided_conv"`` encoder by an ``"mlp"``.
        hidden: as in :class:`~pyrovae.VAE`.
        likelihood_options: of a likelihood given by name.
        parts: ``posterior``, ``prior``, ``encoder`` and options, as in :class:`~pyrovae.VAE`.

    Raises:
        TypeError: a part that is neither a name nor a module.
        ValueError: an ``event_shape`` that is no image's, an unknown name, options that a part does not have or that
            are out of range, a built part of another size.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        *,
        decoder: str | nn.Module = "pixelcnn",
        decoder_options: dict[str, Any] | None = None,
        conditioning: str = "map",
        context_dim: int = 8,
        input_dropout: float = 0.0,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        network: str = "mlp",
        hidden: Sequence[int] = (300, 300),
        **parts: Any,
    ) -> None:
        shape, hidden = _as_image(event_shape), as_sizes(hidden, "hidden", empty=True)
        require_within("[0, 1)", input_dropout=input_dropout)
        require_at_least(1, latent_dim=latent_dim, context_dim=context_dim)
        require_one_of(("map", "vector"), conditioning=conditioning)
        pixel = LIKELIHOODS.build(likelihood, likelihood_options, event_dim=3)
        with restored_on_error():
            if conditioning == "vector":
                upsample: nn.Module = nn.Linear(latent_dim, context_dim)
            else:
                _, cls = lookup(NETWORKS, network, "network")
                cls = MLP if cls is StridedDecoder else cls
                upsample = build_decoder(cls, latent_dim, (context_dim, *shape[1:]), hidden)
            pixels = PixelDecoder(
                shape,
                pixel,
                network=decoder,
                network_options=decoder_options,
                upsample=upsample,
                context_dim=context_dim,
                input_dropout=input_dropout,
            )
            super().__init__(
                shape, latent_dim, likelihood=pixel, network=network, hidden=hidden, decoder=pixels, **parts
            )

    def p(self, z: Float[Tensor, "*batch latent"]) -> dist.Distribution:
        return self.decoder(z)


def _as_image(event_shape: Sequence[int]) -> tuple[int, int, int]:
    """An ``event_shape`` as ``(C, H, W)``; a ``ValueError`` if it is no image's."""
    return as_image_shape(event_shape, 1, needs=", because pixels are drawn in raster order", fix="")
