"""Posterior collapse: which latents carry information, and how much."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_at_least, require_positive
from pyrovae._graph import Compile
from pyrovae.evaluation._result import Result
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.latents._aggregate import aggregate
from pyrovae.evaluation.latents._dimensions import measure
from pyrovae.model import VAEModel

_DEAD = 0.1  # nats per dimension: ten times what a dimension of unit prior variance has at the usual threshold


@dataclass(frozen=True, kw_only=True)
class CollapseReport(Result):
    """What the latents carry, in nats; standard errors (``_se``) are over data and contain the draws' noise.

    Attributes:
        dimensions: one row per latent dimension: ``site``, ``dim``, ``kl`` averaged over data, ``activity``, both with
            standard errors, ``active`` and ``kl_method``, which says how ``kl`` was found; see :func:`collapse`. A
            discrete site has one row. Its activity is NaN, and so is that of sites that are masked or whose prior
            differs from datum to datum.
        sites: by latent site: ``kl``, ``kl_se``, ``active`` and ``dimensions``, the numbers of active and of all
            continuous dimensions.
        rate: E KL(q(z | x) ‖ p(z)).
        distortion: -E log p(x | z).
        elbo: -distortion - rate.
        mutual_information: I(x; z) under q.
        marginal_kl: KL(q(z) ‖ p(z)); ``rate`` = ``mutual_information`` + ``marginal_kl``.
        mutual_information_bound: the most that the mixture estimate can give, the log of its number of data.
        estimator: of the two: ``"mixture"``, ``"gaussian bound"``, or ``"none"`` where they are NaN.
        reason: why that estimator was used, where it is not the mixture.
        threshold: activity above which a dimension is active.
        num_data: N.
        num_samples: K, draws per datum.
        provenance: the data, the model and the seed.
    """

    dimensions: pd.DataFrame
    sites: pd.DataFrame
    rate: float
    rate_se: float
    distortion: float
    distortion_se: float
    elbo: float
    elbo_se: float
    mutual_information: float
    mutual_information_se: float
    marginal_kl: float
    marginal_kl_se: float
    mutual_information_bound: float
    estimator: str
    reason: str
    threshold: float
    num_data: int
    num_samples: int

    @property
    def verdict(self) -> str:
        """One line in plain words."""
        active, total = int(self.sites["active"].sum()), int(self.sites["dimensions"].sum())
        if not total:
            return f"No latent has an activity (discrete, masked or under priors per datum); rate {self.rate:.3g} nats."
        if not active and self.rate > _DEAD * total:
            return (
                f"No latent dimension of {total} is active at threshold {self.threshold:g}, yet the rate is "
                f"{self.rate:.2f} nats: either the posterior is far from the prior but the same for all data, or z "
                f"varies on a scale far below 1 and needs a lower threshold."
            )
        if not active:
            dims = "the only latent dimension is not" if total == 1 else f"none of {total} latent dimensions is"
            return f"Posterior collapse: {dims} active (rate {self.rate:.2f} nats): the decoder ignores z."
        verb = "is" if active == 1 else "are"
        return f"{active} of {total} latent dimensions {verb} active; rate {self.rate:.1f} nats."

    def summary(self) -> pd.Series:
        """The figures of the whole model, with the estimator of the last ones."""
        row: dict[str, Any] = {
            "N": self.num_data,
            "K": self.num_samples,
            "active": int(self.sites["active"].sum()),
            "dimensions": int(self.sites["dimensions"].sum()),
        }
        for name in ("rate", "distortion", "elbo", "mutual_information", "marginal_kl"):
            row |= {name: getattr(self, name), f"{name}_se": getattr(self, f"{name}_se")}
        row |= {"mutual_information_bound": self.mutual_information_bound, "estimator": self.estimator}
        return pd.Series(row, name=self.provenance.model_name)


def require_latents(run: EvaluationRun) -> None:
    """Raise a ``ValueError`` for a model that has nothing to measure."""
    if not run.terms.prior:
        raise ValueError(f"{type(run.model).__name__} has no latents, so nothing can collapse: see log_marginal.")


def collapse(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_samples: int = 64,
    threshold: float = 0.01,
    num_data: int = 500,
    num_draws: int = 1,
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> CollapseReport:
    """Measure what the latents carry: by dimension, by site, and I(x; z).

    **Dimensions.** ``activity`` is Var_x(E_q[z_i]) (Burda et al. 2016, arXiv:1509.00519, sec. 5.3), unbiased: where the
    posterior's mean is not known it is estimated, and the variance that K draws add is taken off. The threshold is
    meant for priors of about unit variance. ``kl`` is exact (``kl_method`` "closed form") where prior and posterior
    both factorise over the dimensions and torch knows their KL, and for a diagonal normal posterior under the AR(1)
    prior, where a dimension's is the average of KL(q(z_i | x) ‖ p(z_i | z_{i-1})); such KLs sum to the site's. Sites
    of one dimension and discrete sites have the site's KL, by "Monte Carlo" if need be. Elsewhere it is a "normal
    approximation": the KL of normals with the moments of q(z_i | x) and of the prior given the sites drawn before it.
    For normal priors that is at most the KL of the dimension's marginal, and where the prior's dimensions are
    independent these sum to at most the site's KL.

    **Rate, distortion, ELBO** (Alemi et al. 2018, arXiv:1711.00464): means over data and draws, unbiased.

    **I(x; z) and KL(q(z) ‖ p(z))**, which sum to the rate (Hoffman & Johnson 2016, "ELBO surgery"), as long as the
    prior does not depend on covariates. By ``estimator``:

    - "mixture": q(z) is the mixture over M evaluated data, all N or a random ``num_data`` of them. The estimate is
      unbiased for which of the M data it is, so it never exceeds log M (``mutual_information_bound``). For I(x; z) over
      the population it is biased downwards by at most log(1 + χ²/M), χ² = E q(z | x) / q(z) - 1: negligible only where
      I(x; z) is far below log M. ``marginal_kl`` is biased upwards by the same amount.
    - "gaussian bound", where q(z | x) cannot be scored at other points (planar, radial, Sylvester) and all priors are
      standard normal: KL(q(z) ‖ p) = KL(q(z) ‖ N(m, S)) + KL(N(m, S) ‖ p) for the mean m and covariance S of q(z).
      The last term is reported: ``marginal_kl`` is a lower bound, ``mutual_information`` an upper one. Its bias from
      having N data is removed to first order by a jackknife.

    Evaluation is strict, as in :func:`~pyrovae.log_marginal`.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame; at least two.
        covariates: passed to model and guide; tensors with N rows are split along with ``x``.
        num_samples: K, draws per datum; at least two.
        threshold: activity above which a dimension is active.
        num_data: the most data M in the mixture; ``num_draws`` M² log-densities of the guide are evaluated. (An
            autoregressive flow takes a pass per dimension for each.)
        num_draws: draws scored under the mixture for each of its data.
        seed: seed of the draws.
        device: where to compute; by default where the model is. The model is put back.
        memory_budget: bytes that a block of draws may take; by default 64 MiB on a CPU, 1 GiB on CUDA. Other blocks are
            other draws.
        compile: as in :func:`~pyrovae.log_marginal`.
        progress: show progress bars.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`.
        ValueError: bad data (see :func:`~pyrovae.log_marginal`) or a single datum, bad arguments, a model without
            latents.
    """
    require_at_least(2, num_samples=num_samples, num_data=num_data)
    require_at_least(1, num_draws=num_draws)
    check_threshold(threshold)
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget}
    run = EvaluationRun("collapse", model, x, covariates, **options, compile=compile, progress=progress)
    if len(run.data) < 2:
        raise ValueError("x holds one datum; collapse compares posteriors of different data: pass at least two.")
    with run:
        require_latents(run)
        measured = measure(run, num_samples, threshold)
        q = aggregate(run, measured, num_samples=num_samples, num_data=num_data, num_draws=num_draws)
        provenance = run.provenance()
    dimensions = measured.dimensions
    continuous = dimensions["activity"].notna()
    by_site = dimensions.assign(dimensions=continuous).groupby("site", sort=False)[["active", "dimensions"]].sum()
    kl = pd.DataFrame({site: _mean(measured.kl[site]) for site in by_site.index}, index=["kl", "kl_se"]).T
    rate, distortion = _mean(measured.rate), _mean(-measured.reconstruction)
    elbo = _mean(measured.reconstruction - measured.rate)
    return CollapseReport(
        dimensions=dimensions,
        sites=kl.join(by_site).rename_axis("site"),
        rate=rate[0],
        rate_se=rate[1],
        distortion=distortion[0],
        distortion_se=distortion[1],
        elbo=elbo[0],
        elbo_se=elbo[1],
        **vars(q),
        threshold=threshold,
        num_data=len(run.data),
        num_samples=num_samples,
        provenance=provenance,
    )


def check_threshold(threshold: float) -> None:
    """Raise a ``ValueError`` unless ``threshold`` is positive."""
    require_positive(threshold=threshold)


def _mean(values: Any) -> tuple[float, float]:
    """The mean over data and its standard error."""
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
