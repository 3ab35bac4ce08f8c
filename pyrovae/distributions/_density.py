"""Log-densities that are -inf outside the support, and the parts of a draw that are masked.

Without validation torch's densities outside their support are finite (Exponential, Dirichlet), NaN (Gamma, LogNormal)
or an error (Categorical): an importance weight there must be zero.
"""

import math
from typing import Any

import torch
from pyro.distributions import SineBivariateVonMises
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, TransformedDistribution, VonMises, constraints

from pyrovae._compat.pyro import own_mask, scale_and_mask
from pyrovae.distributions._capabilities import WRAPPERS, element, innermost_support, support_of, varies

_REAL = type(constraints.real)
_CIRCULAR = (VonMises, SineBivariateVonMises)  # which state all reals and are normalised on one turn
_ANGLES = constraints.interval(-math.pi, math.pi)


def log_density(p: Any, value: Tensor) -> Tensor:
    """log p(value), or -inf where ``value`` is outside the support of ``p`` or of what it is made of.

    Gradients are those of ``p.log_prob`` inside the support, and finite outside.

    Args:
        p: a distribution of torch's, Pyro's or a user's own.
        value: ``(..., *batch, *event)``.
    """
    if is_everywhere_positive(p):
        return p.log_prob(value)
    if isinstance(p, MaskedDistribution):
        return scale_and_mask(log_density(p.base_dist, value), mask=own_mask(p))
    if isinstance(p, ExpandedDistribution):
        terms = log_density(p.base_dist, value)
        return terms.expand(torch.broadcast_shapes(terms.shape, p.batch_shape))
    if _inherits_log_prob(p, Independent):
        return sum_last(log_density(p.base_dist, value), p.reinterpreted_batch_ndims)
    if _inherits_log_prob(p, MixtureSameFamily):
        terms = log_density(p.component_distribution, value.unsqueeze(-1 - len(p.event_shape)))
        possible = (terms > -torch.inf).any(-1)  # without one component that is, the gradient would be NaN
        terms = torch.where(possible.unsqueeze(-1), terms, 0.0) + p.mixture_distribution.logits.log_softmax(-1)
        return torch.where(possible, terms.logsumexp(-1), -torch.inf)
    support = _ANGLES if isinstance(p, _CIRCULAR) else support_of(p)
    if varies(support):  # bounds have the batch's shape, which data may lack
        value = value.expand(torch.broadcast_shapes(value.shape, p.batch_shape + p.event_shape))
    inside, value = _inside(support, value, len(p.event_shape))
    terms = _transformed(p, value) if _inherits_log_prob(p, TransformedDistribution) else p.log_prob(value)
    return torch.where(inside, terms, -torch.inf)


def is_everywhere_positive(p: Any) -> bool:
    """Whether the density is positive at all real values, or the support is not stated."""
    p = element(p)
    if _inherits_log_prob(p, TransformedDistribution):
        return is_everywhere_positive(p.base_dist) and all(_is_real(t.codomain) for t in p.transforms)
    support = support_of(p)
    return support is None or (_is_real(support) and not isinstance(p, _CIRCULAR))


def is_zero_somewhere(p: Any) -> bool:
    """Whether a value in the support that ``p`` states may have density zero, or the support varies."""
    if is_everywhere_positive(p):
        return False
    if isinstance(p, WRAPPERS) and type(p).log_prob in [cls.log_prob for cls in WRAPPERS]:
        return is_zero_somewhere(p.base_dist)
    composed = _inherits_log_prob(p, MixtureSameFamily) or _inherits_log_prob(p, TransformedDistribution)
    return composed or varies(support_of(p))


def mask_of(p: Any, lead: Tensor | bool | None = None) -> Tensor | bool:
    """Which entries of a draw are scored: a boolean that broadcasts to batch and event shape, ``True`` for all.

    Args:
        p: a distribution, with its masks wherever they are nested.
        lead: a further mask over its batch, as of ``poutine.mask``.
    """
    total = True if lead is None else _over_event(lead, len(p.event_shape))
    while isinstance(p, WRAPPERS):
        if isinstance(p, MaskedDistribution):
            mask = _over_event(own_mask(p), len(p.event_shape))
            total = mask if total is True else total if mask is True else mask & total
        p = p.base_dist
    return total


def _over_event(mask: Tensor | bool, event_dim: int) -> Tensor | bool:
    return mask.bool().reshape(mask.shape + (1,) * event_dim) if isinstance(mask, Tensor) else bool(mask)


def _inherits_log_prob(p: Any, cls: type) -> bool:
    """Whether ``p`` is scored by way of its parts, as ``cls`` does it."""
    return isinstance(p, cls) and type(p).log_prob is cls.log_prob  # type: ignore[attr-defined]


def _transformed(p: Any, value: Tensor) -> Tensor:
    """log p by the inverses of the transforms, where every value in between must be possible too."""
    event_dim, total, possible = len(p.event_shape), torch.zeros(()), torch.tensor(True)
    total, possible = total.to(value), possible.to(value.device)
    for t in reversed(p.transforms):
        inside, value = _inside(t.codomain, value, event_dim)
        before = t.inv(value)
        event_dim += t.domain.event_dim - t.codomain.event_dim
        total = total - sum_last(t.log_abs_det_jacobian(before, value), event_dim - t.domain.event_dim)
        possible, value = possible & inside, before
    total = total + sum_last(log_density(p.base_dist, value), event_dim - len(p.base_dist.event_shape))
    return torch.where(possible, total, -torch.inf)


def _inside(support: Any, value: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """Which values lie in the support, and the values with those that do not replaced by one that does."""
    core = innermost_support(support)
    if core is constraints.simplex:  # torch allows 1e-6, less than float32's rounding in some hundred dimensions
        rounding = torch.finfo(value.dtype).eps ** 0.5
        inside = (value >= 0).all(-1) & ((value.sum(-1) - 1.0).abs() < rounding)
    else:
        inside = core.check(value)
    wide = inside.reshape(inside.shape + (1,) * core.event_dim)
    safe = torch.where(wide, value, _point(core, value))
    within = event_dim - core.event_dim
    return inside.flatten(-within).all(-1) if within else inside, safe


def _point(support: Any, like: Tensor) -> Any:
    """A value in the support."""
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if support is constraints.simplex:
        return 1.0 / like.shape[-1]
    if support.is_discrete:
        return torch.as_tensor(0 if low is None else low, dtype=like.dtype, device=like.device)
    if low is not None:
        return torch.as_tensor(low + 1.0 if high is None else (low + high) / 2.0, dtype=like.dtype, device=like.device)
    return like if high is None else torch.as_tensor(high - 1.0, dtype=like.dtype, device=like.device)


def _is_real(support: Any) -> bool:
    return isinstance(innermost_support(support), _REAL)


def sum_last(terms: Tensor, dims: int) -> Tensor:
    """The sum over so many last dimensions."""
    return terms.flatten(-dims).sum(-1) if dims else terms
