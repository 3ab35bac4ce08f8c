"""What the approximate posterior loses, and why: the approximation gap and the amortisation gap."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._checks import ARRAYS, as_tensor, at_least
from pyrovae._random import reseed, seeded
from pyrovae.evaluation.chunks import BLOCK, probe
from pyrovae.evaluation.log_marginal import log_marginal
from pyrovae.evaluation.optimal import Draws, MeanField, OwnFamily, PerDatum, fit, gradients, log_weight
from pyrovae.evaluation.result import combined_se, se_over_data
from pyrovae.evaluation.stream import WeightStream
from pyrovae.evaluation.strict import TestSet, as_test_set, fingerprint, model_name, strict
from pyrovae.model import VAEModel
from pyrovae.posteriors import MeanFieldNormal

FAMILIES = ("own", "mean_field")
_BLOCKS = 4  # times the bytes of an ordinary block: every datum has parameters, and optimiser state, of its own
_AT_ONCE = 100  # draws when a bound is evaluated
_RATES: dict[Any, float] = {MeanField: 0.05, OwnFamily: 0.003}


@dataclass(frozen=True)
class GapsResult:
    """log p(x), the bounds L[q] and L[q*], and the gaps between them, in nats.

    Attributes:
        pointwise: one row per datum. ``log_px``; ``elbo`` = L[q] of the guide; ``own`` and ``mean_field`` = L[q*] of
            the best q* found in the guide's own family and among factorised normals; ``approximation`` = log_px - own;
            ``amortization`` = own - elbo; ``mean_field_approximation`` = log_px - mean_field; each with its Monte
            Carlo standard error, ``_se``. Columns of families not asked for are missing.
        steps: optimisation steps for each q*.
        num_samples: draws that each L was evaluated with.
        data_hash: content hash of the data.
        model_name: class of the model, with its posterior where it has one.
        seed: seed of the draws.
        fingerprint: as in :class:`~pyrovae.MarginalResult`.
    """

    pointwise: pd.DataFrame
    steps: int
    num_samples: int
    data_hash: str
    model_name: str
    seed: int | None
    fingerprint: tuple[float, ...] = ()

    def summary(self) -> pd.Series:
        """Means over data; ``_se`` is the standard error over data, which contains what Monte Carlo noise alone makes,
        ``_mc_se``. A datum that is not finite makes the mean so.
        """
        p = self.pointwise
        row: dict[str, Any] = {"N": len(p)}
        for name in (str(c) for c in p if not str(c).endswith("_se")):
            row[name] = p[name].mean(skipna=False)
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

    L[q*] after finitely many steps lies below the best one, so the approximation gap is overstated and the amortisation
    gap understated by the same amount: check with twice the steps. log p(x) by importance sampling or AIS is a bound as
    well, and understates the former; pass the tightest you have.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide.
        log_px: a result of :func:`~pyrovae.log_marginal` or :func:`~pyrovae.ais` on the same data, or one number per
            datum; by default ``log_marginal`` with 5000 draws.
        families: of ``"own"`` and ``"mean_field"``.
        steps: steps of Adam for every q*; the learning rate falls to zero (cosine).
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
    given = None if log_px is None else _given(log_px, data)
    columns: dict[str, np.ndarray] = {}
    with strict(model, device), seeded(seed):
        prior = data.check(model).terms.prior
        if not prior:
            raise ValueError(f"{type(model).__name__} has no latents, so its bound has no gap: see log_marginal.")
        one_site = len(prior) == 1
        made: dict[str, Callable[..., PerDatum]] = {"elbo": _Amortised}
        for family in families:
            same = family == "own" and one_site and isinstance(getattr(model, "posterior", None), MeanFieldNormal)
            made[family] = OwnFamily if family == "own" and not same else MeanField
        if made.get("own") is MeanField and "mean_field" in made:
            del made["mean_field"]  # the same family: fitted once
        total = len(data) * steps * (len(made) - 1)
        with tqdm(total=total, unit="step", unit_scale=True, desc="q*", disable=not progress) as bar:
            base = int(torch.randint(2**62, ()))
            for i, (name, make) in enumerate(made.items()):
                for rows in _batches(make, model, data, num_particles):
                    reseed(base, i, rows.start)
                    part = data.part(rows, model.like())
                    q = make(model, part)
                    if name != "elbo":
                        rate = _RATES[make] if learning_rate is None else learning_rate
                        for _ in fit(q, model, part, steps=steps, learning_rate=rate, num_particles=num_particles):
                            bar.update(rows.stop - rows.start)
                    for column, values in zip((name, f"{name}_se"), _bound(q, model, part, num_samples), strict=True):
                        columns.setdefault(column, np.empty(len(data)))[rows] = values
        marks = fingerprint(model, data)
    if given is None:
        result = log_marginal(model, x, *covariates, seed=seed, device=device, progress=progress)
        given = result.pointwise["log_px"].to_numpy(), result.pointwise["mc_se"].to_numpy()
    columns["log_px"], columns["log_px_se"] = given
    if "own" in families and "mean_field" in families and "mean_field" not in columns:
        columns["mean_field"], columns["mean_field_se"] = columns["own"], columns["own_se"]
    table = _gaps(columns)
    _warn_if_short(table)
    return GapsResult(data.labelled(table), steps, num_samples, data.hash, model_name(model), seed, marks)


class _Amortised(PerDatum):
    """The guide as it is."""

    def __init__(self, model: VAEModel, part: tuple[Any, ...]) -> None:
        self._model, self._part = model, part
        self.parameters = []

    def draw(self, num_particles: int) -> Draws:
        return self._model.draw_posterior(*self._part, num_particles=num_particles)


def _batches(make: Callable[..., PerDatum], model: VAEModel, data: TestSet, num_particles: int) -> list[slice]:
    """As many data at once as fit, with their parameters and the gradients."""

    def run(n: int, k: int) -> None:
        part = data.part(slice(n), model.like())
        q = make(model, part)
        if q.parameters:
            gradients(q, model, part, k)
        else:
            log_weight(q, model, part, k)

    cost = probe(run)
    draws = max(num_particles, _AT_ONCE // 2)  # evaluation keeps no graph
    size = max(1, _BLOCKS * BLOCK[model.like().device.type] // (cost.per_datum + draws * cost.per_draw))
    return [slice(i, min(i + size, len(data))) for i in range(0, len(data), size)]


def _bound(q: PerDatum, model: VAEModel, part: tuple[Any, ...], num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """L[q] of every datum, and its standard error."""
    stream = WeightStream(len(part[0]), num_samples, (1, num_samples), part[0].device)
    for start in range(0, num_samples, _AT_ONCE):
        stream.update(log_weight(q, model, part, min(_AT_ONCE, num_samples - start)))
    value, se = stream.bound(1)
    return value.cpu().numpy(), se.cpu().numpy()


def _gaps(columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """The columns in order, with the differences between them."""
    order = [c for c in ("log_px", "elbo", "own", "mean_field") if c in columns]
    table = pd.DataFrame({name: columns[name] for c in order for name in (c, f"{c}_se")})
    for name, upper, lower in (
        ("approximation", "log_px", "own"),
        ("amortization", "own", "elbo"),
        ("mean_field_approximation", "log_px", "mean_field"),
    ):
        if lower in columns and upper in columns:
            table[name] = columns[upper] - columns[lower]
            table[f"{name}_se"] = np.hypot(columns[f"{upper}_se"], columns[f"{lower}_se"])
    return table


def _warn_if_short(table: pd.DataFrame) -> None:
    """An optimum that the guide itself, or a simpler family, surpasses was not found."""
    for other in ("elbo", "mean_field"):
        if "own" in table and other in table:
            short = table[other].mean() - table["own"].mean()
            if short > 4.0 * combined_se(pd.Series(np.hypot(table["own_se"], table[f"{other}_se"]))) + 0.01:
                warnings.warn(
                    f"L[q*] of the own family ends {short:.3g} nats below {other}: its optimum was not found. Take "
                    f"more steps or another learning_rate; the approximation gap is overstated by at least that.",
                    stacklevel=3,
                )


def _given(log_px: Any, data: TestSet) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) as the user passed it, with standard errors (0 where there are none)."""
    if hasattr(log_px, "pointwise"):
        if log_px.data_hash != data.hash:
            raise ValueError(
                f"log_px was evaluated on other data than x (content {log_px.data_hash}, {data.hash}): pass a result "
                f"on the same x, with the same binarisation and covariates."
            )
        return log_px.pointwise["log_px"].to_numpy(), log_px.pointwise["mc_se"].to_numpy()
    if not isinstance(log_px, ARRAYS):
        raise TypeError(
            f"log_px must be a result of log_marginal or ais, or one number per datum; got {type(log_px).__name__}."
        )
    data.check_index(log_px, "log_px")
    values = as_tensor(log_px, "log_px").detach().cpu().double().numpy()
    if values.shape != (len(data),):
        raise ValueError(f"log_px has shape {values.shape}; one number for each of {len(data)} data is needed.")
    return values, np.zeros(len(data))
