"""The gated PixelCNN, a convolutional network whose output at a pixel depends on earlier pixels alone."""

from torch import Tensor, nn
from torch.nn.functional import pad

from pyrovae._checks import require_at_least
from pyrovae.networks._context import PixelNetwork


class GatedPixelCNN(PixelNetwork):
    """A gated PixelCNN from images ``(..., C, H, W)`` to parameters of every pixel given those before it, in raster
    order: the network of van den Oord et al. (2016, arXiv:1606.05328, fig. 2), whose two stacks leave no blind spot.

    With L layers and kernels of width k, let r = L (k - 1) / 2. The output at (i, j) depends on the pixels of row i
    from j - r to j - 1, and of rows i - 1 - r to i - 1 from column j - r to j + r: on all of these, on no others. So
    few layers and a small kernel limit what the network can do without a context.

    All channels of a pixel are computed from the pixels before it, not from each other.

    Args:
        in_channels: channels of the image.
        out_channels: channels that come out: parameters of a pixel.
        hidden: channels of either stack.
        num_layers: L, gated layers.
        kernel_size: k, odd and at least 3.
        context_dim: size of a vector, the same for all pixels, that every layer is told; ``None`` for none.
        spatial_context: whether there is such a vector for every pixel: a map ``(..., context_dim, H, W)``.

    Raises:
        ValueError: bad sizes, or ``spatial_context`` without ``context_dim``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 32,
        num_layers: int = 6,
        kernel_size: int = 3,
        context_dim: int | None = None,
        spatial_context: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, context_dim, spatial_context)
        require_at_least(1, hidden=hidden, num_layers=num_layers)
        require_at_least(3, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, e.g. 3 or 5; got {kernel_size}.")
        self.layers = nn.ModuleList(
            _Layer(hidden if i else in_channels, hidden, kernel_size, context_dim, first=not i)
            for i in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, out_channels, 1)
        )

    def _of_images(self, x: Tensor, context: Tensor | None) -> Tensor:
        above = left = x
        total: Tensor | None = None
        for layer in self.layers:
            above, left, skip = layer(above, left, context)
            total = skip if total is None else total + skip
        return self.head(total)


class _Layer(nn.Module):
    """A gated layer of both stacks.

    The vertical stack at row i sees rows up to i, which it hands to the horizontal stack of row i + 1; the horizontal
    one sees its own row to the left, in the first layer without the pixel itself.
    """

    def __init__(self, n_in: int, n: int, kernel: int, context_dim: int | None, *, first: bool) -> None:
        super().__init__()
        self.reach, self.first = kernel // 2, first
        self.vertical = nn.Conv2d(n_in, 2 * n, (self.reach + 1, kernel))
        self.horizontal = nn.Conv2d(n_in, 2 * n, (1, self.reach if first else self.reach + 1))
        self.down = nn.Conv2d(2 * n, 2 * n, 1)
        self.skip = nn.Conv2d(n, n, 1)
        self.out = nn.Conv2d(n, n, 1)
        self.context = None if context_dim is None else nn.Conv2d(context_dim, 4 * n, 1, bias=False)

    def forward(self, above: Tensor, left: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        reach = self.reach
        v = self.vertical(pad(above, (reach, reach, reach, 0)))
        h = self.horizontal(pad(left, (reach, -1 if self.first else 0, 0, 0)))
        h = h + self.down(pad(v, (0, 0, 1, -1)))
        if self.context is not None:
            told_v, told_h = self.context(context).chunk(2, dim=1)
            v, h = v + told_v, h + told_h
        v, h = _gate(v), _gate(h)
        out = self.out(h)
        return v, out if self.first else left + out, self.skip(h)


def _gate(x: Tensor) -> Tensor:
    """Half of the channels, gated by the other half."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()
