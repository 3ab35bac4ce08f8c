"""Autoregressive models of images: a PixelCNN alone, and as the decoder of a VAE."""

import inspect
from collections.abc import Sequence
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import at_least, lookup, one_of, placed
from pyrovae.distributions import Autoregressive
from pyrovae.distributions._capabilities import innermost
from pyrovae.likelihoods import LIKELIHOODS, Likelihood
from pyrovae.model import VAE, VAEModel
from pyrovae.networks import MLP, ConvDecoder, GatedMLP, GatedPixelCNN, RowGRU
from pyrovae.networks._conv import as_image_shape

DECODERS: dict[str, type[GatedPixelCNN] | type[RowGRU]] = {"pixelcnn": GatedPixelCNN, "gru": RowGRU}
_SET_HERE = ("in_channels", "out_channels", "width", "context_dim", "spatial_context")  # not options of a decoder
CONDITIONING = ("map", "vector")


class PixelDecoder(nn.Module):
    """p(x | z) as a distribution over images whose pixels are drawn one after another.

    The autoregressive network is told a vector of ``context_dim`` numbers at every pixel: where the pixel is (learnt)
    plus what z says, the same everywhere (van den Oord et al. 2016, arXiv:1606.05328, sec. 2.3) or pixel by pixel
    (Gulrajani et al. 2017, arXiv:1611.05013).

    Args:
        event_shape: ``(C, H, W)``.
        likelihood: of one pixel, given the network's output.
        network: ``"pixelcnn"`` (:class:`~pyrovae.networks.GatedPixelCNN`) or ``"gru"``
            (:class:`~pyrovae.networks.RowGRU`).
        network_options: their options.
        upsample: what z says: ``(..., Z)`` to vectors ``(..., context_dim)`` or to maps ``(..., context_dim, H, W)``,
            which may come with those last dimensions flattened in any way; ``None`` where there is no z.
        context_dim: numbers that the network is told at a pixel.
        input_dropout: probability, in training, that the network does not see a pixel (Bowman et al. 2016,
            arXiv:1511.06349, "word dropout"). What it is to predict stays.

    Raises:
        ValueError: an ``event_shape`` that is no image's, an unknown network, bad options.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        likelihood: Likelihood,
        *,
        network: str = "pixelcnn",
        network_options: dict[str, Any] | None = None,
        upsample: nn.Module | None = None,
        context_dim: int = 8,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = self.event_shape = _as_image(event_shape)
        at_least(1, context_dim=context_dim)
        if not 0 <= input_dropout < 1:
            raise ValueError(f"input_dropout must be in [0, 1); got {input_dropout}.")
        cls: Any = lookup(DECODERS, network, "decoder")
        options = dict(network_options or {})
        allowed = [name for name in inspect.signature(cls).parameters if name not in _SET_HERE]
        for name in options:
            if name not in allowed:
                own = " Pass context_dim=... to the model itself." if name == "context_dim" else ""
                raise ValueError(f"decoder {network!r} has options {', '.join(allowed)}; got {name!r}.{own}")
        options |= {"context_dim": context_dim, "spatial_context": True}
        if cls is RowGRU:
            options["width"] = width
        self.likelihood, self.upsample, self.input_dropout = likelihood, upsample, input_dropout
        self.position = nn.Parameter(0.1 * torch.randn(context_dim, height, width))
        outputs = likelihood.num_params * channels
        self.network: nn.Module = cls(channels, outputs, **options)
        some = likelihood(torch.zeros(likelihood.num_params, *self.event_shape))
        self._support = innermost(some).support

    def forward(self, z: Float[Tensor, "*batch latent"] | None, batch_shape: tuple[int, ...] = ()) -> Autoregressive:
        """p(x | z), batch ``(...)``; without z of the ``batch_shape``."""
        context: Tensor = self.position
        if self.upsample is not None:
            assert z is not None
            batch_shape = z.shape[:-1]
            said = self.upsample(z).reshape(*batch_shape, len(context), -1)  # one number a channel, or one a pixel
            said = said.unsqueeze(-1) if said.shape[-1] == 1 else said.reshape(*batch_shape, *context.shape)
            context = context + said

        def conditional(x: Tensor) -> dist.TorchDistribution:
            params = self.network(self._seen(x), context)
            return self.likelihood(params.unflatten(-3, (self.likelihood.num_params, self.event_shape[0])))

        shape = tuple(batch_shape)
        return Autoregressive(conditional, self.event_shape, shape, support=self._support, like=self.position)

    def _seen(self, x: Tensor) -> Tensor:
        """Pixels in [-1, 1]; 0, as beyond the border, for those that are dropped."""
        x = 2 * x - 1
        if not (self.training and self.input_dropout):
            return x
        return x * (torch.rand_like(x[..., :1, :, :]) >= self.input_dropout)


class PixelCNN(VAEModel):
    """A PixelCNN without latents (van den Oord et al. 2016, arXiv:1606.05328): log p(x) is exact.

    ``log_marginal(model, x, num_samples=1)`` is :meth:`log_prob` with its diagnostics.

    Args:
        event_shape: ``(C, H, W)``.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, of one pixel.
        likelihood_options: its options.
        decoder: ``"pixelcnn"`` or ``"gru"``.
        decoder_options: of :class:`~pyrovae.networks.GatedPixelCNN` (``hidden``, ``num_layers``, ``kernel_size``) or
            of :class:`~pyrovae.networks.RowGRU` (``hidden``).

    Raises:
        ValueError: an ``event_shape`` that is no image's, an unknown name, decoder options that it does not have,
            values of options out of range.
        TypeError: likelihood options that it does not have.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        likelihood: str = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        decoder: str = "pixelcnn",
        decoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = _as_image(event_shape)
        pixel = lookup(LIKELIHOODS, likelihood, "likelihood")(event_dim=3, **(likelihood_options or {}))
        self.decoder = PixelDecoder(self.event_shape, pixel, network=decoder, network_options=decoder_options)

    def log_prob(self, x: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch"]:
        """log p(x) in nats: exact, and differentiable."""
        return self.decoder(None).log_prob(placed(x, self.like()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.decoder(None), obs=x)

    def guide(self, x: Tensor) -> None:
        """There is nothing to infer."""


class PixelVAE(VAE):
    """A VAE whose decoder draws an image pixel by pixel, given z (Gulrajani et al. 2017, arXiv:1611.05013, with one
    latent vector).

    Such a decoder can do without z: trained plainly, the posterior tends to collapse onto the prior (Bowman et al.
    2016, arXiv:1511.06349; Chen et al. 2017, arXiv:1611.02731). ``examples/posterior_collapse.py`` measures remedies.

    ``decode`` and ``reconstruct`` average a few draws, because the mean of p(x | z) has no closed form.

    Args:
        event_shape: ``(C, H, W)``.
        latent_dim: Z.
        decoder: ``"pixelcnn"`` or ``"gru"``.
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
        ValueError: an ``event_shape`` that is no image's, an unknown name, decoder options that it does not have,
            values of options out of range.
        TypeError: other parts' options that they do not have.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        *,
        decoder: str = "pixelcnn",
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
        shape = _as_image(event_shape)
        at_least(1, context_dim=context_dim)
        one_of(CONDITIONING, conditioning=conditioning)
        # The decoder that VAE makes is replaced below: with one parameter a pixel it is small, which with this model's
        # likelihood (a categorical has hundreds) it need not be.
        super().__init__(shape, latent_dim, likelihood="bernoulli", network=network, hidden=hidden, **parts)
        if isinstance(likelihood, str):
            cls = lookup(LIKELIHOODS, likelihood, "likelihood")
            self.likelihood = cls(event_dim=3, **(likelihood_options or {}))
        elif likelihood_options:
            raise ValueError("likelihood_options are for a likelihood given by name; this one is already built.")
        else:
            self.likelihood = likelihood
        outputs = context_dim * prod(shape[1:])
        upsample: nn.Module
        if conditioning == "vector":
            upsample = nn.Linear(latent_dim, context_dim)
        elif network == "conv":
            upsample = ConvDecoder(latent_dim, shape, context_dim)
        else:
            mlp = GatedMLP if isinstance(self.decoder, GatedMLP) else MLP
            upsample = mlp(latent_dim, tuple(hidden)[::-1], outputs)
        self.decoder = PixelDecoder(
            shape,
            self.likelihood,
            network=decoder,
            network_options=decoder_options,
            upsample=upsample,
            context_dim=context_dim,
            input_dropout=input_dropout,
        )

    def p(self, z: Float[Tensor, "*batch latent"]) -> dist.TorchDistribution:
        return self.decoder(z)


def _as_image(event_shape: Sequence[int]) -> tuple[int, int, int]:
    return as_image_shape(event_shape, 1, needs=", because pixels are drawn in raster order", fix="")
