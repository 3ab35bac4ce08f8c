"""The objective of the β-TCVAE, with a weight for each of the three parts of the rate."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, Normal

from pyrovae._checks import require_at_least, require_not_negative, require_one_of
from pyrovae.model import LogTerms
from pyrovae.objectives._base import Objective

Estimator = Literal["stratified", "weighted"]


class RateParts(NamedTuple):
    """The rate in three parts, estimated at each draw, in nats ``(K, B)``; they sum to log q(z | x) - log p(z).

    Attributes:
        mutual_information: log q(z | x) - log q(z): the index-code mutual information I_q(z; n).
        total_correlation: log q(z) - Σⱼ log q(zⱼ), of mean KL(q(z) ‖ Πⱼ q(zⱼ)).
        dimensionwise_kl: Σⱼ log q(zⱼ) - log p(zⱼ), of mean Σⱼ KL(q(zⱼ) ‖ p(zⱼ)).
    """

    mutual_information: Float[Tensor, "particles batch"]
    total_correlation: Float[Tensor, "particles batch"]
    dimensionwise_kl: Float[Tensor, "particles batch"]


class BetaTCVAE(Objective):
    """The objective of the β-TCVAE, E_q[log p(x|z)] - α I_q(z; n) - β KL(q(z) ‖ Πⱼ q(zⱼ)) - γ Σⱼ KL(q(zⱼ) ‖ p(zⱼ)),
    Chen et al. (2018, arXiv:1802.04942, eq. 4), q(z) being the mixture of the posteriors of all N training data.

    log q(z) and log q(zⱼ) are estimated at the batch's draws from the posteriors of its B data. ``"stratified"`` gives
    the datum that z was drawn for its weight in the mixture, 1/N, and the others the rest (appendix C.2, averaged over
    the order of the batch): unbiased for the densities, and exact where the batch is the whole set. ``"weighted"``
    (eq. 3) gives each of them 1/(N B), so that every log-density comes out low, by log N where the batch is the whole
    set. Neither is unbiased for the logarithms, and with α = β = γ = 1 that does not matter: the value is then that of
    ``ELBO(analytic_kl=False)``, draw by draw. A batch of one datum, such as a ragged last one, says nothing of the
    others: "stratified" takes its posterior for q(z), so that its KL has weight γ.

    Args:
        num_data: N, the size of the training set.
        beta: weight of the total correlation.
        alpha: weight of the index-code mutual information.
        gamma: weight of the KL of the dimensions.
        estimator: ``"stratified"`` or ``"weighted"``.
        num_particles: K, draws of z per datum.
        max_plate_nesting: plates that the model nests; by default what the model says of itself.

    Raises:
        ValueError: weights that are negative, NaN or infinite; a model without latent sites or with several, or whose
            posterior is not a normal of independent dimensions or whose prior does not factorise over them (``fit``
            finds out before it trains); a batch of more than N.
    """

    def __init__(
        self,
        num_data: int,
        beta: float = 6.0,
        *,
        alpha: float = 1.0,
        gamma: float = 1.0,
        estimator: Estimator = "stratified",
        num_particles: int = 1,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        require_at_least(1, num_data=num_data)
        require_one_of(("stratified", "weighted"), estimator=estimator)
        require_not_negative(beta=beta, alpha=alpha, gamma=gamma)
        self.num_data, self.estimator = num_data, estimator
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def per_datum(self, terms: LogTerms, **weights: float | Tensor) -> Float[Tensor, "batch"]:
        parts = self.decompose(terms)
        rate = self.alpha * parts.mutual_information + self.beta * parts.total_correlation
        return (terms.reconstruction - rate - self.gamma * parts.dimensionwise_kl).mean(0)

    def check(self, terms: LogTerms) -> None:
        _factorised(terms)

    def decompose(self, terms: LogTerms) -> RateParts:
        """The three parts of the rate, estimated at the draws."""
        site, q = _factorised(terms)
        b = terms.shape[1]
        if b > self.num_data:
            raise ValueError(f"a batch of {b} data is more than num_data={self.num_data}, the size of the whole set.")
        z = terms.by_datum(site)
        # [k, i, j, d]: of dimension d of datum i's draw k under the posterior of datum j.
        mean, scale = (p.reshape(-1, 1, b, p.shape[-1]) for p in (q.loc, q.scale))
        each = Normal(mean, scale, validate_args=False).log_prob(z.unsqueeze(-2))
        log_weights = self._log_weights(b, z)
        log_q = (each.sum(-1) + log_weights).logsumexp(-1)
        log_q_by_dim = (each + log_weights.unsqueeze(-1)).logsumexp(-2).sum(-1)
        return RateParts(terms.log_posterior[site] - log_q, log_q - log_q_by_dim, log_q_by_dim - terms.log_prior[site])

    def _log_weights(self, b: int, like: Tensor) -> Float[Tensor, "batch batch"]:
        """The log-weight of datum j's posterior in the mixture that scores datum i's draw."""
        n = self.num_data
        if self.estimator == "weighted":
            return like.new_full((b, b), -math.log(n * b))
        if b == 1:
            return like.new_zeros(1, 1)
        own, other = -math.log(n), math.log((n - 1) / (n * (b - 1)))
        return torch.eye(b, dtype=like.dtype, device=like.device) * (own - other) + other


def _factorised(terms: LogTerms) -> tuple[str, Normal]:
    """The latent site, and its posterior as a normal with a batch dimension for the latents' dimensions.

    Raises:
        ValueError: no site or several, a posterior of another kind, a prior that does not factorise.
    """
    if not terms.posterior:
        raise ValueError("BetaTCVAE needs a latent site; the model has no latents: train it with ELBO().")
    needs = "one latent site, whose posterior is a normal of independent dimensions such as 'mean_field'"
    events = [f"{site}: {type(q).__name__} of event {tuple(q.event_shape)}" for site, q in terms.posterior.items()]
    came = ", ".join(events)
    match list(terms.posterior.items()):
        case [(site, Independent(base_dist=Normal() as q) as posterior)] if site not in terms.masks:
            p = terms.prior.get(site)
            if posterior.event_shape == terms.by_datum(site).shape[2:]:
                if isinstance(p, Independent) and not p.base_dist.event_shape:
                    return site, q
                needs = f"a prior that factorises over the dimensions, such as 'standard_normal', at site {site!r}"
                came = type(p).__name__
    raise ValueError(f"BetaTCVAE needs {needs}; got {came}. Use ELBO(beta=...).")
