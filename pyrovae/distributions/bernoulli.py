"""A vector or image of independent Bernoullis, scored in two passes over the logits."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class IndependentBernoulli(dist.Independent):
    """``dist.Bernoulli(logits=logits).to_event(event_dim)`` for data in {0, 1}, with a faster ``log_prob``.

    log p(x) = -Σ softplus(-sᵢ lᵢ) with s = 2x - 1: no cancellation for logits of any size, and less memory traffic than
    the cross-entropy, which also takes x between 0 and 1.

    Args:
        logits: ``(..., *event)``.
        event_dim: number of event dimensions.
    """

    def __init__(self, logits: Tensor, event_dim: int, *, validate_args: bool | None = None) -> None:
        super().__init__(dist.Bernoulli(logits=logits, validate_args=validate_args), event_dim)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "IndependentBernoulli":
        logits = self.base_dist.logits
        event_dim = self.reinterpreted_batch_ndims
        return IndependentBernoulli(
            logits.expand(*batch_shape, *logits.shape[logits.dim() - event_dim :]), event_dim, validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self.base_dist._validate_args:
            self.base_dist._validate_sample(value)
        terms = torch.nn.functional.softplus((1.0 - 2.0 * value) * self.base_dist.logits)
        return -terms.flatten(-self.reinterpreted_batch_ndims).sum(-1) if self.reinterpreted_batch_ndims else -terms
