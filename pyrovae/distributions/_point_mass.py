"""A categorical that has nothing left to chance."""

from typing import Any

import torch
from jaxtyping import Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints, register_kl


class PointMass(TorchDistribution):
    """All mass on one of the values 0 … num_values - 1: log-probability 0 there, and -∞ at every other.

    Unlike a ``Categorical`` it needs no table of ``num_values`` logits, most of them -∞.

    Args:
        value: where the mass is, integers of shape ``(*batch,)``.
        num_values: how many values there are.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, value: Int[Tensor, "*batch"], num_values: int) -> None:
        self.value = value
        self.num_values = num_values
        super().__init__(value.shape, torch.Size(), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_values - 1)

    def expand(self, batch_shape: tuple[int, ...] | list[int], _instance: Any = None) -> "PointMass":
        return PointMass(self.value.expand(batch_shape), self.num_values)

    def sample(self, sample_shape: tuple[int, ...] | list[int] = ()) -> Tensor:
        return self.value.expand(*sample_shape, *self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where(value == self.value, 0.0, -torch.inf)

    def entropy(self) -> Tensor:
        return torch.zeros(self.batch_shape, device=self.value.device)


@register_kl(PointMass, Categorical)
def _kl_point_mass_categorical(p: PointMass, q: Categorical) -> Tensor:
    """KL(δ_v ‖ q) = -log q(v)."""
    return -q.log_prob(p.value)
