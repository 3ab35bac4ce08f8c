"""Sprites: images drawn from five known factors, on a complete grid of their values."""

from collections.abc import Callable
from math import pi, prod

import numpy as np

from pyrovae._checks import require_at_least
from pyrovae.datasets._sources import Raw, Read, shuffled

FACTORS = ("shape", "scale", "rotation", "x", "y")

# Inside or not, of points (u, v) in a frame that moves, turns and grows with the sprite, v upwards. Each has about the
# same area, and lies within the unit circle. The second number is the angle after which the shape looks the same.
_SHAPES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], float]] = {
    "square": (lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.7, pi / 2),
    "ellipse": (lambda u, v: u**2 + (v / 0.62) ** 2 <= 1, pi),
    "heart": (lambda u, v: _heart(u / 0.73, v / 0.73 + 0.1), 2 * pi),
}
SHAPES = tuple(_SHAPES)
_OVERSAMPLING = 4  # points along each side of a pixel whose share inside is the pixel's intensity
_MIN_SCALE = 0.55  # scale of the smallest sprite, the largest having 1
_MAX_RADIUS = 0.26  # of the largest sprite's circle, in widths of the image
_POINTS_PER_BATCH = 2**22  # points looked at at once


def sprites(read: Read, *, size: int = 32, scales: int = 4, rotations: int = 8, positions: int = 8) -> Raw:
    """Draw one white sprite on black for every combination of the five factors; a tenth each for validation and
    testing.

    An intensity is the share of the pixel that the sprite covers, in sixteenths.

    Args:
        read: unused.
        size: height and width in pixels.
        scales: number of sizes of the sprite.
        rotations: number of angles.
        positions: number of positions along each axis.

    Raises:
        ValueError: ``size`` below 8, or a factor without values.
    """
    require_at_least(8, size=size)
    require_at_least(1, scales=scales, rotations=rotations, positions=positions)
    counts = (len(SHAPES), scales, rotations, positions, positions)
    if prod(counts) < 10:
        raise ValueError(f"the grid has {prod(counts)} images; at least 10 are needed to split. Raise rotations, say.")
    grid = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(-1, len(counts))
    tenth = len(grid) // 10
    parts = shuffled(len(grid), tenth, tenth)
    images = draw(grid, counts, size)
    return Raw(
        images={split: images[rows] for split, rows in parts.items()},
        labels={split: grid[rows, 0] for split, rows in parts.items()},
        factors={split: grid[rows] for split, rows in parts.items()},
        factor_names=FACTORS,
    )


def draw(factors: np.ndarray, counts: tuple[int, ...], size: int) -> np.ndarray:
    """Draw images ``(N, size, size)`` in [0, 1] of factors ``(N, 5)``, of which there are ``counts`` values each."""
    shape, scale, rotation, x, y = factors.T
    _, scales, rotations, positions, _ = counts
    radius = _MAX_RADIUS * (1 - (1 - _MIN_SCALE) * (scales - 1 - scale) / max(scales - 1, 1))
    period = np.array([period for _, period in _SHAPES.values()])[shape]
    angle = period * rotation / rotations
    room = 0.5 - _MAX_RADIUS - 1 / size  # a pixel of black all around
    centre_x, centre_y = (2 * room * (c / max(positions - 1, 1) - 0.5) * (positions > 1) for c in (x, y))

    points = (np.arange(size * _OVERSAMPLING) + 0.5) / (size * _OVERSAMPLING) - 0.5
    out = np.empty((len(factors), size, size), np.float32)
    step = max(1, _POINTS_PER_BATCH // points.size**2)
    for start in range(0, len(factors), step):
        rows = slice(start, start + step)
        right = points[None, None, :] - centre_x[rows, None, None]
        up = -points[None, :, None] - centre_y[rows, None, None]
        cos, sin, r = (f[rows, None, None] for f in (np.cos(angle), np.sin(angle), radius))
        u, v = (cos * right + sin * up) / r, (cos * up - sin * right) / r
        inside = np.zeros(u.shape, bool)
        for i, (is_inside, _) in enumerate(_SHAPES.values()):
            mine = shape[rows] == i
            inside[mine] = is_inside(u[mine], v[mine])
        pixels = inside.reshape(-1, size, _OVERSAMPLING, size, _OVERSAMPLING)
        out[rows] = pixels.mean((2, 4), dtype=np.float32)
    return out


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points lie inside the heart (x² + y² - 1)³ = x² y³."""
    w = u * u + v * v - 1
    return w * w * w <= u * u * v * v * v  # products: numpy's third powers take ten times as long
