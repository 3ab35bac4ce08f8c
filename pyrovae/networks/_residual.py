"""Residual cells for images: the building blocks of NVAE, Vahdat & Kautz (2020, arXiv:2007.03898, sec. 3.1).

They normalise by groups of channels of one image (Wu & He 2018, arXiv:1803.08494), where the paper normalises over
the batch. Here a batch is B data times K particles: statistics over it would tie the log-density of every draw to the
other draws and data, so that the model would change with K, and the weights of a bound would not be independent.
"""

from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_at_least
from pyrovae.networks._conv import over_leading

_RESIDUAL_SCALE = 0.1  # of what a cell adds, so that deep stacks start near the identity
_CHANNELS_PER_GROUP = 8  # that are normalised together
_MIN_BOTTLENECK_WIDTH = 4  # units, of squeeze-and-excitation


def group_norm(channels: int) -> nn.GroupNorm:
    """A normalisation of one image, eight channels at a time where that divides them, else all together."""
    return nn.GroupNorm(channels // _CHANNELS_PER_GROUP if channels % _CHANNELS_PER_GROUP == 0 else 1, channels)


class SqueezeExcitation(nn.Module):
    """A layer that scales every channel by a gate that sees all channels' means (Hu et al. 2018, arXiv:1709.01507).

    Maps ``(..., C, H, W)`` to the same shape.

    Args:
        channels: C.
        reduction: by how much the bottleneck between the two layers is narrower, down to a width of 4.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        require_at_least(1, channels=channels, reduction=reduction)
        width = max(channels // reduction, _MIN_BOTTLENECK_WIDTH)
        self.gate = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c h w"]:
        return x * self.gate(x.mean((-2, -1))).unsqueeze(-1).unsqueeze(-1)


class _Cell(nn.Module):
    """A residual cell, x + 0.1 body(x)."""

    body: nn.Module

    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c h w"]:
        return x + _RESIDUAL_SCALE * over_leading(self.body, x, 3)


class DepthwiseCell(_Cell):
    """The generative cell (fig. 3a): widen, convolve every channel by itself, narrow, squeeze and excite.

    The convolution sees 5x5 pixels at the price of 25 weights per channel. Maps ``(..., C, H, W)`` to the same shape.

    Args:
        channels: C.
        expansion: E; the convolution in the middle has E C channels.
    """

    def __init__(self, channels: int, *, expansion: int = 3) -> None:
        super().__init__()
        require_at_least(1, channels=channels, expansion=expansion)
        wide = expansion * channels
        self.body = nn.Sequential(
            group_norm(channels),
            nn.Conv2d(channels, wide, 1),
            group_norm(wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 5, padding=2, groups=wide),
            group_norm(wide),
            nn.SiLU(),
            nn.Conv2d(wide, channels, 1),
            group_norm(channels),
            SqueezeExcitation(channels),
        )


class ConvCell(_Cell):
    """The encoder's cell (fig. 3b): two 3x3 convolutions, squeeze and excite.

    Maps ``(..., C, H, W)`` to the same shape.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        require_at_least(1, channels=channels)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.body = nn.Sequential(*layers, SqueezeExcitation(channels))
