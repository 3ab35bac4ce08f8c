import pytest
import torch
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence

import pyrovae.distributions  # noqa: F401  registers the closed form
from pyrovae.distributions import SylvesterTransform
from pyrovae.distributions._sylvester import apply_matrix


def test_kl_of_a_full_normal_to_a_diagonal_one_equals_torchs_for_two_full_ones() -> None:
    torch.manual_seed(0)
    a = torch.randn(5, 3, 3, dtype=torch.float64)
    p = MultivariateNormal(torch.randn(5, 3, dtype=torch.float64), a @ a.mT + torch.eye(3, dtype=torch.float64))
    loc, scale = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.5
    diagonal = Independent(Normal(loc, scale), 1)
    full = MultivariateNormal(loc, scale_tril=scale.diag_embed())
    torch.testing.assert_close(kl_divergence(p, diagonal), kl_divergence(p, full))
    with pytest.raises(NotImplementedError):
        kl_divergence(p, Independent(Laplace(loc, scale), 1))


@pytest.mark.parametrize(
    ("batch", "lead"), [((), ()), ((4,), (4,)), ((4,), (6, 4)), ((), (6, 4)), ((5, 4), (6, 5, 4)), ((1,), (4,))]
)
def test_apply_matrix_equals_the_plain_broadcast(batch: tuple[int, ...], lead: tuple[int, ...]) -> None:
    a, z = torch.randn(*batch, 2, 3), torch.randn(*lead, 3)
    torch.testing.assert_close(apply_matrix(a, z), (a @ z.unsqueeze(-1)).squeeze(-1))


def test_sylvester_log_determinant_is_exact_only_for_orthonormal_columns() -> None:
    """The identity behind the log-determinant needs QᵀQ = I: with other columns it must differ from autograd's."""
    torch.manual_seed(0)
    r, r_tilde = torch.randn(2, 2).triu().tanh().double(), torch.randn(2, 2).triu().tanh().double()
    z, b = torch.randn(3).double(), torch.randn(2).double()
    for q, close in ((torch.linalg.qr(torch.randn(3, 2)).Q.double(), True), (torch.randn(3, 2).double(), False)):
        t = SylvesterTransform(q, r, r_tilde, b)
        exact = torch.linalg.slogdet(torch.autograd.functional.jacobian(t, z)).logabsdet
        assert ((t.log_abs_det_jacobian(z, t(z)) - exact).abs() < 1e-6).item() == close
