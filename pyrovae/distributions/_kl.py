"""Closed-form Kullback-Leibler divergences that torch and Pyro lack."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from pyrovae.distributions._ar1 import AR1
from pyrovae.distributions._capabilities import innermost

_BROADCASTING = (Normal, MultivariateNormal)  # whose formulas do


def expanded_kl(q: Any, p: Any) -> Tensor | None:
    """KL(q ‖ p) over the batch shape that both have in common, or ``None`` where it is not known in closed form. (Some
    of torch's formulas do not broadcast.)
    """
    try:
        return kl_divergence(*_with_common_batch(q, p))
    except NotImplementedError:  # the only way that torch says so
        return None


def _with_common_batch(q: Any, p: Any) -> tuple[Any, Any]:
    if q.batch_shape == p.batch_shape or all(isinstance(innermost(d), _BROADCASTING) for d in (q, p)):
        return q, p
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    return tuple(d if d.batch_shape == shape else d.expand(shape) for d in (q, p))


def kl_by_dimension(q: Any, p: Any) -> Tensor | None:
    """The terms of KL(q ‖ p) by dimension, shaped like a draw of both, or ``None`` where there are none in closed form.

    Where both factorise over the dimensions, a term is the KL of one. Where p is an :class:`AR1` and q a diagonal
    normal, it is the average over q of KL(q(z_t) ‖ p(z_t | z_{t-1})): the chain rule's terms, none of them negative.
    """
    if isinstance(p, AR1):
        return _ar1_terms(q, p) if _is_diagonal(q) else None
    if isinstance(q, Independent) and isinstance(p, Independent) and q.event_shape == p.event_shape:
        q, p = q.base_dist, p.base_dist
    return None if q.event_shape or p.event_shape else kl_divergence(*_with_common_batch(q, p))


@register_kl(MultivariateNormal, Independent)
def _kl_mvn_diagonal(p: MultivariateNormal, q: Independent) -> Tensor:
    """KL(N(m, LLᵀ) ‖ N(μ, diag σ²)) = ½ Σᵢ [ (Σⱼ Lᵢⱼ² + (m-μ)ᵢ²)/σᵢ² - 1 + ln σᵢ² ] - Σᵢ ln Lᵢᵢ."""
    log_det = 2.0 * p.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _correlated_diagonal(p.loc, p.scale_tril.square().sum(-1), log_det, q)


@register_kl(LowRankMultivariateNormal, Independent)
def _kl_low_rank_diagonal(p: LowRankMultivariateNormal, q: Independent) -> Tensor:
    """As above; ln|Σ| is what the entropy has beside the dimension."""
    log_det = 2.0 * p.entropy() - p.event_shape[0] * (1.0 + math.log(2.0 * math.pi))
    return _correlated_diagonal(p.loc, p.variance, log_det, q)


@register_kl(Independent, AR1)
def _kl_diagonal_ar1(q: Independent, p: AR1) -> Tensor:
    if not _is_diagonal(q):
        raise NotImplementedError
    return _ar1_terms(q, p).sum(-1)


def _correlated_diagonal(loc: Tensor, variance: Tensor, log_det: Tensor, q: Independent) -> Tensor:
    if not _is_diagonal(q):
        raise NotImplementedError
    terms = (variance + (loc - q.base_dist.loc).square()) / q.base_dist.scale.square()
    return 0.5 * ((terms - 1.0 + 2.0 * q.base_dist.scale.log()).sum(-1) - log_det)


def _is_diagonal(q: Any) -> bool:
    return isinstance(q, Independent) and isinstance(q.base_dist, Normal) and q.reinterpreted_batch_ndims == 1


def _ar1_terms(q: Independent, p: AR1) -> Float[Tensor, "*batch dim"]:
    """For q = N(m, diag s²), with m₀ = s₀ = 0 and σ₁ = 1:

    ½ [ ((m_t - α m_{t-1})² + s_t² + α² s_{t-1}²) / σ_t² - 1 - ln(s_t² / σ_t²) ].
    """
    loc, scale = (v.unflatten(-1, (-1, p.length)) for v in (q.base_dist.loc, q.base_dist.scale))
    alpha, sigma = p.alpha.unsqueeze(-1), p.scale.unsqueeze(-1)
    first, rest, before = scale[..., :1], scale[..., 1:] / sigma, alpha * scale[..., :-1] / sigma
    of_first = loc[..., :1].square() + first.square() - 2.0 * first.log()
    of_rest = p.steps(loc).square() + rest.square() + before.square() - 2.0 * rest.log()
    return (0.5 * (torch.cat([of_first, of_rest], -1) - 1.0)).flatten(-2)
