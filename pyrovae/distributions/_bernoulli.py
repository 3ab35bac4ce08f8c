"""A vector or image of independent Bernoullis, scored with little memory traffic."""

import inspect
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae._compat.torch import validate


class IndependentBernoulli(dist.Independent):
    """``dist.Bernoulli(logits=logits).to_event(event_dim)`` for data in {0, 1}, with a faster ``log_prob``.

    With t = (1 - 2x) l, log p(x) = -Σ max(tᵢ, 0) + log(1 + exp(-|tᵢ|)): no cancellation for logits of any size. The
    error per dimension is that of rounding 1 + exp(-|t|), 6e-8 in float32, so the sum is as good as torch's.

    Args:
        logits: ``(..., *event)``.
        event_dim: number of event dimensions.
    """

    def __init__(self, logits: Tensor, event_dim: int, *, validate_args: bool | None = None) -> None:
        super().__init__(dist.Bernoulli(logits=logits, validate_args=validate_args), event_dim)

    def expand(self, batch_shape: tuple[int, ...] | list[int], _instance: Any = None) -> "IndependentBernoulli":
        logits = self.base_dist.logits
        event_dim = self.reinterpreted_batch_ndims
        return IndependentBernoulli(
            logits.expand(*batch_shape, *logits.shape[logits.dim() - event_dim :]), event_dim, validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        validate(self.base_dist, value)
        terms = _Surprise.apply(self.base_dist.logits, value)
        return -(terms.flatten(-self.reinterpreted_batch_ndims).sum(-1) if self.reinterpreted_batch_ndims else terms)


class _Surprise(torch.autograd.Function):
    """-log p(x) of every dimension. Its derivative σ(l) - x takes one pass, and is right at l = 0 too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:
        t = (1.0 - 2.0 * x) * logits
        positive = t.relu()
        return t.abs_().neg_().exp_().add_(1.0).log_().add_(positive)  # in place: the time goes into memory traffic

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, x = ctx.saved_tensors
        return (logits.sigmoid() - x) * grad, -logits * grad if ctx.needs_input_grad[1] else None


# torch looks up the signature at every call; where it is written down, the look takes a tenth of the time.
_Surprise.forward.__signature__ = inspect.signature(_Surprise.forward)  # type: ignore[attr-defined]
