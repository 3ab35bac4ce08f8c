"""The paired difference of two means of log p(x) over data and training seeds: its variance and its intervals.

An estimate of log p(x) is, for seed s and datum i, μ + a_s + b_i + c_si: what the seed does, the datum, and both
together, the last with the Monte Carlo noise in it. Its mean over S seeds and N data has the variance
σ_a²/S + σ_b²/N + σ_c²/(S N). Let D_i be the difference of two models at datum i, each averaged over its seeds. Then

- V = Var(D)/N estimates what the data *and* the interaction of both models contribute;
- M, the variance between the means of a model's seeds, estimates σ_a² + σ_c²/N, and E, the interaction's mean square
  over N, σ_c²/N. Hence V + Σ (M - E)/S over both models has every part once; a negative sum is taken for zero.

M has few degrees of freedom f and V many, so no single Student quantile fits: by Satterthwaite's freedom, itself read
off few seeds, three against one cover as little as 89 % where seeds and data count alike. Instead the quantiles of the
parts are added in quadrature, as where two variances are independent (Howe 1974, JASA 69:789, in the form of Zou &
Donner 2008, Stat. Med. 27:1693): half² = V t_N² + max(0, Σ M/S t_f² - Σ E/S t_N t_f), f by Welch over the two models.
What is subtracted must not be scaled by t_f² as M is (too narrow where M - E < 0 by luck) nor by t_N² (too wide without
an effect of seeds); with the geometric mean intervals cover as they should: ``benchmarks/coverage.py``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from jaxtyping import Float

FEWEST = 3  # seeds whose variance may stand for that of a model with one
_DRAWS = 2**14  # of the largest of several normal differences
_POWER = 0.8  # with which a difference to be resolved is found
_MOST = 2**40  # of draws, data or seeds that are worth naming

Values = Float[np.ndarray, "seeds data"]


@dataclass(frozen=True)
class Seeds:
    """How the means over data differ between training seeds, and what that contributes to the variance of their mean.

    Attributes:
        between: M, their variance.
        interaction: E, what of it the interaction of seeds and data explains.
        freedom: degrees of freedom of M.
        share: 1/S, by which M and E enter; 1 + 1/S where they stand for a model with one seed, too.
        of_reference: whether they were found from the reference's seeds.
    """

    between: float
    interaction: float
    freedom: int
    share: float
    of_reference: bool = False

    @classmethod
    def of(cls, values: Values, *, of_reference: bool = False) -> Self:
        """From the values of two seeds or more."""
        seeds, n = values.shape
        means = values.mean(axis=1)
        rest = values - means[:, None] - values.mean(axis=0) + means.mean()
        interaction = float(np.square(rest).sum() / ((seeds - 1) * (n - 1)) / n) if n > 1 else math.nan
        return cls(float(means.var(ddof=1)), interaction, seeds - 1, 1.0 / seeds, of_reference)


@dataclass(frozen=True)
class Difference:
    """A difference of two means and where its variance comes from.

    Attributes:
        values: D_i, one per datum.
        claim: what the interval speaks of: ``"these models"`` as they are, or ``"training"``, which gives others with
            other seeds; and under which assumption, or why there is none.
        seeds: the seeds' part of the variance: of the model and of the reference, or one for both.
        common: how much of it is the reference's.
        known: whether the variance can be estimated.
    """

    values: Float[np.ndarray, " data"]
    claim: str
    seeds: tuple[Seeds, ...] = ()
    common: float = 0.0
    known: bool = True

    @classmethod
    def of(cls, ours: Values, theirs: Float[np.ndarray, "_ data"], *, together: bool, pool_seeds: bool) -> Self:
        """The difference of two models.

        Args:
            ours: log p̂(x), seeds × data.
            theirs: that of the reference.
            together: whether seed s of both is one model, trained once: then the difference is taken seed by seed.
            pool_seeds: whether a model with one seed is taken to vary over seeds as the other, which has several.
        """
        with np.errstate(invalid="ignore"):
            difference = cls(ours.mean(axis=0) - theirs.mean(axis=0), "training")
            if together:
                return replace(difference, seeds=(Seeds.of(ours - theirs),))
            match len(ours), len(theirs):
                case 1, 1:
                    return replace(difference, claim="these models")
                case (1, several) | (several, 1):
                    if not pool_seeds or several < FEWEST:
                        return replace(difference, claim=f"training: unknown, 1 seed against {several}", known=False)
                    found = Seeds.of(ours) if several == len(ours) else Seeds.of(theirs, of_reference=True)
                    both, base = replace(found, share=1.0 + found.share), replace(found, share=1.0 / len(theirs))
                    return replace(
                        difference, claim="training, if both vary alike", seeds=(both,), common=_variance([base])
                    )
            seeds = Seeds.of(ours), Seeds.of(theirs, of_reference=True)
            return replace(difference, seeds=seeds, common=_variance(seeds[1:]))

    @property
    def data(self) -> float:
        """Variance of the mean from having so many data, the interaction with seeds included."""
        with np.errstate(invalid="ignore", divide="ignore"):
            n = len(self.values)
            return float(self.values.var(ddof=1) / n) if n > 1 and self.known else math.nan

    @property
    def se(self) -> float:
        """Standard error of the mean difference."""
        return math.sqrt(self.data + _variance(self.seeds))

    def half_width(self, confidence: float) -> float:
        """Of the two-sided interval."""
        return _half_width(confidence, self.data, len(self.values), self.seeds)

    def needed(self, size: float, confidence: float, draws: int, mc_variance: float) -> tuple[float, float, float]:
        """Draws, data or seeds, each with the others as they are, by which a difference of this ``size`` is found.

        Found is: the interval excludes zero with a probability of 80 %, for which the sum of the quantiles of
        ``confidence`` and of that probability times the standard error must not exceed ``size``. Of a variance,
        what draws contribute goes with 1/K, what data and the interaction do with 1/N, and what seeds and the
        interaction do with 1/S; seeds are those of either model. ``inf`` where no number is enough.
        """
        n, seeds = len(self.values), self.seeds
        noise = min(mc_variance, self.data)
        each = seeds * 2 if len(seeds) == 1 and seeds[0].share > 1.0 else seeds  # one variance for both models
        now = max((s.freedom for s in seeds), default=0) + 1
        interaction = sum(s.interaction * s.share for s in seeds)
        shares = sum(s.interaction for s in each)

        def found(data: float, n: int, parts: tuple[Seeds, ...]) -> bool:
            return sum(_half_width(c, data, n, parts) for c in (confidence, 2.0 * _POWER - 1.0)) <= size

        def of_draws(k: int) -> bool:
            return found(self.data - noise * (1.0 - draws / k), n, seeds)

        def of_data(m: int) -> bool:
            less = tuple(
                replace(s, between=s.between - s.interaction * (1.0 - n / m), interaction=s.interaction * n / m)
                for s in seeds
            )
            return found(self.data * n / m, m, less)

        def of_seeds(s: int) -> bool:
            more = tuple(replace(part, freedom=s - 1, share=1.0 / s) for part in each)
            return found(max(self.data - interaction, 0.0) + shares / s, n, more)

        if math.isnan(self.se):
            return math.nan, math.nan, math.nan
        return (
            _smallest(of_draws, draws),
            _smallest(of_data, n),
            _smallest(of_seeds, now) if seeds else math.nan,
        )


def simultaneous(differences: Sequence[Difference], confidence: float) -> float:
    """The confidence of single intervals at which all of them together have ``confidence``.

    Errors of differences to one reference are correlated: over data as is found, and by the reference's seeds, which
    give all of them the same error and the same estimate of its variance. Their joint distribution under normal effects
    of the estimated sizes is simulated (Dunnett 1955, JASA 50:1096, for equal variances without data), and every
    interval given the same confidence (Beran 1988, JASA 83:679).

    Args:
        differences: to the same reference.
        confidence: of all intervals together.
    """
    usable = [d for d in differences if 0.0 < d.se < math.inf]
    if len(usable) < 2:
        return confidence
    bound = confidence ** (1.0 / len(usable))  # Šidák 1967, JASA 62:626: enough whatever the correlations
    if (1.0 - confidence) * _DRAWS < 100.0:
        return bound
    rng = np.random.default_rng(0)
    centred = np.stack([d.values - d.values.mean() for d in usable])
    values, vectors = np.linalg.eigh(centred @ centred.T / centred.shape[1] ** 2)
    errors = rng.standard_normal((_DRAWS, len(usable))) @ (vectors * np.sqrt(values.clip(min=0.0))).T
    reference = rng.standard_normal(_DRAWS)
    scatter: dict[int, np.ndarray] = {}  # of the variance that the reference's seeds give, the same for all
    for j, d in enumerate(usable):
        variance = np.full(_DRAWS, d.data)
        for s in d.seeds:
            if not s.of_reference or s.freedom not in scatter:
                found = rng.chisquare(s.freedom, _DRAWS) / s.freedom
                scatter |= {s.freedom: found} if s.of_reference else {}
            variance += _variance([s]) * (scatter[s.freedom] if s.of_reference else found)
        own = max(_variance(d.seeds) - d.common, 0.0)
        errors[:, j] += math.sqrt(d.common) * reference + math.sqrt(own) * rng.standard_normal(_DRAWS)
        order = (np.square(errors[:, j]) / variance).argsort()
        errors[order, j] = np.arange(1, _DRAWS + 1) / _DRAWS
    return min(float(np.quantile(errors.max(axis=1), confidence)), bound)


def _variance(seeds: Sequence[Seeds]) -> float:
    """The seeds' part of the variance of a difference."""
    return max(sum(s.share * (s.between - s.interaction) for s in seeds), 0.0)


def _half_width(confidence: float, data: float, n: int, seeds: Sequence[Seeds]) -> float:
    """Of the interval of a difference over ``n`` data, ``data`` being their part of its variance."""
    from scipy.stats import t as student  # which takes longer to import than all else here

    of_data = float(student.ppf(0.5 + confidence / 2.0, n - 1))
    between = sum(s.share * s.between for s in seeds)
    if not between > 0.0:
        return of_data * math.sqrt(data + between)  # which may be NaN
    freedom = between**2 / sum((s.share * s.between) ** 2 / s.freedom for s in seeds)
    of_seeds = float(student.ppf(0.5 + confidence / 2.0, freedom))
    interaction = sum(s.share * s.interaction for s in seeds)
    return math.sqrt(data * of_data**2 + max(between * of_seeds**2 - interaction * of_seeds * of_data, 0.0))


def _smallest(enough: Callable[[int], bool], now: int) -> float:
    """The smallest number from ``now`` on that is enough."""
    low, high = now - 1, now
    while not enough(high):
        if high > _MOST:
            return math.inf
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
