"""Importance-sampled log p(x), with errors and diagnostics for every datum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae._checks import at_least
from pyrovae._random import seeded
from pyrovae.evaluation.arviz import container
from pyrovae.evaluation.stream import WeightStream
from pyrovae.evaluation.strict import as_test_set, strict
from pyrovae.evaluation.tail import khat_threshold
from pyrovae.evaluation.weights import LogWeights
from pyrovae.model import VAEModel

BOUNDS = (1, 10, 100, 1000, 5000)


@dataclass(frozen=True)
class MarginalResult:
    """Estimates of log p(x), in nats.

    Attributes:
        pointwise: one row per datum: ``log_px`` (= L_K), ``mc_se`` (its Monte Carlo standard error), ``ess``
            (effective sample size of the K weights), ``khat`` (their Pareto shape), ``elbo`` (= L_1),
            ``non_finite`` (weights that were NaN or +inf), and ``L_k``, ``L_k_se`` for every k in ``bounds``.
        num_samples: K.
        bounds: the sizes k at which L_k was computed.
        num_dims: dimensions of one datum.
        discrete: whether the likelihood is a probability mass function.
        data_hash: content hash of the data evaluated, tensor covariates included.
        model_name: class of the model, with its posterior where it has one.
        seed: seed of the draws.
    """

    pointwise: pd.DataFrame
    num_samples: int
    bounds: tuple[int, ...]
    num_dims: int
    discrete: bool
    data_hash: str
    model_name: str
    seed: int | None

    @property
    def khat_threshold(self) -> float:
        """k̂ above which K draws do not suffice."""
        return khat_threshold(self.num_samples)

    def summary(self) -> pd.Series:
        """Means over data: ``se_data`` is their standard error from having N data, ``mc_se`` from having K draws."""
        p = self.pointwise
        mean = p["log_px"].mean(skipna=False)
        row: dict[str, Any] = {
            "N": len(p),
            "K": self.num_samples,
            "log_px": mean,
            "se_data": _se_over_data(p["log_px"]),
            "mc_se": _combined_se(p["mc_se"]),
            "median": p["log_px"].median(skipna=False),
            "worst": p["log_px"].min(skipna=False),
            "elbo": p["elbo"].mean(skipna=False),
            "median_ess": p["ess"].median(),
            "median_khat": p["khat"].median(),
            "khat_high": float((~(p["khat"] <= self.khat_threshold)).mean()),
            "non_finite": int(((p["non_finite"] > 0) | ~np.isfinite(p["log_px"])).sum()),
        }
        if self.discrete:
            row["bits_per_dim"] = -mean / (self.num_dims * math.log(2.0))
        return pd.Series(row, name=self.model_name)

    def to_arviz(self) -> Any:
        """The per-datum results as group ``log_marginal`` of ArviZ's container: ``InferenceData`` (ArviZ 0.x) or
        ``xarray.DataTree`` (1.x), with :meth:`summary` and the data's hash as attributes.
        """
        facts = {"data_hash": self.data_hash, "model_name": self.model_name, **self.summary().to_dict()}
        columns = {name: ("datum", values.to_numpy()) for name, values in self.pointwise.items()}
        dataset = xarray.Dataset(columns, coords={"datum": np.arange(len(self.pointwise))}, attrs=facts)
        return container({"log_marginal": dataset})

    def bound_table(self) -> pd.DataFrame:
        """L_k for every k, from the same draws: mean over data, ``se_data`` and ``mc_se``."""
        p = self.pointwise
        rows = {
            k: {
                "log_px": p[f"L_{k}"].mean(skipna=False),
                "se_data": _se_over_data(p[f"L_{k}"]),
                "mc_se": _combined_se(p[f"L_{k}_se"]),
            }
            for k in self.bounds
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("k")


def log_marginal(
    model: VAEModel,
    x: Float[Tensor, "data *event"] | Any,
    *covariates: Any,
    num_samples: int = 5000,
    bounds: Sequence[int] = BOUNDS,
    proposal: Literal["posterior", "prior"] = "posterior",
    seed: int | None = 0,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    progress: bool = True,
) -> MarginalResult:
    """Estimate log p(x) by importance sampling from the guide (Burda et al. 2016, arXiv:1509.00519).

    log p̂(x) = log 1/K Σ_k p(x, z_k) / q(z_k | x). Its expectation lies below log p(x) by about half its
    squared Monte Carlo error, so a tighter q also means less bias: read it beside ``khat`` and ``ess``.

    Evaluation is strict: evaluation mode, no gradients, no annealing weight, no scale, no autocast, no TF32;
    weights are accumulated in float64. Memory grows neither with ``num_samples`` nor with the data.

    Args:
        model: a :class:`~pyrovae.VAEModel`.
        x: data ``(N, *event_shape)``: tensor, array or DataFrame.
        covariates: passed to model and guide; tensors with N rows are split along with ``x``.
        num_samples: K, draws per datum.
        bounds: sizes k ≤ K at which to report L_k too, from the same draws; K itself is always among them.
        seed: seed of the draws.
        device: where to compute; by default where the model is. The model is put back.
        memory_budget: bytes that one chunk may take; by default 64 MiB on a CPU and a quarter of the free
            memory on CUDA.
        progress: show a progress bar.

    Raises:
        TypeError: ``model`` is not a :class:`~pyrovae.VAEModel`.
        ValueError: wrong shape, integer, NaN or empty data, values outside the likelihood's support, covariates
            of another length, ``num_samples < 1``, a device that is not there.
    """
    at_least(1, num_samples=num_samples)
    for k in bounds:
        at_least(1, bounds=k)
    sizes = tuple(sorted({k for k in bounds if k < num_samples} | {1, num_samples}))
    data = as_test_set("log_marginal", model, x, covariates)

    columns: dict[str, np.ndarray] = {}
    with strict(model, device) as target, seeded(seed):
        terms = data.check(model)
        weights = LogWeights(model, data, num_samples, proposal, memory_budget)
        with tqdm(
            total=len(data) * num_samples, unit="draw", unit_scale=True, desc="log p(x)", disable=not progress
        ) as bar:
            for rows in weights.parts():
                stream = WeightStream(rows.stop - rows.start, num_samples, sizes, target)
                for log_weight in weights(rows):
                    stream.update(log_weight)
                    bar.update(log_weight.numel())
                for name, values in _columns(stream, sizes).items():
                    # Whole columns from the start: small pieces kept between chunks would fragment the heap.
                    column = columns.setdefault(name, np.empty(len(data), dtype=values.dtype))
                    column[rows] = values
    return MarginalResult(
        pointwise=pd.DataFrame(columns),
        num_samples=num_samples,
        bounds=sizes,
        num_dims=data.x[0].numel(),
        discrete=all(_is_discrete(p) for p in terms.likelihood.values()),
        data_hash=data.hash,
        model_name=_name(model),
        seed=seed,
    )


def _columns(stream: WeightStream, sizes: Sequence[int]) -> dict[str, np.ndarray]:
    columns = {
        "log_px": stream.log_mean,
        "mc_se": stream.bound(sizes[-1])[1],
        "ess": stream.ess,
        "khat": stream.khat,
        "elbo": stream.bound(1)[0],
        "non_finite": stream.non_finite,
    }
    for k in sizes:
        columns[f"L_{k}"], columns[f"L_{k}_se"] = stream.bound(k)
    return {name: value.cpu().numpy() for name, value in columns.items()}


def _se_over_data(values: pd.Series) -> float:
    with np.errstate(invalid="ignore"):  # of infinite values it is NaN
        return float(values.std(ddof=1, skipna=False) / math.sqrt(len(values)))


def _combined_se(per_datum: pd.Series) -> float:
    """Standard error of a mean of independent estimates."""
    return float(np.sqrt(np.square(per_datum.to_numpy()).sum()) / len(per_datum))


def _is_discrete(p: Any) -> bool:
    try:
        return bool(p.support.is_discrete)
    except (NotImplementedError, AttributeError):  # a distribution that does not state its support
        return False


def _name(model: VAEModel) -> str:
    posterior = getattr(model, "posterior", None)
    name = type(model).__name__
    return f"{name}({type(posterior).__name__})" if isinstance(posterior, torch.nn.Module) else name
