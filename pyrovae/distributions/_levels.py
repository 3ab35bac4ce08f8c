"""Quantised data: a categorical distribution over equally spaced levels in [0, 1]."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class OnLevels(constraints.Constraint):
    """Values k/(L-1) for k = 0 … L-1."""

    is_discrete = True

    def __init__(self, num_levels: int) -> None:
        self.num_levels = num_levels

    def check(self, value: Tensor) -> Tensor:
        k = value * (self.num_levels - 1)
        return ((k - k.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return f"{self.num_levels} levels k/{self.num_levels - 1} in [0, 1]"


class Levels(TorchDistribution):
    """P(x = k/(L-1)) = softmax(logits)ₖ, for pixels kept as fractions of the brightest level.

    Args:
        logits: unnormalised log-probabilities, shape ``(*batch, L)``.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], torch.Size(), validate_args=False)

    @property
    def num_levels(self) -> int:
        return self.logits.shape[-1]

    @property
    def support(self) -> constraints.Constraint:
        return OnLevels(self.num_levels)

    @property
    def mean(self) -> Tensor:
        levels = torch.linspace(0, 1, self.num_levels, dtype=self.logits.dtype, device=self.logits.device)
        return self.logits.softmax(-1) @ levels

    def expand(self, batch_shape: tuple[int, ...] | list[int], _instance: Any = None) -> "Levels":
        return Levels(self.logits.expand(*batch_shape, self.num_levels))

    def sample(self, sample_shape: tuple[int, ...] | list[int] = ()) -> Tensor:
        k = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        return k.to(self.logits.dtype) / (self.num_levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        k = (value * (self.num_levels - 1)).round().long().expand(shape)
        logits = self.logits.expand(*shape, self.num_levels)
        return logits.gather(-1, k.unsqueeze(-1)).squeeze(-1) - self.logits.logsumexp(-1)
