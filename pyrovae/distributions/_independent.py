"""What lies under ``Independent`` and the other wrappers."""

from typing import Any

from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch.distributions import Independent, MixtureSameFamily

WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)  # whose ``base_dist`` is of the same values


def innermost(p: Any, wrappers: Any = Independent) -> Any:
    """The distribution that ``p`` declares independent dimensions of, however often, or wraps in other ``wrappers``."""
    while isinstance(p, wrappers):
        p = p.base_dist
    return p


def family(p: Any) -> str:
    """The name of the innermost distribution's class, for errors."""
    return type(innermost(p)).__name__


def element(p: Any) -> Any:
    """What lies under independence, masks, expansion and mixing: what every value comes from."""
    while (base := innermost(p, WRAPPERS)) is not p or isinstance(p, MixtureSameFamily):
        p = base.component_distribution if isinstance(base, MixtureSameFamily) else base
    return p
