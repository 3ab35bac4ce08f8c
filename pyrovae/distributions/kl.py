"""Closed-form Kullback-Leibler divergences that torch and Pyro lack."""

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, register_kl


@register_kl(MultivariateNormal, Independent)
def _kl_mvn_diagonal(p: MultivariateNormal, q: Independent) -> Tensor:
    """KL(N(m, LLᵀ) ‖ N(μ, diag σ²)) = ½ Σᵢ [ (Σⱼ Lᵢⱼ² + (m-μ)ᵢ²)/σᵢ² - 1 + ln σᵢ² ] - Σᵢ ln Lᵢᵢ."""
    if not isinstance(q.base_dist, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    loc, scale = q.base_dist.loc, q.base_dist.scale
    variance = p.scale_tril.square().sum(-1) + (p.loc - loc).square()
    terms = variance / scale.square() - 1.0 + 2.0 * torch.log(scale)
    return 0.5 * terms.sum(-1) - p.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
