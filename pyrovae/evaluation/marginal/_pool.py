"""One result from several of one trained model: more draws, or more data."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from pyrovae._checks import shown
from pyrovae.evaluation._result import Provenance
from pyrovae.evaluation.marginal._result import MarginalResult
from pyrovae.evaluation.marginal._verdict import judge


def pool(results: MarginalResult | Sequence[MarginalResult]) -> MarginalResult:
    """One result of a trained model from several: of the draws on the same data, of the data where they differ.

    On the same data log p̂(x) is the logarithm of the mean weight of all draws, and ``mc_se``, ``ess``, ``L_k`` and
    ``non_finite`` are what :func:`~pyrovae.log_marginal` would have got from them. ``khat`` is the mean over results,
    by their draws; what ``jackknife`` and ``rise`` add is taken to fall as 1/K; ``halves`` is the last result's.
    Results on different data are put one after the other, as rows. No datum may be in two of them: where data have
    labels that is checked, otherwise it is for you to see to.

    Args:
        results: of :func:`~pyrovae.log_marginal`, for one model and proposal, each with another ``seed`` of the draws.

    Raises:
        ValueError: no results, another model or proposal, the same draws twice, or different ``num_samples`` on
            different data.
    """
    if not isinstance(results, (MarginalResult, list, tuple)):
        raise TypeError(f"results must be a list of results of log_marginal; got {shown(results)}.")
    results = [results] if isinstance(results, MarginalResult) else list(results)
    if not results:
        raise ValueError("results is empty: pass at least one result of log_marginal.")
    for result in results:
        if not isinstance(result, MarginalResult):
            raise TypeError(f"results must be of log_marginal; got a {type(result).__name__}.")
    for (i, a), (j, b) in combinations(enumerate(results), 2):
        _check(a, b, f"results[{i}] and results[{j}]")
    groups: dict[str, list[MarginalResult]] = {}
    for result in results:
        groups.setdefault(result.provenance.data_hash, []).append(result)
    merged = [_more_draws(group) for group in groups.values()]
    return merged[0] if len(merged) == 1 else _more_data(merged)


def _check(a: MarginalResult, b: MarginalResult, names: str) -> None:
    settings: dict[str, tuple[Any, Any]] = {
        "proposal": (a.proposal, b.proposal),
        "model": (a.provenance.model_name, b.provenance.model_name),
        "weights": (a.provenance.model_hash, b.provenance.model_hash),
    }
    same_data = a.provenance.data_hash == b.provenance.data_hash
    if same_data:
        settings["log p(x, z)"] = (a.provenance.same_density(b.provenance), True)
    different = [name for name, (ours, theirs) in settings.items() if ours != theirs]
    if different:
        raise ValueError(
            f"{names} differ in {', '.join(different)}: only results of one trained model, with one proposal, pool."
        )
    if set(_seeds(a)) & set(_seeds(b)) - {None}:
        raise ValueError(
            f"{names} have the same draws (seed {a.provenance.seed}), so that their noise is shared, on other data too:"
            f" call log_marginal with another seed for each."
        )
    if same_data and np.array_equal(a.pointwise["log_px"], b.pointwise["log_px"], equal_nan=True):
        raise ValueError(f"{names} are equal datum by datum: they are the same draws, or log p̂(x) is exact already.")


def _seeds(result: MarginalResult) -> tuple[int | None, ...]:
    seed = result.provenance.seed
    return seed if isinstance(seed, tuple) else (seed,)


def _provenance(results: Sequence[MarginalResult]) -> Provenance:
    """The first one's, with the seeds of all."""
    return replace(results[0].provenance, seed=tuple(seed for r in results for seed in _seeds(r)))


def _more_draws(results: Sequence[MarginalResult]) -> MarginalResult:
    if len(results) == 1:
        return results[0]
    bounds, total = sorted(set.intersection(*(set(r.bounds) for r in results))), sum(r.num_samples for r in results)
    table = results[0].pointwise
    facts = [n for n in map(str, table) if n not in ("reliable", "reason") and not n.startswith("L_")]
    ladder = [name for k in bounds for name in (f"L_{k}", f"L_{k}_se")]
    columns = reduce(pooled, ({name: r.pointwise[name].to_numpy() for name in (*facts, *ladder)} for r in results))
    columns |= {f"L_{total}": columns["log_px"], f"L_{total}_se": columns["mc_se"]}
    bound = table["reason"].str.contains("bound").to_numpy()
    table = pd.DataFrame(columns, index=table.index)
    ladder += [f"L_{total}", f"L_{total}_se"]
    return replace(
        results[0],
        pointwise=pd.concat([table[facts], judge(table, total, bound=bound), table[ladder]], axis=1),
        num_samples=total,
        bounds=(*bounds, total),
        provenance=_provenance(results),
    )


def pooled(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of two independent runs on the same data taken together. The weights' sums add up, and L_k averages
    over the blocks of both; k̂ is averaged, and what falls as 1/K is taken to do so.
    """
    runs, total = (a, b), a["draws"] + b["draws"]
    shares = [run["draws"] / total for run in runs]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_px = np.logaddexp(*(run["log_px"] + np.log(share) for run, share in zip(runs, shares, strict=True)))
        log_sums = [run["log_px"] + np.log(run["draws"]) for run in runs]
        pairs = zip(log_sums, runs, strict=True)
        squares = np.logaddexp(*(np.where(s == -np.inf, s, 2.0 * s - np.log(run["ess"])) for s, run in pairs))
        ess = np.where(log_px == -np.inf, 0.0, np.exp(2.0 * (log_px + np.log(total)) - squares))
        mc_se = np.sqrt(np.maximum(total / ess - 1.0, 0.0) / (total - 1.0))
    out = {"log_px": log_px, "mc_se": mc_se, "draws": total, "ess": ess, "halves": b["halves"]}
    out["khat"] = sum(share * run["khat"] for share, run in zip(shares, runs, strict=True))
    out["non_finite"] = a["non_finite"] + b["non_finite"]
    with np.errstate(invalid="ignore"):
        left = [share**2 * (run["jackknife"] - run["log_px"]) for share, run in zip(shares, runs, strict=True)]
    out["jackknife"] = log_px + left[0] + left[1]
    out["rise"] = sum(share**2 * run["rise"] for share, run in zip(shares, runs, strict=True))
    for k in (int(name[2:]) for name in a if name.startswith("L_") and not name.endswith("_se")):
        counts = [run["draws"] // k for run in runs]
        with np.errstate(invalid="ignore"):
            parts = [np.where(n > 0, n * run[f"L_{k}"], 0.0) for n, run in zip(counts, runs, strict=True)]
            errors = [np.where(n > 0, n * run[f"L_{k}_se"], 0.0) for n, run in zip(counts, runs, strict=True)]
            out[f"L_{k}"] = np.where(total == k, log_px, (parts[0] + parts[1]) / (counts[0] + counts[1]))
            out[f"L_{k}_se"] = np.where(total == k, mc_se, np.hypot(*errors) / (counts[0] + counts[1]))
    return {"elbo": out["L_1"], **out}


def _more_data(results: Sequence[MarginalResult]) -> MarginalResult:
    if len({(r.num_samples, r.bounds) for r in results}) > 1:
        draws = ", ".join(str(r.num_samples) for r in results)
        raise ValueError(f"results on different data need the same num_samples and bounds; they have {draws} draws.")
    frames = [r.pointwise for r in results]
    plain = all(isinstance(frame.index, pd.RangeIndex) for frame in frames)
    for a, b in combinations(frames, 2):
        if not plain and len(both := a.index.intersection(b.index)):
            raise ValueError(f"datum {both[0]!r} is in two results: a datum counts once. Pool parts of the data.")
    hashes = " ".join(r.provenance.data_hash for r in results)
    counts: list[Any] = [r.num_observed for r in results]
    return replace(
        results[0],
        pointwise=pd.concat(frames, ignore_index=plain),
        provenance=replace(_provenance(results), data_hash=hashlib.sha256(hashes.encode()).hexdigest()[:16]),
        validation_data=any(r.validation_data for r in results),
        num_observed=None if None in counts else float(np.average(counts, weights=[len(frame) for frame in frames])),
    )
