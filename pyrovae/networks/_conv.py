"""Gated convolutional networks for images, the architecture of van den Berg et al. (2018, arXiv:1803.05649)."""

from collections.abc import Callable, Sequence
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import as_sizes, require_at_least

_KERNEL_SIZE, _PADDING = 5, 2  # pixels, of every convolution but the one that spans the whole image


def over_leading(function: Callable[[Tensor], Tensor], x: Tensor, event_dims: int) -> Tensor:
    """Apply a function that wants one batch dimension under any leading dimensions."""
    lead = x.shape[: x.dim() - event_dims]
    out = function(x.reshape(prod(lead), *x.shape[x.dim() - event_dims :]))
    return out.reshape(*lead, *out.shape[1:])


class _Gated(nn.Module):
    """A convolution with twice the channels, half of which gate the other half."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.glu(self.convolution(x), dim=1)


def _down(n_in: int, n_out: int, stride: int) -> nn.Module:
    """A gated convolution, of stride 1 or 2."""
    return _Gated(nn.Conv2d(n_in, 2 * n_out, _KERNEL_SIZE, stride, _PADDING))


def _up(n_in: int, n_out: int, stride: int) -> nn.Module:
    """A gated transposed convolution, of stride 1 or 2."""
    return _Gated(nn.ConvTranspose2d(n_in, 2 * n_out, _KERNEL_SIZE, stride, _PADDING, output_padding=stride - 1))


def as_image_shape(
    event_shape: Sequence[int],
    divisor: int = 4,
    *,
    name: str = "event_shape",
    needs: str = " with height and width divisible by 4 for the conv networks",
    fix: str = ", or use network='mlp'",
) -> tuple[int, int, int]:
    """Check that an ``event_shape`` is ``(C, H, W)``, and return it.

    Args:
        event_shape: what should be an image's shape.
        name: what errors call it.
        divisor: what H and W must be divisible by, as strides ask for.
        needs: of the error: what is needed besides the three sizes, and why.
        fix: of the error: what to do besides loading images as such.

    Raises:
        ValueError: not three positive sizes, or ``divisor`` does not divide H and W.
    """
    match as_sizes(event_shape, name):
        case (channels, height, width) if height % divisor == 0 and width % divisor == 0:
            return channels, height, width
    raise ValueError(
        f"{name} must be (channels, height, width){needs}; got {tuple(event_shape)}. Load images with "
        f"flatten=False{fix}."
    )


class ConvEncoder(nn.Module):
    """A gated convolutional encoder of images ``(..., C, H, W)`` to features ``(..., out_features)``.

    Args:
        image_shape: ``(C, H, W)``; ``H`` and ``W`` divisible by 4.
        out_features: width of the last layer, a convolution over the whole remaining image.
    """

    def __init__(self, image_shape: tuple[int, int, int], out_features: int = 256) -> None:
        super().__init__()
        channels, height, width = as_image_shape(image_shape, name="image_shape")
        require_at_least(1, out_features=out_features)
        self.layers = nn.Sequential(
            _down(channels, 32, 1),
            _down(32, 32, 2),
            _down(32, 64, 1),
            _down(64, 64, 2),
            _down(64, 64, 1),
            _Gated(nn.Conv2d(64, 2 * out_features, (height // 4, width // 4))),
            nn.Flatten(),
        )

    def forward(self, x: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch features"]:
        return over_leading(self.layers, x, 3)


class ConvDecoder(nn.Module):
    """A gated convolutional decoder of codes ``(..., in_features)`` to maps ``(..., out_channels, H, W)``: the encoder
    mirrored.

    Args:
        in_features: size of the code.
        image_shape: ``(C, H, W)``; ``H`` and ``W`` divisible by 4.
        out_channels: channels that come out (the likelihood's parameters times ``C``).
    """

    def __init__(self, in_features: int, image_shape: tuple[int, int, int], out_channels: int) -> None:
        super().__init__()
        _, height, width = as_image_shape(image_shape, name="image_shape")
        require_at_least(1, in_features=in_features, out_channels=out_channels)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (int(in_features), 1, 1)),
            _Gated(nn.ConvTranspose2d(in_features, 2 * 64, (height // 4, width // 4))),
            _up(64, 64, 1),
            _up(64, 32, 2),
            _up(32, 32, 1),
            _up(32, 32, 2),
            _up(32, 32, 1),
            nn.Conv2d(32, out_channels, 1),
        )

    def forward(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch channels height width"]:
        return over_leading(self.layers, z, 1)
