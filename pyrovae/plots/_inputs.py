"""Arguments that several plots take: results by name, latents, and which of their dimensions to show."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def by_name(results: Any, argument: str, kind: Any = (), name: str = "") -> dict[str, Any]:
    """Arrange results by name: a single one of this kind under ``name``, several as they are.

    Raises:
        ValueError: there are none.
    """
    results = {name: results} if isinstance(results, kind) else dict(results)
    if not results:
        raise ValueError(f"{argument} is empty: pass at least one result.")
    return results


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
    chosen = tuple(int(d) for d in dims)
    if len(chosen) not in (counts or range(1, size + 1)) or len(set(chosen) & set(range(size))) != len(chosen):
        number = "".join(f"{n} or " for n in counts).removesuffix("or ")
        raise ValueError(f"dims must be {number}different latent dimensions from 0 to {size - 1}; got {tuple(dims)}.")
    return chosen
