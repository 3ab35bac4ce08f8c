"""The importance-weighted bound."""

import math

from jaxtyping import Float
from torch import Tensor

from pyrovae.model import LogTerms
from pyrovae.objectives._base import Objective


class IWAE(Objective):
    """The importance-weighted bound L_K = E[log 1/K Σ_k p(x, z_k) / q(z_k | x)], Burda et al. (2016, arXiv:1509.00519,
    eq. 8).

    Args:
        num_particles: K.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: a latent site is not reparameterised (``fit`` finds out before it trains).
    """

    def __init__(self, num_particles: int = 5, *, max_plate_nesting: int | None = None) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)

    def check(self, terms: LogTerms) -> None:
        if terms.not_reparameterized:
            raise ValueError(f"IWAE needs reparameterised latents; {terms.not_reparameterized} are not. Use ELBO.")

    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        self.check(terms)
        return terms.log_weight.logsumexp(0) - math.log(self.num_particles)
