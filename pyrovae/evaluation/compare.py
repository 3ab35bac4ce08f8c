"""Comparisons of models on the same data."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from pyrovae.evaluation.result import MarginalResult


def compare(results: Mapping[str, MarginalResult], *, reference: str | None = None) -> pd.DataFrame:
    """Models by log p(x), best first, with paired differences to a reference.

    Differences are taken datum by datum, so what the data have in common cancels: ``diff_se`` is far smaller
    than ``se_data``. It is the standard error over data of the estimated differences and thus contains the
    Monte Carlo noise in them; what that noise alone amounts to is ``diff_mc_se``.

    Args:
        results: results of :func:`log_marginal` on the same data, by name.
        reference: the name differences are taken to; by default the first.

    Returns:
        A table with one row per model and the columns ``K``, ``log_px``, ``se_data``, ``mc_se``, ``diff``, ``diff_se``,
        ``diff_mc_se``, ``elbo``, ``median_ess``, ``median_khat``, ``khat_high`` (fraction over the threshold),
        ``non_finite`` and, for discrete likelihoods, ``bits_per_dim``. In nats except the last.

    Raises:
        ValueError: no results, an unknown reference, or results on different data.
    """
    if not results:
        raise ValueError("results is empty: pass at least one result of log_marginal.")
    reference = next(iter(results)) if reference is None else reference
    if reference not in results:
        raise ValueError(f"reference {reference!r} is not among the results: {', '.join(results)}.")
    base = results[reference]
    rows = {}
    for name, result in results.items():
        if result.data_hash != base.data_hash:
            raise ValueError(
                f"{name!r} was evaluated on other data than {reference!r} (content {result.data_hash}, "
                f"{base.data_hash}): a paired comparison needs the same test set with the same binarisation."
            )
        if result.discrete != base.discrete:
            raise ValueError(
                f"{name!r} and {reference!r} mix a probability mass function and a density: their log p(x) "
                f"are not comparable."
            )
        row = result.summary()
        difference = result.pointwise["log_px"] - base.pointwise["log_px"]
        noise = np.hypot(result.pointwise["mc_se"], base.pointwise["mc_se"])
        n = len(difference)
        same = name == reference
        row["diff"] = 0.0 if same else difference.mean(skipna=False)
        row["diff_se"] = 0.0 if same else difference.std(ddof=1, skipna=False) / math.sqrt(n)
        row["diff_mc_se"] = 0.0 if same else float(np.sqrt(np.square(noise).sum())) / n
        rows[name] = row
    table = pd.DataFrame(rows).T
    columns = [
        *("K", "log_px", "se_data", "mc_se", "diff", "diff_se", "diff_mc_se", "elbo"),
        *("median_ess", "median_khat", "khat_high", "non_finite"),
        *(["bits_per_dim"] if base.discrete else []),
    ]
    table = table[columns].astype(float).astype({"K": int, "non_finite": int})
    return table.sort_values("log_px", ascending=False).rename_axis("model")
