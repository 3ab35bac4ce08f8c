"""What a network of images is told besides the image: a vector, or one for every pixel."""

import torch
from torch import Tensor

from pyrovae._checks import at_least


def check_context(context_dim: int | None, spatial_context: bool) -> None:
    """Raise a ``ValueError`` unless the two describe a context, or none."""
    if context_dim is not None:
        at_least(1, context_dim=context_dim)
    elif spatial_context:
        raise ValueError("spatial_context=True needs context_dim, the number of channels of the map.")


def with_context(
    x: Tensor, context: Tensor | None, context_dim: int | None, spatial_context: bool
) -> tuple[Tensor, Tensor | None]:
    """Image ``(..., C, h, W)`` and context ``(..., context_dim, h or 1, W or 1)`` with the same leading dimensions.

    A map may have more rows than the image, which are left out.

    Raises:
        ValueError: a context that is missing, unexpected, or of another shape.
    """
    if context_dim is None and context is None:
        return x, None
    event = 3 if spatial_context else 1
    if context_dim is None or context is None or context.dim() < event or context.shape[-event] != context_dim:
        needed = "none" if context_dim is None else f"(..., {context_dim}{', H, W' if spatial_context else ''})"
        came = "none" if context is None else f"shape {tuple(context.shape)}"
        raise ValueError(f"context: {came} came and {needed} is needed, by the network's context_dim.")
    context = context[..., : x.shape[-2], :] if spatial_context else context[..., None, None]
    lead = torch.broadcast_shapes(x.shape[:-3], context.shape[:-3])
    return x.expand(*lead, *x.shape[-3:]), context.expand(*lead, *context.shape[-3:])
