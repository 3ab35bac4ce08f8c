"""Mixtures: one that is the same for a whole batch, one of normals whose draws carry gradients."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class SharedMixture(dist.MixtureSameFamily):
    """A mixture, as ``MixtureSameFamily``, of which a batch of data has one: its components are not expanded to one
    for every datum, of which each density would take the logarithm of the scale, say, once more.
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.ExpandedDistribution:
        return dist.ExpandedDistribution(self, torch.Size(batch_shape))


class MixtureOfNormals(dist.MixtureSameFamily):
    """A mixture of diagonal normals, as ``MixtureSameFamily``, whose draws are reparameterised implicitly (Figurnov et
    al. 2018, arXiv:1805.08498, eq. 5; for mixtures Graves 2016, arXiv:1607.05690).

    Given z_1..z_{d-1}, dimension d has the distribution function F_d(z_d | z_{<d}) = Σ_k w_kd Φ((z_d - μ_kd) / σ_kd),
    w_kd being the weights given z_{<d}. All F_d stay what they are when the parameters move, so that

        ∂z/∂θ = -(∂F/∂z)⁻¹ ∂F/∂θ,

    with a triangular ∂F/∂z. A draw takes O(K Z²). Mass passes from one component to another through what lies between
    them: where that is many scales, the gradient of the weights is right on average and has very heavy tails.

    Args:
        mixture_distribution: a ``Categorical`` of K classes.
        component_distribution: ``Normal(loc, scale).to_event(1)``, the last batch dimension K.
    """

    has_rsample = True

    def rsample(self, sample_shape: tuple[int, ...] | list[int] = ()) -> Tensor:
        z = self.sample(torch.Size(sample_shape))
        normal = self._component_distribution.base_dist
        logits = self._mixture_distribution.logits
        if not torch.is_grad_enabled():  # (torch.func's tensors do not say that they need a gradient)
            return z
        x = (z.unsqueeze(-2) - normal.loc) / normal.scale  # (..., K, Z)
        log_density = -0.5 * x.square() - normal.scale.log() - 0.5 * math.log(2.0 * math.pi)
        weights = (logits.unsqueeze(-1) + log_density.cumsum(-1) - log_density).softmax(-2)
        # In the upper half 1 - F, so that nothing is lost in either tail.
        upper = (weights * torch.special.ndtr(x)).sum(-2, keepdim=True).detach() > 0.5
        tails = torch.special.ndtr(torch.where(upper, -x, x))
        sign = torch.where(upper, -1.0, 1.0).squeeze(-2)
        moved = sign * (weights * tails).sum(-2)
        with torch.no_grad():
            centered = weights * (tails - (weights * tails).sum(-2, keepdim=True)) * sign.unsqueeze(-2)
            slopes = (centered.mT @ (-x / normal.scale)).tril(-1)
            slopes = slopes + (weights * log_density.exp()).sum(-2).diag_embed()
        step = torch.linalg.solve_triangular(slopes, (moved - moved.detach()).unsqueeze(-1), upper=False)
        return z - step.squeeze(-1)
