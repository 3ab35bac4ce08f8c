"""The aggregated posterior q(z) = E_x q(z | x): what the latents say about which datum it is."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal
from tqdm.auto import tqdm

from pyrovae.distributions._capabilities import capabilities
from pyrovae.distributions._independent import innermost
from pyrovae.evaluation._blocks import blocks
from pyrovae.evaluation._chunks import BLOCK, chunk_sizes, probe
from pyrovae.evaluation._strict import TestSet
from pyrovae.evaluation.latents._dimensions import Measured
from pyrovae.model import Latents, LogTerms, VAEModel

_GROUPS = 50  # of data, for the jackknife
# Draws scored at once at least: a flow that takes a pass per dimension allocates far more in all than it ever holds.
_AT_ONCE = 1024


@dataclass(frozen=True)
class Aggregate:
    """I(x; z) and KL(q(z) ‖ p(z)), in nats, which sum to the rate; see :func:`~pyrovae.collapse`."""

    mutual_information: float = math.nan
    mutual_information_se: float = math.nan
    marginal_kl: float = math.nan
    marginal_kl_se: float = math.nan
    mutual_information_bound: float = math.nan
    estimator: Literal["mixture", "gaussian bound", "none"] = "none"
    reason: str = ""


def aggregate(
    model: VAEModel,
    data: TestSet,
    terms: LogTerms,
    measured: Measured,
    *,
    num_samples: int,
    num_data: int,
    num_draws: int,
    progress: bool,
) -> Aggregate:
    """The mixture estimate where the guide can be scored at any point, else the bound where the prior is N(0, I)."""
    rate = measured.rate
    if terms.masks:
        return Aggregate(reason=f"latents are masked at {list(terms.masks)}: which of them there are is no constant")
    if measured.varying_priors:
        where = f"the prior at {measured.varying_priors}"
        return Aggregate(reason=f"{where} differs from datum to datum: no one q(z) splits the rate")
    made = any(site not in terms.prior for site in terms.posterior)  # of auxiliary draws, which other z do not have
    unscorable = [site for site, q in terms.posterior.items() if made or capabilities(q).inverse is None]
    if unscorable:
        why = f"the posterior at {unscorable} cannot be scored at a point it did not draw"
        other = [site for site, p in terms.prior.items() if not _is_standard_normal(p)]
        if other:
            return Aggregate(reason=f"{why}, and the prior at {other} is not standard normal")
        return _gaussian_bound(model, data, rate, num_samples, why)
    chosen = torch.randperm(len(data))[:num_data]
    information = _Mixture(model, data.rows(chosen), num_draws).information(progress)
    value = float(information.mean())
    # What each datum adds to rate - information, those outside the mixture included.
    share = rate / len(rate)
    share[chosen.numpy()] -= information / len(information)
    parts = [share[chosen.numpy()], np.delete(share, chosen.numpy())]
    return Aggregate(
        mutual_information=value,
        mutual_information_se=float(information.std(ddof=1)) / math.sqrt(len(information)),
        marginal_kl=float(rate.mean()) - value,
        marginal_kl_se=math.sqrt(sum(len(p) * p.var(ddof=1) for p in parts if len(p) > 1)),
        mutual_information_bound=math.log(len(information)),
        estimator="mixture",
    )


class _Mixture:
    """q̂(z) = 1/M Σ_n q(z | x_n), scored at ``num_draws`` draws from each of its M components."""

    def __init__(self, model: VAEModel, data: TestSet, num_draws: int) -> None:
        self._model, self._data, self._num_draws = model, data, num_draws
        owners, own, draws = [], [], []
        for rows, (latents, log_q) in blocks(model.draw_posterior, model, data, max(num_draws, 2)):
            k, n = min(num_draws, len(log_q)), rows.stop - rows.start
            owners.append(torch.arange(rows.start, rows.stop).repeat_interleave(k))
            own.append(log_q[:k].T.flatten().double().cpu())
            draws += [latents.draws(slice(k)).rows(slice(i, i + 1)) for i in range(n)]
        self._owner, self._own = torch.cat(owners), torch.cat(own)
        #: Every draw a particle, and a single datum.
        self._draws = Latents({site: torch.cat([z[site] for z in draws]) for site in draws[0]}, draws[0].num_plates)

    def score(self, data: slice | int, draws: slice | int) -> Tensor:
        """log q(z_j | x_n), ``(draws, data)``."""
        data, draws = (s if isinstance(s, slice) else slice(s) for s in (data, draws))
        part = self._data.part(data, self._model.like())
        everywhere = torch.zeros(len(part[0]), dtype=torch.int64, device=self._model.like().device)
        return self._model.log_posterior(*part, latents=self._draws.draws(draws).rows(everywhere)).double()

    def information(self, progress: bool) -> np.ndarray:
        """log q(z | x_n) - log q̂(z) for each of the M data, averaged over its draws."""
        m, total = len(self._data), len(self._owner)
        like = self._model.like()
        size, take = chunk_sizes(m, total, BLOCK[like.device.type], probe(self.score))
        take = min(max(take, _AT_ONCE), total)
        log_sum = torch.full((total,), -math.inf, dtype=torch.float64)
        with tqdm(total=m * total, unit="pair", unit_scale=True, desc="q(z)", disable=not progress) as bar:
            for start in range(0, m, size):
                for first in range(0, total, take):
                    draws = slice(first, first + take)
                    scores = self.score(slice(start, start + size), draws).cpu()
                    column = self._owner[draws] - start
                    here = (column >= 0) & (column < scores.shape[1])
                    # As it was drawn, not through an inverse: so the terms below cannot exceed log M.
                    scores[here, column[here]] = self._own[draws][here]
                    log_sum[draws] = torch.logaddexp(log_sum[draws], scores.logsumexp(1))
                    bar.update(scores.numel())
        terms = self._own - log_sum + math.log(m)
        return torch.zeros(m, dtype=torch.float64).index_add(0, self._owner, terms / self._num_draws).numpy()


def _gaussian_bound(model: VAEModel, data: TestSet, rate: np.ndarray, num_samples: int, why: str) -> Aggregate:
    """KL(N(m, S) ‖ N(0, I)) for the moments of q(z); jackknife over groups of data for bias and error."""
    groups = min(_GROUPS, len(data))
    group = torch.arange(len(data)) % groups
    moments: list[Tensor] = []
    for rows, (latents, _) in blocks(model.draw_posterior, model, data, num_samples):
        z = latents.flat().double()
        if not moments:
            d = z.shape[-1]
            moments = [z.new_zeros(groups, d), z.new_zeros(groups, d, d)]
        where = group[rows].to(z.device)
        moments[0].index_add_(0, where, z.sum(0))
        moments[1].index_add_(0, where, torch.einsum("kbi,kbj->bij", z, z))
    first, second = moments
    counts = torch.bincount(group).to(first)
    rates = torch.zeros_like(counts).index_add(0, group.to(first.device), torch.as_tensor(rate).to(first))

    def kl(first: Tensor, second: Tensor, count: Tensor) -> Tensor:
        count = count * num_samples
        mean = first / count.unsqueeze(-1)
        covariance = second / count[..., None, None] - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        trace = second.diagonal(dim1=-2, dim2=-1).sum(-1) / count  # tr S + mᵀm
        return 0.5 * (trace - mean.shape[-1] - torch.logdet(covariance))

    whole = kl(first.sum(0), second.sum(0), counts.sum())
    without = kl(first.sum(0) - first, second.sum(0) - second, counts.sum() - counts)
    rate_without = (rates.sum() - rates) / (counts.sum() - counts)
    corrected = groups * whole - (groups - 1) * without.mean()

    def se(leave_one_out: Tensor) -> float:
        return math.sqrt((groups - 1) * leave_one_out.var(correction=0).item())

    return Aggregate(
        mutual_information=float(rate.mean()) - corrected.item(),
        mutual_information_se=se(rate_without - without),
        marginal_kl=corrected.item(),
        marginal_kl_se=se(without),
        estimator="gaussian bound",
        reason=why,
    )


def _is_standard_normal(p: Distribution) -> bool:
    p = innermost(p)
    return isinstance(p, Normal) and bool((p.loc == 0).all()) and bool((p.scale == 1).all())
