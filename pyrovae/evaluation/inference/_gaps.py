"""What the approximate posterior loses, and why: the approximation gap and the amortisation gap."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae._checks import require_at_least, require_positive, shown
from pyrovae._graph import Compile
from pyrovae.evaluation._run import EvaluationRun
from pyrovae.evaluation.inference._gaps_result import FAMILIES, NUM_PROPOSED, GapsResult, gaps_table, warn
from pyrovae.evaluation.inference._mean_field import MeanField
from pyrovae.evaluation.inference._own_family import OwnFamily
from pyrovae.evaluation.inference._per_datum import Amortised, Ascent, PerDatum, gradients, log_weight
from pyrovae.evaluation.marginal._ais import ais
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.model import VAEModel
from pyrovae.posteriors import MeanFieldNormal

Family = Callable[..., PerDatum]

_BLOCKS = 4  # times the bytes of an ordinary block: every datum has parameters, and optimiser state, of its own
_DRAWS_AT_ONCE = 100  # when a bound is evaluated
_WIDER = 1.4  # of the scales of a factorised normal: at the optimum for L they are narrower than the posterior's
_SECOND = 0.3  # of the learning rate, to start the second cycle with
_RATES: dict[Any, float] = {MeanField: 0.05, OwnFamily: 0.003}


def inference_gaps(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    log_px: Any = None,
    families: Sequence[str] = FAMILIES,
    steps: int = 1000,
    learning_rate: float | None = None,
    num_particles: int = 8,
    num_samples: int = 1000,
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    compile: Compile = "auto",
    progress: bool = True,
) -> GapsResult:
    """Split log p(x) - ELBO into what the family cannot do and what the encoder does not (Cremer et al. 2018,
    arXiv:1801.03558).

    For every datum q* is optimised by itself, all data of a batch at once, with p(x, z) as it is: in the guide's own
    family, where each datum gets a copy of the guide's parameters, and among factorised normals. Then
    log p(x) - L[q*] is the approximation gap and L[q*] - L[q] the amortisation gap.

    L[q*] is evaluated with fresh draws. After finitely many steps it lies below the best one, so the approximation gap
    is overstated and the amortisation gap understated by the same amount: a warning says where it was still rising.

    log p(x) is by default estimated by importance sampling from the guide and every q* together: 5000 draws in equal
    shares, each with the weight p(x, z) / (mean over j of q_j(z)), the balance heuristic (Veach & Guibas 1995,
    doi:10.1145/218380.218498). A factorised normal at its optimum is narrower than the posterior, so that its weights
    may have infinite variance; one of 1.4 times its scales joins the mixture (Hesterberg 1995, Technometrics 37(2)).
    A flow that cannot score what it did not draw (planar, radial, Sylvester) cannot be in a mixture: then the proposal
    is that one, or the mixture of the others, whichever has the higher L in the mean. The logarithm of an estimate lies
    below log p(x) in expectation, and understates the approximation gap; a warning says where it is below an L by more
    than their errors, so that it cannot be right. Nothing is clamped.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide.
        log_px: how log p(x) is estimated: as above; ``"ais"``, by :func:`~pyrovae.ais` as it is by default; or a result
            of :func:`~pyrovae.log_marginal` or ``ais`` on the same data, or one number per datum.
        families: of ``"own"`` and ``"mean_field"``.
        steps: steps of Adam for every q*; the learning rate falls to zero (cosine) over three quarters of them, and
            again, from 0.3 of it, over the last one: if q* has converged by then, L[q*] stays what it was.
        learning_rate: the first step's; by default 0.05 for factorised normals, whose parameters are in units of the
            guide's scales, and 0.003 for copies of the guide's parameters. The rate that ends highest is the best.
        num_particles: draws per datum and step.
        num_samples: fresh draws with which each L is evaluated.
        seed: seed of the draws.
        device: where to compute; by default where the model is. The model is put back.
        memory_budget: bytes that the data fitted at once may take; by default 256 MiB on a CPU, 4 GiB on CUDA. Other
            blocks are other draws.
        compile: as in :func:`~pyrovae.log_marginal`: whether the gradients become machine code.
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`; ``log_px`` of another kind.
        ValueError: bad data (see :func:`~pyrovae.log_marginal`), an unknown family, ``log_px`` of other data, a
            discrete latent site, or for ``"own"`` one that is not reparameterised.
    """
    require_at_least(1, steps=steps, num_particles=num_particles)
    require_at_least(2, num_samples=num_samples)
    known = isinstance(families, (tuple, list)) and all(isinstance(f, str) and f in FAMILIES for f in families)
    if not (known and families):
        raise ValueError(f"families must be some of {', '.join(FAMILIES)}; got {shown(families)}.")
    if learning_rate is not None:
        require_positive(learning_rate=learning_rate)
    options: Any = {"seed": seed, "device": device, "memory_budget": memory_budget, "compile": compile}
    options["progress"] = progress
    run = EvaluationRun("inference_gaps", model, x, covariates, **options)
    estimated = log_px is None or (isinstance(log_px, str) and log_px == "ais")
    given = None if estimated else run.data.log_px(log_px)
    with run:
        made = _families(run, families)
        fitted = partial(_fitted, run, steps=steps, num_particles=num_particles, num_samples=num_samples)

        def compute(rows: slice, draws: int) -> dict[Any, Tensor]:
            part, columns, qs = run.part(rows), dict[Any, Tensor](), dict[str, PerDatum]()
            for i, (name, make) in enumerate(made.items()):
                run.reseed(i, rows.start)
                q = qs[name] = make(model, part)
                rate = _RATES.get(make, 0.0) if learning_rate is None else learning_rate
                columns |= fitted(name, q, part, (i, rows.start), learning_rate=rate)
            if log_px is None:
                qs |= {f"wide {n}": q.widened(_WIDER) for n, q in qs.items() if isinstance(q, MeanField)}
                for i, names in enumerate(_proposals(qs)):
                    run.reseed(len(made) + i, rows.start)
                    found = _mixture([qs[name] for name in names], model, part)
                    columns |= {(column, names): values for column, values in found.items()}
            return columns

        sizes = min(_plan(run, make, num_particles) for make in made.values()), 1
        total = steps * (len(made) - 1)
        columns = run.collect(compute, sizes, total=total, description="q*", unit="step", required=list(made))
        provenance = run.provenance()
    if log_px is None:
        proposal = _best_proposal(columns, list(made))
        columns |= {column: columns[column, proposal] for column in ("log_px", "log_px_se", "log_px_khat")}
    elif given is None:
        result = ais(model, x, *covariates, **options)
        given = result.pointwise["log_px"].to_numpy(), result.pointwise["mc_se"].to_numpy()
    if given is not None:
        columns["log_px"], columns["log_px_se"] = given
    if "own" in families and "mean_field" in families and "mean_field" not in made:
        for suffix in ("", "_se", "_gain", "_gain_se"):
            columns[f"mean_field{suffix}"] = columns[f"own{suffix}"]
    table = gaps_table(columns)
    warn(table)
    return GapsResult(
        pointwise=run.data.table(table),
        steps=steps,
        num_samples=num_samples,
        proposal=", ".join(proposal) if log_px is None else log_px if isinstance(log_px, str) else "given",
        provenance=provenance,
    )


def _families(run: EvaluationRun, families: Sequence[str]) -> dict[str, Family]:
    """The guide, and what is to be fitted: one family where two are the same."""
    prior, made = run.terms.prior, dict[str, Family]({"elbo": Amortised})
    if not prior:
        raise ValueError(f"{type(run.model).__name__} has no latents, so its bound has no gap: see log_marginal.")
    one_normal = len(prior) == 1 and isinstance(getattr(run.model, "posterior", None), MeanFieldNormal)
    for family in families:
        made[family] = OwnFamily if family == "own" and not one_normal else MeanField
    if made.get("own") is MeanField and "mean_field" in made:
        del made["mean_field"]
    return made


def _plan(run: EvaluationRun, make: Family, num_particles: int) -> int:
    """How many data to fit at once, with their parameters and the gradients."""

    def once(k: int, *part: Any) -> None:
        q = make(run.model, part)
        if q.parameters:
            gradients(q, run.model, part, k)
        else:
            log_weight(q, run.model, part, k)

    draws = max(num_particles, _DRAWS_AT_ONCE // 2)  # evaluation keeps no graph
    return run.plan(once, draws, times=_BLOCKS, whole=True)[0]


def _proposals(fitted: Mapping[str, PerDatum]) -> list[tuple[str, ...]]:
    """What log p(x) can be estimated from: the mixture of those that can score, and each of the others by itself."""
    mixed = tuple(name for name, q in fitted.items() if q.can_score)
    alone: list[tuple[str, ...]] = [(name,) for name, q in fitted.items() if not q.can_score]
    return [mixed, *alone] if mixed else alone


def _best_proposal(columns: Mapping[Any, np.ndarray], names: Sequence[str]) -> tuple[str, ...]:
    """That of the highest L in the mean: what the bounds were evaluated with are other draws than what log p(x) was
    estimated with, so that the choice does not favour high estimates.
    """
    means = {name: np.nan_to_num(columns[name].mean(), nan=-np.inf) for name in names}
    proposals = [key[1] for key in columns if isinstance(key, tuple) and key[0] == "log_px"]
    return max(proposals, key=lambda proposal: max(means[name] for name in proposal if name in means))


def _fitted(
    run: EvaluationRun,
    name: str,
    q: PerDatum,
    part: tuple[Any, ...],
    seeds: tuple[int, ...],
    *,
    steps: int,
    learning_rate: float,
    num_particles: int,
    num_samples: int,
) -> dict[str, Tensor]:
    """Fit q in two cycles: L[q], and what it gained in the second one, at the same noise, with their errors. Both end
    with a learning rate of zero, so that what the second one changes is not the noise of the steps.
    """
    found = []
    cycles = ((steps - steps // 4, 1.0), (steps // 4, _SECOND)) if q.parameters else ((0, 0.0),)
    if q.parameters:
        ascent = Ascent(q, run.model, part, num_particles=num_particles, compile=run.compile, steps=steps)
    for count, rate in cycles:
        if count:
            for _ in ascent.cycle(count, rate * learning_rate):
                run.advance(len(part[0]))
        run.reseed(*seeds, 1)
        found.append(_log_weights(q, run.model, part, num_samples))
    columns = {name: found[-1]}
    if q.parameters:  # they may be -inf
        columns[f"{name}_gain"] = found[1] - found[0] if steps >= 4 else torch.full_like(found[1], torch.nan)
    means = {column: draws.mean(0) for column, draws in columns.items()}
    return means | {f"{column}_se": draws.std(0) / math.sqrt(num_samples) for column, draws in columns.items()}


def _log_weights(q: PerDatum, model: VAEModel, part: tuple[Any, ...], num_samples: int) -> Float[Tensor, "draws batch"]:
    """log p(x, z) - log q(z) at fresh draws: their mean is L[q]."""
    sizes = (min(_DRAWS_AT_ONCE, num_samples - start) for start in range(0, num_samples, _DRAWS_AT_ONCE))
    return torch.cat([log_weight(q, model, part, n).double() for n in sizes])


def _mixture(qs: Sequence[PerDatum], model: VAEModel, part: tuple[Any, ...]) -> dict[str, Tensor]:
    """log p̂(x) of every datum, from equal numbers of draws from each q, weighted against their mixture; its standard
    error, and the Pareto shape of all weights.
    """
    share = -(-NUM_PROPOSED // len(qs))
    means, errors = [], []
    pooled = WeightStream(len(part[0]), share * len(qs), (), part[0].device)
    for q in qs:
        stream = WeightStream(len(part[0]), share, (), part[0].device)
        for start in range(0, share, _DRAWS_AT_ONCE):
            latents, own = q.draw(min(_DRAWS_AT_ONCE, share - start))
            log_q = torch.stack([own if r is q else r.log_prob(latents) for r in qs])
            log_weights = model.log_joint(*part, latents=latents) - (log_q.logsumexp(0) - math.log(len(qs)))
            stream.update(log_weights)
            pooled.update(log_weights)
        means.append(stream.log_mean)
        errors.append(stream.se(share))
    log_px = pooled.log_mean
    parts = (torch.stack(means) - math.log(len(qs)) - log_px).exp()  # what each stratum contributes
    se = torch.where(parts > 0, parts * torch.stack(errors), 0.0).square().sum(0).sqrt()
    return {"log_px": log_px, "log_px_se": torch.where(log_px.isfinite(), se, torch.nan), "log_px_khat": pooled.khat}
