"""What a distribution is made of, where it has mass, and what it can do: asked for, never tried and caught."""

from dataclasses import dataclass
from typing import Any, Literal

from pyro.distributions import Delta
from pyro.distributions import Distribution as PyroDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.transforms import BlockAutoregressive, Polynomial, Sylvester
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Distribution,
    Independent,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    constraints,
)

from pyrovae._checks import require_instance
from pyrovae._compat import zuko
from pyrovae._compat.torch import has_inverse, is_inverted
from pyrovae.distributions._discrete import OnLevels, PointMass
from pyrovae.distributions._flow import Flow

Inverse = Literal["exact", "numerical"]

# Pyro's transforms that can undo what they have just done, and nothing else.
_CACHED_ONLY = (BlockAutoregressive, ConditionedPlanar, ConditionedRadial, Polynomial, Sylvester)
_NUMERICAL = (zuko.transforms.MonotonicTransform, zuko.transforms.FreeFormJacobianTransform)
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


def support_of(p: Any) -> Any:
    """The support that a distribution states, a mixture's being that of its components; or ``None``."""
    while isinstance(base := innermost(p, (MaskedDistribution, ExpandedDistribution)), MixtureSameFamily):
        p = base.component_distribution  # a mixture's own can neither be mapped to nor compared
    stated = getattr(type(p), "support", None) is not Distribution.support
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


@dataclass(frozen=True)
class Capabilities:
    """What can be asked of a distribution.

    Attributes:
        support: a ``torch.distributions.constraints.Constraint``, or ``None`` where it is not stated.
        discrete: whether it is a probability mass function.
        point_mass: whether it has a single value.
        rsample: whether gradients pass through its draws.
        mean: whether its mean is stated.
        variance: whether its variance is.
        inverse: how a value that it did not draw is traced back to its base and so scored: ``"exact"``,
            ``"numerical"``, or ``None`` where it is not: its transform has no inverse, or the distribution has an
            attribute ``can_score`` that is false.
    """

    support: Any
    discrete: bool
    point_mass: bool
    rsample: bool
    mean: bool
    variance: bool
    inverse: Inverse | None


def capabilities(p: Any) -> Capabilities:
    """What can be asked of a distribution of torch's, Pyro's, ours or a user's own."""
    require_instance(Distribution | PyroDistribution, p=p)
    support = support_of(p)
    core = element(p)
    return Capabilities(
        support=support,
        discrete=support is not None and bool(support.is_discrete),
        point_mass=_is_point_mass(core),
        rsample=p.has_rsample,
        mean=type(core).mean is not Distribution.mean,
        variance=type(core).variance is not Distribution.variance,
        inverse=_inverse(core),
    )


def moment(p: Any, name: Literal["mean", "variance"]) -> Tensor | None:
    """The mean or the variance, where it is stated and finite."""
    value = getattr(p, name) if getattr(capabilities(p), name) else None
    return value if value is not None and bool(value.isfinite().all()) else None


def center(p: Any) -> Tensor | None:
    """The mean, where it is stated and finite; else the mode, where that is."""
    if (mean := moment(p, "mean")) is not None:
        return mean
    core = innermost(p, WRAPPERS)
    mode = core.mode if type(core).mode is not Distribution.mode else None
    return mode.expand(p.batch_shape + p.event_shape) if mode is not None and bool(mode.isfinite().all()) else None


def _is_point_mass(p: Any) -> bool:
    if isinstance(p, (Flow, TransformedDistribution)):
        return _is_point_mass(element(p.base if isinstance(p, Flow) else p.base_dist))
    return isinstance(p, (Delta, PointMass))


def _inverse(p: Any) -> Inverse | None:
    if not getattr(p, "can_score", True):
        return None
    if isinstance(p, Flow):
        return _worst([_inverse_of(t) for t in p.transform.transforms])
    if isinstance(p, TransformedDistribution):
        return _worst([*(_inverse_of(t) for t in p.transforms), _inverse(element(p.base_dist))])
    return "exact"


def _worst(inverses: list[Inverse | None]) -> Inverse | None:
    return None if None in inverses else "numerical" if "numerical" in inverses else "exact"


def _inverse_of(t: Transform) -> Inverse | None:
    inner = t.inv if is_inverted(t) else t
    if isinstance(inner, (ComposeTransform, zuko.transforms.ComposedTransform)):
        parts: Any = inner.parts if isinstance(inner, ComposeTransform) else inner.transforms
        return _worst([_inverse_of(part) for part in parts])
    if (part := zuko.made_of(inner)) is not None:
        return _inverse_of(part)
    if isinstance(t, _CACHED_ONLY) or (inner is t and not has_inverse(t)):
        return None
    return "numerical" if isinstance(inner, _NUMERICAL) else "exact"
