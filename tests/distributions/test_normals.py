import torch
from torch.distributions import Independent, Normal, kl_divergence

from pyrovae.distributions import product_of_normals, residual_normal


def normal(*shape: int) -> Independent:
    return Independent(Normal(torch.randn(*shape).double(), torch.rand(*shape).double() + 0.2), 1)


def test_the_product_is_proportional_to_both_densities() -> None:
    p, q = normal(3), normal(5, 1, 3)
    product = product_of_normals(p, q)
    z = torch.randn(100, 5, 1, 3).double()
    ratio = p.log_prob(z) + q.log_prob(z) - product.log_prob(z)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert (product.batch_shape, product.event_shape) == ((5, 1), (3,))


def test_the_product_with_a_flat_normal_is_the_other() -> None:
    p = normal(4, 3)
    flat = Independent(Normal(torch.zeros(3).double(), 1e6), 1)
    torch.testing.assert_close(product_of_normals(p, flat).base_dist.loc, p.base_dist.loc)
    torch.testing.assert_close(product_of_normals(flat, p).base_dist.scale, p.base_dist.scale)


def test_the_kl_of_a_residual_normal_is_equation_2_of_the_nvae() -> None:
    p = normal(4, 3)
    shift, stretch = torch.randn(6, 4, 3).double(), torch.rand(6, 4, 3).double() + 0.1
    q = residual_normal(p, shift, stretch)
    sigma = p.base_dist.scale
    formula = 0.5 * (shift**2 / sigma**2 + stretch**2 - (stretch**2).log() - 1).sum(-1)
    torch.testing.assert_close(kl_divergence(q, p.expand((6, 4))), formula)
