"""Networks from images to grids of features and back, of van den Oord et al. (2017, arXiv:1711.00937, sec. 4.1)."""

from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least
from pyrovae.networks._conv import as_image_shape, over_leading


class _Residual(nn.Module):
    """A residual block: ReLU, 3×3 convolution, ReLU, 1×1 convolution, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def grid_shape(image_shape: tuple[int, ...], downsampling: int, name: str = "image_shape") -> tuple[int, int]:
    """The shape ``(H / downsampling, W / downsampling)`` of an image's grid.

    Raises:
        ValueError: not an image, a ``downsampling`` that is not a power of 2 from 2 on or does not divide H and W.
    """
    require_at_least(2, downsampling=downsampling)
    if downsampling & (downsampling - 1):
        raise ValueError(f"downsampling must be a power of 2 (a stride of 2 for each layer); got {downsampling}.")
    needs = f" with height and width divisible by downsampling={downsampling}, for the strides to fit"
    fix = ", pad them, or use a smaller downsampling"
    _, height, width = as_image_shape(image_shape, downsampling, name=name, needs=needs, fix=fix)
    return height // downsampling, width // downsampling


class GridEncoder(nn.Module):
    """An encoder of images ``(..., C, H, W)`` to grids of features ``(..., D, H/f, W/f)``: one 4×4 convolution of
    stride 2 for every halving, residual blocks, a 1×1 convolution.

    Args:
        image_shape: ``(C, H, W)``.
        out_channels: D.
        downsampling: f, a power of 2 that divides H and W.
        hidden: channels inside.
        num_blocks: residual blocks.

    Raises:
        ValueError: strides that do not fit the image.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        out_channels: int,
        *,
        downsampling: int = 4,
        hidden: int = 64,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        grid_shape(image_shape, downsampling)
        require_at_least(1, out_channels=out_channels, hidden=hidden)
        require_at_least(0, num_blocks=num_blocks)
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], hidden, 4, 2, 1)]
        for _ in range(int(downsampling).bit_length() - 2):
            layers += [nn.ReLU(), nn.Conv2d(hidden, hidden, 4, 2, 1)]
        layers += [_Residual(hidden) for _ in range(num_blocks)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(hidden, out_channels, 1))

    def forward(self, x: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch dim rows columns"]:
        return over_leading(self.layers, x, 3)


class GridDecoder(nn.Module):
    """A decoder of grids of features ``(..., D, H/f, W/f)`` to maps ``(..., out_channels, H, W)``: the encoder
    mirrored.

    Args:
        in_channels: D.
        image_shape: ``(C, H, W)``.
        out_channels: channels that come out (the likelihood's parameters times ``C``).
        downsampling: f, a power of 2 that divides H and W.
        hidden: channels inside.
        num_blocks: residual blocks.

    Raises:
        ValueError: strides that do not fit the image.
    """

    def __init__(
        self,
        in_channels: int,
        image_shape: tuple[int, ...],
        out_channels: int,
        *,
        downsampling: int = 4,
        hidden: int = 64,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        grid_shape(image_shape, downsampling)
        require_at_least(1, in_channels=in_channels, out_channels=out_channels, hidden=hidden)
        require_at_least(0, num_blocks=num_blocks)
        layers: list[nn.Module] = [nn.Conv2d(in_channels, hidden, 3, padding=1)]
        layers += [_Residual(hidden) for _ in range(num_blocks)]
        for _ in range(int(downsampling).bit_length() - 2):
            layers += [nn.ReLU(), nn.ConvTranspose2d(hidden, hidden, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.ConvTranspose2d(hidden, out_channels, 4, 2, 1))

    def forward(self, z: Float[Tensor, "*batch dim rows columns"]) -> Float[Tensor, "*batch channels height width"]:
        return over_leading(self.layers, z, 3)
