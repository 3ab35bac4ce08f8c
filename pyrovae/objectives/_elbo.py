"""The evidence lower bound."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_not_negative, require_one_of, shown
from pyrovae.distributions._capabilities import family
from pyrovae.model import LogTerms
from pyrovae.model._log_terms import sum_terms
from pyrovae.objectives._base import Objective
from pyrovae.objectives._schedules import Weight

Gradient = Literal["reparameterized", "stl", "score"]


class ELBO(Objective):
    """The evidence lower bound E_q[log p(x|z)] - β KL(q(z|x) ‖ p(z)), Kingma & Welling (2014), Higgins et al. (2017)
    for β ≠ 1.

    With ``free_bits`` λ, dimension d of every latent site costs max(mean over the batch of KL_d, λ) instead of its KL
    (Kingma et al. 2016, arXiv:1606.04934, appendix C.8): below λ nats it is free, and the KL has no gradient. The bound
    stays one, and is lower by what is free; validation in ``fit`` is by this bound too. The batch is what one process
    sees, with all its particles.

    With the ``"ar1"`` prior, KL_d is the term of the chain rule, KL(q(z_d | x) ‖ p(z_d | z_1..z_{d-1})) in the mean
    over the posterior's earlier dimensions, not the KL from dimension d's marginal prior: it is the KL that λ bounds.

    Sites that are not reparameterised get the score-function gradient, as in ``Trace_ELBO``; with several draws, less
    the mean of the other draws, which keeps it unbiased (leave-one-out, RLOO; Kool et al. 2019).

    Args:
        beta: weight of every KL term, or a schedule such as ``linear_warmup(100)``.
        analytic_kl: ``"auto"`` uses the closed form at every site where one is registered and valid (this is
            ``TraceMeanField_ELBO``); ``True`` requires it; ``False`` never (this is ``Trace_ELBO``).
        num_particles: K, draws of z per datum.
        gradient: ``"reparameterized"``, through the draws and the density; ``"stl"``, "sticking the landing", through
            the draws alone, which leaves no noise where q is the posterior (Roeder et al. 2017, arXiv:1703.09194; the
            KL is then that of the draws); ``"score"``, the score function at every site. All are unbiased.
        free_bits: λ, nats per latent dimension that cost nothing. Needs the KL of every dimension in closed form, at
            every site: posterior and prior that both factorise.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: an unknown ``gradient``, or ``"stl"`` with ``analytic_kl=True``, ``free_bits``, or a site that is
            not reparameterised or has no density (``fit`` finds out before it trains); a ``beta`` or ``free_bits`` that
            is negative, NaN or infinite, a schedule's ``beta`` at the time when it is; ``analytic_kl=True`` and a site
            has no closed form, or ``free_bits`` and one does not factorise (``fit`` finds out before it trains); a
            schedule whose value is not given.
    """

    def __init__(
        self,
        beta: float | Callable[[float], float] = 1.0,
        analytic_kl: Literal["auto"] | bool = "auto",
        num_particles: int = 1,
        *,
        gradient: Gradient = "reparameterized",
        free_bits: float = 0.0,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        if not isinstance(analytic_kl, bool) and not (isinstance(analytic_kl, str) and analytic_kl == "auto"):
            raise ValueError(f"analytic_kl must be 'auto', True or False; got {shown(analytic_kl)}.")
        require_not_negative(free_bits=free_bits, **({} if callable(beta) else {"beta": beta}))
        require_one_of(get_args(Gradient), gradient=gradient)
        if gradient == "stl" and (analytic_kl is True or free_bits):
            raise ValueError(
                "gradient='stl' is a gradient of draws, and analytic_kl=True and free_bits take the KL in closed form: "
                "use one or the other."
            )
        self._draws = "detached" if gradient == "score" else "attached"
        if free_bits and analytic_kl is False:
            raise ValueError("free_bits needs the KL of each dimension in closed form: use analytic_kl='auto'.")
        self.beta, self.free_bits, self.analytic_kl, self.gradient = beta, free_bits, analytic_kl, gradient

    @property
    def schedules(self) -> dict[str, Weight]:
        return {"beta": self.beta}

    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        return self._per_particle(terms, self.weight("beta", weights)).mean(0)

    def surrogate(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        beta = self.weight("beta", weights)
        if self.gradient == "stl":
            kl = terms.pathwise_log_posterior - sum_terms(terms.log_prior)
            return (terms.reconstruction - beta * kl).mean(0)
        bound = self.per_datum(terms, **weights)
        if not terms.not_reparameterized:
            return bound
        score = self._per_particle(terms, beta).detach()
        if self.num_particles > 1:
            score = (score - score.mean(0)) * (self.num_particles / (self.num_particles - 1))
        for site in terms.not_reparameterized:
            log_q = terms.log_posterior[site]
            # Plus β takes out the gradient of -β log q itself, whose mean is zero.
            weight = score if self._exact(terms, site) else score + beta
            bound = bound + ((log_q - log_q.detach()) * weight).mean(0)
        return bound

    def check(self, terms: LogTerms) -> None:
        if self.gradient == "stl":
            terms.check_pathwise()
        for site in terms.log_posterior:
            self._kl(terms, site)

    def _exact(self, terms: LogTerms, site: str) -> bool:
        """Whether the KL of a site is taken in closed form."""
        return bool(self.analytic_kl) and terms.closed_form_kl(site) is not None

    def _per_particle(self, terms: LogTerms, beta: float | Tensor) -> Float[Tensor, "particles batch"]:
        """The bound at each draw."""
        bound = terms.reconstruction
        for site in terms.log_posterior:
            bound = bound - beta * self._kl(terms, site)
        return bound

    def _kl(self, terms: LogTerms, site: str) -> Float[Tensor, "particles batch"]:
        """The KL of a site, in the form that the options ask for."""
        if self.free_bits:
            return self._with_free_bits(terms, site)
        if self.analytic_kl is True and not self._exact(terms, site):
            raise ValueError(f"site {site!r} has no closed-form KL; use analytic_kl='auto'.")
        return terms.kl(site, closed_form=bool(self.analytic_kl))

    def _with_free_bits(self, terms: LogTerms, site: str) -> Float[Tensor, "particles batch"]:
        """The KL of a site with free bits, per datum: λ for each dimension whose mean over the batch is below it."""
        kl = terms.closed_form_kl_by_dimension(site)
        if kl is None:
            q, p = (family(d[site]) if site in d else "none" for d in (terms.posterior, terms.prior))
            raise ValueError(
                f"free_bits={self.free_bits:g} needs the KL of every dimension of site {site!r} in closed form, which "
                f"posterior ({q}) and prior ({p}) do not have: use ones that factorise, such as posterior='mean_field' "
                f"with prior='standard_normal', or free_bits=0."
            )
        return torch.where(kl.mean((0, 1)) > self.free_bits, kl, self.free_bits).sum(2)
