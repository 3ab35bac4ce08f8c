"""Vector quantisation: a codebook, and the code that is nearest to a vector."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyrovae._checks import as_data, as_tensor, require_at_least, require_instance, require_within

_MIN_WEIGHT = 1e-20  # of a code, in vectors, under which their mean is no longer taken


class Quantized(NamedTuple):
    """Vectors ``(..., D)`` after quantisation by a :class:`VectorQuantizer`.

    Attributes:
        vectors: the nearest codes' vectors ``(..., D)``. Their gradient goes to the vectors that came in, as if
            quantisation were the identity ("straight through").
        codes: the nearest codes' indices ``(...)``.
        commitment: ‖v - sg[e]‖² of each vector v and its code e, ``(...)``; its gradient draws v to e.
    """

    vectors: Float[Tensor, "... dim"]
    codes: Int[Tensor, "..."]
    commitment: Float[Tensor, "..."]


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantisation with a codebook of running means, van den Oord et al. (2017, arXiv:1711.00937,
    appendix A.1), Razavi et al. (2019, arXiv:1906.00446).

    In training mode every call moves the codebook: with n_i vectors of the batch nearest to code i, of sum s_i,

        N_i ← γ N_i + (1 - γ) n_i,    m_i ← γ m_i + (1 - γ) s_i,    e_i ← m_i / N_i.

    Before that, codes whose N_i has fallen below ``dead_below`` of an equal share M/K of the batch's M vectors are put
    onto vectors drawn from the batch, with the weight of an equal share (Dhariwal et al. 2020, arXiv:2005.00341,
    restart such codes too). All N_i start at zero, so that the first batch fills the codebook; with ``dead_below=0``
    nothing does, and codes stay at their random start until a vector is nearest to them. In evaluation mode
    nothing changes. In a run of several processes those of rank 0 move the codebook.

    Args:
        num_codes: K.
        code_dim: D.
        decay: γ.
        dead_below: fraction of an equal share under which a code is restarted; 0 for never.

    Attributes:
        codebook: ``(K, D)``.
        counts: N_i, ``(K,)``.
        sums: m_i, ``(K, D)``.

    Raises:
        ValueError: fewer than two codes, no dimension, a decay outside [0, 1), a fraction outside [0, 1).
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, code_dim: int, *, decay: float = 0.99, dead_below: float = 0.1) -> None:
        super().__init__()
        require_at_least(2, num_codes=num_codes)
        require_at_least(1, code_dim=code_dim)
        require_within("[0, 1)", decay=decay, dead_below=dead_below)
        self.num_codes, self.code_dim, self.decay, self.dead_below = num_codes, code_dim, decay, dead_below
        self.register_buffer("codebook", torch.randn(num_codes, code_dim))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))

    def nearest(self, vectors: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch"]:
        """Find the codes nearest to vectors ``(..., D)``: indices ``(...)``, the first of equally near ones."""
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            v = vectors.to(self.codebook)
            # ‖v - e‖² without ‖v‖², which is the same for every code.
            return (self.codebook.square().sum(-1) - 2.0 * v @ self.codebook.mT).argmin(-1)

    def embed(self, codes: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Look up the vectors ``(..., D)`` of codes ``(...)``."""
        return self.codebook[codes]

    def forward(self, vectors: Float[Tensor, "*batch dim"]) -> Quantized:
        if self.training:
            self._restart(vectors)
        codes = self.nearest(vectors)
        nearest = self.embed(codes)
        if self.training:
            self._update(vectors, codes)
        # Written so, its value is the code to the last bit: v + (e - v) would be rounded.
        straight_through = nearest + (vectors - vectors.detach())
        return Quantized(straight_through, codes, (vectors - nearest).square().sum(-1))

    @torch.no_grad()
    def _restart(self, vectors: Tensor) -> None:
        """Put dead codes onto vectors of the batch. Random numbers are drawn whether there are any or not, since to
        look would be to read values.
        """
        flat = vectors.reshape(-1, self.code_dim).to(self.codebook)
        share = len(flat) / self.num_codes
        dead = self.counts < self.dead_below * share
        drawn = flat[torch.randint(len(flat), (self.num_codes,), device=flat.device)]
        self.codebook.copy_(torch.where(dead.unsqueeze(-1), drawn, self.codebook))
        self.sums.copy_(torch.where(dead.unsqueeze(-1), share * drawn, self.sums))
        self.counts.copy_(torch.where(dead, share, self.counts))

    @torch.no_grad()
    def _update(self, vectors: Tensor, codes: Tensor) -> None:
        """Move the codebook to the running means of the vectors that were nearest to each code."""
        with torch.autocast(vectors.device.type, enabled=False):
            flat = vectors.reshape(-1, self.code_dim).to(self.codebook)
            every = torch.arange(self.num_codes, device=codes.device)
            belongs = (codes.reshape(-1, 1) == every).to(flat)
            self.counts.lerp_(belongs.sum(0), 1.0 - self.decay)
            self.sums.lerp_(belongs.mT @ flat, 1.0 - self.decay)
            weight = self.counts.unsqueeze(-1)
            means = self.sums / weight.clamp(min=_MIN_WEIGHT)
            self.codebook.copy_(torch.where(weight > _MIN_WEIGHT, means, self.codebook))


def code_counts(codes: Int[Tensor, "..."], num_codes: int) -> Int[Tensor, "codes"]:
    """Count how often each of ``num_codes`` codes occurs among ``codes`` of any shape: ``(num_codes,)``.

    Raises:
        ValueError: codes that are not integers from 0 to ``num_codes - 1``.
    """
    require_at_least(1, num_codes=num_codes)
    require_instance(Tensor, codes=codes)
    flat = as_tensor(codes, "codes").flatten()
    if flat.is_floating_point() or flat.is_complex() or flat.dtype == torch.bool:
        raise ValueError(f"codes must be integers from 0 to {num_codes - 1}; got {flat.dtype}.")
    if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < num_codes:
        came = f"{flat.min().item()} to {flat.max().item()}"
        raise ValueError(f"codes must be integers from 0 to {num_codes - 1}, num_codes - 1; got {came}.")
    return torch.bincount(flat, minlength=num_codes)


def perplexity(counts: Tensor) -> float:
    """The perplexity exp(-Σ p_i log p_i) of the codes' frequencies p = counts / Σ counts: from 1 for a single code in
    use to K for K codes used equally often.

    Args:
        counts: how often each code occurs, ``(K,)``; see :func:`code_counts`.

    Raises:
        ValueError: counts that are negative or all zero.
    """
    n = as_data(counts, "counts", integers=True).double()
    if not float(n.sum()) > 0 or float(n.min()) < 0:
        raise ValueError("counts must not be negative, nor all zero.")
    return math.exp(float(torch.special.entr(n / n.sum()).sum()))
