"""Comparisons of models on the same data."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from pyrovae._checks import require_flag, require_instance, require_positive, require_within, shown
from pyrovae.evaluation._result import Result
from pyrovae.evaluation.marginal._paired import Difference, simultaneous
from pyrovae.evaluation.marginal._result import MarginalResult
from pyrovae.evaluation.marginal._verdict import combined_se, se_over_data

Seeds = MarginalResult | Sequence[MarginalResult]


def compare(
    results: Mapping[str, Seeds],
    *,
    reference: str | None = None,
    confidence: float = 0.95,
    resolve: float | None = None,
    pool_seeds: bool = True,
    ais: Mapping[str, Result] | None = None,
    gaps: Mapping[str, Result] | None = None,
) -> pd.DataFrame:
    """Models by log p(x), best first, with paired differences to a reference.

    Differences are taken datum by datum, so what the data have in common cancels: ``diff_se`` is far smaller than
    ``se_data``. It contains the Monte Carlo noise in the estimates; what that noise alone amounts to is ``diff_mc_se``.

    What the interval speaks of is said in ``claim``. With one result for each of two models that is these two trained
    models, and how training came out is no part of it. With several, from models trained with different seeds, it is
    the training: the variance between seeds is in it. Where one of the two has one seed its variance is taken to be
    that of the other's seeds, of which there must be three.

    ``diff_low`` to ``diff_high`` covers the true difference of one model, chosen beforehand. The best of many looks
    better than it is, having been picked for its luck too: ``simultaneous_low`` to ``simultaneous_high`` cover all
    differences to the reference at once, so also that of the model picked for its result. The reference must not be
    picked so.

    Args:
        results: results of :func:`log_marginal` on the same data, by name; a sequence of them is one model trained from
            several seeds. (Several results of one trained model are no such: :func:`~pyrovae.pool` them.)
        reference: the name differences are taken to; by default the first.
        confidence: of the intervals, by Student's t over data and seeds.
        resolve: a difference in nats. The columns ``draws_needed``, ``data_needed`` and ``seeds_needed`` then say how
            many draws, data or seeds, each with the others as they are, would find it with a probability of 80 %.
        pool_seeds: whether one seed may be compared with several under the assumption that both models vary alike over
            seeds; if not, or if the several are two, the interval is NaN.
        ais: results of :func:`ais` by the same names, for columns ``ais``, ``ais_se`` (Monte Carlo) and ``ais_N``, on
            the same data or the first of them.
        gaps: results of :func:`inference_gaps` by the same names, for columns ``approximation``, ``amortization`` and
            ``gaps_N``, likewise.

    Returns:
        A table with one row per model and the columns ``K`` (the smallest of its results), ``seeds``, ``log_px``,
        ``se_data``, ``mc_se``, ``seed_sd`` (of the means, with several seeds), ``diff``, ``diff_se``, ``diff_low``,
        ``diff_high``, ``simultaneous_low``, ``simultaneous_high``, ``diff_mc_se``, ``claim``, ``same_model`` (whether
        p(x, z) is the reference's, so that ``diff`` is the tightness of the bound and nothing else), those of
        ``resolve``, ``neg_elbo``, ``rise`` (L_K - L_K/10), ``jackknife``, ``median_ess``, ``median_khat``,
        ``khat_high`` (fraction over the threshold), ``unreliable`` (fraction), ``non_finite``, for discrete
        likelihoods ``bits_per_dim``, and those of ``ais`` and ``gaps``. In nats except ``bits_per_dim``.

    Raises:
        TypeError: results of anything but :func:`log_marginal`.
        ValueError: no results, an unknown name, results on different data, a mix of densities and mass functions, or
            one trained model twice among the seeds of a name.
    """
    return _table(results, reference, confidence, resolve, pool_seeds, ais, gaps)


def arviz_comparison(results: Mapping[str, Seeds]) -> pd.DataFrame:
    """:func:`compare` in the columns that ``arviz.plot_compare`` reads, of ArviZ 0.x and 1.x.

    ``elpd`` (for ArviZ 0.x also called ``elpd_loo``) is the sum over data of held-out log p̂(x): no cross-validation is
    involved. Differences and ``dse`` are to the best model, which was picked for its result: see :func:`compare`.

    Args:
        results: as in :func:`compare`.
    """
    runs = _runs(results)
    means = {name: float(np.mean([r.pointwise["log_px"].mean(skipna=False) for r in rs])) for name, rs in runs.items()}
    best = max(means, key=lambda name: -np.inf if np.isnan(means[name]) else means[name])
    table = _table(results, best)
    n = len(runs[best][0].pointwise)
    elpd = n * table["log_px"]
    return pd.DataFrame(
        {
            "rank": range(len(table)),
            "elpd": elpd,
            "elpd_loo": elpd,
            "elpd_diff": -n * table["diff"],
            "se": n * table["se_data"],
            "dse": n * table["diff_se"],
            "warning": table["unreliable"] > 0,
            "scale": "log",
        }
    )


def _table(
    results: Mapping[str, Seeds],
    reference: str | None = None,
    confidence: float = 0.95,
    resolve: float | None = None,
    pool_seeds: bool = True,
    ais: Mapping[str, Result] | None = None,
    gaps: Mapping[str, Result] | None = None,
) -> pd.DataFrame:
    require_instance(Mapping | None, ais=ais, gaps=gaps)
    require_flag(pool_seeds=pool_seeds)
    require_within("(0, 1)", confidence=confidence)
    if resolve is not None:
        require_positive(resolve=resolve)
    runs = _runs(results)
    require_instance(str | None, reference=reference)
    for kind, extra in (("ais", ais), ("gaps", gaps)):
        for name, result in (extra or {}).items():
            require_instance(Result, **{f"{kind}[{name!r}]": result})
    reference = next(iter(runs)) if reference is None else reference
    if reference not in runs:
        raise ValueError(f"reference {reference!r} is not among the results: {', '.join(runs)}.")
    _check(runs, reference)
    base = runs[reference]
    differences = {
        name: Difference.of(_values(seeds), _values(base), together=_together(seeds, base), pool_seeds=pool_seeds)
        for name, seeds in runs.items()
        if name != reference
    }
    all_at_once = simultaneous(list(differences.values()), confidence)
    rows = {name: _row(seeds) for name, seeds in runs.items()}
    for name, row in rows.items():
        row |= _compared(runs[name], base, differences.get(name), confidence, all_at_once, resolve)
    for kind, wanted, extra in (
        ("ais", {"log_px": "ais", "mc_se": "ais_se", "N": "ais_N"}, ais),
        ("gaps", {"approximation": "approximation", "amortization": "amortization", "N": "gaps_N"}, gaps),
    ):
        same_data({name: result.provenance.data_hash for name, result in (extra or {}).items()}, kind)
        for name, result in (extra or {}).items():
            if name not in rows:
                raise ValueError(f"{kind} has {name!r}, which is not among the results: {', '.join(rows)}.")
            if not any(result.provenance.same_density(r.provenance) for r in runs[name]):
                raise ValueError(
                    f"{kind} of {name!r} is of another model than its result, or not on the first of the same data."
                )
            rows[name] |= {column: result.summary()[key] for key, column in wanted.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return table.sort_values("log_px", ascending=False)


def _runs(results: Mapping[str, Seeds]) -> dict[str, list[MarginalResult]]:
    """The results of every name, as a list."""
    if not isinstance(results, Mapping):
        raise TypeError(f"results must be a dict of results of log_marginal by name; got {shown(results)}.")
    runs: dict[str, list[MarginalResult]] = {}
    for name, given in results.items():
        runs[name] = list(given) if isinstance(given, Sequence) else [given]
        for result in runs[name]:
            if not isinstance(result, MarginalResult):
                raise TypeError(
                    f"results: {name!r} must be a result of log_marginal or a sequence of them; got "
                    f"{type(result).__name__}. "
                    f"Results of ais go into ais=, those of inference_gaps into gaps=."
                )
    if not runs or not all(runs.values()):
        raise ValueError("results is empty: pass at least one result of log_marginal.")
    return runs


def _check(runs: Mapping[str, Sequence[MarginalResult]], reference: str) -> None:
    everything = {
        f"{name}[{i}]" if len(seeds) > 1 else name: r for name, seeds in runs.items() for i, r in enumerate(seeds)
    }
    hashes = {name: r.provenance.data_hash for name, r in everything.items()}
    same_data(hashes, "results", runs[reference][0].provenance.data_hash)
    if len({r.discrete for r in everything.values()}) > 1:
        kinds = {name: "mass function" if r.discrete else "density" for name, r in everything.items()}
        raise ValueError(
            f"the results mix a probability mass function and a density, whose log p(x) are not comparable: {kinds}."
        )
    for name, seeds in runs.items():
        for (i, a), (j, b) in combinations(enumerate(seeds), 2):
            one = a.provenance.model_hash == b.provenance.model_hash and a.provenance.same_density(b.provenance)
            if a is b or one:
                raise ValueError(
                    f"{name}[{i}] and {name}[{j}] are results of one trained model, not of two training seeds: combine "
                    f"their draws by pyrovae.pool."
                )
    if len({r.num_samples for r in everything.values()}) > 1:
        warnings.warn(
            "the results have different numbers of draws; with more of them a bound is tighter for that reason alone.",
            stacklevel=4,
        )
    chosen = [name for name, r in everything.items() if r.validation_data]
    if chosen:
        warnings.warn(
            f"fit chose the epoch of {', '.join(map(repr, chosen))} by these very data, on which log p(x) is too high: "
            f"compare on data that training has not seen.",
            stacklevel=4,
        )


def same_data(hashes: Mapping[str, str], what: str, expected: str | None = None) -> None:
    """Raise a ``ValueError`` unless these content hashes, by name, are all equal, and equal to ``expected``."""
    expected = next(iter(hashes.values()), None) if expected is None else expected
    other = {name: h for name, h in hashes.items() if h != expected}
    if other:
        raise ValueError(
            f"{what}: {', '.join(map(repr, other))} evaluated on other data than the rest (content "
            f"{', '.join(other.values())}; {expected}): a paired comparison needs the same test set with the same "
            f"binarisation."
        )


def _row(seeds: Sequence[MarginalResult]) -> dict[str, Any]:
    """The means over data, averaged over seeds."""
    summaries = pd.DataFrame([r.summary() for r in seeds])
    means = summaries["log_px"]
    pointwise = _mean_over_seeds(seeds)
    tenth = [r.pointwise[f"L_{_tenth(r)}"].mean(skipna=False) for r in seeds]
    row = {
        "K": int(summaries["K"].min()),
        "seeds": len(seeds),
        "log_px": means.mean(skipna=False),
        "se_data": se_over_data(pointwise["log_px"]),
        "mc_se": combined_se(pointwise["mc_se"]),
        "seed_sd": means.std(ddof=1, skipna=False),
        "neg_elbo": -summaries["elbo"].mean(skipna=False),
        "rise": means.mean(skipna=False) - float(np.mean(tenth)),
        **{c: summaries[c].mean(skipna=False) for c in ("jackknife", "median_ess", "median_khat", "khat_high")},
        "unreliable": summaries["unreliable"].mean(),
        "non_finite": int(summaries["non_finite"].sum()),
    }
    if "bits_per_dim" in summaries:
        row["bits_per_dim"] = summaries["bits_per_dim"].mean(skipna=False)
    return row


def _compared(
    seeds: Sequence[MarginalResult],
    base: Sequence[MarginalResult],
    difference: Difference | None,
    confidence: float,
    all_at_once: float,
    resolve: float | None,
) -> dict[str, Any]:
    """The paired difference to the reference and its intervals; zeros for the reference itself."""
    needed = ["draws_needed", "data_needed", "seeds_needed"] if resolve is not None else []
    columns = ["diff", "diff_se", "diff_low", "diff_high", "simultaneous_low", "simultaneous_high", "diff_mc_se"]
    if difference is None:
        return {**dict.fromkeys(columns, 0.0), "claim": "", "same_model": True, **dict.fromkeys(needed, np.nan)}
    diff = float(difference.values.mean())
    half, wide = difference.half_width(confidence), difference.half_width(all_at_once)
    mc_se = combined_se(pd.Series(np.hypot(_mean_over_seeds(seeds)["mc_se"], _mean_over_seeds(base)["mc_se"])))
    numbers = [diff, difference.se, diff - half, diff + half, diff - wide, diff + wide, mc_se]
    row = dict(zip(columns, numbers, strict=True)) | {
        "claim": difference.claim,
        "same_model": all(seeds[0].provenance.same_density(r.provenance) for r in (*seeds, *base)),
    }
    if resolve is not None:
        draws = min(r.num_samples for r in seeds)
        row |= dict(zip(needed, difference.needed(resolve, confidence, draws, mc_se**2), strict=True))
    return row


def _together(seeds: Sequence[MarginalResult], base: Sequence[MarginalResult]) -> bool:
    """Whether the seeds of both are the same p(x, z), one by one, as where a posterior was refitted to each."""
    return len(seeds) == len(base) > 1 and all(
        a.provenance.same_density(b.provenance) for a, b in zip(seeds, base, strict=True)
    )


def _values(seeds: Sequence[MarginalResult]) -> np.ndarray:
    return np.stack([r.pointwise["log_px"].to_numpy() for r in seeds])


def _mean_over_seeds(seeds: Sequence[MarginalResult]) -> pd.DataFrame:
    """log p̂(x) of every datum averaged over seeds, and the Monte Carlo error of that."""
    log_px = np.mean([r.pointwise["log_px"].to_numpy() for r in seeds], axis=0)
    mc_se = np.sqrt(np.mean([np.square(r.pointwise["mc_se"].to_numpy()) for r in seeds], axis=0) / len(seeds))
    return pd.DataFrame({"log_px": log_px, "mc_se": mc_se})


def _tenth(result: MarginalResult) -> int:
    """The bound next to K/10 from below; a pooled result need not have K/10 itself."""
    return max(k for k in result.bounds if k <= max(result.num_samples // 10, 1))
