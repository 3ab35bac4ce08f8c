"""The one place that imports zuko, which on import switches off argument validation for the whole process, and gives
every ``Transform`` its ``call_and_ladj``.
"""

from typing import Any

import torch
from torch.distributions import Distribution, Transform

_validate = Distribution._validate_args

import zuko.flows as flows  # noqa: E402
import zuko.transforms as transforms  # noqa: E402

Distribution.set_default_validate_args(_validate)


def made_of(transform: Transform) -> Transform | None:
    """The transform of single dimensions, with parameters of zero, that an autoregressive or a coupling one of zuko's
    applies, or that one over several dimensions is made of; ``None`` for others.
    """
    if isinstance(transform, transforms.DependentTransform):
        return transform.base
    if not isinstance(transform, (transforms.AutoregressiveTransform, transforms.CouplingTransform)):
        return None
    layer: Any = getattr(getattr(transform.meta, "func", None), "__self__", None)
    return layer.univariate(*map(torch.zeros, layer.shapes)) if hasattr(layer, "univariate") else None
