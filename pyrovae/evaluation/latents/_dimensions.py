"""What every latent dimension carries: its KL and how far its posterior mean moves with the data."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.distributions._capabilities import capabilities, moment
from pyrovae.evaluation._blocks import blocks
from pyrovae.evaluation._strict import TestSet
from pyrovae.model import LogTerms, VAEModel

CLOSED_FORM, MONTE_CARLO, APPROXIMATION, MASKED = "closed form", "Monte Carlo", "normal approximation", "masked"
_COMPARED = 500  # data whose priors are compared


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


def measure(
    model: VAEModel, data: TestSet, num_samples: int, threshold: float, target: torch.device, bar: Any
) -> Measured:
    """Average over the draws of every datum, under :func:`~pyrovae.evaluation._strict.strict`.

    Args:
        model: the model, on ``target``.
        data: the data, at least two.
        num_samples: K, at least two.
        threshold: activity above which a dimension is active.
        target: where the model is.
        bar: a progress bar over data and draws.
    """
    sums = _Sums(len(data), target)
    methods: dict[str, str] = {}
    for rows, terms in blocks(model.log_terms, model, data, num_samples):
        sums.add("", "reconstruction", rows, terms.reconstruction)
        for site in terms.posterior:
            sums.add(site, "site kl", rows, terms.kl(site))
        for site in terms.prior:
            methods[site] = _add_dimensions(sums, site, rows, terms)
        bar.update(terms.reconstruction.numel())
    means = {site: {name: total / num_samples for name, total in of.items()} for site, of in sums.totals.items()}
    tables = [_table(site, means[site], method, num_samples, threshold) for site, method in methods.items()]
    dimensions, varying = pd.concat(tables, ignore_index=True), _varying_priors(model, data)
    moved = dimensions["site"].isin(varying)  # with their priors, which is no activity
    dimensions.loc[moved, ["activity", "activity_se"]], dimensions.loc[moved, "active"] = math.nan, False
    return Measured(
        reconstruction=means.pop("")["reconstruction"].squeeze(1).cpu().numpy(),
        kl={site: of["site kl"].squeeze(1).cpu().numpy() for site, of in means.items()},
        dimensions=dimensions,
        varying_priors=varying,
    )


def _varying_priors(model: VAEModel, data: TestSet) -> list[str]:
    """The sites whose prior, given the same latents before them, is not the same for all data."""
    latents, _ = model.draw_posterior(*data.part(slice(1), model.like()), num_particles=2)
    part = data.part(slice(_COMPARED), model.like())
    everywhere = torch.zeros(len(part[0]), dtype=torch.int64, device=part[0].device)
    terms = model.log_prior(*part, latents=latents.rows(everywhere))
    return [site for site, term in terms.items() if not torch.allclose(term, term[:, :1], 1e-4, 1e-4, equal_nan=True)]


class _Sums:
    """Sums over draws by site and name, each ``(N, D)`` in float64."""

    def __init__(self, n: int, device: torch.device) -> None:
        self._n, self._device = n, device
        self.totals: dict[str, dict[str, Tensor]] = {}

    def add(self, site: str, name: str, rows: slice, value: Tensor) -> None:
        """Add the draws ``(K, B)`` or ``(K, B, D)`` of some rows."""
        value = value.double().reshape(*value.shape[:2], -1).sum(0)
        of = self.totals.setdefault(site, {})
        if name not in of:
            of[name] = torch.zeros(self._n, value.shape[1], dtype=torch.float64, device=self._device)
        of[name][rows] += value


def _add_dimensions(sums: _Sums, site: str, rows: slice, terms: LogTerms) -> str:
    """Add what the table needs of one site; says how the KL of its dimensions is found."""
    q, p = terms.posterior[site], terms.prior[site]

    def by_datum(value: Tensor | None = None) -> Tensor:
        return terms.by_datum(site, value).double()

    if site in terms.masks:
        sums.add(site, "masked", rows, by_datum())
        return MASKED
    if capabilities(q).discrete:
        sums.add(site, "kl", rows, terms.kl(site))
        return CLOSED_FORM if terms.closed_form_kl(site) is not None else MONTE_CARLO
    center = by_datum(moment(q, "mean"))
    sums.add(site, "mean", rows, center)
    sums.add(site, "mean square", rows, center.square())
    exact = terms.closed_form_kl_by_dimension(site)
    if exact is not None:
        sums.add(site, "kl", rows, exact.double())
        return CLOSED_FORM
    if center.shape[-1] == 1:
        sums.add(site, "kl", rows, terms.kl(site))
        return CLOSED_FORM if terms.closed_form_kl(site) is not None else MONTE_CARLO
    z = by_datum()
    sums.add(site, "z", rows, z)
    sums.add(site, "z square", rows, z.square())
    mean, variance = moment(p, "mean"), moment(p, "variance")
    if mean is None or variance is None:
        other = by_datum(p.sample())
        variance, mean = (m.expand_as(other) for m in torch.var_mean(other, dim=(0, 1)))
    else:
        mean, variance = by_datum(mean), by_datum(variance)
    sums.add(site, "prior", rows, mean)
    sums.add(site, "prior square", rows, variance + mean.square())
    return APPROXIMATION


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
    table = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
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
