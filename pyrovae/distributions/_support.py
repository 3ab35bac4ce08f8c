"""Where a distribution has mass, as it states it."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, constraints

from pyrovae.distributions._levels import OnLevels


def support_of(p: Any) -> Any:
    """The support that a distribution states, a mixture's being that of its components; or ``None``."""
    while isinstance(p, MixtureSameFamily):  # whose own can neither be mapped to nor compared
        p = p.component_distribution
    stated = getattr(type(p), "support", None) is not torch.distributions.Distribution.support
    return p.support if stated else None


def innermost_support(support: Any) -> Any:
    """The constraint on one element, where independent ones make up an event."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def varies(support: Any) -> bool:
    """Whether the support depends on what the distribution was made from."""
    return support is not None and any(isinstance(v, Tensor) for v in vars(innermost_support(support)).values())


def space(support: Any) -> str:
    """What a density is taken with respect to: a count, volume, or the volume of a simplex, a sphere, ..."""
    core = innermost_support(support)
    if core.is_discrete:
        return "discrete"
    return type(core).__name__.strip("_").lower() if core.event_dim else "continuous"


def holds_integers(support: Any) -> bool:
    """Whether values are integers: counts, classes, one-hot vectors. Those of a Bernoulli are kept as floats, as the
    levels of images are.
    """
    core = innermost_support(support)
    return core is not None and core.is_discrete and core is not constraints.boolean and not isinstance(core, OnLevels)
