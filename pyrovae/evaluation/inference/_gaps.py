"""What the approximate posterior loses, and why: the approximation gap and the amortisation gap."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._checks import ARRAYS, as_tensor, at_least
from pyrovae._random import reseed, seeded
from pyrovae.evaluation._chunks import BLOCK, probe
from pyrovae.evaluation._strict import TestSet, as_test_set, fingerprint, model_name, strict
from pyrovae.evaluation.inference._optimal import Amortised, MeanField, OwnFamily, PerDatum, fit, gradients, log_weight
from pyrovae.evaluation.marginal._ais import ais
from pyrovae.evaluation.marginal._stream import WeightStream
from pyrovae.evaluation.marginal._tail import khat_threshold
from pyrovae.evaluation.marginal._verdict import TOLERATED, combined_se, se_over_data
from pyrovae.model import VAEModel
from pyrovae.posteriors import MeanFieldNormal

FAMILIES = ("own", "mean_field")
_BLOCKS = 4  # times the bytes of an ordinary block: every datum has parameters, and optimiser state, of its own
_AT_ONCE = 100  # draws when a bound is evaluated
_PROPOSED = 5000  # draws from all proposals together that log p(x) is estimated with
_WIDER = 1.4  # of the scales of a factorised normal: at the optimum for L they are narrower than the posterior's
_TRIFLE = 2e-4  # nats
_SURE = 4.0  # standard errors
_ROUNDING = 1e-6  # of a float32
_EQUAL = 1e-3  # standard error up to which weights have no tail to judge
_SECOND = 0.3  # of the learning rate, to start the second cycle with
_PLATEAU = 0.05  # nats that the second cycle of a fit that has converged may gain
_RATES: dict[Any, float] = {MeanField: 0.05, OwnFamily: 0.003}


@dataclass(frozen=True)
class GapsResult:
    """log p(x), the bounds L[q] and L[q*], and the gaps between them, in nats.

    Attributes:
        pointwise: one row per datum. ``log_px``, with ``log_px_bias``, how far its expectation lies from log p(x)
            (below, by half the squared error, as long as that is small), and ``log_px_khat``, the Pareto shape of the
            importance weights where it was estimated here; ``elbo`` = L[q] of the guide; ``own`` and
            ``mean_field`` = L[q*] of the best q* found in the guide's own family and among factorised normals;
            ``approximation`` = log_px - own; ``amortization`` = own - elbo; ``mean_field_approximation`` = log_px -
            mean_field; ``own_gain`` and ``mean_field_gain``, what L[q*] gained in the second cycle of the steps; each
            with its Monte Carlo standard error, ``_se``. ``own_converged`` and ``mean_field_converged``: whether that
            change and two of its errors are under 0.05 nats, and it is no gain beyond four errors. Columns of families
            not asked for are missing.
        steps: optimisation steps for each q*.
        num_samples: draws that each L was evaluated with.
        proposal: what log p(x) was estimated from: the mixture of the named ones, ``elbo`` being the guide and
            ``wide`` a factorised normal with wider scales; ``"ais"``; or ``"given"``.
        data_hash: content hash of the data.
        model_name: class of the model, with its posterior where it has one.
        seed: seed of the draws.
        fingerprint: as in :class:`~pyrovae.MarginalResult`.
    """

    pointwise: pd.DataFrame
    steps: int
    num_samples: int
    proposal: str
    data_hash: str
    model_name: str
    seed: int | None
    fingerprint: tuple[float, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether every datum's q* has, of each family."""
        return bool(self.pointwise.filter(regex="_converged$").all(axis=None))

    def summary(self) -> pd.Series:
        """Means over data; ``_se`` is the standard error over data, which contains what Monte Carlo noise alone makes,
        ``_mc_se``. A datum that is not finite makes the mean so.
        """
        p = self.pointwise
        row: dict[str, Any] = {"N": len(p)}
        for name in (str(c) for c in p if not str(c).endswith("_se")):
            row[name] = p[name].mean(skipna=False)
            if f"{name}_se" in p:
                row[f"{name}_se"] = se_over_data(p[name])
                row[f"{name}_mc_se"] = combined_se(p[f"{name}_se"])
        return pd.Series(row, name=self.model_name)


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
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`; ``log_px`` of another kind.
        ValueError: bad data (see :func:`~pyrovae.log_marginal`), an unknown family, ``log_px`` of other data, a
            discrete latent site, or for ``"own"`` one that is not reparameterised.
    """
    at_least(1, steps=steps, num_particles=num_particles)
    at_least(2, num_samples=num_samples)
    if not families or set(families) - set(FAMILIES):
        raise ValueError(f"families must be some of {', '.join(FAMILIES)}; got {tuple(families)}.")
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive; got {learning_rate}.")
    data = as_test_set("inference_gaps", model, x, covariates)
    given = _given(log_px, data)
    columns: dict[str, np.ndarray] = {}
    with strict(model, device), seeded(seed):
        prior = data.check(model).terms.prior
        if not prior:
            raise ValueError(f"{type(model).__name__} has no latents, so its bound has no gap: see log_marginal.")
        one_site = len(prior) == 1
        made: dict[str, Callable[..., PerDatum]] = {"elbo": Amortised}
        for family in families:
            same = family == "own" and one_site and isinstance(getattr(model, "posterior", None), MeanFieldNormal)
            made[family] = OwnFamily if family == "own" and not same else MeanField
        if made.get("own") is MeanField and "mean_field" in made:
            del made["mean_field"]  # the same family: fitted once
        total = len(data) * steps * (len(made) - 1)
        proposals: list[tuple[str, ...]] = []
        with tqdm(total=total, unit="step", unit_scale=True, desc="q*", disable=not progress) as bar:
            base = int(torch.randint(2**62, ()))
            for rows in _batches(made.values(), model, data, num_particles):
                part, fitted = data.part(rows, model.like()), {}
                for i, (name, make) in enumerate(made.items()):
                    reseed(base, i, rows.start)
                    q = fitted[name] = make(model, part)
                    rate = _RATES.get(make, 0.0) if learning_rate is None else learning_rate
                    settings: dict[str, Any] = {"learning_rate": rate, "num_particles": num_particles}
                    weights = _fitted(
                        q, model, part, num_samples, (base, i, rows.start, 1), bar, steps=steps, **settings
                    )
                    with np.errstate(invalid="ignore"):  # they may be -inf
                        found = {name: weights[-1]}
                        if q.parameters:
                            found[f"{name}_gain"] = weights[1] - weights[0] if steps >= 4 else weights[1] * np.nan
                        for column, draws in found.items():
                            se = draws.std(0, ddof=1) / np.sqrt(num_samples)
                            _put(columns, rows, len(data), {column: draws.mean(0), f"{column}_se": se})
                if given is None:
                    fitted |= {f"wide {n}": q.widened(_WIDER) for n, q in fitted.items() if isinstance(q, MeanField)}
                    proposals = _proposals(fitted)
                    for i, names in enumerate(proposals):
                        reseed(base, len(made) + i, rows.start)
                        estimate = _mixture([fitted[name] for name in names], model, part)
                        _put(columns, rows, len(data), {f"log_px{c}{i}": v for c, v in estimate.items()})
        marks = fingerprint(model, data)
    if given is None:
        # What the bounds were evaluated with are other draws, so that the choice does not favour high estimates.
        means = {name: np.nan_to_num(columns[name].mean(), nan=-np.inf) for name in made}
        best = [max(means[name] for name in names if name in means) for names in proposals]
        chosen = int(np.argmax(best))
        proposal, given = ", ".join(proposals[chosen]), (columns[f"log_px{chosen}"], columns[f"log_px_se{chosen}"])
        columns["log_px_khat"] = columns[f"log_px_khat{chosen}"]
    elif isinstance(given, str):
        proposal, result = given, ais(model, x, *covariates, seed=seed, device=device, progress=progress)
        given = result.pointwise["log_px"].to_numpy(), result.pointwise["mc_se"].to_numpy()
    else:
        proposal = "given"
    columns["log_px"], columns["log_px_se"] = given
    if "own" in families and "mean_field" in families and "mean_field" not in columns:
        for suffix in ("", "_se", "_gain", "_gain_se"):
            columns[f"mean_field{suffix}"] = columns[f"own{suffix}"]
    table = _gaps(columns)
    _warn_if_heavy(table)
    _warn_if_below(table)
    _warn_unless_converged(table)
    _warn_if_short(table)
    return GapsResult(data.labelled(table), steps, num_samples, proposal, data.hash, model_name(model), seed, marks)


def _proposals(fitted: Mapping[str, PerDatum]) -> list[tuple[str, ...]]:
    """What log p(x) can be estimated from: the mixture of those that can score, and each of the others by itself."""
    mixed = tuple(name for name, q in fitted.items() if q.can_score)
    alone: list[tuple[str, ...]] = [(name,) for name, q in fitted.items() if not q.can_score]
    return [mixed, *alone] if mixed else alone


def _put(columns: dict[str, np.ndarray], rows: slice, size: int, found: Mapping[str, Any]) -> None:
    for name, values in found.items():
        columns.setdefault(name, np.empty(size))[rows] = values


def _batches(
    made: Iterable[Callable[..., PerDatum]], model: VAEModel, data: TestSet, num_particles: int
) -> list[slice]:
    """As many data at once as fit, with their parameters and the gradients."""

    def run(n: int, k: int, make: Callable[..., PerDatum]) -> None:
        part = data.part(slice(n), model.like())
        q = make(model, part)
        if q.parameters:
            gradients(q, model, part, k)
        else:
            log_weight(q, model, part, k)

    costs = [probe(partial(run, make=make)) for make in made]
    draws = max(num_particles, _AT_ONCE // 2)  # evaluation keeps no graph
    largest = max(cost.per_datum + draws * cost.per_draw for cost in costs)
    size = max(1, _BLOCKS * BLOCK[model.like().device.type] // largest)
    return [slice(i, min(i + size, len(data))) for i in range(0, len(data), size)]


def _fitted(
    q: PerDatum,
    model: VAEModel,
    part: tuple[Any, ...],
    num_samples: int,
    seeds: tuple[int, ...],
    bar: Any,
    *,
    steps: int,
    learning_rate: float,
    num_particles: int,
) -> list[np.ndarray]:
    """Fit q in two cycles, and give the :func:`_log_weights` after each, at the same noise. Both end with a learning
    rate of zero, so that what the second one changes is not the noise of the steps.
    """
    found = []
    for cycle, rate in ((steps - steps // 4, 1.0), (steps // 4, _SECOND)) if q.parameters else ((0, 0.0),):
        if cycle:
            for _ in fit(q, model, part, steps=cycle, learning_rate=rate * learning_rate, num_particles=num_particles):
                bar.update(len(part[0]))
        reseed(*seeds)
        found.append(_log_weights(q, model, part, num_samples))
    return found


def _log_weights(q: PerDatum, model: VAEModel, part: tuple[Any, ...], num_samples: int) -> np.ndarray:
    """log p(x, z) - log q(z) at fresh draws, ``(num_samples, B)``: their mean is L[q]."""
    sizes = (min(_AT_ONCE, num_samples - start) for start in range(0, num_samples, _AT_ONCE))
    return torch.cat([log_weight(q, model, part, n).double().cpu() for n in sizes]).numpy()


def _mixture(qs: Sequence[PerDatum], model: VAEModel, part: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """log p̂(x) of every datum, from equal numbers of draws from each q, weighted against their mixture; its standard
    error, ``_se``, and the Pareto shape of all weights, ``_khat``.
    """
    share = -(-_PROPOSED // len(qs))
    means, errors = [], []
    pooled = WeightStream(len(part[0]), share * len(qs), (), part[0].device)
    for q in qs:
        stream = WeightStream(len(part[0]), share, (), part[0].device)
        for start in range(0, share, _AT_ONCE):
            latents, own = q.draw(min(_AT_ONCE, share - start))
            log_q = torch.stack([own if r is q else r.log_prob(latents) for r in qs])
            log_weights = model.log_joint(*part, latents=latents) - (log_q.logsumexp(0) - math.log(len(qs)))
            stream.update(log_weights)
            pooled.update(log_weights)
        means.append(stream.log_mean)
        errors.append(stream.se(share))
    log_px = pooled.log_mean
    parts = (torch.stack(means) - math.log(len(qs)) - log_px).exp()  # what each stratum contributes
    se = torch.where(parts > 0, parts * torch.stack(errors), 0.0).square().sum(0).sqrt()
    found = {"": log_px, "_se": torch.where(log_px.isfinite(), se, torch.nan), "_khat": pooled.khat}
    return {name: value.cpu().numpy() for name, value in found.items()}


def _gaps(columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """The columns in order, with the differences between them."""
    order = [c for c in ("log_px", "elbo", "own", "mean_field") if c in columns]
    table = pd.DataFrame({name: columns[name] for c in order for name in (c, f"{c}_se")})
    table.insert(2, "log_px_bias", -0.5 * table["log_px_se"] ** 2)
    if "log_px_khat" in columns:
        table.insert(3, "log_px_khat", columns["log_px_khat"])
    for name, upper, lower in (
        ("approximation", "log_px", "own"),
        ("amortization", "own", "elbo"),
        ("mean_field_approximation", "log_px", "mean_field"),
    ):
        if lower in columns and upper in columns:
            with np.errstate(invalid="ignore"):  # both may be -inf
                table[name] = columns[upper] - columns[lower]
            table[f"{name}_se"] = np.hypot(columns[f"{upper}_se"], columns[f"{lower}_se"])
    for family in FAMILIES:
        if family in columns:
            for name in (f"{family}_gain", f"{family}_gain_se"):
                table[name] = columns[name]
            gain, se = columns[f"{family}_gain"], columns[f"{family}_gain_se"]
            # A gain is significant, however short the steps, where the gradient is large beside its noise.
            table[f"{family}_converged"] = (abs(gain) + 2.0 * se <= _PLATEAU) & (gain <= _SURE * se + _TRIFLE)
    return table


def _warn_if_heavy(table: pd.DataFrame) -> None:
    """Where few weights make up the estimate of log p(x), its standard error says too little."""
    if "log_px_khat" in table:
        heavy = (table["log_px_khat"] > khat_threshold(_PROPOSED)) & (table["log_px_se"] > _EQUAL)
        if heavy.mean() > TOLERATED:
            warnings.warn(
                f"log p(x) is not reliable for {heavy.sum()} of {len(table)} data: the importance weights' k̂ is over "
                f"{khat_threshold(_PROPOSED):.2f}, so that it is probably too low and its standard error too small. "
                f"Pass log_px='ais'.",
                stacklevel=3,
            )


def _warn_if_below(table: pd.DataFrame) -> None:
    """log p(x) - L is a divergence: where it is negative, the estimate of log p(x) is too low."""
    for name in ("elbo", *FAMILIES):
        if name in table:
            below = table[name] - table["log_px"]
            se = pd.Series(np.hypot(table[f"{name}_se"], table["log_px_se"]))
            slack = _ROUNDING * table[name].abs()
            count = int((below > _SURE * se + slack).sum())
            if count or below.mean() > _SURE * combined_se(se) + slack.mean():
                warnings.warn(
                    f"log p(x) is estimated below L of {name!r} by more than {_SURE:.0f} standard errors for {count} "
                    f"of {len(table)} data, and by {below.mean():.3g} nats in the mean over all. A gap cannot be "
                    f"negative: the estimate of log p(x) is too low. Pass log_px='ais', or a tighter one of your own.",
                    stacklevel=3,
                )


def _warn_unless_converged(table: pd.DataFrame) -> None:
    """An optimum is one where more steps gain nothing."""
    for name in FAMILIES:
        if name in table and not table[f"{name}_converged"].all():
            gain = table[f"{name}_gain"]
            warnings.warn(
                f"q* of {name!r} has not converged, or cannot be shown to have, for "
                f"{(~table[f'{name}_converged']).sum()} of {len(table)} data: in the second cycle of the steps L[q*] "
                f"changed by {gain.mean():.3g} nats in the mean, and by {gain.min():.3g} to {gain.max():.3g}. The "
                f"approximation gap is overstated: take more steps, or another learning_rate.",
                stacklevel=3,
            )


def _warn_if_short(table: pd.DataFrame) -> None:
    """An optimum that the guide itself, or a simpler family, surpasses was not found."""
    for other in ("elbo", "mean_field"):
        if "own" in table and other in table:
            with np.errstate(invalid="ignore"):  # both may be -inf
                short = table[other].mean() - table["own"].mean()
            if short > 4.0 * combined_se(pd.Series(np.hypot(table["own_se"], table[f"{other}_se"]))) + 0.01:
                warnings.warn(
                    f"L[q*] of the own family ends {short:.3g} nats below {other}: its optimum was not found. Take "
                    f"more steps or another learning_rate; the approximation gap is overstated by at least that.",
                    stacklevel=3,
                )


def _given(log_px: Any, data: TestSet) -> Any:
    """log p(x) as the user passed it, with standard errors (0 where there are none); or ``None`` or ``"ais"``."""
    if log_px is None or (isinstance(log_px, str) and log_px == "ais"):
        return log_px
    if hasattr(log_px, "pointwise"):
        if log_px.data_hash != data.hash:
            raise ValueError(
                f"log_px was evaluated on other data than x (content {log_px.data_hash}, {data.hash}): pass a result "
                f"on the same x, with the same binarisation and covariates."
            )
        return log_px.pointwise["log_px"].to_numpy(), log_px.pointwise["mc_se"].to_numpy()
    if not isinstance(log_px, ARRAYS):
        raise TypeError(
            f"log_px must be a result of log_marginal or ais, 'ais', or one number per datum; got {log_px!r:.40}."
        )
    data.check_index(log_px, "log_px")
    values = as_tensor(log_px, "log_px").detach().cpu().double().numpy()
    if values.shape != (len(data),):
        raise ValueError(f"log_px has shape {values.shape}; one number for each of {len(data)} data is needed.")
    return values, np.zeros(len(data))
