"""The parts of an autoencoder besides its two networks: activations, errors, tied layers, corruptions."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import require_flag, require_positive, require_within
from pyrovae._parts import Registry


class Activation(NamedTuple):
    """An activation: its layer's class and, for the Jacobian by formula, its derivative."""

    layer: Callable[[], nn.Module]
    derivative: Callable[[Tensor], Tensor]


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(nn.Identity, torch.ones_like),
    "relu": Activation(nn.ReLU, lambda a: (a > 0).to(a)),
    "sigmoid": Activation(nn.Sigmoid, lambda a: a.sigmoid() * (-a).sigmoid()),
    "softplus": Activation(nn.Softplus, torch.sigmoid),
    "tanh": Activation(nn.Tanh, lambda a: 1.0 - a.tanh().square()),
}


def squared_error(out: Float[Tensor, "batch features"], x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch"]:
    """Half the squared error, ½‖x − out‖²: −log N(x; out, 1) in nats, without its constant."""
    return 0.5 * (out - x).square().sum(-1)


def bernoulli_error(out: Float[Tensor, "batch features"], x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch"]:
    """The negative log-likelihood −log p(x), in nats, of Bernoullis with logits ``out``."""
    return nn.functional.binary_cross_entropy_with_logits(out, x, reduction="none").sum(-1)


ERRORS = {"squared_error": squared_error, "bernoulli": bernoulli_error}


class CodeNetworks(Protocol):
    """The networks of an autoencoder, as far as a penalty may depend on them.

    Attributes:
        encoder: ``(..., features)`` to the code before its activation.
        decoder: ``(..., code)`` to the reconstruction's parameters.
        code_activation: what turns the encoder's output into the code; a layer of ``ACTIVATIONS``.
        code_activation_name: its name there.
    """

    encoder: nn.Sequential
    decoder: nn.Sequential
    code_activation: nn.Module
    code_activation_name: str


class Transposed(nn.Module):
    """An affine layer with the transposed weights of another one and a bias of its own."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.theirs = of.weight  # the parameter, not the layer: a step's graph replaces it under each of its names
        self.bias = nn.Parameter(torch.zeros(of.in_features))

    @property
    def weight(self) -> Tensor:
        """The transposed weights ``(out_features, in_features)``, shaped as those of a ``Linear``."""
        return self.theirs.T

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def affine_layers(network: nn.Sequential) -> list[nn.Linear | Transposed]:
    """The layers of an encoder or decoder that have weights, in order."""
    return [layer for layer in network if isinstance(layer, (nn.Linear, Transposed))]


class Corruption(nn.Module, ABC):
    """Noise that a denoising autoencoder is trained to undo (Vincent et al. 2008, ICML). Calling it always corrupts; an
    :class:`Autoencoder` calls it in training mode only.
    """

    @abstractmethod
    def forward(self, x: Float[Tensor, "*batch_event"]) -> Float[Tensor, "*batch_event"]:
        """Corrupt ``x``, with draws of torch's generator."""


class GaussianNoise(Corruption):
    """Gaussian noise: x + ε with ε ~ N(0, scale²), independent for every number.

    Args:
        scale: standard deviation, in the data's unit.
    """

    def __init__(self, *, scale: float = 0.3) -> None:
        super().__init__()
        require_positive(scale=scale)
        self.scale = float(scale)

    def forward(self, x: Float[Tensor, "*batch_event"]) -> Float[Tensor, "*batch_event"]:
        return x + self.scale * torch.randn_like(x)


class MaskingNoise(Corruption):
    """Masking noise: every number becomes 0 with probability ``fraction``.

    Args:
        fraction: of the numbers that are lost.
        rescale: divide the others by 1 − ``fraction``, as dropout does. Data without noise are then to the encoder
            what noisy ones are on average; otherwise they are larger than anything it was trained on.
    """

    def __init__(self, *, fraction: float = 0.3, rescale: bool = False) -> None:
        super().__init__()
        require_within("(0, 1)", fraction=fraction)
        require_flag(rescale=rescale)
        self.fraction, self.rescale = float(fraction), rescale

    def forward(self, x: Float[Tensor, "*batch_event"]) -> Float[Tensor, "*batch_event"]:
        kept = x * (torch.rand_like(x) >= self.fraction)
        return kept / (1 - self.fraction) if self.rescale else kept


CORRUPTIONS: Registry[Corruption] = Registry("corruption", Corruption, gaussian=GaussianNoise, masking=MaskingNoise)
