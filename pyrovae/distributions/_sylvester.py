"""The Sylvester transform with amortised parameters, van den Berg et al. (2018, arXiv:1803.05649), and its matrices."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform, constraints

from pyrovae._checks import require_one_dtype, require_tensors
from pyrovae._compat import zuko  # noqa: F401  gives every Transform its call_and_ladj
from pyrovae._compat.torch import checks_values


def apply_matrix(a: Float[Tensor, "*batch m n"], z: Float[Tensor, "*more n"]) -> Float[Tensor, "*more m"]:
    """``A z`` where ``z`` may have further leading dimensions: one matrix product per matrix, no copies."""
    extra = (z.dim() - 1) - (a.dim() - 2)
    if extra <= 0:
        return (a @ z.unsqueeze(-1)).squeeze(-1)
    flat = z.flatten(0, extra - 1).movedim(0, -2)  # (*batch, draws, n)
    return (flat @ a.mT).movedim(-2, 0).reshape(*z.shape[:-1], a.shape[-2])


class SylvesterTransform(Transform):
    """z ↦ z + Q R tanh(R̃ Qᵀ z + b), eq. 8 of the paper.

    By Sylvester's identity its Jacobian has determinant Π_i [1 + tanh'(·)_i R_ii R̃_ii] (eq. 10), exactly so
    when the columns of ``Q`` are orthonormal and ``R``, ``R̃`` are upper triangular. It is invertible for
    R_ii R̃_ii > -1; the inverse has no closed form.

    Args:
        q: ``(*batch, Z, M)`` with orthonormal columns.
        r: ``(*batch, M, M)`` upper triangular.
        r_tilde: ``(*batch, M, M)`` upper triangular.
        b: ``(*batch, M)``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, q: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> None:
        require_tensors(finite=checks_values(), q=q, r=r, r_tilde=r_tilde, b=b)
        require_one_dtype(q=q, r=r, r_tilde=r_tilde, b=b)
        m = q.shape[-1] if q.dim() > 1 else 0
        if not (m and b.shape[-1:] == (m,) and r.shape[-2:] == r_tilde.shape[-2:] == (m, m)):
            raise ValueError(
                f"q, r, r_tilde and b must have shapes (..., Z, M), (..., M, M), (..., M, M) and (..., M); got "
                f"{', '.join(str(tuple(t.shape)) for t in (q, r, r_tilde, b))}."
            )
        super().__init__(cache_size=0)
        self._out = q @ r
        self._in = r_tilde @ q.mT
        self._b = b
        self._diagonal = r.diagonal(dim1=-2, dim2=-1) * r_tilde.diagonal(dim1=-2, dim2=-1)

    def call_and_ladj(self, x: Float[Tensor, "*more z"]) -> tuple[Tensor, Tensor]:
        """The image of ``x`` and log |det Jacobian|, in one pass."""
        h = (apply_matrix(self._in, x) + self._b).tanh()
        log_det = (1.0 + (1.0 - h.square()) * self._diagonal).log().sum(-1)
        return x + apply_matrix(self._out, h), log_det

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]


def orthonormal(a: Float[Tensor, "*batch n m"]) -> Float[Tensor, "*batch n m"]:
    """Q of A = Q R with R's diagonal positive, so that it is the same on every device; n ≥ m.

    By Householder reflections: orthonormal to rounding whatever the condition of A.
    """
    return _Orthonormal.apply(a)[0]


class _Orthonormal(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> tuple[Tensor, Tensor]:
        q, r = torch.linalg.qr(a) if a.device.type == "cpu" else _multiplied_out(a)
        sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(a.dtype)
        return q * sign.unsqueeze(-2), r * sign.unsqueeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (q, r), (of_q, of_r) = ctx.saved_tensors, gradients
        product = r @ of_r.mT - of_q.mT @ q
        symmetric = product.tril() + product.tril(-1).mT
        return torch.linalg.solve_triangular(r.mT, of_q + q @ symmetric, upper=False, left=False)


def _multiplied_out(a: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R, where ``torch.linalg.qr`` goes through a batch matrix by matrix, which on CUDA takes 40 times as long.

    The product of the reflections in its compact form, Q = I - V T Vᵀ (Schreiber & Van Loan 1989), with
    T⁻¹ = triu(Vᵀ V, 1) + diag(1/τ).
    """
    reflected, tau = torch.geqrf(a)
    n, m = a.shape[-2:]
    identity = torch.eye(n, m, dtype=a.dtype, device=a.device)
    idle = tau == 0  # no reflection, as always of the last column of a square matrix
    v = torch.where(idle.unsqueeze(-2), 0.0, reflected.tril(-1) + identity)
    inverse = (v.mT @ v).triu(1) + torch.where(idle, 1.0, tau).reciprocal().diag_embed()
    q = identity - v @ torch.linalg.solve_triangular(inverse, v[..., :m, :].mT, upper=True)
    return q, reflected[..., :m, :].triu()
