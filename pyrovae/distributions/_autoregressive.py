"""The distribution over images, or grids of codes, that goes with an autoregressive network."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrovae._checks import as_sizes, as_tensor, require_at_least, require_callable, require_instance


class Autoregressive(TorchDistribution):
    """p(x) = Π p(xᵢ | x₁ … xᵢ₋₁) over the pixels of an image, in raster order (van den Oord et al. 2016).

    Scoring takes one pass of the network, drawing one for every pixel, over the rows down to it.

    Args:
        conditional: images ``(..., C, h, W)``, the uppermost h rows, to the distribution of every pixel of them given
            the pixels before it: batch ``(...)``, event ``(C, h, W)``, factorised over pixels. Its value at a pixel
            must not depend on that pixel or later ones. Leading dimensions must broadcast with whatever
            ``conditional`` is conditioned on. All the same without C, for grids.
        event_shape: ``(C, H, W)`` or ``(H, W)``.
        batch_shape: of what ``conditional`` is conditioned on.
        support: of one pixel.
        like: a tensor of the device and dtype that draws have.
        mean_draws: draws that :attr:`mean` averages, because it has no closed form.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        conditional: Callable[[Tensor], Distribution],
        event_shape: Sequence[int],
        batch_shape: tuple[int, ...] = (),
        *,
        support: constraints.Constraint = constraints.boolean,
        like: Tensor | None = None,
        mean_draws: int = 16,
    ) -> None:
        require_callable(conditional=conditional)
        require_instance(constraints.Constraint, support=support)
        if like is not None:
            require_instance(Tensor, like=like)
            as_tensor(like, "like")
        require_at_least(1, mean_draws=mean_draws)
        event_shape = as_sizes(event_shape, "event_shape")
        if len(event_shape) < 2:
            raise ValueError(f"event_shape must be (C, H, W) or (H, W); got {event_shape}.")
        batch_shape = as_sizes(batch_shape, "batch_shape", minimum=0, empty=True)
        self._conditional, self._pixel_support = conditional, support
        self._like = torch.empty(0) if like is None else like
        self.mean_draws = mean_draws
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self._pixel_support, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """An estimate, from :attr:`mean_draws` draws."""
        return self.sample(torch.Size((self.mean_draws,))).mean(0)

    def expand(self, batch_shape: tuple[int, ...] | list[int], _instance: Any = None) -> "Autoregressive":
        # `conditional` broadcasts: only the shape of the draws changes.
        options: dict[str, Any] = {"support": self._pixel_support, "like": self._like, "mean_draws": self.mean_draws}
        return Autoregressive(self._conditional, self.event_shape, tuple(batch_shape), **options)

    def log_prob(self, value: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        return self._conditional(value.expand(*lead, *self.event_shape)).log_prob(value)

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] | list[int] = ()) -> Tensor:
        height, width = self.event_shape[-2:]
        x = self._like.new_zeros(*sample_shape, *self.batch_shape, *self.event_shape)
        for i, j in product(range(height), range(width)):
            drawn = self._conditional(x[..., : i + 1, :]).sample()
            x[..., i, j] = drawn[..., i, j]
        return x
