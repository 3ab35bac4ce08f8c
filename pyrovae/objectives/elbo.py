"""The evidence lower bound."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from pyrovae.model import LogTerms
from pyrovae.objectives.base import Objective
from pyrovae.objectives.schedules import has_ended


class ELBO(Objective):
    """E_q[log p(x|z)] - β KL(q(z|x) ‖ p(z)), Kingma & Welling (2014), Higgins et al. (2017) for β ≠ 1.

    Sites that are not reparameterised get the score-function gradient, as in ``Trace_ELBO``.

    Args:
        beta: weight of every KL term, or a schedule such as ``linear_warmup(100)``. With a schedule outside
            ``fit``, call :meth:`anneal` before each step.
        analytic_kl: ``"auto"`` uses the closed form at every site where one is registered and valid (this is
            ``TraceMeanField_ELBO``); ``True`` requires it; ``False`` never (this is ``Trace_ELBO``).
        num_particles: K, draws of z per datum.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: ``analytic_kl=True`` and a site has no closed form; a schedule that was never annealed.
    """

    scheduled = ("_weight",)

    def __init__(
        self,
        beta: float | Callable[[float], float] = 1.0,
        analytic_kl: Literal["auto"] | bool = "auto",
        num_particles: int = 1,
        *,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        if analytic_kl not in ("auto", True, False):
            raise ValueError(f"analytic_kl must be 'auto', True or False; got {analytic_kl!r}.")
        if not callable(beta) and not beta >= 0:
            raise ValueError(f"beta must not be negative; got {beta}.")
        self.beta = beta
        self.analytic_kl = analytic_kl
        self._weight = None if callable(beta) else float(beta)
        self._time = 0.0

    @property
    def weight(self) -> float:
        """The KL weight in force."""
        if self._weight is None:
            raise ValueError("beta is a schedule: call objective.anneal(t) before each step (fit does).")
        return self._weight

    def anneal(self, t: float) -> None:
        self._time = t
        if callable(self.beta):
            self._weight = float(self.beta(t))

    @property
    def settled(self) -> bool:
        return has_ended(self.beta, self._time)

    def per_datum(self, terms: LogTerms) -> Float[Tensor, "batch"]:
        return self._per_particle(terms).mean(0)

    def surrogate(self, terms: LogTerms) -> Float[Tensor, "batch"]:
        bound = value = self._per_particle(terms)
        for site in terms.not_reparameterized:
            log_q = terms.log_posterior[site]
            score = value.detach()
            if not self._exact(terms, site):
                score = score + self.weight  # takes out the gradient of -β log q itself, whose mean is zero
            bound = bound + (log_q - log_q.detach()) * score
        return bound.mean(0)

    def _exact(self, terms: LogTerms, site: str) -> bool:
        return bool(self.analytic_kl) and terms.closed_form_kl(site) is not None

    def _per_particle(self, terms: LogTerms) -> Float[Tensor, "particles batch"]:
        bound = terms.reconstruction
        for site in terms.log_posterior:
            if self.analytic_kl is True and not self._exact(terms, site):
                raise ValueError(f"site {site!r} has no closed-form KL; use analytic_kl='auto'.")
            kl = terms.kl(site, closed_form=bool(self.analytic_kl))
            bound = bound - self.weight * kl
        return bound
