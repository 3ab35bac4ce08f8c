"""Importance weights reduced as they come: nothing here grows with the number of draws."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrovae.evaluation.marginal._tail import pareto_khat, tail_length

_POWERS = (1, 2, 3, 4)  # of the weights, whose sums are kept
_KEPT = 128  # largest weights kept at least


class WeightStream:
    """Statistics of the importance weights of ``batch`` data, in float64, updated with blocks of draws.

    Args:
        batch: number of data.
        num_samples: K, how many draws will come in all.
        bounds: sizes K' at which the bound L_K' is wanted; each is averaged over the disjoint blocks of K'
            draws among the K.
        device: where the draws come from.
    """

    def __init__(self, batch: int, num_samples: int, bounds: Iterable[int], device: torch.device) -> None:
        self._n = num_samples
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self._log_sums = torch.full((len(_POWERS), batch), -math.inf, **options)
        self._largest = torch.empty((batch, 0), **options)
        self._blocks = {k: _BlockMeans(batch, k, options) for k in bounds}
        self.non_finite: Int[Tensor, batch] = torch.zeros(batch, dtype=torch.int64, device=device)

    def update(self, log_weight: Float[Tensor, "draws batch"]) -> None:
        """Take in a block of draws."""
        w = log_weight.to(torch.float64)
        self.non_finite += (w.isnan() | (w == math.inf)).sum(0)
        powers = torch.stack([p * w for p in _POWERS])
        sums = powers.logsumexp(1) if len(w) > 1 else powers.squeeze(1)
        self._log_sums = torch.logaddexp(self._log_sums, sums) if self._largest.shape[1] else sums
        candidates = torch.cat([self._largest, w.T], dim=1)
        keep = min(max(tail_length(self._n) + 1, _KEPT), candidates.shape[1])
        self._largest = candidates.topk(keep, dim=1).values
        for block in self._blocks.values():
            block.update(w)

    @property
    def log_mean(self) -> Float[Tensor, "batch"]:
        """log p̂(x) = log 1/K Σ w."""
        return self._log_sums[0] - math.log(self._n)

    @property
    def jackknife(self) -> Float[Tensor, "batch"]:
        """K L_K - (K-1) mean_k L_K without draw k, in which the bias of order 1/K cancels (Nowozin 2018).

        With r_k = w_k / Σw, leaving out draw k changes log Σw by log(1 - r_k). For the largest weights that is taken as
        it is; for the others, all smaller than 1/128, to fourth order from the sums of powers.
        """
        if self._n < 2:
            return torch.full_like(self.log_mean, math.nan)
        kept = (self._largest - self._log_sums[0].unsqueeze(1)).exp()
        # 1 - r of the largest, without cancellation: what is kept of the others, and what is not.
        rest = (1.0 - kept.sum(1)).clamp(min=0.0).minimum((self._n - kept.shape[1]) * kept[:, -1])
        others = kept[:, 1:].sum(1) + rest
        shift = others.log() + torch.log1p(-kept[:, 1:]).sum(1)
        if kept.shape[1] < self._n:
            for p in _POWERS:
                rest = (self._log_sums[p - 1] - p * self._log_sums[0]).exp() - kept.pow(p).sum(1)
                shift = shift - rest.clamp(min=0.0) / p
        correction = (self._n - 1) * (math.log1p(-1.0 / self._n) - shift / self._n)
        return torch.where(self.log_mean == -math.inf, self.log_mean, self.log_mean + correction)

    @property
    def ess(self) -> Float[Tensor, "batch"]:
        """Effective sample size (Σ w)² / Σ w²; 0 where every weight is."""
        ess = (2.0 * self._log_sums[0] - self._log_sums[1]).exp()
        return torch.where(self._log_sums[0] == -math.inf, 0.0, ess)

    @property
    def khat(self) -> Float[Tensor, "batch"]:
        """Pareto shape of the largest weights."""
        return pareto_khat(self._largest[:, : tail_length(self._n) + 1])

    def se(self, k: int) -> Float[Tensor, "batch"]:
        """Monte Carlo standard error of log p̂ from k draws, by the delta method: CV / √k."""
        if self._n < 2:
            return torch.full_like(self.log_mean, math.nan)
        squared_cv = (self._n / self.ess - 1.0).clamp(min=0.0) * self._n / (self._n - 1)
        return (squared_cv / k).sqrt()

    def bound(self, k: int) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """L_k and its Monte Carlo standard error: between blocks where there are two, else :meth:`se`."""
        block = self._blocks[k]
        return block.mean, block.se if block.count > 1 else self.se(k)

    def difference(self, k: int) -> Float[Tensor, "batch"]:
        """L_k of the first k draws minus that of the last complete k, for a ``k`` among the bounds."""
        return self._blocks[k].first - self._blocks[k].last


class _BlockMeans:
    """log-mean-exp over every ``size`` consecutive draws, averaged over the complete blocks."""

    def __init__(self, batch: int, size: int, options: dict[str, Any]) -> None:
        self._size, self.count, self._filled = size, 0, 0
        self._open = torch.full((batch,), -math.inf, **options)
        self._shift: Tensor | None = None  # near the values, so that their squares keep their digits
        self.first = self.last = self._open
        self._sum = torch.zeros(batch, **options)
        self._squares = torch.zeros(batch, **options)

    def update(self, w: Tensor) -> None:
        if self._filled:
            head, w = w[: self._size - self._filled], w[self._size - self._filled :]
            self._open = torch.logaddexp(self._open, head.logsumexp(0))
            self._filled += len(head)
            if self._filled == self._size:
                self._add(self._open.unsqueeze(0))
                self._filled = 0
        whole = len(w) // self._size
        if whole:
            blocks = w[: whole * self._size].unflatten(0, (whole, self._size))
            self._add(blocks.logsumexp(1) if self._size > 1 else blocks.squeeze(1))
        rest = w[whole * self._size :]
        if len(rest):
            self._open, self._filled = rest.logsumexp(0), len(rest)

    def _add(self, log_sums: Tensor) -> None:
        values = log_sums - math.log(self._size)
        if self._shift is None:
            self._shift = torch.where(values[0].isfinite(), values[0], 0.0)
            self.first = values[0]
        self.last = values[-1]
        shifted = values - self._shift
        self._sum = self._sum + shifted.sum(0)
        self._squares = self._squares + shifted.square().sum(0)
        self.count += len(values)

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count + (0.0 if self._shift is None else self._shift)

    @property
    def se(self) -> Tensor:
        variance = (self._squares - self._sum.square() / self.count) / (self.count - 1)
        return (variance.clamp(min=0.0) / self.count).sqrt()
