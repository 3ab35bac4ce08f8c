"""The controlled-capacity objective."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_not_negative
from pyrovae.model import LogTerms
from pyrovae.objectives._base import Objective
from pyrovae.objectives._schedules import Weight


class CapacityELBO(Objective):
    """The controlled-capacity objective, E_q[log p(x|z)] - γ |KL(q(z|x) ‖ p(z)) - C|, Burgess et al. (2018,
    arXiv:1804.03599, sec. 5).

    The KL between the bars is the batch's mean, as in the published implementations (Locatello et al. 2019,
    arXiv:1811.12359): the data share the capacity C, and those that need more of it get more. Every datum's bound
    carries the same penalty. With C = 0 it is ``ELBO(beta=gamma)``. KLs are closed where they are known.

    Args:
        capacity: C in nats, or a schedule such as ``linear_warmup(100, end=25)``.
        gamma: weight of the distance from C; large (100 to 1000), so that the rate follows C.
        num_particles: K, draws of z per datum.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: a ``capacity`` or ``gamma`` that is negative, NaN or infinite, a schedule's ``capacity`` at the time
            when it is; a model without latent sites, or with one that is not reparameterised (``fit`` finds out before
            it trains); a schedule whose value is not given.
    """

    def __init__(
        self,
        capacity: float | Callable[[float], float],
        gamma: float = 100.0,
        num_particles: int = 1,
        *,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        require_not_negative(gamma=gamma, **({} if callable(capacity) else {"capacity": capacity}))
        self.capacity, self.gamma = capacity, gamma

    @property
    def schedules(self) -> dict[str, Weight]:
        return {"capacity": self.capacity}

    def check(self, terms: LogTerms) -> None:
        if not terms.posterior:
            raise ValueError("CapacityELBO needs latent sites; the model has no latents: train it with ELBO().")
        if terms.not_reparameterized:
            raise ValueError(
                f"CapacityELBO needs reparameterised latents; {terms.not_reparameterized} are not. Use ELBO(beta=...)."
            )

    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        self.check(terms)
        # One number, but with a dimension, so that a traced step's scheduled value does not raise its precision.
        kl = torch.stack([terms.kl(site).mean().reshape(1) for site in terms.log_posterior]).sum(0)
        return terms.reconstruction.mean(0) - self.gamma * (kl - self.weight("capacity", weights)).abs()
