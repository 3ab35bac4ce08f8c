import pytest
import torch

from pyrovae.networks import ConvCell, DepthwiseCell, SqueezeExcitation

CELLS = [(SqueezeExcitation(16), 16), (DepthwiseCell(16), 16), (DepthwiseCell(6, expansion=2), 6), (ConvCell(16), 16)]


@pytest.mark.parametrize(("cell", "c"), CELLS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_an_image_comes_out_the_same_whatever_stands_beside_it(
    cell: torch.nn.Module, c: int, lead: tuple[int, ...]
) -> None:
    x = 3.0 * torch.randn(*lead, c, 4, 6)
    flat = x.reshape(-1, c, 4, 6)
    alone = torch.stack([cell(image) for image in flat])
    torch.testing.assert_close(cell(x), alone.reshape(x.shape))


def test_the_depthwise_cells_convolutions_see_five_by_five_pixels_for_few_weights() -> None:
    """Without its squeeze, which sees the whole image, and its norms, which do too."""
    cell = DepthwiseCell(8)
    body = torch.nn.Sequential(*(m for m in cell.body if isinstance(m, (torch.nn.Conv2d, torch.nn.SiLU))))
    x = torch.randn(1, 8, 9, 9, requires_grad=True)
    body(x)[0, :, 4, 4].sum().backward()
    reached = (x.grad[0] != 0).any(0)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[2:7, 2:7] = True
    assert torch.equal(reached, expected)
    assert sum(m.weight.numel() for m in body if isinstance(m, torch.nn.Conv2d)) == 2 * 8 * 24 + 24 * 25


def test_squeeze_and_excitation_scales_channels() -> None:
    x = torch.rand(5, 16, 3, 3) + 0.1
    ratio = SqueezeExcitation(16)(x) / x
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))
    assert ((ratio > 0) & (ratio < 1)).all()
    assert ratio.std() > 1e-3


def test_bad_sizes_are_named() -> None:
    for make, name in ((lambda: DepthwiseCell(0), "channels"), (lambda: DepthwiseCell(8, expansion=0), "expansion")):
        with pytest.raises(ValueError, match=name):
            make()
    with pytest.raises(ValueError, match="reduction"):
        SqueezeExcitation(8, reduction=0)
