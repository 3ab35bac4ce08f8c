"""Plain strided convolutions for small images: the architecture of the β-VAE papers (Burgess et al. 2018,
arXiv:1804.03599, appendix A; Locatello et al. 2019, arXiv:1811.12359, appendix).
"""

from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import as_sizes, require_at_least
from pyrovae.networks._conv import over_leading

_NUM_CHANNELS, _DENSE_WIDTH = 32, 256  # of every convolution, of every dense layer
_MAX_UNHALVED_SIDE = 4  # pixels; a side of more is halved, as long as it is even


def _halvings(image_shape: tuple[int, ...]) -> int:
    """Count the strides of 2 until a side is odd, or 4 pixels or less; a ``ValueError`` if none fits."""
    match as_sizes(image_shape, "image_shape"):
        case (_, height, width):
            n = 0
            while all(side % 2 ** (n + 1) == 0 and side >> n > _MAX_UNHALVED_SIDE for side in (height, width)):
                n += 1
            if n:
                return n
    raise ValueError(
        f"image_shape must be (channels, height, width) with height and width even and above {_MAX_UNHALVED_SIDE} for "
        f"the strided networks; got {tuple(image_shape)}. Load images with flatten=False, or use network='mlp'."
    )


class StridedEncoder(nn.Sequential):
    """A strided convolutional encoder of images ``(..., C, H, W)`` to features ``(..., out_features)``.

    Convolutions of 4×4 pixels, stride 2 and 32 channels halve both sides until one is odd, or 4 pixels or less (four
    for 64×64, two for 28×28); two dense layers follow.

    Args:
        image_shape: ``(C, H, W)``, with even sides.
        out_features: width of the last layer.

    Raises:
        ValueError: odd sides.
    """

    def __init__(self, image_shape: tuple[int, ...], out_features: int = _DENSE_WIDTH) -> None:
        require_at_least(1, out_features=out_features)
        n = _halvings(image_shape)
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for n_in in (channels, *[_NUM_CHANNELS] * (n - 1)):
            layers += [nn.Conv2d(n_in, _NUM_CHANNELS, 4, 2, 1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(_NUM_CHANNELS * (height >> n) * (width >> n), _DENSE_WIDTH), nn.ReLU()]
        super().__init__(*layers, nn.Linear(_DENSE_WIDTH, out_features), nn.ReLU())

    def forward(self, x: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch features"]:
        return over_leading(super().forward, x, 3)


class StridedDecoder(nn.Sequential):
    """A strided convolutional decoder of codes ``(..., in_features)`` to maps ``(..., out_channels, H, W)``: the
    encoder mirrored.

    Args:
        in_features: size of the code.
        image_shape: ``(C, H, W)``, with even sides.
        out_channels: channels that come out (the likelihood's parameters times ``C``).

    Raises:
        ValueError: odd sides.
    """

    def __init__(self, in_features: int, image_shape: tuple[int, ...], out_channels: int) -> None:
        require_at_least(1, in_features=in_features, out_channels=out_channels)
        n = _halvings(image_shape)
        small = (_NUM_CHANNELS, image_shape[1] >> n, image_shape[2] >> n)
        layers: list[nn.Module] = [nn.Linear(in_features, _DENSE_WIDTH), nn.ReLU()]
        layers += [nn.Linear(_DENSE_WIDTH, prod(small)), nn.ReLU(), nn.Unflatten(1, small)]
        for _ in range(n - 1):
            layers += [nn.ConvTranspose2d(_NUM_CHANNELS, _NUM_CHANNELS, 4, 2, 1), nn.ReLU()]
        super().__init__(*layers, nn.ConvTranspose2d(_NUM_CHANNELS, out_channels, 4, 2, 1))

    def forward(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch channels height width"]:
        return over_leading(super().forward, z, 1)
