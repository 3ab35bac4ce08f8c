import pytest
import torch

from pyrovae.networks import GridDecoder, GridEncoder


@pytest.mark.parametrize(("shape", "f"), [((1, 8, 8), 2), ((1, 8, 8), 4), ((1, 28, 20), 4), ((3, 16, 32), 16)])
def test_shapes_and_leading_dimensions(shape: tuple[int, int, int], f: int) -> None:
    torch.manual_seed(0)
    encoder = GridEncoder(shape, 5, downsampling=f, hidden=6)
    decoder = GridDecoder(5, shape, 2 * shape[0], downsampling=f, hidden=6)
    x = torch.randn(2, 3, *shape)
    grid = encoder(x)
    assert grid.shape == (2, 3, 5, shape[1] // f, shape[2] // f)
    assert decoder(grid).shape == (2, 3, 2 * shape[0], *shape[1:])
    torch.testing.assert_close(encoder(x)[1, 2], encoder(x[1, 2]))
    torch.testing.assert_close(decoder(grid)[1, 2], decoder(grid[1, 2]))


@pytest.mark.parametrize(
    ("shape", "f", "message"),
    [
        ((1, 30, 28), 4, r"divisible by downsampling=4, for the strides to fit; got \(1, 30, 28\)"),
        ((1, 8, 9), 2, r"divisible by downsampling=2, .*got \(1, 8, 9\)\. .*pad them"),
        ((784,), 4, r"image_shape must be \(channels, height, width\) .*got \(784,\)\. .*flatten=False"),
        ((1, 8, 8), 3, "power of 2"),
        ((1, 8, 8), 1, "downsampling must be at least 2"),
    ],
)
def test_strides_that_do_not_fit(shape: tuple[int, ...], f: int, message: str) -> None:
    for build in (
        lambda: GridEncoder(shape, 5, downsampling=f),
        lambda: GridDecoder(5, shape, 1, downsampling=f),
    ):
        with pytest.raises(ValueError, match=message):
            build()
