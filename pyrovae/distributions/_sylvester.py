"""The Sylvester transform with amortised parameters, van den Berg et al. (2018, arXiv:1803.05649)."""

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform, constraints

from pyrovae._compat import zuko  # noqa: F401  gives every Transform its call_and_ladj


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
