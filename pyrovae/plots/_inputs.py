"""Arguments that several plots take: results by name, latents, and which of their dimensions to show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pyrovae._checks import as_sizes, require_instance, shown


def by_name(results: Any, argument: str, kind: Any = (), name: str = "") -> dict[str, Any]:
    """Arrange results by name: a single one of this kind under ``name``, several as they are.

    Raises:
        ValueError: there are none.
    """
    if kind and isinstance(results, kind):
        return {name: results}
    require_instance(Mapping, **{argument: results})
    if not results:
        raise ValueError(f"{argument} is empty: pass at least one result.")
    for key, result in results.items():
        if kind:
            require_instance(kind, **{f"{argument}[{key!r}]": result})
    return dict(results)


def as_picture(image_shape: Any) -> tuple[int, int]:
    """Height and width of ``(1, H, W)`` or ``(H, W)``; a ``ValueError`` for anything else."""
    match as_sizes(image_shape, "image_shape"):
        case (height, width) | (1, height, width):
            return height, width
    raise ValueError(f"image_shape must be (1, H, W) or (H, W); got {shown(image_shape)}.")


def require_method(method: str, **models: Any) -> None:
    """Raise a ``TypeError`` unless every named argument is an object with this method."""
    for name, model in models.items():
        if isinstance(model, (type, str, bytes, pd.DataFrame, pd.Series)) or not callable(getattr(model, method, None)):
            raise TypeError(f"{name} must be a model with {method}(...); got {shown(model)}.")


def single_site(latents: Any) -> Tensor:
    """Check that a model has one continuous latent site, and return its latents.

    Raises:
        ValueError: a dict of several sites, or integers.
    """
    if isinstance(latents, dict):
        raise ValueError(f"the model has the latent sites {', '.join(latents)}: a single one is needed.")
    if not latents.is_floating_point():
        raise ValueError("the latent site must be of real numbers; it is discrete.")
    return latents


def as_dims(dims: Sequence[int], size: int, counts: Sequence[int] = ()) -> tuple[int, ...]:
    """Check the dimensions of a latent vector that are to be shown, and return them as integers.

    Args:
        dims: of any kind.
        size: how many there are.
        counts: how many may be shown; by default any number of them.

    Raises:
        ValueError: dimensions that are not there or come twice, too few or too many.
    """
    require_instance(tuple | list | range, dims=dims)
    whole = all(isinstance(d, (int, np.integer)) and not isinstance(d, bool) for d in dims)
    chosen = tuple(int(d) for d in dims) if whole else ()
    if len(chosen) not in (counts or range(1, size + 1)) or len(set(chosen) & set(range(size))) != len(chosen):
        number = "".join(f"{n} or " for n in counts).removesuffix("or ")
        raise ValueError(f"dims must be {number}different latent dimensions from 0 to {size - 1}; got {tuple(dims)}.")
    return chosen
