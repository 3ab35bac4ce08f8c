"""The evidence lower bound."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import not_negative
from pyrovae.distributions.independent import family
from pyrovae.model import LogTerms
from pyrovae.objectives.base import Objective
from pyrovae.objectives.schedules import has_ended, value_at


class ELBO(Objective):
    """E_q[log p(x|z)] - β KL(q(z|x) ‖ p(z)), Kingma & Welling (2014), Higgins et al. (2017) for β ≠ 1.

    With ``free_bits`` λ, dimension d of every latent site costs max(mean over the batch of KL_d, λ) instead of its KL
    (Kingma et al. 2016, arXiv:1606.04934, appendix C.8): below λ nats it is free, and the KL has no gradient. The bound
    stays one, and is lower by what is free; validation in ``fit`` is by this bound too. The batch is what one process
    sees, with all its particles.

    With the ``"ar1"`` prior, KL_d is the term of the chain rule, KL(q(z_d | x) ‖ p(z_d | z_1..z_{d-1})) in the mean
    over the posterior's earlier dimensions, not the KL from dimension d's marginal prior: it is the KL that λ bounds.

    Sites that are not reparameterised get the score-function gradient, as in ``Trace_ELBO``.

    Args:
        beta: weight of every KL term, or a schedule such as ``linear_warmup(100)``. With a schedule outside
            ``fit``, call :meth:`anneal` before each step.
        analytic_kl: ``"auto"`` uses the closed form at every site where one is registered and valid (this is
            ``TraceMeanField_ELBO``); ``True`` requires it; ``False`` never (this is ``Trace_ELBO``).
        num_particles: K, draws of z per datum.
        free_bits: λ, nats per latent dimension that cost nothing. Needs the KL of every dimension in closed form, at
            every site: posterior and prior that both factorise.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: a ``beta`` or ``free_bits`` that is negative, NaN or infinite, a schedule's ``beta`` at the time
            when it is; ``analytic_kl=True`` and a site has no closed form, or
            ``free_bits`` and one does not factorise (``fit`` finds out before it trains); a schedule that was never
            annealed.
    """

    scheduled = ("_weight",)

    def __init__(
        self,
        beta: float | Callable[[float], float] = 1.0,
        analytic_kl: Literal["auto"] | bool = "auto",
        num_particles: int = 1,
        *,
        free_bits: float = 0.0,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        if analytic_kl not in ("auto", True, False):
            raise ValueError(f"analytic_kl must be 'auto', True or False; got {analytic_kl!r}.")
        not_negative(free_bits=free_bits, **({} if callable(beta) else {"beta": beta}))
        if free_bits and analytic_kl is False:
            raise ValueError("free_bits needs the KL of each dimension in closed form: use analytic_kl='auto'.")
        self.beta = beta
        self.free_bits = free_bits
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
            self._weight = value_at(self.beta, t, "beta")

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

    def check(self, terms: LogTerms) -> None:
        for site in terms.log_posterior:
            self._kl(terms, site)

    def _exact(self, terms: LogTerms, site: str) -> bool:
        return bool(self.analytic_kl) and terms.closed_form_kl(site) is not None

    def _per_particle(self, terms: LogTerms) -> Float[Tensor, "particles batch"]:
        bound = terms.reconstruction
        for site in terms.log_posterior:
            bound = bound - self.weight * self._kl(terms, site)
        return bound

    def _kl(self, terms: LogTerms, site: str) -> Float[Tensor, "particles batch"]:
        if self.free_bits:
            return self._with_free_bits(terms, site)
        if self.analytic_kl is True and not self._exact(terms, site):
            raise ValueError(f"site {site!r} has no closed-form KL; use analytic_kl='auto'.")
        return terms.kl(site, closed_form=bool(self.analytic_kl))

    def _with_free_bits(self, terms: LogTerms, site: str) -> Float[Tensor, "particles batch"]:
        """Per datum, so that its mean over the batch is what the class says: λ where that of a dimension is below."""
        kl = terms.closed_form_kl_by_dimension(site)
        if kl is None:
            q, p = (family(d[site]) if site in d else "none" for d in (terms.posterior, terms.prior))
            raise ValueError(
                f"free_bits={self.free_bits:g} needs the KL of every dimension of site {site!r} in closed form, which "
                f"posterior ({q}) and prior ({p}) do not have: use ones that factorise, such as posterior='mean_field' "
                f"with prior='standard_normal', or free_bits=0."
            )
        return torch.where(kl.mean((0, 1)) > self.free_bits, kl, self.free_bits).sum(2)
