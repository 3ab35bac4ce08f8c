"""Encoders and decoders by the name of their architecture."""

from math import prod
from typing import Any

from torch import nn

from pyrovae.networks._conv import ConvDecoder, ConvEncoder
from pyrovae.networks._mlp import MLP, GatedMLP
from pyrovae.networks._strided import StridedDecoder, StridedEncoder

NETWORKS: dict[str, tuple[Any, Any]] = {
    "mlp": (MLP, MLP),
    "gated_mlp": (GatedMLP, GatedMLP),
    "conv": (ConvEncoder, ConvDecoder),
    "strided_conv": (StridedEncoder, StridedDecoder),
}


def is_mlp(cls: Any) -> bool:
    """Whether a network works on flat data, with hidden layers of any number."""
    return issubclass(cls, (MLP, GatedMLP))


def build_encoder(cls: Any, event_shape: tuple[int, ...], hidden: tuple[int, ...]) -> nn.Module:
    """Build an encoder ``(..., *event_shape) -> (..., C)``.

    Args:
        cls: the first of a pair in ``NETWORKS``.
        event_shape: shape of one datum, ``(C, H, W)`` for convolutions.
        hidden: widths of an MLP's layers, of which convolutions take the last alone: C. An MLP without any is the
            identity on flat data.

    Raises:
        ValueError: an ``event_shape`` that is no image's.
    """
    if not is_mlp(cls):
        return cls(event_shape, hidden[-1])
    flatten = nn.Flatten(-len(event_shape))
    if not hidden:
        return flatten
    mlp = cls(prod(event_shape), hidden[:-1], hidden[-1], final_activation=True)
    return mlp if len(event_shape) == 1 else nn.Sequential(flatten, mlp)


def build_decoder(
    cls: Any, latent_dim: int, event_shape: tuple[int, ...], hidden: tuple[int, ...], num_params: int = 1
) -> nn.Module:
    """Build a decoder from ``(..., Z)`` to P numbers per dimension of the data, flattened in any way.

    Args:
        cls: the second of a pair in ``NETWORKS``.
        latent_dim: Z.
        event_shape: shape of one datum, ``(C, H, W)`` for convolutions.
        hidden: widths of the encoder's layers, which an MLP mirrors.
        num_params: P.

    Raises:
        ValueError: an ``event_shape`` that is no image's.
    """
    if is_mlp(cls):
        return cls(latent_dim, hidden[::-1], num_params * prod(event_shape))
    return cls(latent_dim, event_shape, num_params * event_shape[0])
