"""What every latent dimension carries: its KL and how far its posterior mean moves with the data."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._turns import turn
from pyrovae.distributions._capabilities import capabilities, moment
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.model import LogTerms

CLOSED_FORM, MONTE_CARLO, APPROXIMATION, MASKED = "closed form", "Monte Carlo", "normal approximation", "masked"
_PRIORS_COMPARED = 500  # of so many data
Key = tuple[str, str]  # a site, and what of it


@dataclass(frozen=True)
class Measured:
    """Terms of the ELBO per datum ``(N,)``, and of its dimensions.

    Attributes:
        reconstruction: E log p(x | z).
        kl: E log q(z | x) - log p(z) by guide site, in closed form where that is known.
        dimensions: a table with one row for each latent dimension; see :class:`~pyrovae.CollapseReport`.
        varying_priors: sites whose prior, given the same latents before them, is not the same for all data.
    """

    reconstruction: np.ndarray
    kl: dict[str, np.ndarray]
    dimensions: pd.DataFrame
    varying_priors: list[str]

    @property
    def rate(self) -> np.ndarray:
        """KL(q(z | x) ‖ p(z)), summed over sites."""
        return np.sum(list(self.kl.values()), axis=0)


def measure(run: EvaluationRun, num_samples: int, threshold: float) -> Measured:
    """Average over the draws of every datum of a run.

    Args:
        run: the model and the data, at least two.
        num_samples: K, at least two.
        threshold: activity above which a dimension is active.
    """
    methods = {site: _method(site, run.terms) for site in run.terms.prior}
    stated = {site: _stated_moments(site, run.terms) for site in methods}  # asked for once: a graph reads no value

    def draw(k: int, *part: Any) -> dict[Key, Tensor]:
        terms = run.model.log_terms(*part, num_particles=k)
        found = {("", "reconstruction"): terms.reconstruction}
        found |= {(site, "site kl"): terms.kl(site) for site in terms.posterior}
        for site, method in methods.items():
            found |= {(site, name): value for name, value in _statistics(site, method, stated[site], terms).items()}
        return {key: value.double().reshape(*value.shape[:2], -1).sum(0) for key, value in found.items()}

    means: dict[str, dict[str, Tensor]] = {}
    for (site, name), values in run.average(draw, num_samples, description="rate").items():
        means.setdefault(site, {})[name] = torch.from_numpy(values)
    tables = [_table(site, means[site], method, num_samples, threshold) for site, method in methods.items()]
    dimensions, varying = pd.concat(tables, ignore_index=True), _varying_priors(run)
    moved = dimensions["site"].isin(varying)  # with their priors, which is no activity
    dimensions.loc[moved, ["activity", "activity_se"]], dimensions.loc[moved, "active"] = math.nan, False
    return Measured(
        reconstruction=means.pop("")["reconstruction"].squeeze(1).numpy(),
        kl={site: of["site kl"].squeeze(1).numpy() for site, of in means.items()},
        dimensions=dimensions,
        varying_priors=varying,
    )


def _varying_priors(run: EvaluationRun) -> list[str]:
    """The sites whose prior, given the same latents before them, is not the same for all data."""
    with turn():
        run.within().reseed()
        latents, _ = run.model.draw_posterior(*run.part(slice(1)), num_particles=2)
    part = run.part(slice(_PRIORS_COMPARED))
    everywhere = torch.zeros(len(part[0]), dtype=torch.int64, device=part[0].device)
    terms = run.model.log_prior(*part, latents=latents.rows(everywhere))
    return [site for site, term in terms.items() if not torch.allclose(term, term[:, :1], 1e-4, 1e-4, equal_nan=True)]


def _method(site: str, terms: LogTerms) -> str:
    """How the KL of a site's dimensions is found."""
    if site in terms.masks:
        return MASKED
    discrete = capabilities(terms.posterior[site]).discrete
    if not discrete and terms.closed_form_kl_by_dimension(site) is not None:
        return CLOSED_FORM
    if discrete or terms.by_datum(site).shape[-1] == 1:
        return CLOSED_FORM if terms.closed_form_kl(site) is not None else MONTE_CARLO
    return APPROXIMATION


def _stated_moments(site: str, terms: LogTerms) -> tuple[bool, bool]:
    """Whether the posterior's mean is stated and finite, and whether the prior's mean and variance are."""
    q, p = terms.posterior[site], terms.prior[site]
    return moment(q, "mean") is not None, None not in (moment(p, "mean"), moment(p, "variance"))


def _statistics(site: str, method: str, stated: tuple[bool, bool], terms: LogTerms) -> dict[str, Tensor]:
    """What the table needs of one site, ``(K, B)`` or ``(K, B, D)``; ``stated`` are its :func:`_stated_moments`."""
    q, p = terms.posterior[site], terms.prior[site]

    def by_datum(value: Tensor | None = None) -> Tensor:
        return terms.by_datum(site, value).double()

    if method == MASKED:
        return {"masked": by_datum()}
    if capabilities(q).discrete:
        return {"kl": terms.kl(site)}
    center = by_datum(q.mean if stated[0] else None)
    found = {"mean": center, "mean square": center.square()}
    exact = terms.closed_form_kl_by_dimension(site)
    if exact is not None:
        return found | {"kl": exact}
    if method != APPROXIMATION:
        return found | {"kl": terms.kl(site)}
    z = by_datum()
    if stated[1]:
        mean, variance = by_datum(p.mean), by_datum(p.variance)
    else:
        other = by_datum(p.sample())
        variance, mean = (m.expand_as(other) for m in torch.var_mean(other, dim=(0, 1)))
    found |= {"z": z, "z square": z.square(), "prior": mean, "prior square": variance + mean.square()}
    return found


def _table(site: str, means: dict[str, Tensor], method: str, k: int, threshold: float) -> pd.DataFrame:
    if method == MASKED:  # which of them are scored differs from datum to datum
        kl = torch.full_like(means["masked"], math.nan)
    else:
        kl = means["kl"] if "kl" in means else _normal_kl(means, k)
    n, dims = kl.shape
    activity = activity_se = torch.full((dims,), math.nan, dtype=kl.dtype, device=kl.device)
    if "mean" in means:
        center = means["mean"]
        noise = (means["mean square"] - center.square()).clamp(min=0.0) / (k - 1)  # variance of the mean of K draws
        spread = (center - center.mean(0)).square()
        activity = spread.sum(0) / (n - 1) - noise.mean(0)
        activity_se = (spread.var(0) / n).sqrt()
    columns = {"kl": kl.mean(0), "kl_se": kl.std(0) / math.sqrt(n), "activity": activity, "activity_se": activity_se}
    table = pd.DataFrame({name: value.numpy() for name, value in columns.items()})
    table.insert(0, "site", site)
    table.insert(1, "dim", np.arange(dims))
    table["active"] = table["activity"] > threshold
    table["kl_method"] = method
    return table


def _normal_kl(means: dict[str, Tensor], k: int) -> Tensor:
    """KL of normals with the moments of q and p, without the bias from having K draws (exact for normal draws)."""
    mean, p_mean = means["z"], means["prior"]
    variance = (means["z square"] - mean.square()) * k / (k - 1)
    p_variance = means["prior square"] - p_mean.square()
    half = torch.tensor((k - 1) / 2, dtype=mean.dtype, device=mean.device)
    log_variance = variance.log() - half.digamma() + half.log()
    square = (mean - p_mean).square() - variance / k
    return 0.5 * ((variance + square) / p_variance - 1.0 + p_variance.log() - log_variance)
