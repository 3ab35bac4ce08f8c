"""A recurrent network over the rows of an image, and over the pixels of a row."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pyrovae._checks import require_at_least
from pyrovae.networks._context import PixelNetwork


class RowGRU(PixelNetwork):
    """Two recurrent networks from images ``(..., C, H, W)`` to parameters of every pixel given those before it, in
    raster order.

    One GRU (Cho et al. 2014, arXiv:1406.1078) reads the rows above, whole; from its state another goes through the
    pixels of the row, left to right. So every output depends on all earlier pixels, in H + W steps rather than H W.

    All channels of a pixel are computed from the pixels before it, not from each other.

    Args:
        in_channels: channels of the image.
        out_channels: channels that come out: parameters of a pixel.
        width: W, which the network is built for; the height is free.
        hidden: units of either GRU.
        context_dim: size of a vector, the same for all pixels, that every step is told; ``None`` for none.
        spatial_context: whether there is such a vector for every pixel: a map ``(..., context_dim, H, W)``.

    Raises:
        ValueError: bad sizes, or ``spatial_context`` without ``context_dim``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        hidden: int = 64,
        context_dim: int | None = None,
        spatial_context: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, context_dim, spatial_context)
        require_at_least(1, width=width, hidden=hidden)
        width, hidden = int(width), int(hidden)  # torch takes no integers of NumPy's
        context_dim = None if context_dim is None else int(context_dim)
        in_channels = int(in_channels)
        self.width = width
        told = context_dim or 0
        self.rows = nn.GRU(width * (in_channels + told), hidden, batch_first=True)
        self.pixels = nn.GRU(in_channels + told, hidden, batch_first=True)
        self.start = nn.Linear(hidden, hidden)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out_channels))

    def _of_images(self, x: Tensor, context: Tensor | None) -> Tensor:
        n, _, height, width = x.shape
        above, left = pad(x, (0, 0, 1, -1)), pad(x, (1, -1, 0, 0))
        if context is not None:
            context = context.expand(-1, -1, height, width)
            above, left = torch.cat([above, context], dim=1), torch.cat([left, context], dim=1)
        states, _ = self.rows(above.transpose(1, 2).flatten(2))
        start = self.start(states).tanh().reshape(1, n * height, -1)
        out, _ = self.pixels(left.permute(0, 2, 3, 1).flatten(0, 1), start)
        return self.head(out).reshape(n, height, width, -1).movedim(-1, 1)
