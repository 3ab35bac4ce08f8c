"""Q of a QR decomposition: torch's own up to signs, orthonormal whatever the condition, the same on every device."""

import pytest
import torch
from torch import Tensor

from pyrovae.distributions import _sylvester as module
from pyrovae.distributions._sylvester import orthonormal


def signed(a: Tensor) -> tuple[Tensor, Tensor]:
    """torch's factors, R's diagonal positive."""
    q, r = torch.linalg.qr(a)
    sign = r.diagonal(dim1=-2, dim2=-1).sign()
    return q * sign.unsqueeze(-2), r * sign.unsqueeze(-1)


@pytest.mark.parametrize("shape", [(8, 8), (3, 10, 4), (5, 2, 40, 32), (2, 1, 1), (4, 3, 1)])
def test_q_and_its_gradient_are_those_of_torch_with_a_positive_diagonal(shape, monkeypatch) -> None:
    torch.manual_seed(1)
    a = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*shape, dtype=torch.float64)
    expected = signed(a)[0]
    slope = torch.autograd.grad((expected * weight).sum(), a)[0]
    for way in (torch.linalg.qr, module._multiplied_out):
        monkeypatch.setattr(torch.linalg, "qr", way)
        q = orthonormal(a)
        torch.testing.assert_close(q, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad((q * weight).sum(), a)[0], slope, rtol=1e-9, atol=1e-9)


def test_second_derivatives() -> None:
    a = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthonormal, a)
    assert torch.autograd.gradgradcheck(orthonormal, a)


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e6, 1e12])
@pytest.mark.parametrize("way", ["torch", "as on CUDA"])
def test_orthonormal_to_rounding_whatever_the_condition(condition: float, way: str, monkeypatch) -> None:
    if way == "as on CUDA":
        monkeypatch.setattr(torch.linalg, "qr", module._multiplied_out)
    u, _, v = torch.linalg.svd(torch.randn(50, 40, 32, dtype=torch.float64), full_matrices=False)
    a = (u * torch.logspace(0.0, -torch.tensor(condition).log10().item(), 32) @ v).float()
    q = orthonormal(a)
    assert (q.mT @ q - torch.eye(32)).abs().max() < 20 * torch.finfo(torch.float32).eps


def test_columns_that_need_no_reflection() -> None:
    a = torch.eye(5, 3).expand(2, 5, 3).clone()
    q, r = module._multiplied_out(a)
    torch.testing.assert_close(q @ r, a)
    torch.testing.assert_close(orthonormal(a), torch.eye(5, 3).expand(2, 5, 3))


@pytest.mark.cuda
def test_the_same_on_both_devices() -> None:
    a = torch.randn(100, 4, 40, 32, dtype=torch.float64)
    torch.testing.assert_close(orthonormal(a.cuda()).cpu(), orthonormal(a), rtol=0, atol=1e-10)
    single = a.float()
    q = orthonormal(single.cuda())
    assert (q.mT @ q - torch.eye(32, device="cuda")).abs().max() < 20 * torch.finfo(torch.float32).eps
