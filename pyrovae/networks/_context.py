"""``PixelNetwork``, the base class of networks over images in raster order."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least, require_flag
from pyrovae.networks._conv import over_leading


class PixelNetwork(nn.Module, ABC):
    """A network from images ``(..., C, H, W)`` to parameters of every pixel given those before it, and a context.

    Args:
        in_channels: channels of the image.
        out_channels: channels that come out: parameters of a pixel.
        context_dim: size of a vector, the same for all pixels, that the network is told; ``None`` for none.
        spatial_context: whether there is such a vector for every pixel: a map ``(..., context_dim, H, W)``.

    Raises:
        ValueError: sizes that are not positive, or ``spatial_context`` without ``context_dim``.
    """

    def __init__(self, in_channels: int, out_channels: int, context_dim: int | None, spatial_context: bool) -> None:
        super().__init__()
        require_at_least(1, in_channels=in_channels, out_channels=out_channels)
        require_flag(spatial_context=spatial_context)
        if context_dim is not None:
            require_at_least(1, context_dim=context_dim)
        elif spatial_context:
            raise ValueError("spatial_context=True needs context_dim, the number of channels of the map.")
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self.context_dim = None if context_dim is None else int(context_dim)
        self.spatial_context = spatial_context

    def forward(
        self, x: Float[Tensor, "*batch channels height width"], context: Tensor | None = None
    ) -> Float[Tensor, "*broadcast out height width"]:
        """The output for images and a context ``(..., context_dim)``, whose leading dimensions broadcast.

        Raises:
            ValueError: a context that is missing, unexpected, or of another shape.
        """
        if self.context_dim is not None or context is not None:
            context = self._as_map(x, context)
            lead = torch.broadcast_shapes(x.shape[:-3], context.shape[:-3])
            x = x.expand(*lead, *x.shape[-3:])
            context = context.expand(*lead, *context.shape[-3:]).reshape(-1, *context.shape[-3:])
        return over_leading(lambda images: self._of_images(images, context), x, 3)

    @abstractmethod
    def _of_images(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Output ``(N, out, h, W)`` of images ``(N, C, h, W)`` with a context ``(N, context_dim, h or 1, W or 1)``."""

    def _as_map(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The context as a map of the image's rows, or of one pixel. A map may have more rows, which are left out."""
        dim, spatial = self.context_dim, self.spatial_context
        event = 3 if spatial else 1
        if dim is None or context is None or context.dim() < event or context.shape[-event] != dim:
            needed = "none" if dim is None else f"(..., {dim}{', H, W' if spatial else ''})"
            came = "none" if context is None else f"shape {tuple(context.shape)}"
            raise ValueError(f"context: {came} came and {needed} is needed, by the network's context_dim.")
        return context[..., : x.shape[-2], :] if spatial else context[..., None, None]
