"""The aggregated posterior q(z) = E_x q(z | x): what the latents say about which datum it is."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyrovae._distributed import summed
from pyrovae._memory import plan, probe
from pyrovae._turns import turn
from pyrovae.distributions._capabilities import capabilities, innermost
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.latents._dimensions import Measured
from pyrovae.model import Latents

_GROUPS = 50  # of data, for the jackknife
# Draws scored at once at least: a flow that takes a pass per dimension allocates far more in all than it ever holds.
_SCORED_AT_ONCE = 1024


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


def aggregate(run: EvaluationRun, measured: Measured, *, num_samples: int, num_data: int, num_draws: int) -> Aggregate:
    """The mixture estimate where the guide can be scored at any point, else the bound where the prior is N(0, I)."""
    rate, terms = measured.rate, run.terms
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
        return _gaussian_bound(run.within(), rate, num_samples, why)
    with turn():
        run.within().reseed()
        chosen = torch.randperm(len(run.data))[:num_data]
    information = _information(run.within(chosen), num_draws)
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


def _information(run: EvaluationRun, num_draws: int) -> np.ndarray:
    """log q(z | x_n) - log q̂(z) for each of the run's M data, averaged over draws of its z: q̂(z) = 1/M Σ_n q(z | x_n)
    is the mixture over all of them.
    """
    m, model = len(run.data), run.model

    def draw(rows: slice) -> tuple[Latents, Tensor]:
        """Every draw from the posteriors of some data a particle, draw by draw, and a single datum; log q of them."""
        latents, log_q = model.draw_posterior(*run.part(rows), num_particles=max(num_draws, 2))
        n = rows.stop - rows.start
        each = [latents.draws(slice(num_draws)).rows(slice(i, i + 1)) for i in range(n)]
        apart = Latents({site: torch.cat([z[site] for z in each]) for site in latents}, latents.num_plates)
        return apart, log_q[:num_draws].T.flatten().double()

    def score(latents: Latents, among: slice) -> Tensor:
        part = run.part(among)
        everywhere = torch.zeros(len(part[0]), dtype=torch.int64, device=run.device)
        return model.log_posterior(*part, latents=latents.rows(everywhere)).double()

    few = draw(slice(0, min(m, -(-10 // num_draws))))[0]
    cost = probe(lambda n, k: score(few.draws(slice(k)), slice(n)))
    among, draws = plan(m, m * num_draws, run.block_bytes(), cost)
    sizes = min(m, -(-max(draws, _SCORED_AT_ONCE) // num_draws)), among

    def compute(rows: slice, among: int) -> dict[str, Tensor]:
        run.reseed(rows.start)
        latents, own = draw(rows)
        owner = torch.arange(rows.start, rows.stop, device=run.device).repeat_interleave(num_draws)
        log_sum = torch.full_like(own, -math.inf)
        for start in range(0, m, among):
            scores = score(latents, slice(start, min(start + among, m)))
            column = owner - start
            here = (column >= 0) & (column < scores.shape[1])
            # As it was drawn, not through an inverse: so the terms below cannot exceed log M.
            scores[here, column[here]] = own[here]
            log_sum = torch.logaddexp(log_sum, scores.logsumexp(1))
            run.advance(scores.numel())
        return {"information": (own - log_sum + math.log(m)).unflatten(0, (-1, num_draws)).mean(1)}

    columns = run.collect(compute, sizes, total=m * num_draws, description="q(z)", unit="pair")
    return columns["information"]


def _gaussian_bound(run: EvaluationRun, rate: np.ndarray, num_samples: int, why: str) -> Aggregate:
    """KL(N(m, S) ‖ N(0, I)) for the moments of q(z); jackknife over groups of data for bias and error."""
    n, groups = len(run.data), min(_GROUPS, len(run.data))
    group = torch.arange(n, device=run.device) % groups

    def draw(k: int, *part: Any) -> tuple[Tensor, Tensor]:
        z = run.model.draw_posterior(*part, num_particles=k)[0].flat().double()
        return z.sum(0), torch.einsum("kbi,kbj->bij", z, z)

    sizes = run.plan(draw, num_samples)
    moments_of = run.graph(draw, sizes, num_samples)
    d = draw(2, *run.part(slice(1)))[0].shape[1]
    first, second = (torch.zeros(groups, *shape, dtype=torch.float64, device=run.device) for shape in ((d,), (d, d)))

    def compute(rows: slice, at_once: int) -> dict[str, Tensor]:
        part = run.part(rows)
        found = [moments_of(k, *part) for k in run.draws(rows, num_samples, at_once)]
        sums, squares = sum(z for z, _ in found), sum(square for _, square in found)
        first.index_add_(0, group[rows], sums)  # once there is nothing left for which memory could run out
        second.index_add_(0, group[rows], squares)
        run.advance(num_samples * len(part[0]))
        return {}

    run.collect(compute, sizes, total=num_samples, description="q(z)")
    first, second = summed(first), summed(second)
    counts = torch.bincount(group, minlength=groups).to(first)
    rates = torch.zeros_like(counts).index_add(0, group, torch.as_tensor(rate).to(first))

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
