"""Discrete values: equally spaced levels in [0, 1], drawn by a categorical or a logistic density, and a point mass."""

from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints, register_kl
from torch.nn.functional import logsigmoid

from pyrovae._checks import require_at_least, require_broadcasting, require_tensors
from pyrovae._compat.torch import checks_values


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
        require_tensors(logits=logits)
        if not logits.dim() or logits.shape[-1] < 2:
            raise ValueError(f"logits must have shape (..., L) with at least two levels; got {tuple(logits.shape)}.")
        if checks_values() and not bool(logits.logsumexp(-1).isfinite().all()):
            raise ValueError("logits must hold neither NaN nor +inf, and not -inf for every level.")
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
        k = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        return k.to(self.logits.dtype) / (self.num_levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        k = (value * (self.num_levels - 1)).round().long().expand(shape)
        logits = self.logits.expand(*shape, self.num_levels)
        return logits.gather(-1, k.unsqueeze(-1)).squeeze(-1) - self.logits.logsumexp(-1)


class DiscretizedLogistic(TorchDistribution):
    """x = k/(L-1) nearest to y ~ Logistic(loc, scale), kept in [0, 1]: the outer bins take the tails.

    P(x) = σ(b) - σ(a), with a, b = (x ∓ ½/(L-1) - loc)/scale the edges of the bin (Salimans et al. 2017,
    arXiv:1701.05517, eq. 2). As σ(b) - σ(a) = σ(b) σ(-a) (1 - e^(a-b)), and b - a is the same for all bins, its
    logarithm is a sum of three terms none of which cancels: exact in the far tails, with neither clamp nor
    approximation.

    Args:
        loc: ``(*batch)``, in the unit of the data; it may lie outside [0, 1].
        scale: ``(*batch)``, positive, in the unit of the data.
        num_levels: L.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, loc: Float[Tensor, "*batch"], scale: Float[Tensor, "*batch"], num_levels: int) -> None:
        require_tensors(finite=checks_values(), loc=loc)
        require_tensors(positive=checks_values(), scale=scale)
        require_broadcasting(loc=loc, scale=scale)
        require_at_least(2, num_levels=num_levels)
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.num_levels = num_levels
        super().__init__(self.loc.shape, torch.Size(), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return OnLevels(self.num_levels)

    @property
    def mean(self) -> Tensor:
        """1/(L-1) Σ_k P(K > k), term by term: a table of all levels would be L times the size of the data."""
        total = torch.zeros_like(self.loc)
        for k in range(self.num_levels - 1):
            total = total + torch.sigmoid((self.loc - (k + 0.5) / (self.num_levels - 1)) / self.scale)
        return total / (self.num_levels - 1)

    def expand(self, batch_shape: tuple[int, ...] | list[int], _instance: Any = None) -> "DiscretizedLogistic":
        return DiscretizedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.num_levels)

    def sample(self, sample_shape: tuple[int, ...] | list[int] = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            u = u.clamp(min=torch.finfo(u.dtype).tiny)  # rand may give 0
            y = self.loc + self.scale * (u.log() - (-u).log1p())
            return (y * (self.num_levels - 1)).round().clamp(0, self.num_levels - 1) / (self.num_levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        last = self.num_levels - 1
        k = (value * last).round()  # float32 images are a little off the levels, which a small scale would magnify
        below = logsigmoid(((k + 0.5) / last - self.loc) / self.scale)
        above = logsigmoid((self.loc - (k - 0.5) / last) / self.scale)
        within = (-torch.expm1(-1.0 / (last * self.scale))).log()
        return torch.where(k == 0, below, torch.where(k == last, above, below + above + within))


class PointMass(TorchDistribution):
    """All mass on one of the values 0 … num_values - 1: log-probability 0 there, and -∞ at every other.

    Unlike a ``Categorical`` it needs no table of ``num_values`` logits, most of them -∞.

    Args:
        value: where the mass is, integers of shape ``(*batch,)``.
        num_values: how many values there are.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, value: Int[Tensor, "*batch"], num_values: int) -> None:
        require_tensors(integers=True, value=value)
        require_at_least(1, num_values=num_values)
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
