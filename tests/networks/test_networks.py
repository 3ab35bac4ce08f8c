import pytest
import torch

from pyrovae.networks import MLP, ConvDecoder, ConvEncoder, GatedMLP, StridedDecoder, StridedEncoder


@pytest.mark.parametrize(
    "network",
    [
        MLP(6, [5], 4),
        GatedMLP(6, [5], 4),
        MLP(6, [], 4),
        MLP(6, [5, 5], 4, layer_norm=True),
        ConvDecoder(6, (1, 8, 12), 2),
        StridedDecoder(6, (1, 8, 12), 2),
    ],
)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_leading_dimensions_do_not_matter(network: torch.nn.Module, lead: tuple[int, ...]) -> None:
    x = torch.randn(*lead, 6)
    flat = network(x.reshape(-1, 6))
    torch.testing.assert_close(network(x), flat.reshape(*lead, *flat.shape[1:]))


def test_conv_shapes_on_every_image_size_in_the_data_sets() -> None:
    for shape in ((1, 8, 8), (1, 28, 28), (1, 28, 20), (3, 16, 16)):
        h = ConvEncoder(shape, 10)(torch.randn(2, 5, *shape))
        assert h.shape == (2, 5, 10)
        assert ConvDecoder(10, shape, 3 * shape[0])(h).shape == (2, 5, 3 * shape[0], *shape[1:])


def test_strided_shapes() -> None:
    """Both sides are halved until one is odd, or 4 pixels or less."""
    sizes = {
        (1, 8, 8): 1,
        (1, 28, 28): 2,
        (1, 28, 20): 2,
        (3, 16, 16): 2,
        (1, 64, 64): 4,
        (1, 24, 24): 3,
        (1, 6, 10): 1,
    }
    for shape, halvings in sizes.items():
        encoder = StridedEncoder(shape, 10)
        assert sum(isinstance(layer, torch.nn.Conv2d) for layer in encoder) == halvings
        h = encoder(torch.randn(2, 5, *shape))
        assert h.shape == (2, 5, 10)
        assert StridedDecoder(10, shape, 3 * shape[0])(h).shape == (2, 5, 3 * shape[0], *shape[1:])
    for shape in ((1, 27, 28), (784,), (1, 4, 4)):
        with pytest.raises(ValueError, match="even and above 4"):
            StridedEncoder(shape)


def test_every_pixel_reaches_the_code_and_back() -> None:
    x = torch.randn(1, 1, 28, 20, requires_grad=True)
    ConvEncoder((1, 28, 20), 10)(x).sum().backward()
    assert (x.grad != 0).all()
    z = torch.randn(1, 10, dtype=torch.float64)
    out = ConvDecoder(10, (1, 28, 20), 1).double()
    assert (out(z) != out(z + 0.5)).all()


def test_final_activation() -> None:
    assert (MLP(6, [5], 4, final_activation=True)(torch.randn(100, 6)) >= 0).all()
    assert (MLP(6, [5], 4)(torch.randn(100, 6)) < 0).any()


@pytest.mark.parametrize("shape", [(28, 28), (1, 30, 28), (784,)])
def test_conv_refuses_what_its_strides_do_not_divide(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        ConvEncoder(shape, 10)


def test_bad_widths_are_named() -> None:
    with pytest.raises(ValueError, match="hidden"):
        MLP(3, [0], 2)
