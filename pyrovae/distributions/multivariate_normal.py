"""The multivariate normal, whose own draws are scored from their noise."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.distributions.own_draw import KeepsLastDraw
from pyrovae.distributions.sylvester import apply_matrix


class MultivariateNormal(KeepsLastDraw, dist.MultivariateNormal):
    """N(μ, L Lᵀ) as Pyro has it, but that its last draw z = μ + L ε is scored as -½ |ε|² - Σ ln Lᵢᵢ - ½ Z ln 2π.

    Any other value is scored by solving for ε. In single precision and hundreds of dimensions that can be wrong by
    millions of nats, because the condition number of a triangular L grows exponentially with its size.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self._keep(self.loc + apply_matrix(self._unbroadcasted_scale_tril, noise), noise)

    def log_prob(self, value: Tensor) -> Tensor:
        noise = self._kept(value)
        if noise is None:
            return super().log_prob(value)
        log_det = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (noise.square().sum(-1) + math.log(2.0 * math.pi) * self.event_shape[0]) - log_det
