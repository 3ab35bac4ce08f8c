"""Which estimates of log p(x) may be believed, and how far: rules set by ``python -m benchmarks.calibration``."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from pyrovae._checks import require_at_least, require_columns, require_flag, require_instance, shown
from pyrovae.evaluation.marginal._tail import tail_length

FEW_DRAWS = 20  # up to here the tail that k̂ is fitted to has fewer than five weights
FEW_CHAINS = 10  # below, ± 1.96 standard errors cover less than 90 % even of equal normal chains
MAJORITY = 0.5  # fraction of flagged data from which on a mean is theirs
_MIN_ESS, _MIN_SHARE = 40.0, 0.6  # effective draws needed, or that share of few: below, L_K is biased by its error
_MIN_CHAINS = 5.0  # effective ones
_MIN_ACCEPTANCE = 0.3
_ROUNDING = 1e-6  # squared coefficient of variation of weights that are equal
_KHAT_LIMIT = 0.85  # of 1 - 1/log10 K
_UNBOUNDED = 0.9  # k̂ over which L_K says nothing of how far below log p(x) it is
_UNBOUNDED_VARIANCE = 9.0  # the same of Var(log w) over chains
TOLERATED = 0.05  # fraction of such data that a mean may hold
_LEFT = 2.0  # times what the last nine tenths of the draws brought: at most what is left
_LEFT_OF_CHAINS = 2.5  # times the jackknife's bias, which is then too small
_ERRORS = 2.5  # standard errors: 1.96 and some, because mc_se itself tends to be a little small
_STOPPING = 0.15  # of mc_se, by which stopping at a target biases at most (measured: .10 to .15)
_TOO_SMALL = 2.0  # by which factor mc_se may be too small where it is not to be believed


def judge(
    pointwise: pd.DataFrame, num_samples: int, *, exact: bool = False, bound: np.ndarray | None = None
) -> pd.DataFrame:
    """Whether the interval ``log_px`` ± 1.96 ``mc_se`` of each datum can be believed, and if not why.

    The reasons are: ``non-finite`` (a weight was NaN or infinite, or all were zero), ``few draws`` (20 or fewer, which
    have no tail to judge by), ``khat`` (over :func:`khat_limit` by more than its own error, or undefined), ``ess``
    (fewer than 40 effective draws, or .6 K of few), and ``bound`` (the guide leaves out what the prior has: all its
    mass is on one value of a discrete latent, or on a part of the reals). Weights that are equal, but for rounding,
    have neither tail nor error.

    One k̂ is noisy, and too low where the largest weights were by chance not drawn, so just where ``log_px`` is too low
    too: data selected by it would be the underestimated ones. Hence :func:`shrunk`.

    Args:
        pointwise: with the columns ``log_px``, ``ess``, ``khat`` and ``non_finite``; ``draws`` where they differ.
        num_samples: K, where there is no column ``draws``.
        exact: whether there are no latents, so that one draw is enough.
        bound: for every datum whether it is a bound, whatever its weights look like.

    Returns:
        The columns ``reliable`` and ``reason``.
    """
    require_columns(("log_px", "ess", "khat", "non_finite"), pointwise=pointwise)
    require_at_least(1, num_samples=num_samples)
    require_flag(exact=exact)
    if bound is not None and not isinstance(bound, bool | np.bool_):
        require_instance(np.ndarray, bound=bound)
        if bound.dtype != bool or bound.shape != (len(pointwise),):
            raise ValueError(f"bound must be one flag for each of {len(pointwise)} data; got {shown(bound)}.")
    p = pointwise
    draws = _draws(p, num_samples)
    few = draws <= FEW_DRAWS
    khat, error = _shrunk_khat(p, draws)
    equal = (p["ess"] > (1.0 - _ROUNDING) * draws) & ((draws > 1) | exact)
    found = {
        "non-finite": (p["non_finite"] > 0) | ~np.isfinite(p["log_px"]),
        "few draws": few & ~equal,
        "khat": ~few & ~equal & ~(khat <= khat_limit(draws) + error),
        "ess": ~few & ~equal & ~(p["ess"] >= np.minimum(_MIN_ESS, _MIN_SHARE * draws)),
        "bound": pd.Series(False if bound is None else bound, p.index),
    }
    return describe(found)


def khat_limit(draws: np.ndarray) -> np.ndarray:
    """k̂ up to which an interval of K draws covers in nine cases of ten: 0.85 (1 - 1/log10 K), at most 0.65.

    min(1 - 1/log10 K, 0.7) of Vehtari et al. (2024) says where a mean still converges in practice; its stated error
    fails sooner.
    """
    return np.minimum(_KHAT_LIMIT * (1.0 - 1.0 / np.log10(np.maximum(draws, 11.0))), 0.65)


def judge_chains(pointwise: pd.DataFrame, num_chains: int) -> pd.DataFrame:
    """Whether the interval ``log_px`` ± 1.96 ``mc_se`` of C annealed chains can be believed, datum by datum.

    The reasons are: ``non-finite``, ``few chains`` (fewer than 10), ``variance`` (Var(log w) over ½ ln C - 0.6 by more
    than its own error, drawn towards the mean over data by :func:`shrunk`: take more temperatures), ``ess`` (fewer than
    5 effective chains, of however many), ``acceptance`` (under 0.3).

    Args:
        pointwise: with the columns ``log_px``, ``ess``, ``log_weight_variance``, ``acceptance`` and ``non_finite``.
        num_chains: C.

    Returns:
        The columns ``reliable`` and ``reason``.
    """
    require_columns(("log_px", "ess", "log_weight_variance", "acceptance", "non_finite"), pointwise=pointwise)
    require_at_least(1, num_chains=num_chains)
    p = pointwise
    few = num_chains < FEW_CHAINS
    log_variance, error = _shrunk_log_variance(p, num_chains)
    found = {
        "non-finite": (p["non_finite"] > 0) | ~np.isfinite(p["log_px"]),
        "few chains": pd.Series(few, p.index),
        "variance": (not few) & ~(np.exp(log_variance - error) <= 0.5 * math.log(num_chains) - 0.6),
        "ess": (not few) & ~(p["ess"] >= _MIN_CHAINS),
        "acceptance": ~(p["acceptance"] >= _MIN_ACCEPTANCE),
    }
    return describe(found)


def mean_error(pointwise: pd.DataFrame, num_samples: int) -> float:
    """How far the mean of ``log_px`` over data may be from that of log p(x), in nats, as the draws can tell.

    2.5 standard errors of the draws, plus the bias: the jackknife's of reliable data, and for flagged ones, whose
    ``mc_se`` is doubled, twice what the last nine tenths of their draws brought on average (``rise``); .15 of
    ``mc_se`` where draws stopped at a target. Data of a k̂ over
    0.9, and bounds, may lie any distance below; where they are more than one in twenty the error is infinite. It is NaN
    of few draws and of values that are not finite.
    """
    require_columns(("log_px", "mc_se", "khat", "rise", "jackknife", "reliable", "reason"), pointwise=pointwise)
    require_at_least(1, num_samples=num_samples)
    p, draws = pointwise, _draws(pointwise, num_samples)
    if p["reason"].str.contains("non-finite|few draws").any():
        return math.nan
    flagged = ~p["reliable"].to_numpy(dtype=bool)
    khat, _ = _shrunk_khat(p, draws)
    none = p["reason"].str.contains("bound").to_numpy()
    if (flagged & (none | ~(khat <= _UNBOUNDED))).mean() > TOLERATED:
        return math.inf
    left = np.where(flagged, _LEFT * p["rise"], p["jackknife"] - p["log_px"])
    stopping = _STOPPING * p["mc_se"].mean() if np.ptp(draws) > 0 else 0.0
    return _total(p["mc_se"] * np.where(flagged, _TOO_SMALL, 1.0), left, flagged) + stopping


def mean_error_of_chains(pointwise: pd.DataFrame, num_chains: int) -> float:
    """:func:`mean_error` of annealed chains. The bias is the jackknife's, 2.5 times that for flagged data; it is
    infinite where Var(log w) is over 9 for more than one datum in twenty.
    """
    require_columns(("mc_se", "bias", "log_weight_variance", "reliable", "reason"), pointwise=pointwise)
    require_at_least(1, num_chains=num_chains)
    p = pointwise
    if p["reason"].str.contains("non-finite|few chains").any():
        return math.nan
    flagged = ~p["reliable"].to_numpy(dtype=bool)
    log_variance, _ = _shrunk_log_variance(p, num_chains)
    if (flagged & ~(np.exp(log_variance) <= _UNBOUNDED_VARIANCE)).mean() > TOLERATED:
        return math.inf
    return _total(p["mc_se"], -p["bias"] * np.where(flagged, _LEFT_OF_CHAINS, 1.0), flagged)


def verdict(pointwise: pd.DataFrame, error: float, name: str, remedy: str) -> str:
    """One or two sentences: how far the mean can be off, and what was found against single data.

    Args:
        pointwise: with the columns ``log_px``, ``reliable`` and ``reason``.
        error: of :func:`mean_error`.
        name: of the estimate.
        remedy: what to do where it cannot be relied on.
    """
    bad = pointwise.loc[~pointwise["reliable"], "reason"]
    count, n = len(bad), len(pointwise)
    reasons = bad.str.split(", ").explode().value_counts()
    why = f" ({', '.join(f'{reason}: {number}' for reason, number in reasons.items())})" if count else ""
    found = f"{count} of {n} data {'is' if count == 1 else 'are'} flagged{why}"
    if reasons.get("bound", 0) > MAJORITY * n:
        return f"Bound: the guide leaves out what the prior has, so {name} is below log p(x), and no draws say how far."
    if is_reliable(pointwise, error):
        if error == 0:
            return f"Mean exact: {found}."
        data = se_over_data(pointwise["log_px"])
        others = f"; having these {n} data and no others is worth ± {1.96 * data:.2g}" if n > 1 else ""
        return f"Mean good to about {error:.1g} nats: {found}{others}."
    size = f" by up to about {error:.1g} nats" if math.isfinite(error) else ""
    return f"Unreliable: {found}. {name} can lie below log p(x){size or ', nobody knows how far'}: {remedy}."


def is_reliable(pointwise: pd.DataFrame, error: float) -> bool:
    """Whether the mean has an ``error`` to state, and is not one of mostly flagged data."""
    return math.isfinite(error) and bool((~pointwise["reliable"]).mean() <= MAJORITY)


def shrunk(values: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of known sampling variance, drawn towards their mean as far as that variance explains their spread
    (empirical Bayes; Efron & Morris 1975, JASA 70), and the standard deviation that is left. What is not finite stays.
    """
    finite = np.isfinite(values)
    out, error = values.astype(float), np.sqrt(variance)
    if finite.sum() > 1:
        v, s2 = values[finite], variance[finite]
        between = max(float(v.var(ddof=1) - s2.mean()), 0.0)
        weight = between / (between + s2)
        out[finite] = weight * v + (1.0 - weight) * v.mean()
        error[finite] = np.sqrt(weight * s2 + (1.0 - weight) ** 2 * s2 / len(v))
    return out, error


def describe(found: Mapping[str, pd.Series]) -> pd.DataFrame:
    """The columns ``reliable`` and ``reason`` (names joined by commas) from what was found against each datum."""
    names = list(map(str, found))
    # A number for each combination of reasons, of which there are few, however many data there are.
    codes = sum((np.asarray(speaks, dtype=np.uint8) << i for i, speaks in enumerate(found.values())), np.uint8(0))
    reasons = [", ".join(name for i, name in enumerate(names) if code >> i & 1) for code in range(1 << len(names))]
    index = found["non-finite"].index
    return pd.DataFrame({"reliable": codes == 0, "reason": np.array(reasons, dtype=object)[codes]}, index=index)


def se_over_data(values: pd.Series) -> float:
    """Standard error of the mean from having so many data."""
    with np.errstate(invalid="ignore"):  # of infinite values it is NaN
        return float(values.std(ddof=1, skipna=False) / math.sqrt(len(values)))


def combined_se(per_datum: pd.Series) -> float:
    """Standard error of a mean of independent estimates."""
    return float(np.sqrt(np.square(per_datum.to_numpy()).sum()) / len(per_datum))


def _draws(pointwise: pd.DataFrame, num_samples: int) -> np.ndarray:
    draws = pointwise["draws"] if "draws" in pointwise else pd.Series(num_samples, pointwise.index)
    return draws.to_numpy(dtype=float)


def _shrunk_khat(pointwise: pd.DataFrame, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k̂ by :func:`shrunk`. Its sampling variance is (1 + k)²/M of a tail of M weights, less what the prior takes."""
    khat = pointwise["khat"].to_numpy(dtype=float)
    finite = khat[np.isfinite(khat)]
    mean = max(float(finite.mean()), 0.0) if len(finite) else 0.0
    counts, which = np.unique(draws, return_inverse=True)
    tail = np.array([max(tail_length(int(k)), 1) for k in counts], dtype=float)[which]
    return shrunk(khat, np.square((1.0 + mean) * tail / (tail + 10.0)) / tail)


def _shrunk_log_variance(pointwise: pd.DataFrame, num_chains: int) -> tuple[np.ndarray, np.ndarray]:
    """log Var(log w) by :func:`shrunk`. Its sampling variance is that of the logarithm of a χ² of C - 1."""
    trigamma = float(torch.special.polygamma(1, torch.tensor((num_chains - 1) / 2, dtype=torch.float64, device="cpu")))
    with np.errstate(divide="ignore"):
        values = np.log(pointwise["log_weight_variance"].to_numpy(dtype=float))
    return shrunk(values, np.full(len(values), trigamma))


def _total(mc_se: pd.Series, left: np.ndarray | pd.Series, flagged: np.ndarray) -> float:
    """2.5 standard errors of a mean, and the bias of flagged and other data: each at least 0, whatever noise says."""
    left = np.asarray(left, dtype=float)
    bias = sum(max(float(left[which].sum()), 0.0) for which in (flagged, ~flagged)) / len(left)
    return _ERRORS * combined_se(mc_se) + bias
