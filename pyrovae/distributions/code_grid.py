"""Grids of codes, each drawn given those before it."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints

LogitsAt = Callable[[Tensor], Tensor]


class AutoregressiveGrid(TorchDistribution):
    """p(z) = Π p(z_ij | what precedes it in raster order) over grids ``(H, W)`` of codes 0 … num_codes - 1.

    Scoring takes one call of ``logits_at``, drawing H·W of them.

    Args:
        logits_at: from codes ``(..., h, W)``, the uppermost h rows, to logits ``(..., num_codes, h, W)``. Those at a
            position may depend only on codes before it, as a PixelCNN's do.
        grid_shape: ``(H, W)``.
        num_codes: K.
        device: where to draw.
        batch_shape: of independent grids.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        logits_at: LogitsAt,
        grid_shape: tuple[int, int],
        num_codes: int,
        device: torch.device | None = None,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        self.logits_at, self.num_codes, self.device = logits_at, num_codes, device
        super().__init__(batch_shape, torch.Size(grid_shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.num_codes - 1), 2)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "AutoregressiveGrid":
        height, width = self.event_shape
        return AutoregressiveGrid(self.logits_at, (height, width), self.num_codes, self.device, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Int[Tensor, "*batch height width"]:  # noqa: B008
        height, width = self.event_shape
        z = torch.zeros(self._extended_shape(sample_shape), dtype=torch.long, device=self.device)
        with torch.no_grad():
            for i in range(height):
                for j in range(width):
                    logits = self.logits_at(z[..., : i + 1, :])[..., i, j]
                    z[..., i, j] = Categorical(logits=logits, validate_args=False).sample()
        return z

    def log_prob(self, value: Int[Tensor, "*batch height width"]) -> Float[Tensor, "*batch"]:
        log_p = self.logits_at(value).log_softmax(-3).gather(-3, value.unsqueeze(-3)).squeeze(-3)
        total = log_p.sum((-2, -1))
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))
