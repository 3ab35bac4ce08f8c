"""Amortised Sylvester flows, van den Berg et al. (2018, arXiv:1803.05649), with Q built in three ways."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Transform

from pyrovae._checks import require_at_least
from pyrovae.distributions import SylvesterTransform
from pyrovae.distributions._sylvester import orthonormal
from pyrovae.posteriors._base import FlowPosterior


class Sylvester(FlowPosterior):
    """A flow of amortised Sylvester transforms z + Q R tanh(R̃ Qᵀ z + b), with Q, R, R̃ and b from the context.

    ``R`` takes the upper triangle of one amortised matrix and ``R̃`` the lower triangle, transposed; their
    diagonals are tanh-bounded so that every transform is invertible (Theorem 2 of the paper).

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of transforms.
        bottleneck: M, the number of orthonormal columns of Q, at most Z.
    """

    can_score = False

    def __init__(self, latent_dim: int, context_dim: int, *, num_flows: int, bottleneck: int) -> None:
        require_at_least(1, latent_dim=latent_dim, bottleneck=bottleneck)
        if bottleneck > latent_dim:
            raise ValueError(f"bottleneck must be at most latent_dim={latent_dim}; got {bottleneck}.")
        super().__init__(latent_dim, context_dim, num_flows=num_flows)
        self.bottleneck = bottleneck
        self.triangles = nn.Linear(context_dim, num_flows * bottleneck**2)
        self.diagonals = nn.Linear(context_dim, num_flows * 3 * bottleneck)

    @abstractmethod
    def orthonormal(self, context: Float[Tensor, "*batch context"]) -> list[Tensor]:
        """A matrix ``(*batch, Z, M)`` with orthonormal columns for every flow."""

    def transforms(self, context: Float[Tensor, "*batch context"]) -> list[Transform]:
        n, m = self.num_flows, self.bottleneck
        full = self.triangles(context).unflatten(-1, (n, m, m))
        d, d_tilde, b = self.diagonals(context).unflatten(-1, (n, 3, m)).unbind(-2)
        r = full.triu(1) + d.tanh().diag_embed()
        r_tilde = full.tril(-1).mT + d_tilde.tanh().diag_embed()
        return [
            SylvesterTransform(q, r[..., i, :, :], r_tilde[..., i, :, :], b[..., i, :])
            for i, q in enumerate(self.orthonormal(context))
        ]


class OrthogonalSylvester(Sylvester):
    """O-SNF: a Sylvester flow whose Q is the orthonormal factor of an amortised Z×M matrix, here by QR, so that it is
    orthonormal to rounding (the paper iterates towards it).

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of transforms.
        bottleneck: M; by default the smaller of Z and 32.
    """

    def __init__(self, latent_dim: int, context_dim: int, *, num_flows: int = 4, bottleneck: int | None = None) -> None:
        require_at_least(1, latent_dim=latent_dim)
        bottleneck = min(latent_dim, 32) if bottleneck is None else bottleneck
        super().__init__(latent_dim, context_dim, num_flows=num_flows, bottleneck=bottleneck)
        self.columns = nn.Linear(context_dim, num_flows * latent_dim * bottleneck)
        nn.init.normal_(self.columns.bias)  # a generic matrix: QR is ill-conditioned near rank deficiency

    def orthonormal(self, context: Float[Tensor, "*batch context"]) -> list[Tensor]:
        shape = (self.num_flows, self.latent_dim, self.bottleneck)
        return list(orthonormal(self.columns(context).unflatten(-1, shape)).unbind(-3))


class HouseholderSylvester(Sylvester):
    """H-SNF: a Sylvester flow whose Q is a product of Householder reflections, Z×Z.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of transforms.
        num_reflections: reflections per transform.
    """

    def __init__(self, latent_dim: int, context_dim: int, *, num_flows: int = 4, num_reflections: int = 8) -> None:
        require_at_least(1, num_reflections=num_reflections)
        super().__init__(latent_dim, context_dim, num_flows=num_flows, bottleneck=latent_dim)
        self.num_reflections = num_reflections
        self.vectors = nn.Linear(context_dim, num_flows * num_reflections * latent_dim)
        nn.init.normal_(self.vectors.bias)  # a reflection needs a vector other than zero

    def orthonormal(self, context: Float[Tensor, "*batch context"]) -> list[Tensor]:
        shape = (self.num_flows, self.num_reflections, self.latent_dim)
        vectors = nn.functional.normalize(self.vectors(context).unflatten(-1, shape), dim=-1, eps=1e-30)
        q = torch.eye(self.latent_dim, dtype=context.dtype, device=context.device)
        for v in vectors.unbind(-2):
            q = q - 2.0 * (q @ v.unsqueeze(-1)) * v.unsqueeze(-2)
        return list(q.unbind(-3))


class TriangularSylvester(Sylvester):
    """T-SNF: a Sylvester flow whose Q alternates between the identity and the permutation that reverses the latent
    dimensions.

    Args:
        latent_dim: Z.
        context_dim: C.
        num_flows: number of transforms.
    """

    def __init__(self, latent_dim: int, context_dim: int, *, num_flows: int = 4) -> None:
        super().__init__(latent_dim, context_dim, num_flows=num_flows, bottleneck=latent_dim)

    def orthonormal(self, context: Float[Tensor, "*batch context"]) -> list[Tensor]:
        identity = torch.eye(self.latent_dim, dtype=context.dtype, device=context.device)
        return [identity.flip(0) if i % 2 else identity for i in range(self.num_flows)]
