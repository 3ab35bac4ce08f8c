"""Scores of how well single dimensions of a code hold single factors of the data: codes and factors in, numbers out.

Every function takes codes ``(N, D)``, such as posterior means, and integer factors ``(N, F)`` of few values each, as
tensors or arrays, and raises ``ValueError`` for others. A score does not change when dimensions are permuted, or
shifted and rescaled each on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrovae._checks import as_real, require_at_least, require_instance, require_not_negative, shown

_TREES, _LEAF = 20, 5  # of the forest; data in a leaf, so that noise is not learnt by heart


def mutual_information(codes: Any, factors: Any, *, num_bins: int = 20) -> np.ndarray:
    """Plug-in estimates ``(D, F)`` of I(z; v) in nats, with the codes in bins of equal width.

    They are biased upwards, by about (bins in use - 1)(values - 1) / (2 N) nats where code and factor are independent.
    """
    codes, factors = as_arrays(codes, factors)
    require_at_least(2, num_bins=num_bins)
    return np.array([[_information(z, v) for v in factors.T] for z in _binned(codes, num_bins).T])


def mig(codes: Any, factors: Any, *, num_bins: int = 20) -> np.ndarray:
    """The mutual information gap of each factor, Chen et al. (2018, arXiv:1802.04942, sec. 4).

    How much more of the factor the most informative dimension holds than the second: [I(z₁; v) - I(z₂; v)] / H(v). Chen
    et al. integrate over q(z | x) and not over bins, which Locatello et al. (2019, arXiv:1811.12359) put in its place.

    Its maximum is 1 where ``num_bins`` tell all values of every factor apart, else less. For codes that are independent
    of the factors it is at most about [m + 5 √(2 m)] / (2 N H(v)), m = (num_bins - 1)(values - 1).

    Args:
        codes: ``(N, D)``.
        factors: ``(N, F)``.
        num_bins: bins of equal width for each dimension.

    Returns:
        ``(F,)``; the score is their mean.
    """
    codes, factors = as_arrays(codes, factors)
    shared = mutual_information(codes, factors, num_bins=num_bins)
    return _gaps(shared) / np.array([_entropy(_index(v)[0]) for v in factors.T])


def largest_mig(codes: Any, factors: Any, *, num_bins: int = 20) -> float:
    """What the score of :func:`mig` cannot exceed: num_bins bins hold at most log(num_bins) nats of a factor."""
    _, factors = as_arrays(codes, factors)
    return float(np.mean([min(1.0, np.log(num_bins) / _entropy(_index(v)[0])) for v in factors.T]))


def sap(codes: Any, factors: Any, *, categorical: Sequence[int] = ()) -> np.ndarray:
    """The separated attribute predictability of each factor, Kumar et al. (2018, arXiv:1711.00848, sec. 3).

    How much better the best dimension predicts it than the second: by R² of a line; for a categorical factor by the
    balanced accuracy, on the data fitted, of a classifier that puts as many thresholds on the dimension as tell the
    values apart.

    Its maximum is 1; for a categorical factor of V values 1 - 1/V, since the second dimension guesses one in V. For
    codes that are independent of the factors, R² has mean 1/N, and so the score of an ordered factor is of order 1/N.

    Args:
        codes: ``(N, D)``.
        factors: ``(N, F)``.
        categorical: columns of ``factors`` whose order has no meaning.

    Returns:
        ``(F,)``; the score is their mean.
    """
    codes, factors = as_arrays(codes, factors)
    check_categorical(categorical, factors)
    scores = np.empty((codes.shape[1], factors.shape[1]))
    for j, v in enumerate(factors.T):
        for i, z in enumerate(codes.T):
            scores[i, j] = _threshold_accuracy(z, v) if j in categorical else _r_squared(z, v)
    return _gaps(scores)


def check_categorical(categorical: Any, factors: np.ndarray) -> None:
    """Raise a ``ValueError`` unless these are numbers of columns of ``factors``."""
    require_instance(tuple | list, categorical=categorical)
    for j in categorical:
        if isinstance(j, bool) or not isinstance(j, (int, np.integer)) or j not in range(factors.shape[1]):
            raise ValueError(f"categorical must name columns 0 to {factors.shape[1] - 1} of factors; got {shown(j)}.")


@dataclass(frozen=True)
class DCI:
    """Disentanglement, completeness and informativeness; see :func:`dci`.

    Attributes:
        importance: ``(D, F)``; a column sums to 1, or to 0 where the factor could not be predicted at all.
        by_dimension: disentanglement of each dimension ``(D,)``.
        by_factor: completeness of each factor ``(F,)``.
        accuracy: of each factor's prediction on held-out data ``(F,)``.
    """

    importance: np.ndarray
    by_dimension: np.ndarray
    by_factor: np.ndarray
    accuracy: np.ndarray

    @property
    def disentanglement(self) -> float:
        """The mean over dimensions, weighted by their importance."""
        weights = self.importance.sum(1)
        return float(self.by_dimension @ weights / weights.sum()) if weights.sum() > 0 else 0.0

    @property
    def completeness(self) -> float:
        """The mean over factors."""
        return float(self.by_factor.mean())

    @property
    def informativeness(self) -> float:
        """The mean accuracy over factors."""
        return float(self.accuracy.mean())


def dci(codes: Any, factors: Any, *, seed: int = 0) -> DCI:
    """Disentanglement, completeness, informativeness: Eastwood & Williams (2018, "A framework for the quantitative
    evaluation of disentangled representations", ICLR).

    A random forest (scikit-learn; 20 trees that may split on every dimension) predicts each factor from the codes of
    half of the data. The importance of a dimension for a factor is its share of what the forest's splits gain. A
    dimension is disentangled as far as its importances point to one factor (1 minus their entropy over factors, in
    units of log F); a factor is completely represented as far as they come from one dimension (likewise, log D).
    Informativeness is the accuracy on the other half: Eastwood & Williams report an error instead.

    All three have the maximum 1. For codes that are independent of the factors, importances are equal up to a relative
    error ε, disentanglement is about ε² / (2 log F), and informativeness is that of guessing the commonest value.

    Args:
        codes: ``(N, D)``.
        factors: ``(N, F)``.
        seed: seed of the halves and the forests.
    """
    from sklearn.ensemble import RandomForestClassifier  # here, because it takes a second to import

    codes, factors = as_arrays(codes, factors)
    require_at_least(0, seed=seed)
    order = np.random.default_rng(seed).permutation(len(codes))
    fitted, held_out = np.array_split(order, 2)
    importance, accuracy = np.zeros((codes.shape[1], factors.shape[1])), np.zeros(factors.shape[1])
    for j, v in enumerate(factors.T):
        forest = RandomForestClassifier(_TREES, max_features=None, min_samples_leaf=_LEAF, random_state=seed)
        forest.fit(codes[fitted], v[fitted])
        importance[:, j] = forest.feature_importances_
        accuracy[j] = forest.score(codes[held_out], v[held_out])
    return DCI(importance, _concentration(importance), _concentration(importance.T), accuracy)


def factor_vae_score(
    codes: Any,
    factors: Any,
    *,
    num_votes: int = 800,
    num_fixed: int = 64,
    min_variance: float = 0.0,
    seed: int = 0,
) -> float:
    """The FactorVAE score, Kim & Mnih (2018, arXiv:1802.05983, sec. 4).

    A vote fixes one factor, draws data that share a value of it, and names the dimension whose variance among them is
    the smallest share of its variance over all data. The score is the accuracy on new votes of guessing the factor from
    the dimension named, by majority of as many votes before.

    Its maximum is 1. For codes that are independent of the factors it is 1/F, with a standard error of
    √[(1/F)(1 - 1/F) / num_votes].

    Args:
        codes: ``(N, D)``.
        factors: ``(N, F)``, each with at least two values.
        num_votes: votes to guess from, and again to score.
        num_fixed: data drawn for a vote, with replacement.
        min_variance: dimensions whose variance over all data is not above this have no vote.
        seed: seed of the votes.
    """
    codes, factors = as_arrays(codes, factors)
    require_at_least(1, num_votes=num_votes)
    require_at_least(2, num_fixed=num_fixed)
    require_not_negative(min_variance=min_variance)
    require_at_least(0, seed=seed)
    variance = codes.var(0)
    active = variance > min_variance
    num_factors = factors.shape[1]
    if not active.any():
        return 1.0 / num_factors
    scaled = codes[:, active] / np.sqrt(variance[active])
    generator = np.random.default_rng(seed)
    rows = [[np.flatnonzero(index == value) for value in range(n)] for index, n in map(_index, factors.T)]
    votes = np.zeros((2, scaled.shape[1], num_factors))
    for half in votes:
        for _ in range(num_votes):
            factor = generator.integers(num_factors)
            alike = rows[factor][generator.integers(len(rows[factor]))]
            drawn = generator.choice(alike, num_fixed)
            half[scaled[drawn].var(0).argmin(), factor] += 1
    guess = votes[0].argmax(1)
    return float(votes[1][np.arange(len(guess)), guess].sum() / num_votes)


def as_arrays(codes: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes in float64 and factors as integers, checked.

    Raises:
        ValueError: other shapes, lengths that differ, fewer than 4 data, codes that are not finite, factors that are no
            integers or have a single value.
    """
    given = {"codes": codes, "factors": factors}
    z, v = (as_real(value, name).detach().cpu().double().numpy() for name, value in given.items())
    for name, array in {"codes": z, "factors": v}.items():
        if array.ndim != 2 or not array.shape[1]:
            raise ValueError(f"{name} must have shape (N, {'D' if name == 'codes' else 'F'}); got {array.shape}.")
    if len(z) != len(v):
        raise ValueError(f"codes have {len(z)} rows and factors {len(v)}; they must be of the same data.")
    if len(z) < 4:
        raise ValueError(f"codes hold {len(z)} data; at least 4 are needed, and hundreds to tell anything.")
    for name, array in {"codes": z, "factors": v}.items():
        if not (abs(array) <= np.finfo(np.float32).max).all():
            raise ValueError(f"{name} hold NaN or infinite values, or some too large for float32.")
    if not (v == np.round(v)).all():
        raise ValueError("factors must be integers, e.g. np.unique(v, return_inverse=True)[1] for a column v.")
    for j, column in enumerate(v.T):
        if (column == column[0]).all():
            raise ValueError(f"factors must vary: factor {j} has one value, {column[0]:g}, in all data: leave it out.")
    return z, v.astype(np.int64)


def _index(v: np.ndarray) -> tuple[np.ndarray, int]:
    """Values counted from 0, and how many there are."""
    values, index = np.unique(v, return_inverse=True)
    return index, len(values)


def _binned(codes: np.ndarray, num_bins: int) -> np.ndarray:
    low, high = codes.min(0), codes.max(0)
    width = np.where(high > low, high - low, 1.0)
    return np.minimum((num_bins * ((codes - low) / width)).astype(int), num_bins - 1)


def _entropy(index: np.ndarray) -> float:
    p = np.bincount(index) / len(index)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def _information(z: np.ndarray, v: np.ndarray) -> float:
    (a, _), (b, n) = _index(z), _index(v)
    return _entropy(a) + _entropy(b) - _entropy(a * n + b)


def _gaps(scores: np.ndarray) -> np.ndarray:
    """Best minus second best in each column; against zero where there is but one row."""
    if len(scores) == 1:
        scores = np.concatenate([scores, np.zeros_like(scores)])
    ordered = np.sort(scores, axis=0)
    return ordered[-1] - ordered[-2]


def _r_squared(z: np.ndarray, v: np.ndarray) -> float:
    spread = z.std() * v.std()
    return float(np.mean((z - z.mean()) * (v - v.mean())) / spread) ** 2 if spread > 0 else 0.0


def _threshold_accuracy(z: np.ndarray, v: np.ndarray) -> float:
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_leaf_nodes=_index(v)[1], class_weight="balanced", random_state=0)
    column = z.reshape(-1, 1)
    return float(balanced_accuracy_score(v, tree.fit(column, v).predict(column)))


def _concentration(importance: np.ndarray) -> np.ndarray:
    """Of each row: 1 minus the entropy of its shares, in units of that of equal shares; 0 for a row of zeros."""
    if importance.shape[1] == 1:
        return np.ones(len(importance))
    total = importance.sum(1, keepdims=True)
    p = np.where(total > 0, importance / np.where(total > 0, total, 1.0), 1.0 / importance.shape[1])
    logs = np.log(np.where(p > 0, p, 1.0))
    return np.maximum(1 + (p * logs).sum(1) / np.log(importance.shape[1]), 0.0)
