"""One result from several of one trained model: more draws, or more data."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from pyrovae.evaluation.result import MarginalResult, judge, same_marks
from pyrovae.evaluation.tail import tail_length


def pool(results: Sequence[MarginalResult]) -> MarginalResult:
    """One result of a trained model from several: of the draws on the same data, of the data where they differ.

    On the same data log p̂(x) is the logarithm of the mean weight of all draws, and ``mc_se``, ``ess``, ``L_k`` and
    ``non_finite`` are what :func:`~pyrovae.log_marginal` would have got from them. Two columns need all weights, and
    are means over the results, by their draws: ``jackknife``, whose bias is of the order of that of the smallest
    result, and ``khat``. ``halves`` compares the first half of the results with the rest. Results on different data are
    put one after the other, as rows; no datum may be in two of them.

    Args:
        results: of :func:`~pyrovae.log_marginal`, for one model and proposal, each with another ``seed`` of the draws.

    Raises:
        ValueError: no results, another model or proposal, the same draws twice, or different ``num_samples`` on
            different data.
    """
    results = list(results)
    if not results:
        raise ValueError("results is empty: pass at least one result of log_marginal.")
    for (i, a), (j, b) in combinations(enumerate(results), 2):
        _check(a, b, f"results[{i}] and results[{j}]")
    groups: dict[str, list[MarginalResult]] = {}
    for result in results:
        groups.setdefault(result.data_hash, []).append(result)
    merged = [_more_draws(group) for group in groups.values()]
    return merged[0] if len(merged) == 1 else _more_data(merged)


def _check(a: MarginalResult, b: MarginalResult, names: str) -> None:
    settings: dict[str, tuple[Any, Any]] = {
        "proposal": (a.proposal, b.proposal),
        "model": (a.model_name, b.model_name),
        "weights": (a.model_hash, b.model_hash),
    }
    if a.data_hash == b.data_hash:
        settings["log p(x, z)"] = (same_marks([a.fingerprint, b.fingerprint]), True)
    different = [name for name, (ours, theirs) in settings.items() if ours != theirs]
    if different:
        raise ValueError(
            f"{names} differ in {', '.join(different)}: only results of one trained model, with one proposal, pool."
        )
    if set(_seeds(a)) & set(_seeds(b)) - {None}:
        raise ValueError(
            f"{names} have the same draws (seed {a.seed}): nothing new is in them. Call log_marginal with another seed."
        )
    if a.data_hash == b.data_hash and np.array_equal(a.pointwise["log_px"], b.pointwise["log_px"], equal_nan=True):
        raise ValueError(f"{names} are equal datum by datum: they are the same draws, or log p̂(x) is exact already.")


def _seeds(result: MarginalResult) -> tuple[int | None, ...]:
    return result.seed if isinstance(result.seed, tuple) else (result.seed,)


def _more_draws(results: Sequence[MarginalResult]) -> MarginalResult:
    if len(results) == 1:
        return results[0]
    draws = np.array([r.num_samples for r in results])
    total = int(draws.sum())

    def column(name: str) -> np.ndarray:
        return np.stack([r.pointwise[name].to_numpy() for r in results])

    def mean(name: str, by: np.ndarray) -> np.ndarray:
        return by @ column(name) / by.sum()

    log_sum = column("log_px") + np.log(draws)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):  # where no weight is above zero
        squares = np.where(np.isneginf(log_sum), -np.inf, 2.0 * log_sum - np.log(column("ess")))
        log_px, log_squares = logsumexp(log_sum, axis=0) - np.log(total), logsumexp(squares, axis=0)
        ess = np.where(np.isneginf(log_px), 0.0, np.exp(2.0 * (log_px + np.log(total)) - log_squares))
        mc_se = np.sqrt((total / ess - 1.0).clip(min=0.0) / (total - 1))
    columns = {
        "log_px": log_px,
        "mc_se": mc_se,
        "ess": ess,
        "khat": mean("khat", np.array([tail_length(k) for k in draws])),
        "elbo": mean("elbo", draws),
        "non_finite": column("non_finite").sum(axis=0),
        "jackknife": np.where(np.isfinite(column("jackknife")).all(axis=0), mean("jackknife", draws), np.nan),
        "halves": _halves(log_sum, draws),
    }
    bounds = sorted(set.intersection(*(set(r.bounds) for r in results)))
    ladder = {}
    for k in bounds:
        blocks = draws // k
        ladder[f"L_{k}"] = mean(f"L_{k}", blocks)
        ladder[f"L_{k}_se"] = np.sqrt(np.square(blocks / blocks.sum()) @ np.square(column(f"L_{k}_se")))
    ladder |= {f"L_{total}": log_px, f"L_{total}_se": mc_se}
    index = results[0].pointwise.index
    first = pd.DataFrame(columns, index=index)
    return replace(
        results[0],
        pointwise=pd.concat([first, judge(first, total), pd.DataFrame(ladder, index=index)], axis=1),
        num_samples=total,
        bounds=(*bounds, total),
        seed=tuple(seed for r in results for seed in _seeds(r)),
    )


def _halves(log_sum: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """L of the draws of the first half of the results minus that of the rest, as if each were half of all draws."""
    cut = (len(draws) + 1) // 2
    a, b = draws[:cut].sum(), draws[cut:].sum()
    with np.errstate(invalid="ignore"):
        difference = logsumexp(log_sum[:cut], axis=0) - logsumexp(log_sum[cut:], axis=0) - np.log(a / b)
    return difference * 2.0 * np.sqrt(a * b) / (a + b)  # its standard error is CV √(1/a + 1/b), that of halves 2 CV/√K


def _more_data(results: Sequence[MarginalResult]) -> MarginalResult:
    if len({(r.num_samples, r.bounds) for r in results}) > 1:
        draws = ", ".join(str(r.num_samples) for r in results)
        raise ValueError(f"results on different data need the same num_samples and bounds; they have {draws} draws.")
    frames = [r.pointwise for r in results]
    plain = all(isinstance(frame.index, pd.RangeIndex) for frame in frames)
    hashes = " ".join(r.data_hash for r in results)
    counts: list[Any] = [r.num_observed for r in results]
    return replace(
        results[0],
        pointwise=pd.concat(frames, ignore_index=plain),
        data_hash=hashlib.sha256(hashes.encode()).hexdigest()[:16],
        seed=tuple(seed for r in results for seed in _seeds(r)),
        validation_data=any(r.validation_data for r in results),
        num_observed=None if None in counts else float(np.average(counts, weights=[len(frame) for frame in frames])),
    )
