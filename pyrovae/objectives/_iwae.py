"""The importance-weighted bounds."""

import math
import warnings
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_at_least, require_one_of, require_within
from pyrovae.model import LogTerms
from pyrovae.model._log_terms import sum_terms
from pyrovae.objectives._base import Objective

Gradient = Literal["reparameterized", "stl", "dreg", "vimco"]


class IWAE(Objective):
    """The importance-weighted bound L_K = E[log 1/K Σ_k p(x, z_k) / q(z_k | x)], Burda et al. (2016, arXiv:1509.00519,
    eq. 8).

    Args:
        num_particles: K.
        gradient: of the guide; the model's is the same for all.

            - ``"reparameterized"``: through draws and densities. Its signal-to-noise ratio falls as K^-½.
            - ``"dreg"``: doubly reparameterised, Σ w̃² ∂ log w/∂z ∂z/∂φ (Tucker et al. 2019, arXiv:1810.04152, eq. 8).
              Unbiased; the ratio rises as K^½.
            - ``"stl"``: through the draws alone (Roeder et al. 2017). Biased for K > 1.
            - ``"vimco"``: the score function with a baseline from the other draws (Mnih & Rezende 2016,
              arXiv:1602.06725, with the arithmetic mean of log w), for discrete sites and any other. Needs K > 1.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: an unknown ``gradient``; ``"vimco"`` with one particle; a latent site that is not reparameterised
            and another gradient, or one that ``"dreg"`` and ``"stl"`` cannot score (``fit`` finds out before it
            trains).
    """

    def __init__(
        self,
        num_particles: int = 5,
        *,
        gradient: Gradient = "reparameterized",
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        require_one_of(get_args(Gradient), gradient=gradient)
        if gradient == "vimco" and num_particles < 2:
            raise ValueError("gradient='vimco' compares draws: num_particles must be at least 2; got 1.")
        if gradient == "stl" and num_particles > 1:
            warnings.warn(
                "gradient='stl' is biased for more than one particle: 'dreg' is not (Tucker et al. 2019).",
                stacklevel=2,
            )
        self.gradient = gradient
        if gradient in ("dreg", "vimco"):
            self._draws = "weighted" if gradient == "dreg" else "detached"

    def check(self, terms: LogTerms) -> None:
        if self.gradient in ("dreg", "stl"):
            terms.check_pathwise()  # which may run the guide again: before training, not in every step
        self._check_sites(terms)

    def _check_sites(self, terms: LogTerms) -> None:
        if self.gradient == "reparameterized" and terms.not_reparameterized:
            raise ValueError(
                f"{type(self).__name__} needs reparameterised latents; {terms.not_reparameterized} are not. Use "
                f"IWAE(gradient='vimco'), or ELBO."
            )

    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        self._check_sites(terms)
        return _log_mean(terms.log_weight)

    def surrogate(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        if self.gradient == "reparameterized":
            return self.per_datum(terms, **weights)
        if self.gradient == "stl":
            return _log_mean(terms.log_joint - terms.pathwise_log_posterior)
        log_weight = terms.log_weight.detach()
        share = log_weight.softmax(0)
        if self.gradient == "dreg":
            joint = terms.weighted_log_joint(share, share.square())
            return (joint - share.square() * terms.pathwise_log_posterior).sum(0)
        bound = _log_mean(terms.log_weight)
        gain = bound.detach() - _log_mean_without_each(log_weight)
        log_q = sum_terms(terms.log_posterior)
        return bound + (gain * (log_q - log_q.detach())).sum(0)


class MIWAE(IWAE):
    """The mean of M importance-weighted bounds of K draws each, which all M K draws of a datum are divided into:
    between the ELBO (K = 1) and L_MK, Rainforth et al. (2018, arXiv:1802.04537).

    Args:
        num_bounds: M.
        num_particles: K.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: a latent site is not reparameterised (``fit`` finds out before it trains).
    """

    def __init__(self, num_bounds: int = 8, num_particles: int = 8, *, max_plate_nesting: int | None = None) -> None:
        require_at_least(1, num_bounds=num_bounds, num_particles=num_particles)
        super().__init__(num_bounds * num_particles, max_plate_nesting=max_plate_nesting)
        self.num_bounds = num_bounds

    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        self._check_sites(terms)
        return _log_mean(self._groups(terms.log_weight)).mean(0)

    def _groups(self, value: Tensor) -> Float[Tensor, "particles bounds batch"]:
        return value.unflatten(0, (-1, self.num_bounds))


class PIWAE(MIWAE):
    """Partially importance-weighted: the guide is trained by :class:`MIWAE`, the model by L_MK, all on the same draws,
    Rainforth et al. (2018, arXiv:1802.04537). Its value is L_MK. The model must compute every particle by itself: under
    batch normalisation in the decoder, which mixes them, the two gradients cannot be told apart.

    Args:
        num_bounds: M.
        num_particles: K.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: a latent site is not reparameterised (``fit`` finds out before it trains).
    """

    _draws = "weighted"

    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        self._check_sites(terms)
        return _log_mean(terms.log_weight)

    def surrogate(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        self._check_sites(terms)
        log_weight = terms.log_weight.detach()
        of_guide = self._groups(log_weight).softmax(0).flatten(0, 1) / self.num_bounds
        joint = terms.weighted_log_joint(log_weight.softmax(0), of_guide)
        return (joint - of_guide * sum_terms(terms.log_posterior)).sum(0)


class CIWAE(IWAE):
    """A mixture of ELBO and importance-weighted bound, β ELBO + (1 - β) L_K, of the same draws, Rainforth et al. (2018,
    arXiv:1802.04537).

    Args:
        beta: β, from 0 (L_K) to 1 (the ELBO).
        num_particles: K.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: β outside [0, 1]; a latent site is not reparameterised (``fit`` finds out before it trains).
    """

    def __init__(self, beta: float = 0.5, num_particles: int = 64, *, max_plate_nesting: int | None = None) -> None:
        require_within("[0, 1]", beta=beta)
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting)
        self.beta = float(beta)

    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        self._check_sites(terms)
        return self.beta * terms.log_weight.mean(0) + (1.0 - self.beta) * _log_mean(terms.log_weight)


def _log_mean(log_weight: Tensor) -> Tensor:
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def _log_mean_without_each(log_weight: Tensor) -> Float[Tensor, "particles batch"]:
    """The log mean of the weights with each replaced by the others' geometric mean."""
    k = len(log_weight)
    others = (log_weight.sum(0) - log_weight) / (k - 1)
    each = torch.eye(k, dtype=torch.bool, device=log_weight.device).unsqueeze(-1)
    return torch.where(each, others, log_weight.unsqueeze(1)).logsumexp(0) - math.log(k)
