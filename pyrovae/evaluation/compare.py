"""Comparisons of models on the same data."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.stats import t as student

from pyrovae.evaluation.result import MarginalResult, combined_se, se_over_data

Seeds = MarginalResult | Sequence[MarginalResult]


class _OnData(Protocol):
    """A result of :func:`~pyrovae.ais` or :func:`~pyrovae.inference_gaps`."""

    @property
    def data_hash(self) -> str: ...

    @property
    def fingerprint(self) -> tuple[float, ...]: ...

    def summary(self) -> pd.Series: ...


def compare(
    results: Mapping[str, Seeds],
    *,
    reference: str | None = None,
    confidence: float = 0.95,
    ais: Mapping[str, _OnData] | None = None,
    gaps: Mapping[str, _OnData] | None = None,
) -> pd.DataFrame:
    """Models by log p(x), best first, with paired differences to a reference.

    Differences are taken datum by datum, so what the data have in common cancels: ``diff_se`` is far smaller
    than ``se_data``. It is the standard error over data of the estimated differences and thus contains the
    Monte Carlo noise in them; what that noise alone amounts to is ``diff_mc_se``. Over training seeds, log p̂(x) is
    averaged for each datum, and the variance between seeds, over their number, is added to that of the difference;
    with a single seed the interval says nothing about how training came out.

    Args:
        results: results of :func:`log_marginal` on the same data, by name; a sequence of them is one model trained from
            several seeds.
        reference: the name differences are taken to; by default the first.
        confidence: of the interval ``diff_low`` to ``diff_high``: Student's t, degrees of freedom by Satterthwaite.
        ais: results of :func:`ais` by the same names, for columns ``ais``, ``ais_se`` (Monte Carlo) and ``ais_N``, on
            the same data or the first of them.
        gaps: results of :func:`inference_gaps` by the same names, for columns ``approximation``, ``amortization`` and
            ``gaps_N``, likewise.

    Returns:
        A table with one row per model and the columns ``K``, ``seeds``, ``log_px``, ``se_data``, ``mc_se``, ``seed_sd``
        (of the means, with several seeds), ``diff``, ``diff_se``, ``diff_low``, ``diff_high``, ``diff_mc_se``,
        ``same_model`` (whether p(x, z) is the reference's, so that ``diff`` is the tightness of the bound and nothing
        else), ``neg_elbo``, ``rise`` (L_K - L_K/10), ``jackknife``, ``median_ess``, ``median_khat``, ``khat_high``
        (fraction over the threshold), ``unreliable`` (fraction), ``non_finite``, for discrete likelihoods
        ``bits_per_dim``, and those of ``ais`` and ``gaps``. In nats except ``bits_per_dim``.

    Raises:
        ValueError: no results, an unknown name, results on different data, or a mix of densities and mass functions.
    """
    runs = {name: [r] if isinstance(r, MarginalResult) else list(r) for name, r in results.items()}
    if not runs or not all(runs.values()):
        raise ValueError("results is empty: pass at least one result of log_marginal.")
    reference = next(iter(runs)) if reference is None else reference
    if reference not in runs:
        raise ValueError(f"reference {reference!r} is not among the results: {', '.join(runs)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}.")
    _check(runs, reference)
    base = runs[reference]
    rows = {name: _row(seeds) | _difference(seeds, base, name == reference, confidence) for name, seeds in runs.items()}
    for kind, wanted, extra in (
        ("ais", {"log_px": "ais", "mc_se": "ais_se", "N": "ais_N"}, ais),
        ("gaps", {"approximation": "approximation", "amortization": "amortization", "N": "gaps_N"}, gaps),
    ):
        same_data({name: result.data_hash for name, result in (extra or {}).items()}, kind)
        for name, result in (extra or {}).items():
            if name not in rows:
                raise ValueError(f"{kind} has {name!r}, which is not among the results: {', '.join(rows)}.")
            if not any(_same_marks([result.fingerprint, r.fingerprint]) for r in runs[name]):
                raise ValueError(
                    f"{kind} of {name!r} is of another model than its result, or not on the first of the same data."
                )
            rows[name] |= {column: result.summary()[key] for key, column in wanted.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return table.sort_values("log_px", ascending=False)


def arviz_comparison(results: Mapping[str, Seeds]) -> pd.DataFrame:
    """:func:`compare` in the columns that ``arviz.plot_compare`` reads, of ArviZ 0.x and 1.x.

    ``elpd`` (for ArviZ 0.x also called ``elpd_loo``) is the sum over data of held-out log p̂(x): no cross-validation is
    involved. Differences and ``dse`` are to the best model.

    Args:
        results: as in :func:`compare`.
    """
    best = str(compare(results).index[0])
    table = compare(results, reference=best)
    first = next(iter(results.values()))
    n = len((first if isinstance(first, MarginalResult) else first[0]).pointwise)
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


def _check(runs: Mapping[str, Sequence[MarginalResult]], reference: str) -> None:
    everything = {
        f"{name}[{i}]" if len(seeds) > 1 else name: r for name, seeds in runs.items() for i, r in enumerate(seeds)
    }
    same_data({name: r.data_hash for name, r in everything.items()}, "results", runs[reference][0].data_hash)
    if len({r.discrete for r in everything.values()}) > 1:
        kinds = {name: "mass function" if r.discrete else "density" for name, r in everything.items()}
        raise ValueError(
            f"the results mix a probability mass function and a density, whose log p(x) are not comparable: {kinds}."
        )
    if len({r.num_samples for r in everything.values()}) > 1:
        warnings.warn(
            "the results have different numbers of draws; with more of them a bound is tighter for that reason alone.",
            stacklevel=3,
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
    tenth = [r.pointwise[f"L_{max(r.num_samples // 10, 1)}"].mean(skipna=False) for r in seeds]
    row = {
        "K": int(summaries["K"].iloc[0]),
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
    if seeds[0].discrete:
        row["bits_per_dim"] = summaries["bits_per_dim"].mean(skipna=False)
    return row


def _difference(
    seeds: Sequence[MarginalResult], base: Sequence[MarginalResult], same: bool, confidence: float
) -> dict[str, Any]:
    """The paired difference to the reference, and its interval."""
    if same:
        zeros = dict.fromkeys(("diff", "diff_se", "diff_low", "diff_high", "diff_mc_se"), 0.0)
        return {**zeros, "same_model": True}
    ours, theirs = _mean_over_seeds(seeds), _mean_over_seeds(base)
    difference = ours["log_px"] - theirs["log_px"]
    parts = [(se_over_data(difference) ** 2, len(difference) - 1)]  # variances and their degrees of freedom
    for runs in (seeds, base):
        if len(runs) > 1:
            means = [r.pointwise["log_px"].mean(skipna=False) for r in runs]
            parts.append((float(np.var(means, ddof=1)) / len(runs), len(runs) - 1))
    variance = sum(v for v, _ in parts)
    freedom = variance**2 / sum(v**2 / df for v, df in parts) if variance > 0 else 1.0
    diff, se = difference.mean(skipna=False), math.sqrt(variance)
    half = float(student.ppf(0.5 + confidence / 2.0, freedom)) * se
    marks = [r.fingerprint for r in (*seeds, *base)]
    return {
        "diff": diff,
        "diff_se": se,
        "diff_low": diff - half,
        "diff_high": diff + half,
        "diff_mc_se": combined_se(pd.Series(np.hypot(ours["mc_se"], theirs["mc_se"]))),
        "same_model": _same_marks(marks),
    }


def _same_marks(marks: Sequence[tuple[float, ...]]) -> bool:
    """Whether all are log p(x, z) of one generative model."""
    return bool(marks[0]) and all(len(m) == len(marks[0]) and np.allclose(m, marks[0]) for m in marks)


def _mean_over_seeds(seeds: Sequence[MarginalResult]) -> pd.DataFrame:
    """log p̂(x) of every datum averaged over seeds, and the Monte Carlo error of that."""
    log_px = np.mean([r.pointwise["log_px"].to_numpy() for r in seeds], axis=0)
    mc_se = np.sqrt(np.mean([np.square(r.pointwise["mc_se"].to_numpy()) for r in seeds], axis=0) / len(seeds))
    return pd.DataFrame({"log_px": log_px, "mc_se": mc_se})
